// An LSTM layer over all steps of a batch; the equations of a step stand in lstm_cell.h.
//
// A row that has ended keeps its state, gets no gradient from its padding and gives none to it. Rows come longest
// first, so that the rows still running are always the first ones of a slice.
//
// Shapes: B batch, T time, F inputs, H hidden units, P = padded H. States and what is kept are time-major.
#include <algorithm>

#include "interface.h"
#include "lstm_cell.h"
#include "parallel.h"

using namespace seqpyramid;

extern "C" struct LstmArguments {
  int64_t size, batch, time, inputs, hidden, threads;
  const int64_t* lengths;                      // (B,), not increasing
  const void* x;                               // (B, T, F), features side by side
  int64_t x_batch, x_time;                     // its strides, in elements
  const void *weight_ih, *weight_hh, *bias;    // as torch has them
  const void *h_first, *c_first;               // (B, P), or none: zeros
  void *h_last, *c_last;                       // (B, P)
  void* steps;                                 // (T, B, P), h of every step, or none
  void *cells, *gates;                         // (T, B, P) and (T, B, 4P), for the backward pass, or none
  const void* d_steps;                         // (B, T, H), units side by side, or none
  int64_t d_steps_batch, d_steps_time;
  const void *d_h_last, *d_c_last;             // (B, P), or none
  void *d_x;                                   // (T, B, padded F), zeroed, or none
  void *d_weight_ih, *d_weight_hh, *d_bias;    // zeroed
  void *d_h_first, *d_c_first;                 // (B, P), or none where there was no first state
};

SEQPYRAMID_EXPORT int seqpyramid_vector_bytes() { return SEQPYRAMID_VECTOR_BYTES; }

