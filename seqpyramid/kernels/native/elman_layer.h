// A layer whose only state is h, over all steps of a batch: what Elman's layer and the two GRUs have in common.
//
// A cell gives one step for some rows, as products with weights (class Matrix) and passes over single numbers between
// them. The two are kept in functions of their own: constants of exp and tanh would push the products' sums out of
// their registers. Numbers of several gates lie in planes: [row][gate][P].
//
// A row that has ended keeps its state, gets no gradient from its padding and gives none to it. Rows come longest
// first, so that the rows still running are always the first ones of a slice.
//
// Recomputation (segments.h): forward keeps h at the starts of segments, backward does the rest, bit for bit.
//
// Shapes: n rows, B batch, T time, F inputs, H hidden units, P = padded H, G gates, V lanes. States and what is kept
// are time-major; lanes past H stay zero, because their weights are.
#pragma once

#include <algorithm>
#include <vector>

#include "interface.h"
#include "layer_steps.h"
#include "parallel.h"
#include "segments.h"
#include "tile.h"

extern "C" struct StateLayerArguments {
  int64_t size, batch, time, inputs, hidden, threads;
  const int64_t* lengths;                    // (B,), not increasing
  const void* x;                             // (B, T, F), features side by side
  int64_t x_batch, x_time;                   // its strides, in elements
  const void *weight_ih, *weight_hh, *bias;  // rows gate by gate, in the order of the cell's planes
  const void* h_first;                       // (B, P), or none: zeros
  void* h_last;                              // (B, P)
  void* steps;                               // (T, B, P), h of every step; without planes it may be none
  void* planes;                              // (T, B, planes of the cell P), for the backward pass, or none
  int64_t segment;                           // steps of a segment; 0: nothing is recomputed
  int64_t* answer;                           // out, of <name>_segment
  void* starts;                              // (segments but the first, B, P), h, or none
  int64_t every;                             // of so many steps one has a gradient, counted back from the last, T' of them
  const void* d_steps;                       // (B, T', H), units side by side, or none
  int64_t d_steps_batch, d_steps_time;
  const void* d_h_last;                      // (B, P), or none
  void* d_x;                                 // (T, B, padded F), written up to each row's end, or none
  void *d_weight_ih, *d_weight_hh, *d_bias;  // zeroed
  void* d_h_first;                           // (B, P), or none where there was no first state
};

namespace seqpyramid {

// Call visit(first column, columns) for strips of at most four vectors that cover `width` columns. They are about
// equally wide: four vectors and a rest of one would be too few sums for the latency of a product.
template <class T, class Visit>
SEQPYRAMID_INLINE void each_strip(long width, Visit&& visit) {
  const long vectors = width / LANES<T>;
  for (long strips = (vectors + 3) / 4, done = 0; strips; --strips) {
    const long take = (vectors - done + strips - 1) / strips;
    visit(done * LANES<T>, take * LANES<T>);
    done += take;
  }
}

// Weights W (G H, K) of G gates that read sources (n, K). Both packed forms consist of strips, so that what a tile of
// a product reads lies side by side; with rows of 512 units it would share a few places of the nearest cache.
template <class T>
class Matrix {
 public:
  Matrix(const void* weight, long gates, long hidden, long depth)
      : gates_(gates),
        hidden_(hidden),
        depth_(depth),
        width_(padded<T>(hidden)),
        depth_width_(padded<T>(depth)),
        columns_(size()),
        rows_(size_t(gates) * hidden * depth_width_) {
    const T* const from = static_cast<const T*>(weight);
    each_column([&](long at, long row, long k) { columns_.data()[at] = from[row * depth + k]; });
    each_strip<T>(depth_width_, [&](long first, long wide) {
      for (long row = 0; row < gates * hidden; ++row)
        std::copy_n(from + row * depth + first, std::min(wide, depth - first),
                    rows_.data() + row / hidden * hidden * depth_width_ + first * hidden + row % hidden * wide);
    });
  }

  // Numbers of a gradient, in the form of the columns.
  size_t size() const { return size_t(gates_) * depth_ * width_; }

  long gates() const { return gates_; }
  long depth() const { return depth_; }

  // W^T of one gate: [strip][K][its columns].
  const T* columns(long gate) const { return columns_.data() + gate * depth_ * width_; }

  // d_source (n, padded K) += d_planes W, for some gates. One after the other: the weights of one stay in the nearest
  // cache while all rows meet them, and the planes' padding is left out.
  void apply_transposed(long first, long gates, long n, Rows<const T> d_planes, Rows<T> d_source) const {
    for (long g = 0; g < gates; ++g)
      each_strip<T>(depth_width_, [&](long at, long wide) {
        add_product(n, wide / LANES<T>, hidden_, d_planes.data + g * width_, d_planes.stride, 1,
                    rows_.data() + ((first + g) * depth_width_ + at) * hidden_, wide, d_source.data + at,
                    d_source.stride);
      });
  }

