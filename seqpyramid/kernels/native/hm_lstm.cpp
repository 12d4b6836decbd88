// HM-LSTM: all layers over all steps, forward and backward.
//
// The equations, and what is kept between the passes, stand in seqpyramid/kernels/hm_lstm.py. The batch is cut into
// slices; a thread takes a slice through all steps without meeting another thread, so that h, c and z of the slice
// stay in its cache. At one step, a layer
//
//   1. lists the slice's rows (sequences) that go on, ordered by their operations,
//   2. gathers their input rows X = [h, 1, z_own h_above, z_below h_below]; the 1 meets b,
//   3. makes the four gates of a block of units, and from them c and h, while they are in the nearest cache,
//   4. makes z~ by one product a row.
//
// The output module, which reads h of all layers, is a pass of its own over all rows of all steps.
//
// The backward pass goes through the same lists from the end. Where a boundary is 0, so is a part of X, and the order
// of the rows lets the products leave it out; where a row copies, all four gates' gradients are 0.
//
// Layouts: X [row][padded K]; h and c [row][padded H]; gates [row][block][gate][width], see Layout.
// Shapes: B batch, T steps, L layers, H units of a layer, K columns of X with the 1, V lanes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gates.h"
#include "interface.h"
#include "parallel.h"
#include "tile.h"
#include "vector.h"

namespace {

using namespace seqpyramid;

// Mirrored field by field in seqpyramid/kernels/hm_lstm.py. Arrays are contiguous unless strides are given.
struct LayerCall {
  int64_t hidden, above, below;              // H, and columns of the other two parts; above is 0 in the top layer
  int64_t columns, below_at;                 // of `weight`: row stride, and where the bottom-up columns begin
  int64_t boundary;                          // whether the layer has a z
  int64_t state_stride, gate_stride;         // set by `layout`
  const void *weight, *bias;                 // (4 H + boundary, columns); no bias: null
  const void *first_h, *first_c, *first_z;   // (B, H), (B, H), (B)
  void *last_h, *last_c, *last_z;            // forward only
  void *cells, *gates;                       // (T, B, state stride), (T, B, gate stride); null: keep nothing
  void *d_weight, *d_bias;                   // zero on entry
  void *d_h, *d_c, *d_z;                     // of the last state on entry, of the first one on return
};

struct Call {
  int64_t size;
  int64_t layers, steps, batch, threads;
  int64_t soft;      // z is z~ itself, not a step
  int64_t logistic;  // z~ is a logistic function, not a hard sigmoid
  int64_t choice;    // z learns from having chosen an operation
  double slope;
  const int64_t* lengths;  // (B)
  const void* x;           // (B, T, F), the last axis contiguous
  int64_t x_row, x_step;
  void *h, *z;             // (T, B, sum of H), (T, B, L)
  void* x_z;               // (T, B, L), z~ before its function; null: keep nothing
  const void *d_h, *d_z;   // gradients of h and z; null: zero
  void* d_x;               // (B, T, F), zero on entry; null: not wanted
  LayerCall* layer;
};

// Rows that a slice has at most: the gates' gradients of one block then fit a first-level cache.
constexpr long SLICE_ROWS = 64;

// A layer's weights in the order in which the tiles read them.
template <class T>
struct Weights {
  Layout<T> layout;
  long above, below, columns, below_at;
  long K, stride;      // of X
  bool has_boundary;
  Buffer<T> forward;   // [block][k][gate][width]
  Buffer<T> backward;  // [block][gate][width][stride]
  Buffer<T> boundary;  // [stride], the row of z~

  Weights(const LayerCall& layer, bool both)
      : layout(layer.hidden), above(layer.above), below(layer.below), columns(layer.columns),
        below_at(layer.below_at), K(layer.hidden + 1 + above + below), stride(padded<T>(K)),
        has_boundary(layer.boundary != 0), forward(size_t(K * layout.gates)),
        backward(both ? size_t(stride * layout.gates) : 0), boundary(size_t(stride)) {
    const T* weight = static_cast<const T*>(layer.weight);
    const T* bias = static_cast<const T*>(layer.bias);
    for_each(
        [&](T& packed, long row, long k) {
          if (k != layout.hidden)
            packed = weight[at(row, k)];
          else if (bias)
            packed = bias[row];
        },
        forward.data(), boundary.data());
    if (both)
      for (const Block& block : layout.blocks)
        for (long k = 0; k < K; ++k)
          for (long n = 0; n < 4 * block.width; ++n)
            backward.data()[(4 * block.unit + n) * stride + k] = forward.data()[panel(block) + k * 4 * block.width + n];
  }

