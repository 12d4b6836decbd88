// HM-LSTM: all layers over all steps, forward and backward.
//
// The equations, and what is kept between the passes, stand in seqpyramid/kernels/hm_lstm.py. The batch is cut into
// slices; a thread takes a slice through all steps without meeting another thread, so that h, c and z of the slice
// stay in its cache. At one step, a layer
//
//   1. lists the slice's rows (sequences) that go on, ordered by their operations,
//   2. gathers their input rows X = [h, 1, z_own h_above, z_below h_below]; the 1 meets b,
//   3. makes the four gates of a block of units, and from them c and h, while they are in the nearest cache; three where
//      many rows are in FLUSH, whose c = i g needs no f unless something learns from what UPDATE would have made of it,
//   4. makes z~ by one product a row.
//
// Then 5. the output module reads h of all layers (output_module.h), where it is wanted: h itself then need not be kept.
//
// The backward pass goes through the same lists from the end. Where a boundary is 0, so is a part of X, and the order
// of the rows lets the products leave it out; where a row copies, all four gates' gradients are 0. Where only few rows
// do not copy, their shares of the weights' gradients wait for those of other steps.
//
// Recomputation (segments.h): z of all steps is there anyhow, so forward keeps h and c at the starts of segments, and
// backward makes gates, c and h of one segment after the other again, bit for bit.
//
// Where the machine has tiles for matrices (tiles.h) they make the products of many rows, while vectors make the
// gates, or the gates' gradients, of another block.
//
// Layouts: X [row][padded K]; h and c [row][padded H]; gates [row][block][gate][width], see Layout.
// Shapes: B batch, T steps, L layers, H units of a layer, K columns of X with the 1, V lanes.
#include <algorithm>
#include <vector>

#include "hm_backward.h"
#include "interface.h"
#include "parallel.h"

using namespace seqpyramid;
using namespace seqpyramid::hm;

namespace {

// Take all slices through `run` of one worker a thread; the workers, in an order that the load does not change.
template <class Work, class T>
std::vector<Work> run_slices(const Problem<T>& problem) {
  const long batch = problem.call.batch, threads = threads_of(problem.call), slices = slices_of(problem.call);
  std::vector<Work> workers;
  for (long n = 0; n < threads; ++n) workers.emplace_back(problem);
  run_parallel(threads, [&](long n) {
    for (long slice = n; slice < slices; slice += threads) {
      workers[n].first = batch * slice / slices;
      workers[n].count = batch * (slice + 1) / slices - workers[n].first;
      workers[n].run();
    }
  });
  return workers;
}

template <class T>
void forward(const Call& call) {
  run_slices<Forward<T>>(Problem<T>(call, false));
}

template <class T>
void backward(const Call& call) {
  const Problem<T> problem(call, true);
  for (Backward<T>& worker : run_slices<Backward<T>>(problem)) {
    if (worker.reader) worker.reader->add_to(call.read);
    for (long l = 0; l < call.layers; ++l) {
      const Weights<T>& w = problem.weights[l];
      T* d_weight = static_cast<T*>(call.layer[l].d_weight);
      T* d_bias = static_cast<T*>(call.layer[l].d_bias);
      w.for_each(
          [&](T& sum, long row, long k) {
            if (k != w.layout.hidden)
              d_weight[w.at(row, k)] += sum;
            else if (d_bias)
              d_bias[row] += sum;
          },
          worker.sums[l].gates.data(), worker.sums[l].boundary.data());
    }
  }
}

// How many steps make a segment so that starts and rooms together need the least memory.
template <class T>
void segment(const Call& call) {
  const long rows = threads_of(call) * most_rows(call);
  long start = 0, room = 0;
  for (long l = 0; l < call.layers; ++l) {
    const Layout<T> layout(call.layer[l].hidden);
    start += 2 * call.batch * layout.states;
    room += rows * (layout.hidden + layout.states + layout.stride);
  }
  *call.answer = best_segment(call.steps, start, room);
}

}  // namespace

SEQPYRAMID_KERNEL(hm_lstm_segment, Call, segment)
SEQPYRAMID_KERNEL(hm_lstm_forward, Call, forward)
SEQPYRAMID_KERNEL(hm_lstm_backward, Call, backward)