  // sum += source^T d_planes, for some gates
  void add_gradient(long first, long gates, long n, Rows<const T> d_planes, Rows<const T> source, T* sum) const {
    for (long g = 0; g < gates; ++g)
      each_strip<T>(width_, [&](long at, long wide) {
        add_product(depth_, wide / LANES<T>, n, source.data, 1, source.stride, d_planes.data + g * width_ + at,
                    d_planes.stride, sum + ((first + g) * width_ + at) * depth_, wide);
      });
  }

  // Add such a sum to a gradient laid out as the weights were given.
  void add_to(const T* sum, void* gradient) const {
    each_column([&](long at, long row, long k) { static_cast<T*>(gradient)[row * depth_ + k] += sum[at]; });
  }

 private:
  // Call visit(place among the columns, row, k) for all weights.
  template <class Visit>
  void each_column(const Visit& visit) const {
    for (long g = 0; g < gates_; ++g)
      each_strip<T>(width_, [&](long first, long wide) {
        for (long u = first; u < std::min(first + wide, hidden_); ++u)
          for (long k = 0; k < depth_; ++k)
            visit((g * width_ + first) * depth_ + k * wide + u - first, g * hidden_ + u, k);
      });
  }

  long gates_, hidden_, depth_, width_, depth_width_;
  Buffer<T> columns_, rows_;  // [G][strip of P][K][...] and [G][strip of padded K][H][...]
};

// plane (n, VECTORS V) = b + U x + W h, on registers. A function of its own: beside constants of exp and tanh, GCC
// would not keep the sums there.
template <class T, int VECTORS>
__attribute__((noinline)) void sum_strip(long n, long inputs, Rows<const T> x, const T* input, long hidden,
                                         Rows<const T> h, const T* recurrent, const T* bias, Rows<T> plane) {
  constexpr long N = VECTORS * LANES<T>;
  for_row_tiles(n, [&](auto tile, long first) {
    constexpr int R = decltype(tile)::value;
    Vector<T> sum[R][VECTORS];
    SEQPYRAMID_UNROLL
    for (int r = 0; r < R; ++r) {
      SEQPYRAMID_UNROLL
      for (int j = 0; j < VECTORS; ++j) sum[r][j] = load(bias + j * LANES<T>);
    }
    multiply_add<T, R, VECTORS>(inputs, x.at(first), x.stride, 1, input, N, sum);
    multiply_add<T, R, VECTORS>(hidden, h.at(first), h.stride, 1, recurrent, N, sum);
    SEQPYRAMID_UNROLL
    for (int r = 0; r < R; ++r) {
      SEQPYRAMID_UNROLL
      for (int j = 0; j < VECTORS; ++j) store(plane.at(first + r, j * LANES<T>), sum[r][j]);
    }
  });
}

// The planes from one of them on.
template <class Row>
Row from_plane(Row planes, long plane, long width) {
  return {planes.data + plane * width, planes.stride};
}

// Weights of a layer of G gates. Every plane has a bias; the first G of them read x, the last G read h.
template <class T>
struct StateWeights {
  long width;  // P
  Matrix<T> input, recurrent, bias;

  StateWeights(const StateLayerArguments& a, long gates, long planes)
      : width(padded<T>(a.hidden)),
        input(a.weight_ih, gates, a.hidden, a.inputs),
        recurrent(a.weight_hh, gates, a.hidden, a.hidden),
        bias(a.bias, planes, a.hidden, 1) {}

  // Planes [first, last) = b + U x + W h, h (n, H); no h: zeros.
  void sum(long first, long last, long n, Rows<const T> x, Rows<const T> h, Rows<T> planes) const {
    const long gates = input.gates(), without_h = bias.gates() - gates;
    for (long p = first; p < last; ++p) {
      const long inputs = p < gates ? input.depth() : 0, hidden = h && p >= without_h ? recurrent.depth() : 0;
      const T* const u = inputs ? input.columns(p) : nullptr;
      const T* const w = hidden ? recurrent.columns(p - without_h) : nullptr;
      const Rows<const T> states = hidden ? h : Rows<const T>{};
      each_strip<T>(width, [&](long at, long wide) {
        const auto strip = [&](auto vectors) {
          sum_strip<T, decltype(vectors)::value>(n, inputs, x, u + at * inputs, hidden, states, w + at * hidden,
                                                 bias.columns(p) + at, {planes.data + p * width + at, planes.stride});
        };
        switch (wide / LANES<T>) {
          case 4: strip(std::integral_constant<int, 4>{}); break;
          case 3: strip(std::integral_constant<int, 3>{}); break;
          case 2: strip(std::integral_constant<int, 2>{}); break;
          default: strip(std::integral_constant<int, 1>{}); break;
        }
      });
    }
  }
};

// What is added up over a slice of a batch.
template <class T>
struct StateGradients {
  Buffer<T> input, recurrent, bias;