  // Where the parts of X that the boundaries gate begin.
  long above_column() const { return layout.hidden + 1; }
  long below_column() const { return layout.hidden + 1 + above; }

  // Where column k of X, other than the 1, stands in `weight`.
  long at(long row, long k) const {
    return row * columns + (k < layout.hidden ? k : k < below_column() ? k - 1 : below_at + k - below_column());
  }

  // Where a block begins in `forward`.
  long panel(const Block& block) const { return 4 * block.unit * K; }

  // Call visit(number, row, k) for every number of `gates`, in the layout of `forward`, and of the row of z~.
  template <class Visit>
  void for_each(const Visit& visit, T* gates, T* last) const {
    each_weight(layout, K, [&](long place, long row, long k) { visit(gates[place], row, k); });
    for (long k = 0; has_boundary && k < K; ++k) visit(last[k], 4 * layout.hidden, k);
  }
};

// Rows somewhere in memory.
template <class T>
struct Rows {
  const T* data;
  long stride;
  const T* operator[](long row) const { return data + row * stride; }
};

// What a row of the slice does at one step: the boundaries, and by them the weights of (2).
template <class T>
struct Mix {
  long row;
  T own, below;            // z of the layer itself one step before, z of the layer below
  T change, update, keep;  // 1 - COPY, UPDATE, COPY
};

template <class T>
T dot(const T* a, const T* b, long n) {
  Vector<T> sums{};
  long i = 0;
  for (; i + LANES<T> <= n; i += LANES<T>) sums += load(a + i) * load(b + i);
  T sum = sum_lanes<T>(sums);
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// to = factor * from
template <class T>
void scale(T* to, T factor, const T* from, long n) {
  long i = 0;
  for (; i + LANES<T> <= n; i += LANES<T>) store(to + i, factor * load(from + i));
  for (; i < n; ++i) to[i] = factor * from[i];
}

// to += factor * from
template <class T>
void add(T* to, T factor, const T* from, long n) {
  long i = 0;
  for (; i + LANES<T> <= n; i += LANES<T>) store(to + i, load(to + i) + factor * load(from + i));
  for (; i < n; ++i) to[i] += factor * from[i];
}

template <class T>
void copy(T* to, const T* from, long n) {
  std::memcpy(to, from, size_t(n) * sizeof(T));
}

// Row `row` of step t in an array (T, B, stride).
template <class T, class Data>
T* at_step(const Call& call, Data* data, long t, long row, long stride) {
  return static_cast<T*>(data) + (t * call.batch + row) * stride;
}

// What all slices share.
template <class T>
struct Problem {
  const Call& call;
  std::vector<Weights<T>> weights;
  std::vector<long> offset;  // of each layer in a row of h
  long outputs = 0;

  Problem(const Call& c, bool both) : call(c) {
    for (long l = 0; l < call.layers; ++l) {
      weights.emplace_back(call.layer[l], both);
      offset.push_back(outputs);
      outputs += call.layer[l].hidden;
    }
  }

  T z_tilde(T x) const {
    const T a = T(call.slope);
    return call.logistic ? 1 / (1 + std::exp(-a * x)) : std::min(T(1), std::max(T(0), (a * x + 1) / 2));
  }

  T boundary(T x) const { return call.soft ? z_tilde(x) : T(x > 0); }

  T boundary_slope(T x) const {
    const T a = T(call.slope), z = z_tilde(x);
    if (call.logistic) return a * z * (1 - z);
    const T line = (a * x + 1) / 2;
    return line >= 0 && line <= 1 ? a / 2 : T(0);
  }
};

// One thread's place for the slices that it takes, one after the other.
template <class T>
struct Worker {
  const Problem<T>& problem;
  const Call& call;
  const long L;
  long first = 0, count = 0;   // the slice's rows
  std::vector<Mix<T>> going;   // rows that have a step: UPDATE, FLUSH with an open layer below, FLUSH, COPY
  long above_from = 0;         // where FLUSH begins: from here on h of the layer above counts
  long below_to = 0;           // where the layer below is no more open: before, its h counts
  long moving = 0;             // where COPY begins
  long working = 0;            // rows whose gates are needed, all or those before COPY
  std::vector<Buffer<T>> X;    // of each layer

  explicit Worker(const Problem<T>& p) : problem(p), call(p.call), L(p.call.layers) {
    going.reserve(SLICE_ROWS);
    for (const Weights<T>& w : problem.weights) X.emplace_back(size_t(SLICE_ROWS * w.stride));
  }

  // One buffer (SLICE_ROWS, stride) a layer.
  std::vector<Buffer<T>> states() const {
    std::vector<Buffer<T>> each;
    for (const Weights<T>& w : problem.weights) each.emplace_back(size_t(SLICE_ROWS * w.layout.states));
    return each;
  }

  Rows<T> x(long t) const {
    return {static_cast<const T*>(call.x) + first * call.x_row + t * call.x_step, call.x_row};
  }

  // List the rows that go on. With `all`, the gates of a row that copies are needed, too: the gradient of having
  // chosen COPY meets i g, which COPY does not.
  void list(long t, Rows<T> own, Rows<T> below, bool all) {
    going.clear();
    const auto append = [&](bool flushes, bool open) {
      for (long row = 0; row < count; ++row) {
        if (t >= call.lengths[first + row]) continue;
        const T z = *own[row], z_below = below.data ? *below[row] : T(1);
        if ((z != 0) != flushes || (z_below != 0) != open) continue;
        const T keep = (1 - z) * (1 - z_below);
        going.push_back({row, z, z_below, 1 - keep, (1 - z) * z_below, keep});
      }
      return long(going.size());
    };
    above_from = append(false, true);
    below_to = append(true, true);
    moving = append(true, false);
    append(false, false);
    working = all ? long(going.size()) : moving;
  }

  void gather(long l, Rows<T> own, Rows<T> above, Rows<T> below) {
    const Weights<T>& w = problem.weights[l];
    T* row = X[l].data();
    for (const Mix<T>& mix : going) {
      copy(row, own[mix.row], w.layout.hidden);
      row[w.layout.hidden] = 1;
      if (w.above) scale(row + w.above_column(), mix.own, above[mix.row], w.above);
      scale(row + w.below_column(), mix.below, below[mix.row], w.below);
      row += w.stride;
    }
  }
};

template <class T>
struct Forward : Worker<T> {
  using Worker<T>::problem, Worker<T>::call, Worker<T>::L, Worker<T>::first, Worker<T>::count;
  using Worker<T>::going, Worker<T>::above_from, Worker<T>::below_to, Worker<T>::moving, Worker<T>::working;
  using Worker<T>::X;
  std::vector<Buffer<T>> h, c;
  Buffer<T> z, x_z;  // [row][layer]
  Buffer<T> sums;    // [row][gate][width] of one block

  explicit Forward(const Problem<T>& p)
      : Worker<T>(p), h(this->states()), c(this->states()), z(size_t(SLICE_ROWS * L)), x_z(size_t(SLICE_ROWS * L)),
        sums(size_t(SLICE_ROWS * 4 * LANES<T>)) {}

  Rows<T> of(const std::vector<Buffer<T>>& state, long l) const {
    return {state[l].data(), problem.weights[l].layout.states};
  }

  void run() {
    for (long l = 0; l < L; ++l) start(l);
    for (long t = 0; t < call.steps; ++t) {
      for (long l = 0; l < L; ++l) step(t, l);
      for (long row = 0; row < count; ++row)
        for (long l = 0; l < L; ++l)
          copy(at_step<T>(call, call.h, t, first + row, problem.outputs) + problem.offset[l], of(h, l)[row],
               problem.weights[l].layout.hidden);
      copy(at_step<T>(call, call.z, t, first, L), z.data(), count * L);
      if (call.x_z) copy(at_step<T>(call, call.x_z, t, first, L), x_z.data(), count * L);
    }
    for (long l = 0; l < L; ++l) finish(l);
  }

  void start(long l) {
    const LayerCall& layer = call.layer[l];
    const Layout<T>& layout = problem.weights[l].layout;
    for (long row = 0; row < count; ++row) {
      copy(h[l].data() + row * layout.states, at_step<T const>(call, layer.first_h, 0, first + row, layout.hidden),
           layout.hidden);
      copy(c[l].data() + row * layout.states, at_step<T const>(call, layer.first_c, 0, first + row, layout.hidden),
           layout.hidden);
      z.data()[row * L + l] = *at_step<T const>(call, layer.first_z, 0, first + row, 1);
    }
  }

  void finish(long l) {
    const LayerCall& layer = call.layer[l];
    const long H = problem.weights[l].layout.hidden;
    for (long row = 0; row < count; ++row) {
      copy(at_step<T>(call, layer.last_h, 0, first + row, H), of(h, l)[row], H);
      copy(at_step<T>(call, layer.last_c, 0, first + row, H), of(c, l)[row], H);
      *at_step<T>(call, layer.last_z, 0, first + row, 1) = z.data()[row * L + l];
    }
  }

  void step(long t, long l) {
    const LayerCall& layer = call.layer[l];
    const Weights<T>& w = problem.weights[l];
    T* own = z.data() + l;
    this->list(t, {own, L}, l ? Rows<T>{own - 1, L} : Rows<T>{nullptr, 0}, layer.gates && call.choice);
    this->gather(l, of(h, l), of(h, w.above ? l + 1 : l), l ? of(h, l - 1) : this->x(t));
    T* kept = layer.gates ? at_step<T>(call, layer.gates, t, first, w.layout.stride) : nullptr;
    for (const Block& block : w.layout.blocks) advance(l, block, kept);
    if (w.has_boundary)
      for (size_t n = 0; n < going.size(); ++n) {
        const T x = dot(X[l].data() + long(n) * w.stride, w.boundary.data(), w.stride);
        x_z.data()[going[n].row * L + l] = x;
        own[going[n].row * L] = problem.boundary(x);
      }
    if (layer.cells)
      copy(at_step<T>(call, layer.cells, t, first, w.layout.states), c[l].data(), count * w.layout.states);
  }

  // Take the working rows through one block of units: gates, then c and h in place. What comes out in lanes without a
  // unit is finite and has no reader: its gradient is 0. The product is a loop of its own:
  // beside the constants of exp, GCC would not keep its sums on registers.
  void advance(long l, const Block& block, T* kept) {
    const Weights<T>& w = problem.weights[l];
    constexpr long stride = 4 * LANES<T>;
    std::fill_n(sums.data(), working * stride, T(0));
    const auto add_part = [&](long from, long to, long column, long depth) {
      add_product<T>(to - from, 4 * block.width / LANES<T>, depth, X[l].data() + from * w.stride + column, w.stride, 1,
                     w.forward.data() + w.panel(block) + column * 4 * block.width, 4 * block.width,
                     sums.data() + from * stride, stride);
    };
    add_part(0, working, 0, w.above_column());
    add_part(above_from, moving, w.above_column(), w.above);
    add_part(0, below_to, w.below_column(), w.below);
    for (long n = 0; n < working; ++n) {
      const Mix<T>& mix = going[n];
      const T* gate = sums.data() + n * stride;
      const Vector<T> i = sigmoid<T>(load(gate)), f = sigmoid<T>(load(gate + block.width));
      const Vector<T> o = sigmoid<T>(load(gate + 3 * block.width));
      const Vector<T> g = tanh<T>(load(gate + 2 * block.width));
      if (kept) {
        T* row = kept + n * w.layout.stride + 4 * block.unit;
        store<T>(row, i);
        store<T>(row + block.width, f);
        store<T>(row + 2 * block.width, g);
        store<T>(row + 3 * block.width, o);
      }
      T* h_row = h[l].data() + mix.row * w.layout.states + block.unit;
      T* c_row = c[l].data() + mix.row * w.layout.states + block.unit;
      const Vector<T> after = mix.change * (i * g) + (mix.update * f + mix.keep) * load(c_row);
      store<T>(c_row, after);
      store<T>(h_row, mix.keep * load(h_row) + mix.change * (o * tanh<T>(after)));
    }
  }
};

// One thread's sums of a layer's weight gradients, in the layouts of Weights.
template <class T>
struct WeightGradient {
  Buffer<T> gates, boundary;

  explicit WeightGradient(const Weights<T>& w) : gates(size_t(w.K * w.layout.gates)), boundary(size_t(w.stride)) {}
};

// Sums over a row's units of which the gradients of its two boundaries are made; those that reach h and c by
// COPY, by the part of UPDATE that is not FLUSH, by FLUSH.
template <class T>
struct Choice {
  Vector<T> copy, update, flush;
};

template <class T>
struct Backward : Worker<T> {
  using Worker<T>::problem, Worker<T>::call, Worker<T>::L, Worker<T>::first, Worker<T>::count;
  using Worker<T>::going, Worker<T>::above_from, Worker<T>::below_to, Worker<T>::moving, Worker<T>::working;
  using Worker<T>::X;
  // d_h, d_c and d_z of a layer stand at step t until the layer is done with it, and at step t - 1 from then on.
  std::vector<Buffer<T>> first_c, d_h, d_c, d_X;
  Buffer<T> d_z;      // [row][layer]
  Buffer<T> d_gates;  // [row][gate][width] of one block
  std::vector<Choice<T>> choices;
  std::vector<WeightGradient<T>> sums;

  explicit Backward(const Problem<T>& p)
      : Worker<T>(p), first_c(this->states()), d_h(this->states()), d_c(this->states()), d_z(size_t(SLICE_ROWS * L)),
        d_gates(size_t(SLICE_ROWS * 4 * LANES<T>)), choices(SLICE_ROWS) {
    for (const Weights<T>& w : problem.weights) {
      d_X.emplace_back(size_t(SLICE_ROWS * w.stride));
      sums.emplace_back(w);
    }
  }

  // h, c and z after step t; after step -1 they are the first state.
  Rows<T> h(long t, long l) const {
    const long H = problem.weights[l].layout.hidden;
    if (t < 0) return {at_step<T const>(call, call.layer[l].first_h, 0, first, H), H};
    return {at_step<T const>(call, call.h, t, first, problem.outputs) + problem.offset[l], problem.outputs};
  }
  Rows<T> c(long t, long l) const {
    const long stride = problem.weights[l].layout.states;
    if (t < 0) return {first_c[l].data(), stride};
    return {at_step<T const>(call, call.layer[l].cells, t, first, stride), stride};
  }
  Rows<T> z(long t, long l) const {
    if (t < 0) return {at_step<T const>(call, call.layer[l].first_z, 0, first, 1), 1};
    return {at_step<T const>(call, call.z, t, first, L) + l, L};
  }

  void run() {
    for (long l = 0; l < L; ++l) start(l);
    for (long t = call.steps - 1; t >= 0; --t) {
      for (long row = 0; row < count; ++row) {
        for (long l = 0; call.d_h && l < L; ++l)
          add(d_h[l].data() + row * problem.weights[l].layout.states, T(1),
              at_step<T const>(call, call.d_h, t, first + row, problem.outputs) + problem.offset[l],
              problem.weights[l].layout.hidden);
        if (call.d_z) add(d_z.data() + row * L, T(1), at_step<T const>(call, call.d_z, t, first + row, L), L);
      }
      for (long l = L - 1; l >= 0; --l) step(t, l);
    }
    for (long l = 0; l < L; ++l) finish(l);
  }

  void start(long l) {
    const LayerCall& layer = call.layer[l];
    const Layout<T>& layout = problem.weights[l].layout;
    const long H = layout.hidden;
    for (long row = 0; row < count; ++row) {
      copy(first_c[l].data() + row * layout.states, at_step<T const>(call, layer.first_c, 0, first + row, H), H);
      copy(d_h[l].data() + row * layout.states, at_step<T>(call, layer.d_h, 0, first + row, H), H);
      copy(d_c[l].data() + row * layout.states, at_step<T>(call, layer.d_c, 0, first + row, H), H);
      d_z.data()[row * L + l] = *at_step<T>(call, layer.d_z, 0, first + row, 1);
    }
  }

  void finish(long l) {
    const LayerCall& layer = call.layer[l];
    const Layout<T>& layout = problem.weights[l].layout;
    const long H = layout.hidden;
    for (long row = 0; row < count; ++row) {
      copy(at_step<T>(call, layer.d_h, 0, first + row, H), d_h[l].data() + row * layout.states, H);
      copy(at_step<T>(call, layer.d_c, 0, first + row, H), d_c[l].data() + row * layout.states, H);
      *at_step<T>(call, layer.d_z, 0, first + row, 1) = d_z.data()[row * L + l];
    }
  }

  void step(long t, long l) {
    const Weights<T>& w = problem.weights[l];
    const Rows<T> above = h(t - 1, w.above ? l + 1 : l), below = l ? h(t, l - 1) : this->x(t);
    this->list(t, z(t - 1, l), l ? z(t, l - 1) : Rows<T>{nullptr, 0}, call.choice);
    this->gather(l, h(t - 1, l), above, below);
    for (long n = 0; n < long(going.size()); ++n) {
      const long row = going[n].row;
      T d_x_z = 0;
      if (w.has_boundary) {
        T& d = d_z.data()[row * L + l];
        d_x_z = d * problem.boundary_slope(at_step<T>(call, call.x_z, t, first + row, L)[l]);
        d = 0;
        add(sums[l].boundary.data(), d_x_z, X[l].data() + n * w.stride, w.stride);
      }
      scale(d_X[l].data() + n * w.stride, d_x_z, w.boundary.data(), w.stride);
      choices[n] = Choice<T>{};
    }
    for (const Block& block : w.layout.blocks) {
      differentiate(t, l, block);
      constexpr long stride = 4 * LANES<T>;
      add_product<T>(moving, padded<T>(l || call.d_x ? w.K : w.below_column()) / LANES<T>, 4 * block.width,
                     d_gates.data(), stride, 1, w.backward.data() + 4 * block.unit * w.stride, w.stride,
                     d_X[l].data(), w.stride);
      const auto add_part = [&](long from, long to, long column, long columns) {
        add_product<T>(columns, 4 * block.width / LANES<T>, to - from, X[l].data() + from * w.stride + column, 1,
                       w.stride, d_gates.data() + from * stride, stride,
                       sums[l].gates.data() + w.panel(block) + column * 4 * block.width, 4 * block.width);
      };
      add_part(0, moving, 0, w.above_column());
      add_part(above_from, moving, w.above_column(), w.above);
      add_part(0, below_to, w.below_column(), w.below);
    }
    for (long n = 0; n < long(going.size()); ++n) hand_on(t, l, n, above, below);
  }

  // Make the gradients of one block's four sums, and take d_h and d_c of the layer's own path back by one step.
  void differentiate(long t, long l, const Block& block) {
    const Weights<T>& w = problem.weights[l];
    const Rows<T> before = c(t - 1, l), after = c(t, l);
    const T* kept = at_step<T>(call, call.layer[l].gates, t, first, w.layout.stride) + 4 * block.unit;
    for (long n = 0; n < working; ++n, kept += w.layout.stride) {
      const Mix<T>& mix = going[n];
      const Vector<T> i = load(kept), f = load(kept + block.width), g = load(kept + 2 * block.width),
                      o = load(kept + 3 * block.width);
      T* d_h_row = d_h[l].data() + mix.row * w.layout.states + block.unit;
      T* d_c_row = d_c[l].data() + mix.row * w.layout.states + block.unit;
      const Vector<T> c_before = load(before[mix.row] + block.unit);
      const Vector<T> squashed = tanh<T>(load(after[mix.row] + block.unit));
      const Vector<T> dh = load(d_h_row), d_new = mix.change * dh;
      const Vector<T> dc = load(d_c_row) + d_new * o * (T(1) - squashed * squashed), d_ig = mix.change * dc;
      T* d = d_gates.data() + n * 4 * LANES<T>;
      store<T>(d, d_ig * g * i * (T(1) - i));
      store<T>(d + block.width, mix.update * dc * c_before * f * (T(1) - f));
      store<T>(d + 2 * block.width, d_ig * i * (T(1) - g * g));
      store<T>(d + 3 * block.width, d_new * squashed * o * (T(1) - o));
      store<T>(d_h_row, mix.keep * dh);
      store<T>(d_c_row, (mix.update * f + mix.keep) * dc);
      if (call.choice) {
        const Vector<T> h_before = load(X[l].data() + n * w.stride + block.unit);
        choices[n].copy += dc * c_before + dh * h_before;
        choices[n].update += dc * f * c_before;
        choices[n].flush += dc * i * g + dh * o * squashed;
      }
    }
  }

  // Give the parts of a row of d_X to the states that they belong to, and to the boundaries that gated them.
  void hand_on(long t, long l, long n, Rows<T> above, Rows<T> below) {
    const Weights<T>& w = problem.weights[l];
    const Mix<T>& mix = going[n];
    const T* own = d_X[l].data() + n * w.stride;
    const T *to_above = own + w.above_column(), *to_below = own + w.below_column();
    const T by_copy = sum_lanes<T>(choices[n].copy), by_flush = sum_lanes<T>(choices[n].flush);
    const T by_update = sum_lanes<T>(choices[n].update) + by_flush;
    T* d_own = d_z.data() + mix.row * L + l;
    add(d_h[l].data() + mix.row * w.layout.states, T(1), own, w.layout.hidden);
    *d_own += by_flush - mix.below * by_update - (1 - mix.below) * by_copy;
    if (w.above) {
      *d_own += dot(to_above, above[mix.row], w.above);
      add(d_h[l + 1].data() + mix.row * problem.weights[l + 1].layout.states, mix.own, to_above, w.above);
    }
    if (l) {
      d_own[-1] += (1 - mix.own) * (by_update - by_copy) + dot(to_below, below[mix.row], w.below);
      add(d_h[l - 1].data() + mix.row * problem.weights[l - 1].layout.states, mix.below, to_below, w.below);
    } else if (call.d_x) {
      copy(static_cast<T*>(call.d_x) + ((first + mix.row) * call.steps + t) * w.below, to_below, w.below);
    }
  }
};

// Take all slices through `run` of one worker a thread; the workers, in an order that the load does not change.
template <class Work, class T>
std::vector<Work> run_slices(const Problem<T>& problem) {
  const long batch = problem.call.batch, threads = std::min(long(problem.call.threads), batch);
  const long rounds = (batch + SLICE_ROWS * threads - 1) / (SLICE_ROWS * threads);
  const long slices = std::min(batch, rounds * threads);
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
  for (Backward<T>& worker : run_slices<Backward<T>>(problem))
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

// The output module, row after row of h; its rows are all steps of all sequences.
struct ReadCall {
  int64_t size;
  int64_t steps, batch, layers, outputs, embedded, threads;  // outputs: S, the sum of H; embedded: E
  const int64_t* hidden;                                     // (L)
  const void *h, *gates, *embedding;                         // (T, B, S), (L, S), (E, S)
  void *g, *e;                                               // (T, B, L), null: keep nothing; (T, B, E)
  const void* d_e;                                           // (T, B, E), the last axis contiguous
  int64_t d_step, d_row;
  void *d_h, *d_gates, *d_embedding;                         // as h, gates and embedding; the weights' zero on entry
};

template <class T>
struct Reader {
  const ReadCall& call;
  const long S, E, L, wide, embedded;  // the last two: strides of rows of S and of E numbers
  long first = 0;                      // row of the slice
  Buffer<T> gated, d_gated, e, g;      // [row][wide], the same, [row][embedded], [row][padded L]
  Buffer<T> d_gates, d_embedding;      // [L][wide], [S][embedded]

  Reader(const ReadCall& c, bool back)
      : call(c), S(c.outputs), E(c.embedded), L(c.layers), wide(padded<T>(S)), embedded(padded<T>(E)),
        gated(size_t(SLICE_ROWS * wide)), d_gated(back ? size_t(SLICE_ROWS * wide) : 0),
        e(size_t(SLICE_ROWS * embedded)), g(size_t(SLICE_ROWS * padded<T>(L))),
        d_gates(back ? size_t(L * wide) : 0), d_embedding(back ? size_t(S * embedded) : 0) {}

  const T* h(long row) const { return static_cast<const T*>(call.h) + (first + row) * S; }

  void gate(long row, const T* g_row) {
    for (long l = 0, at = 0; l < L; at += call.hidden[l++])
      scale(gated.data() + row * wide + at, g_row[l], h(row) + at, call.hidden[l]);
  }

  // gates_in [S][padded L], embedding_in [S][embedded]
  void forward(long count, const T* gates_in, const T* embedding_in) {
    const long width = padded<T>(L);
    std::fill_n(g.data(), count * width, T(0));
    std::fill_n(e.data(), count * embedded, T(0));
    add_product<T>(count, width / LANES<T>, S, h(0), S, 1, gates_in, width, g.data(), width);
    for (long row = 0; row < count; ++row) {
      T* g_row = g.data() + row * width;
      for (long lane = 0; lane < width; lane += LANES<T>) store<T>(g_row + lane, sigmoid<T>(load(g_row + lane)));
      gate(row, g_row);
      if (call.g) copy(static_cast<T*>(call.g) + (first + row) * L, g_row, L);
    }
    add_product<T>(count, embedded / LANES<T>, S, gated.data(), wide, 1, embedding_in, embedded, e.data(), embedded);
    for (long row = 0; row < count; ++row) {
      const T* from = e.data() + row * embedded;
      T* to = static_cast<T*>(call.e) + (first + row) * E;
      for (long n = 0; n < E; ++n) to[n] = from[n] < 0 ? T(0) : from[n];  // a NaN stays one
    }
  }

  // embedding_in [E][wide]
  void backward(long count, const T* embedding_in) {
    std::fill_n(d_gated.data(), count * wide, T(0));
    for (long row = 0; row < count; ++row) {
      const long n = first + row;
      const T* d = static_cast<const T*>(call.d_e) + n / call.batch * call.d_step + n % call.batch * call.d_row;
      const T* after = static_cast<const T*>(call.e) + n * E;
      T* to = e.data() + row * embedded;
      for (long k = 0; k < E; ++k) to[k] = after[k] > 0 ? d[k] : T(0);
      gate(row, static_cast<const T*>(call.g) + n * L);
    }
    add_product<T>(count, wide / LANES<T>, E, e.data(), embedded, 1, embedding_in, wide, d_gated.data(), wide);
    add_product<T>(S, embedded / LANES<T>, count, gated.data(), 1, wide, e.data(), embedded, d_embedding.data(),
                   embedded);
    for (long row = 0; row < count; ++row) {
      const T *g_row = static_cast<const T*>(call.g) + (first + row) * L, *d = d_gated.data() + row * wide;
      T* d_h = static_cast<T*>(call.d_h) + (first + row) * S;
      for (long l = 0, at = 0; l < L; at += call.hidden[l++]) scale(d_h + at, g_row[l], d + at, call.hidden[l]);
      for (long l = 0, at = 0; l < L; at += call.hidden[l++]) {
        const T d_sum = dot(d + at, h(row) + at, call.hidden[l]) * g_row[l] * (1 - g_row[l]);
        add(d_h, d_sum, static_cast<const T*>(call.gates) + l * S, S);
        add(d_gates.data() + l * wide, d_sum, h(row), S);
      }
    }
  }
};

// Run `pass(reader, rows)` over slices of rows, each thread over neighbouring ones; the readers.
template <class T, class Pass>
std::vector<Reader<T>> read_slices(const ReadCall& call, bool back, const Pass& pass) {
  const long rows = call.steps * call.batch, slices = (rows + SLICE_ROWS - 1) / SLICE_ROWS;
  const long threads = std::min(long(call.threads), slices);
  std::vector<Reader<T>> readers;
  for (long n = 0; n < threads; ++n) readers.emplace_back(call, back);
  run_parallel(threads, [&](long n) {
    for (long slice = slices * n / threads; slice < slices * (n + 1) / threads; ++slice) {
      readers[n].first = slice * SLICE_ROWS;
      pass(readers[n], std::min(SLICE_ROWS, rows - slice * SLICE_ROWS));
    }
  });
  return readers;
}

template <class T>
void read_forward(const ReadCall& call) {
  const long S = call.outputs, E = call.embedded, L = call.layers;
  Buffer<T> gates(size_t(S * padded<T>(L))), embedding(size_t(S * padded<T>(E)));
  for (long k = 0; k < S; ++k) {
    for (long l = 0; l < L; ++l) gates.data()[k * padded<T>(L) + l] = static_cast<const T*>(call.gates)[l * S + k];
    for (long n = 0; n < E; ++n)
      embedding.data()[k * padded<T>(E) + n] = static_cast<const T*>(call.embedding)[n * S + k];
  }
  read_slices<T>(call, false,
                 [&](Reader<T>& reader, long count) { reader.forward(count, gates.data(), embedding.data()); });
}

template <class T>
void read_backward(const ReadCall& call) {
  const long S = call.outputs, E = call.embedded, L = call.layers, wide = padded<T>(S);
  Buffer<T> embedding(size_t(E * wide));
  for (long n = 0; n < E; ++n) copy(embedding.data() + n * wide, static_cast<const T*>(call.embedding) + n * S, S);
  for (const Reader<T>& reader : read_slices<T>(
           call, true, [&](Reader<T>& each, long count) { each.backward(count, embedding.data()); })) {
    for (long l = 0; l < L; ++l) add(static_cast<T*>(call.d_gates) + l * S, T(1), reader.d_gates.data() + l * wide, S);
    for (long n = 0; n < E; ++n)
      for (long k = 0; k < S; ++k)
        static_cast<T*>(call.d_embedding)[n * S + k] += reader.d_embedding.data()[k * padded<T>(E) + n];
  }
}

// Say how wide a row of `cells` and of `gates` must be.
template <class T>
void layout(const Call& call) {
  for (long l = 0; l < call.layers; ++l) {
    const Layout<T> layout(call.layer[l].hidden);
    call.layer[l].state_stride = layout.states;
    call.layer[l].gate_stride = layout.stride;
  }
}

}  // namespace

SEQPYRAMID_KERNEL(hm_lstm_layout, Call, layout)
SEQPYRAMID_KERNEL(hm_lstm_forward, Call, forward)
SEQPYRAMID_KERNEL(hm_lstm_backward, Call, backward)
SEQPYRAMID_KERNEL(hm_lstm_read_forward, ReadCall, read_forward)
SEQPYRAMID_KERNEL(hm_lstm_read_backward, ReadCall, read_backward)