namespace {

template <class T>
Rows<const T> inputs_at(const LstmArguments& a, long row, long t) {
  return {static_cast<const T*>(a.x) + row * a.x_batch + t * a.x_time, a.x_batch};
}

template <class T>
void lstm_forward(const LstmArguments& a) {
  const LstmWeights<T> w(static_cast<const T*>(a.weight_ih), static_cast<const T*>(a.weight_hh),
                         static_cast<const T*>(a.bias), a.inputs, a.hidden);
  const long P = w.width, N = w.gates_width(), B = a.batch;
  const std::vector<Slice> slices = cut(a.lengths, B, slice_count(B, a.threads));
  const Buffer<T> turns(a.steps ? 0 : size_t(2) * B * P), cell(a.cells ? 0 : size_t(B) * P);

  run_parallel(long(slices.size()), a.threads, [&](long piece) {
    const Slice& slice = slices[size_t(piece)];
    const long first = slice.first;
    Rows<const T> h = rows_of<T>(a.h_first, first, P), c = rows_of<T>(a.c_first, first, P);
    Rows<T> h_last = rows_of<T>(a.h_last, first, P), c_last = rows_of<T>(a.c_last, first, P);
    for (long t = 0; t < slice.steps(); ++t) {
      const long rows = slice.active(t);
      // Without an output a step, h takes turns between two buffers and c stays in one.
      const Rows<T> h_new = a.steps ? rows_of<T>(a.steps, t * B + first, P)
                                    : Rows<T>{turns.data() + (t % 2 * B + first) * P, P};
      const Rows<T> c_new = a.cells ? rows_of<T>(a.cells, t * B + first, P) : Rows<T>{cell.data() + first * P, P};
      const Rows<T> gates = rows_of<T>(a.gates, t * B + first, N);
      lstm_step<T>(w, rows, inputs_at<T>(a, first, t), h, c, gates, h_new, c_new);
      const long running = slice.active(t + 1);
      copy_rows<T>(running, rows, h_new, h_last, P);
      copy_rows<T>(running, rows, c_new, c_last, P);
      h = h_new, c = c_new;
    }
  });
}

template <class T>
void lstm_backward(const LstmArguments& a) {
  const auto* weight_ih = static_cast<const T*>(a.weight_ih);
  const auto* weight_hh = static_cast<const T*>(a.weight_hh);
  const LstmWeights<T> w(weight_ih, weight_hh, static_cast<const T*>(a.bias), a.inputs, a.hidden);
  const LstmTransposed<T> transposed(weight_ih, weight_hh, a.inputs, a.hidden, a.d_x != nullptr);
  const long P = w.width, N = w.gates_width(), B = a.batch, V = LANES<T>;
  const std::vector<Slice> slices = cut(a.lengths, B, slice_count(B, a.threads));
  std::vector<LstmGradients<T>> sums;
  for (const Slice& slice : slices) sums.emplace_back(w, slice.rows());
  const Buffer<T> states(size_t(6) * B * P);  // of one step: dh, dh', dc, s, s of the step before, h of that

  run_parallel(long(slices.size()), a.threads, [&](long piece) {
    const Slice& slice = slices[size_t(piece)];
    LstmGradients<T>& sum = sums[size_t(piece)];
    const long first = slice.first, all = slice.rows();
    const auto state = [&](long k) { return Rows<T>{states.data() + (k * B + first) * P, P}; };
    Rows<T> dh = state(0), dh_before = state(1), s = state(3), s_before = state(4), h_before = state(5);
    const Rows<T> dc = state(2);
    // A row whose turn has not come yet holds the gradients of its last state, in both buffers of dh.
    if (a.d_h_last) {
      copy_rows<T>(0, all, rows_of<T>(a.d_h_last, first, P), dh, P);
      copy_rows<T>(0, all, rows_of<T>(a.d_h_last, first, P), dh_before, P);
    }
    if (a.d_c_last) copy_rows<T>(0, all, rows_of<T>(a.d_c_last, first, P), dc, P);

    const auto kept_c = [&](long t) { return rows_of<T>(static_cast<const void*>(a.cells), t * B + first, P); };
    const auto kept_gates = [&](long t) { return rows_of<T>(static_cast<const void*>(a.gates), t * B + first, N); };
    long recalled = 0;  // rows of s that hold this step's values
    for (long t = slice.steps() - 1; t >= 0; --t) {
      const long rows = slice.active(t);
      if (recalled < rows) {  // rows that end here
        const auto from = [&](Rows<const T> r) { return Rows<const T>{r.at(recalled), r.stride}; };
        lstm_recall<T>(w, rows - recalled, from(kept_gates(t)), from(kept_c(t)), Rows<T>{s.at(recalled), P},
                       Rows<T>{h_before.at(recalled), P});
      }
      Rows<const T> h = rows_of<T>(a.h_first, first, P), c = rows_of<T>(a.c_first, first, P);
      if (t > 0) {
        lstm_recall<T>(w, rows, kept_gates(t - 1), kept_c(t - 1), s_before, h_before);
        h = h_before, c = kept_c(t - 1);
      }
      if (a.d_steps) {
        const T* d = static_cast<const T*>(a.d_steps) + first * a.d_steps_batch + t * a.d_steps_time;
        for (long row = 0; row < rows; ++row)
          for (long u = 0; u < a.hidden; u += V)
            store(dh.at(row, u), load(dh.at(row, u)) + load_first(d + row * a.d_steps_batch + u, a.hidden - u));
      }
      const bool further = t > 0 || a.d_h_first;
      if (further)
        for (long row = 0; row < rows; ++row) std::fill_n(dh_before.at(row), P, T(0));
      const Rows<T> d_x = rows_of<T>(a.d_x, t * B + first, transposed.inputs_width);
      lstm_step_backward<T>(w, transposed, rows, inputs_at<T>(a, first, t), h, c, kept_gates(t), s, dh, dc,
                            further ? dh_before : Rows<T>{}, d_x, sum);
      std::swap(dh, dh_before);
      std::swap(s, s_before);
      recalled = rows;
    }
    if (a.d_h_first) {
      copy_rows<T>(0, all, dh, rows_of<T>(a.d_h_first, first, P), P);
      copy_rows<T>(0, all, dc, rows_of<T>(a.d_c_first, first, P), P);
    }
  });
  for (const LstmGradients<T>& sum : sums)
    sum.add_to(w, static_cast<T*>(a.d_weight_ih), static_cast<T*>(a.d_weight_hh), static_cast<T*>(a.d_bias));
}

}  // namespace

SEQPYRAMID_KERNEL(lstm_forward, LstmArguments, lstm_forward)
SEQPYRAMID_KERNEL(lstm_backward, LstmArguments, lstm_backward)