  explicit StateGradients(const StateWeights<T>& w)
      : input(w.input.size()), recurrent(w.recurrent.size()), bias(w.bias.size()) {}

  // Take d_planes (n, all planes) into the bias's.
  void add_bias(const StateWeights<T>& w, long n, Rows<const T> d_planes) {
    for (long k = 0; k < long(w.bias.size()); k += LANES<T>) {
      Vector<T> sum = load(bias.data() + k);
      for (long row = 0; row < n; ++row) sum += load(d_planes.at(row, k));
      store(bias.data() + k, sum);
    }
  }

  void add_to(const StateWeights<T>& w, const StateLayerArguments& a) const {
    w.input.add_to(input.data(), a.d_weight_ih);
    w.recurrent.add_to(recurrent.data(), a.d_weight_hh);
    w.bias.add_to(bias.data(), a.d_bias);
  }
};

// How far off that lies what another step wants of the planes and of h: forward, what the next one writes in place of
// this one's; backward, the planes and the h before of two steps later. 0: nothing.
struct StepsAhead {
  long planes = 0, h = 0;

  // Ask for one vector of h and of the first `count` planes, P apart.
  template <bool WRITE, class T>
  SEQPYRAMID_INLINE void fetch(Rows<const T> h_now, Rows<const T> planes_now, long row, long unit, long count,
                               long width) const {
    if (h) __builtin_prefetch(h_now.at(row, unit) + h, WRITE, 2);
    if (planes)
      for (long p = 0; p < count; ++p) __builtin_prefetch(planes_now.at(row, p * width + unit) + planes, WRITE, 2);
  }
};

// What one step reads and writes on its way forward.
template <class T>
struct StepForward {
  long rows;
  Rows<const T> x, h_before;  // no h_before: zeros
  Rows<T> planes;             // those that backward gets
  bool kept;                  // whether it does
  Rows<T> h;
  Rows<T> scratch;
  StepsAhead ahead;

  // The same of the rows from one on, or of the first ones.
  StepForward from(long row) const {
    return {rows - row, x.from(row), h_before.from(row), planes.from(row), kept, h.from(row), scratch.from(row), ahead};
  }
  StepForward first(long count) const {
    StepForward s = *this;
    s.rows = count;
    return s;
  }
};

// And on its way back: dh_before is written and dx added to, where they have data.
template <class T>
struct StepBackward {
  long rows;
  Rows<const T> x, h_before, planes, h, dh;
  Rows<T> dh_before, dx;
  Rows<T> scratch;
  StepsAhead ahead;

  StepBackward from(long row) const {
    return {rows - row,        x.from(row),       h_before.from(row), planes.from(row),
            h.from(row),       dh.from(row),      dh_before.from(row), dx.from(row),
            scratch.from(row), ahead};
  }
  StepBackward first(long count) const {
    StepBackward s = *this;
    s.rows = count;
    return s;
  }
};

// Working space of a cell that needs none but scratch.
template <class T>
struct NoWork {
  explicit NoWork(const StateWeights<T>&) {}
};

// What a cell has whose products all run on vectors.
struct VectorCell {
  template <class T>
  using Weights = StateWeights<T>;
  template <class T>
  using Gradients = StateGradients<T>;
  template <class T>
  using Work = NoWork<T>;
};

// Where h and the planes of steps lie: of all, of one segment in the rows of a slice, or the newest h alone.
template <class T>
struct KeptStates {
  T *states, *kept_planes;  // no planes: backward gets none
  long width, planes_width;
  Place place;

  // Those of a batch, in the caller's memory.
  KeptStates(const StateLayerArguments& a, long planes)
      : states(static_cast<T*>(a.steps)),
        kept_planes(static_cast<T*>(a.planes)),
        width(padded<T>(a.hidden)),
        planes_width(planes * width),
        place{a.batch} {}

  Rows<T> h(long t, long row) const { return rows_of<T>(states, place(t, row), width); }
  Rows<T> planes(long t, long row) const { return rows_of<T>(kept_planes, place(t, row), planes_width); }

  // How far apart those of successive steps lie; 0 where they lie nowhere, or in places that soon come round again.
  StepsAhead apart() const {
    return {kept_planes ? place.rows * planes_width : 0, place.steps == INT64_MAX ? place.rows * width : 0};
  }
};

// h before step t, where a segment but the first starts.
template <class T>
Rows<T> start(const StateLayerArguments& a, long t, long row) {
  return rows_of<T>(a.starts, (t / a.segment - 1) * a.batch + row, padded<T>(a.hidden));
}

template <class T>
Rows<const T> h_start(const StateLayerArguments& a, long t, long row) {
  return t ? Rows<const T>(start<T>(a, t, row)) : rows_of<T>(a.h_first, row, padded<T>(a.hidden));
}

// A Cell has
//   GATES    that read x, and as many that read h; SUMS: planes with a bias
//   PLANES   that it keeps for backward; SCRATCH: of working space, PLANES at least
//   Weights, Gradients  that are a StateWeights, StateGradients; Work: of a thread, made from the weights
//   forward(Weights, StepForward, Work), backward(Weights, StepBackward, Gradients, Work)

// Run a slice from one step, where a segment starts, to another. h_last gets h of rows after their last step, if it has
// data. Both passes call it, and a cell need not be compiled for each.
template <class Cell, class T>
__attribute__((noinline)) void run_steps(const StateLayerArguments& a, const typename Cell::template Weights<T>& w, const Slice& slice, long from,
               long to, const KeptStates<T>& kept, Rows<T> h_last, Rows<T> scratch,
               typename Cell::template Work<T>& work) {
  const long first = slice.first;
  Rows<const T> h = h_start<T>(a, from, first);
  for (long t = from; t < to; ++t) {
    const long rows = slice.active(t);
    if (t > from && a.segment && t % a.segment == 0) copy_rows<T>(0, rows, h, start<T>(a, t, first), w.width);
    const Rows<T> h_new = kept.h(t, first), planes = kept.planes(t, first);
    const StepsAhead ahead = t + 1 < to ? kept.apart() : StepsAhead{};
    Cell::template forward<T>(
        w, {rows, inputs_at<T>(a, first, t), h, planes ? planes : scratch, bool(planes), h_new, scratch, ahead}, work);
    if (h_last) copy_rows<T>(slice.active(t + 1), rows, h_new, h_last, w.width);
    h = h_new;
  }
}

template <class T, class Cell>
void layer_forward(const StateLayerArguments& a) {
  using Work = typename Cell::template Work<T>;
  const typename Cell::template Weights<T> w(a, Cell::GATES, Cell::SUMS);
  const long P = w.width, B = a.batch;
  const std::vector<Slice> slices = cut(a.lengths, B, slice_count(B, a.threads));
  const Buffer<T> turns(a.steps ? 0 : size_t(2) * B * P), space(size_t(Cell::SCRATCH) * B * P);
  KeptStates<T> kept(a, Cell::PLANES);
  // Without an output a step, h takes turns between two buffers.
  if (!a.steps) kept.states = turns.data(), kept.place.steps = 2;
  Rooms<Work> rooms(std::min(a.threads, int64_t(slices.size())), [&] { return Work(w); });

  run_parallel(long(slices.size()), a.threads, [&](long piece) {
    const Slice& slice = slices[size_t(piece)];
    const Rows<T> scratch{space.data() + Cell::SCRATCH * slice.first * P, Cell::SCRATCH * P};
    rooms.with([&](Work& work) {
      run_steps<Cell, T>(a, w, slice, 0, slice.steps(), kept, rows_of<T>(a.h_last, slice.first, P), scratch, work);
    });
  });
}

// What a thread goes back in: a cell's working space, and memory for one segment of a slice.
template <class T, class Cell>
struct BackwardRoom {
  typename Cell::template Work<T> work;
  long rows;
  Buffer<T> h, planes;

  BackwardRoom(const typename Cell::template Weights<T>& w, long steps, long rows_)
      : work(w),
        rows(rows_),
        h(size_t(steps * rows * w.width)),
        planes(size_t(steps * rows * Cell::PLANES * w.width)) {}
};

// How many steps make a segment so that starts and rooms together need the least memory.
template <class T, class Cell>
void layer_segment(const StateLayerArguments& a) {
  const std::vector<Slice> slices = cut(a.lengths, a.batch, slice_count(a.batch, a.threads));
  const long rooms = std::min(a.threads, int64_t(slices.size()));
  *a.answer = best_segment(a.lengths[0], a.batch, rooms * most_rows(slices) * (1 + Cell::PLANES));
}

template <class T, class Cell>
void layer_backward(const StateLayerArguments& a) {
  using Gradients = typename Cell::template Gradients<T>;
  using Room = BackwardRoom<T, Cell>;
  const typename Cell::template Weights<T> w(a, Cell::GATES, Cell::SUMS);
  const long P = w.width, PF = padded<T>(a.inputs), B = a.batch;
  const std::vector<Slice> slices = cut(a.lengths, B, slice_count(B, a.threads));
  // Many short slices share a sum, each group on one thread and in order: adding them up costs as much as some steps.
  const int64_t count = int64_t(slices.size()), groups = std::min(count, std::max(MOST_SUMS, a.threads));
  std::vector<Gradients> sums;
  for (long group = 0; group < groups; ++group) sums.emplace_back(w);
  const Buffer<T> states(size_t(2) * B * P), space(size_t(Cell::SCRATCH) * B * P);
  Rooms<Room> rooms(std::min(a.threads, groups), [&] { return Room(w, a.segment, most_rows(slices)); });

  const auto run = [&](const Slice& slice, Gradients& sum, Room& room) {
    const long first = slice.first, all = slice.rows();
    const Rows<T> scratch{space.data() + Cell::SCRATCH * first * P, Cell::SCRATCH * P};
    Rows<T> dh{states.data() + first * P, P}, dh_before{states.data() + (B + first) * P, P};
    // A row whose turn has not come yet holds the gradient of its last state, in both buffers.
    if (a.d_h_last)
      for (const Rows<T>& buffer : {dh, dh_before})
        copy_rows<T>(0, all, rows_of<T>(a.d_h_last, first, P), buffer, P);
    KeptStates<T> kept(a, Cell::PLANES);
    if (a.segment) kept.states = room.h.data(), kept.kept_planes = room.planes.data(), kept.place = {room.rows, first};

    // Step t, of a segment that starts at `from`.
    const auto back = [&](long t, long from) {
      const long rows = slice.active(t);
      add_step_gradients<T>(a, t, first, rows, dh);
      const bool further = t > 0 || a.d_h_first;
      const Rows<const T> h_before = t > from ? kept.h(t - 1, first) : h_start<T>(a, from, first);
      const Rows<T> d_x = rows_of<T>(a.d_x, t * B + first, PF);
      if (d_x) clear_rows(rows, d_x, PF);
      const StepsAhead apart = kept.apart();
      const StepsAhead ahead{t - 2 < from ? 0 : -2 * apart.planes, t - 3 < from ? 0 : -2 * apart.h};
      Cell::template backward<T>(w,
                                 {rows, inputs_at<T>(a, first, t), h_before, kept.planes(t, first), kept.h(t, first),
                                  dh, further ? dh_before : Rows<T>{}, d_x, scratch, ahead},
                                 sum, room.work);
      std::swap(dh, dh_before);
    };
    each_segment_back(slice.steps(), a.segment, [&](long from, long to) {
      if (a.segment) {
        kept.place.first_step = from;
        run_steps<Cell, T>(a, w, slice, from, to, kept, {}, scratch, room.work);
      }
      for (long t = to - 1; t >= from; --t) back(t, from);
    });
    if (a.d_h_first) copy_rows<T>(0, all, dh, rows_of<T>(a.d_h_first, first, P), P);
  };
  run_parallel(groups, a.threads, [&](long group) {
    rooms.with([&](Room& room) {
      for (long piece = group * count / groups; piece < (group + 1) * count / groups; ++piece)
        run(slices[size_t(piece)], sums[size_t(group)], room);
    });
  });
  for (const Gradients& sum : sums) sum.add_to(w, a);
}

// The functions of a cell that Python calls.
template <class Cell>
struct StateLayer {
  template <class T>
  static void segment(const StateLayerArguments& a) {
    layer_segment<T, Cell>(a);
  }
  template <class T>
  static void forward(const StateLayerArguments& a) {
    layer_forward<T, Cell>(a);
  }
  template <class T>
  static void backward(const StateLayerArguments& a) {
    layer_backward<T, Cell>(a);
  }
};

}  // namespace seqpyramid

// Export them as seqpyramid_<name>_segment_<dtype>, ..._forward_... and ..._backward_...
#define SEQPYRAMID_STATE_LAYER(name, Cell)                                             \
  SEQPYRAMID_KERNEL(name##_segment, StateLayerArguments, StateLayer<Cell>::segment)    \
  SEQPYRAMID_KERNEL(name##_forward, StateLayerArguments, StateLayer<Cell>::forward)    \
  SEQPYRAMID_KERNEL(name##_backward, StateLayerArguments, StateLayer<Cell>::backward)
