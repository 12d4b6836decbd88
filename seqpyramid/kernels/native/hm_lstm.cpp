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
// The output module, which reads h of all layers, is a pass of its own (output_module.h).
//
// The backward pass goes through the same lists from the end. Where a boundary is 0, so is a part of X, and the order
// of the rows lets the products leave it out; where a row copies, all four gates' gradients are 0. Where only few rows
// do not copy, their shares of the weights' gradients wait for those of other steps.
//
// Recomputation (segments.h): h and z of all steps are there anyhow, so forward keeps c at the starts of segments, and
// backward makes gates and c of one segment after the other again, bit for bit.
//
// Where the machine has tiles for matrices (tiles.h) they make the products of many rows, while vectors make the
// gates, or the gates' gradients, of another block.
//
// Layouts: X [row][padded K]; h and c [row][padded H]; gates [row][block][gate][width], see Layout.
// Shapes: B batch, T steps, L layers, H units of a layer, K columns of X with the 1, V lanes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "interface.h"
#include "kept_gates.h"
#include "output_module.h"
#include "parallel.h"
#include "rows.h"
#include "segments.h"
#include "tile.h"
#include "tiles.h"
#include "vector.h"

namespace {

using namespace seqpyramid;

// Mirrored field by field in seqpyramid/kernels/hm_lstm.py. Arrays are contiguous unless strides are given.
struct LayerCall {
  int64_t hidden, above, below;              // H, and columns of the other two parts; above is 0 in the top layer
  int64_t columns, below_at;                 // of `weight`: row stride, and where the bottom-up columns begin
  int64_t boundary;                          // whether the layer has a z
  const void *weight, *bias;                 // (4 H + boundary, columns); no bias: null
  const void *first_h, *first_c, *first_z;   // (B, H), (B, H), (B)
  void *last_h, *last_c, *last_z;            // forward only
  void *cells, *gates;                       // (T, B, padded H), (T, B, gates' width); null: keep nothing, or
  void* starts;                              // (segments but the first, B, padded H), c; null: not that either
  void *d_weight, *d_bias;                   // zero on entry
  void *d_h, *d_c, *d_z;                     // of the last state on entry, of the first one on return
};

struct Call {
  int64_t size;
  int64_t layers, steps, batch, threads;
  int64_t soft;      // z is z~ itself, not a step
  int64_t logistic;  // z~ is a logistic function, not a hard sigmoid
  int64_t choice;    // z learns from having chosen an operation
  int64_t rounded;   // gates are kept in 16 bits (kept_gates.h)
  int64_t segment;   // steps of a segment; 0: nothing is made again
  int64_t* answer;   // out, of hm_lstm_segment
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
  Buffer<T> forward;   // [block][stride][gate][width]
  Buffer<T> backward;  // [block][gate][width][stride]
  Buffer<T> boundary;  // [stride], the row of z~
  RightFactor<T> tiles;                     // both on tiles: all blocks side by side,
  std::vector<RightFactor<T>> block_tiles;  // and each block

  Weights(const LayerCall& layer, bool both, long batch)
      : layout(layer.hidden), above(layer.above), below(layer.below), columns(layer.columns),
        below_at(layer.below_at), K(layer.hidden + 1 + above + below), stride(padded<T>(K)),
        has_boundary(layer.boundary != 0), forward(size_t(stride * layout.gates)),
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
          for (long n = 0; n < block.lanes(); ++n)
            backward.data()[(block.gates() + n) * stride + k] = forward.data()[panel(block) + k * block.lanes() + n];
    if constexpr (ON_TILES<T>)
      if (batch >= fewest_tiled_rows) pack_tiles(both);
  }

  // Where the parts of X that the boundaries gate begin.
  long above_column() const { return layout.hidden + 1; }
  long below_column() const { return layout.hidden + 1 + above; }

  // Where column k of X, other than the 1, stands in `weight`.
  long at(long row, long k) const {
    return row * columns + (k < layout.hidden ? k : k < below_column() ? k - 1 : below_at + k - below_column());
  }

  // Where a block begins in `forward`.
  long panel(const Block& block) const { return block.gates() * stride; }

  // Call visit(number, row, k) for every number of `gates`, in the layout of `forward`, and of the row of z~.
  template <class Visit>
  void for_each(const Visit& visit, T* gates, T* last) const {
    each_weight(layout, stride, [&](long place, long row, long k) {
      if (k < K) visit(gates[place], row, k);
    });
    for (long k = 0; has_boundary && k < K; ++k) visit(last[k], 4 * layout.hidden, k);
  }

 private:
  void pack_tiles(bool both) {
    tiles = RightFactor<T>(K, layout.gates, [&](long k, long tile) {
      const Block& block = layout.block_of(tile * TILE);
      return load(forward.data() + panel(block) + k * block.lanes() + tile * TILE - block.gates());
    });
    for (size_t n = 0; both && n < layout.blocks.size(); ++n) {
      const T* const rows = backward.data() + layout.blocks[n].gates() * stride;
      block_tiles.emplace_back(layout.blocks[n].lanes(), stride,
                               [&](long k, long tile) { return load(rows + k * stride + tile * TILE); });
    }
  }
};

// From one row of a block's sums to the next.
template <class T>
constexpr long SUMS_STRIDE = GATES * LANES<T>;

// What a row of the slice does at one step: the boundaries, and by them the weights of (2).
template <class T>
struct Mix {
  long row;
  T own, below;            // z of the layer itself one step before, z of the layer below
  T change, update, keep;  // 1 - COPY, UPDATE, COPY
};

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
      weights.emplace_back(call.layer[l], both, call.batch);
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

// Where c and the gates of all layers lie: of all steps, or of one segment in the rows of a slice.
template <class T>
struct Kept {
  struct Layer {
    T* cells;
    void* gates;
    long width, gates_width;
  };
  std::vector<Layer> layers;
  long rows;
  bool rounded;
  long first_row = 0, first_step = 0;

  explicit Kept(const Problem<T>& problem) : rows(problem.call.batch), rounded(problem.call.rounded != 0) {
    for (long l = 0; l < problem.call.layers; ++l) {
      const LayerCall& layer = problem.call.layer[l];
      const Layout<T>& layout = problem.weights[l].layout;
      layers.push_back({static_cast<T*>(layer.cells), layer.gates, layout.states, layout.stride});
    }
  }

  T* cells(long t, long l, long row) const {
    const Layer& layer = layers[size_t(l)];
    return layer.cells ? layer.cells + place(t, row) * layer.width : nullptr;
  }
  KeptGates<T> gates(long t, long l, long row) const {
    const Layer& layer = layers[size_t(l)];
    return kept_gates<T>(layer.gates, place(t, row), layer.gates_width, rounded);
  }

 private:
  long place(long t, long row) const { return (t - first_step) * rows + row - first_row; }
};

// Memory for one segment of a slice.
template <class T>
struct Room {
  std::vector<Buffer<T>> cells, gates;  // of each layer

  explicit Room(const Problem<T>& problem) {
    for (const Weights<T>& w : problem.weights) {
      const size_t rows = size_t(problem.call.segment * SLICE_ROWS);
      cells.emplace_back(rows * w.layout.states), gates.emplace_back(rows * w.layout.stride);
    }
  }

  // The same, to be written and read.
  Kept<T> kept(const Problem<T>& problem) const {
    Kept<T> kept(problem);
    kept.rows = SLICE_ROWS, kept.rounded = false;
    for (size_t l = 0; l < kept.layers.size() && l < cells.size(); ++l)
      kept.layers[l].cells = cells[l].data(), kept.layers[l].gates = gates[l].data();
    return kept;
  }
};

// c before a segment but the first, from a row of the batch on.
template <class T>
T* start_of(const Call& call, const LayerCall& layer, long t, long row, long stride) {
  return at_step<T>(call, layer.starts, t / call.segment - 1, row, stride);
}

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
  Kept<T> kept;

  Worker(const Problem<T>& p, Kept<T> kept_) : problem(p), call(p.call), L(p.call.layers), kept(std::move(kept_)) {
    going.reserve(SLICE_ROWS);
    for (const Weights<T>& w : problem.weights) X.emplace_back(size_t(SLICE_ROWS * w.stride + TILE_DEPTH));
  }

  // One buffer (SLICE_ROWS, stride) a layer.
  std::vector<Buffer<T>> states() const {
    std::vector<Buffer<T>> each;
    for (const Weights<T>& w : problem.weights) each.emplace_back(size_t(SLICE_ROWS * w.layout.states));
    return each;
  }

  Rows<const T> x(long t) const {
    return {static_cast<const T*>(call.x) + first * call.x_row + t * call.x_step, call.x_row};
  }

  // List the rows that go on. With `all`, the gates of a row that copies are needed, too: the gradient of having
  // chosen COPY meets i g, which COPY does not.
  void list(long t, Rows<const T> own, Rows<const T> below, bool all) {
    going.clear();
    const auto append = [&](bool flushes, bool open) {
      for (long row = 0; row < count; ++row) {
        if (t >= call.lengths[first + row]) continue;
        const T z = *own.at(row), z_below = below ? *below.at(row) : T(1);
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

  // Blocks of the depth K on tiles, at most two stretches of them, in which rows [from, to) of X are not all zero.
  std::vector<Depth> depths(long l, long from, long to) const {
    const Weights<T>& w = problem.weights[l];
    const bool has_above = w.above && above_from < std::min(to, moving) && from < moving, has_below = from < below_to;
    const long own = depth_blocks(w.above_column()), all = depth_blocks(w.K);
    if (has_above && has_below) return {{0, all}};
    if (has_above) return {{0, depth_blocks(w.below_column())}};
    const long below = std::max(own, w.below_column() / TILE_DEPTH);
    if (!has_below || below == all) return {{0, own}};
    if (below == own) return {{0, all}};
    return {{0, own}, {below, all}};
  }

  // The rows' own h, in the first columns of X.
  void gather_own(long l, long rows, Rows<const T> own) {
    const Weights<T>& w = problem.weights[l];
    for (long n = 0; n < rows; ++n) copy(X[l].data() + n * w.stride, own.at(going[n].row), w.layout.hidden);
  }

  // The other columns of row n.
  void gather_others(long l, long n, Rows<const T> above, Rows<const T> below) {
    const Weights<T>& w = problem.weights[l];
    const Mix<T>& mix = going[n];
    T* row = X[l].data() + n * w.stride;
    row[w.layout.hidden] = 1;
    put_scaled(row + w.above_column(), mix.own, above.at(mix.row), w.above);
    put_scaled(row + w.below_column(), mix.below, below.at(mix.row), w.below);
  }

 private:
  // What a closed boundary hides is not even looked at.
  static void put_scaled(T* to, T boundary, const T* from, long n) {
    if (boundary == 0)
      std::fill_n(to, n, T(0));
    else
      scale(to, boundary, from, n);
  }
};

template <class T>
struct Forward : Worker<T> {
  using Worker<T>::problem, Worker<T>::call, Worker<T>::L, Worker<T>::first, Worker<T>::count;
  using Worker<T>::going, Worker<T>::above_from, Worker<T>::below_to, Worker<T>::moving, Worker<T>::working;
  using Worker<T>::X, Worker<T>::kept;
  static constexpr long SUMS = SUMS_STRIDE<T>;
  std::vector<Buffer<T>> h, c;
  Buffer<T> z, x_z;  // [row][layer]
  Buffer<T> sums;    // [row][gate][width] of one block
  Buffer<Bf16> left;  // on tiles: X

  explicit Forward(const Problem<T>& p) : Forward(p, Kept<T>(p)) {}

  Forward(const Problem<T>& p, Kept<T> kept_)
      : Worker<T>(p, std::move(kept_)), h(this->states()), c(this->states()), z(size_t(SLICE_ROWS * L)),
        x_z(size_t(SLICE_ROWS * L)), sums(size_t(SLICE_ROWS * SUMS)) {
    long most = 0;
    for (const Weights<T>& w : problem.weights) most = std::max(most, left_stride(w.K));
    if (ON_TILES<T> && tiles_run()) left = Buffer<Bf16>(size_t(SLICE_ROWS * most));
  }

  Rows<const T> of(const std::vector<Buffer<T>>& state, long l) const {
    return {state[l].data(), problem.weights[l].layout.states};
  }

  void run() {
    for (long l = 0; l < L; ++l) start(l);
    for (long t = 0; t < call.steps; ++t) {
      for (long l = 0; l < L; ++l) {
        const LayerCall& layer = call.layer[l];
        const long stride = problem.weights[l].layout.states;
        if (layer.starts && t > 0 && t % call.segment == 0)
          copy_past(start_of<T>(call, layer, t, first, stride), c[l].data(), count * stride);
        step(t, l);
      }
      for (long row = 0; row < count; ++row)
        for (long l = 0; l < L; ++l)
          copy(at_step<T>(call, call.h, t, first + row, problem.outputs) + problem.offset[l], of(h, l).at(row),
               problem.weights[l].layout.hidden);
      copy(at_step<T>(call, call.z, t, first, L), z.data(), count * L);
      if (call.x_z) copy(at_step<T>(call, call.x_z, t, first, L), x_z.data(), count * L);
    }
    for (long l = 0; l < L; ++l) finish(l);
    end_stream();
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

  // Steps [from, to) of a slice, whose h and z are known, for what is kept of them; `c_before` is c before `from`.
  void run_again(long from, long to, const std::vector<Buffer<T>>& c_before) {
    kept.first_row = first, kept.first_step = from;
    for (long l = 0; l < L; ++l) {
      start(l);
      const Layout<T>& layout = problem.weights[l].layout;
      copy(c[l].data(), c_before[l].data(), count * layout.states);
      for (long row = 0; from > 0 && row < count; ++row) {
        copy(h[l].data() + row * layout.states,
             at_step<T const>(call, call.h, from - 1, first + row, problem.outputs) + problem.offset[l], layout.hidden);
        z.data()[row * L + l] = at_step<T const>(call, call.z, from - 1, first + row, L)[l];
      }
    }
    for (long t = from; t < to; ++t)
      for (long l = 0; l < L; ++l) step(t, l);
    end_stream();
  }

  void finish(long l) {
    const LayerCall& layer = call.layer[l];
    const long H = problem.weights[l].layout.hidden;
    for (long row = 0; row < count; ++row) {
      copy(at_step<T>(call, layer.last_h, 0, first + row, H), of(h, l).at(row), H);
      copy(at_step<T>(call, layer.last_c, 0, first + row, H), of(c, l).at(row), H);
      *at_step<T>(call, layer.last_z, 0, first + row, 1) = z.data()[row * L + l];
    }
  }

  void step(long t, long l) {
    const Weights<T>& w = problem.weights[l];
    T* own = z.data() + l;
    const KeptGates<T> gates = kept.gates(t, l, first);
    // A step that will run again has the rows that it has then: how many there are decides about tiles.
    const bool all = call.choice && (gates || call.segment);
    this->list(t, {own, L}, l ? Rows<const T>{own - 1, L} : Rows<const T>{nullptr, 0}, all);
    const Rows<const T> above = of(h, w.above ? l + 1 : l), below = l ? of(h, l - 1) : this->x(t);
    const long read = w.has_boundary ? long(going.size()) : working;
    this->gather_own(l, read, of(h, l));
    for (long n = 0; n < read; ++n) this->gather_others(l, n, above, below);
    if (ON_TILES<T> && working >= fewest_tiled_rows)
      advance_on_tiles(l, gates);
    else
      for (const Block& block : w.layout.blocks) advance(l, block, gates);
    if (w.has_boundary)
      for (size_t n = 0; n < going.size(); ++n) {
        const T x = dot(X[l].data() + long(n) * w.stride, w.boundary.data(), w.stride);
        x_z.data()[going[n].row * L + l] = x;
        own[going[n].row * L] = problem.boundary(x);
      }
    if (T* const cells = kept.cells(t, l, first)) copy_past(cells, c[l].data(), count * w.layout.states);
  }

  // Take the working rows through one block of units: gates, then c and h in place. What comes out in lanes without a
  // unit is finite and has no reader: its gradient is 0. The product is a loop of its own: beside the constants of exp, GCC
  // would not keep its sums on registers.
  void advance(long l, const Block& block, KeptGates<T> gates) {
    const Weights<T>& w = problem.weights[l];
    std::fill_n(sums.data(), working * SUMS, T(0));
    const auto add_part = [&](long from, long to, long column, long depth) {
      add_product<T>(to - from, block.lanes() / LANES<T>, depth, X[l].data() + from * w.stride + column, w.stride, 1,
                     w.forward.data() + w.panel(block) + column * block.lanes(), block.lanes(),
                     sums.data() + from * SUMS, SUMS);
    };
    add_part(0, working, 0, w.above_column());
    add_part(above_from, moving, w.above_column(), w.above);
    add_part(0, below_to, w.below_column(), w.below);
    finish_rows(l, block, sums.data(), gates, 0, working);
  }

  // All blocks of a layer, in groups of rows. While the tiles are at the sums of one block, vectors finish the one before.
  void advance_on_tiles([[maybe_unused]] long l, [[maybe_unused]] KeptGates<T> gates) {
    if constexpr (ON_TILES<T>) {
      const Weights<T>& w = problem.weights[l];
      for (long row = 0; row < working; ++row)
        split_row(w.K, X[l].data() + row * w.stride, left.data() + row * left_stride(w.K));
      const Block* done = nullptr;                 // whose sums are there,
      T *done_sums = nullptr, *now = sums.data();  // where,
      long row = 0, last = 0;                      // and its unfinished rows
      for (const Block& block : w.layout.blocks)
        for (long group = 0; group < working; group += TILED_ROWS) {
          if (block.lanes() < SUMS) std::fill_n(now, TILED_ROWS * SUMS, T(0));
          long calls = 0;
          const auto meanwhile = [&] {
            if (++calls % 3 || row + 2 > last) return;
            finish<2>(l, *done, done_sums, gates, row);
            row += 2;
          };
          const long end = std::min(working, group + TILED_ROWS), tile = block.gates() / TILE;
          bool add = false;
          for (const Depth& depth : this->depths(l, group, end)) {
            multiply(end - group, left.data() + group * left_stride(w.K), w.tiles, depth, tile,
                     tile + block.lanes() / TILE, now, SUMS, add, meanwhile);
            add = true;
          }
          if (done) finish_rows(l, *done, done_sums, gates, row, last);
          done = &block, done_sums = now - group * SUMS, row = group, last = end;
          now = sums.data() + (now == sums.data() ? TILED_ROWS * SUMS : 0);
        }
      finish_rows(l, *done, done_sums, gates, row, last);
    }
  }

  // Rows [from, to) of a block, from their sums to h.
  void finish_rows(long l, const Block& block, T* block_sums, KeptGates<T> gates, long from, long to) {
    long row = from;
    for (; row + 2 <= to; row += 2) open_gates<2>(l, block, block_sums, row, gates);
    if (row < to) open_gates<1>(l, block, block_sums, row, gates);
    for_row_tiles(to - from, [&](auto tile, long n) { put_out<decltype(tile)::value>(l, block, block_sums, from + n); });
  }

  template <int R>
  SEQPYRAMID_INLINE void finish(long l, const Block& block, T* block_sums, KeptGates<T> gates, long from) {
    open_gates<R>(l, block, block_sums, from, gates);
    put_out<R>(l, block, block_sums, from);
  }

  // The gates of R rows, and with them c. What is kept of a whole block goes past the caches: the backward pass is far.
  template <int R>
  SEQPYRAMID_INLINE void open_gates(long l, const Block& block, T* block_sums, long from, KeptGates<T> gates) {
    const Layout<T>& layout = problem.weights[l].layout;
    Vector<T> gate[R * GATES];
    SEQPYRAMID_UNROLL
    for (int k = 0; k < R * GATES; ++k)
      gate[k] = load(block_sums + (from + k / GATES) * SUMS + k % GATES * block.width);
    squash<T, 0b01000100>(gate);
    SEQPYRAMID_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vector<T>* const own = gate + r * GATES;
      const Vector<T> i = own[0], f = own[1], g = own[2], o = own[3];
      if (gates) gates.store(from + r, block, {i, f, g, o}, true);
      const Mix<T>& mix = going[from + r];
      T* c_row = c[l].data() + mix.row * layout.states + block.unit;
      store<T>(c_row, mix.change * (i * g) + (mix.update * f + mix.keep) * load(c_row));
      store(block_sums + (from + r) * SUMS, o);
    }
  }

  // h of R rows, from c and the o that open_gates left.
  template <int R>
  SEQPYRAMID_INLINE void put_out(long l, const Block& block, const T* block_sums, long from) {
    const long stride = problem.weights[l].layout.states;
    Vector<T> squashed[R];
    SEQPYRAMID_UNROLL
    for (int r = 0; r < R; ++r) squashed[r] = load(c[l].data() + going[from + r].row * stride + block.unit);
    squash<T, 0b11111111>(squashed);
    SEQPYRAMID_UNROLL
    for (int r = 0; r < R; ++r) {
      const Mix<T>& mix = going[from + r];
      T* h_row = h[l].data() + mix.row * stride + block.unit;
      const Vector<T> o = load(block_sums + (from + r) * SUMS);
      store<T>(h_row, mix.keep * load(h_row) + mix.change * (o * squashed[r]));
    }
  }
};

// One thread's sums of a layer's weight gradients, in the layouts of Weights.
template <class T>
struct WeightGradient {
  Buffer<T> gates, boundary;

  explicit WeightGradient(const Weights<T>& w) : gates(size_t(w.stride * w.layout.gates)), boundary(size_t(w.stride)) {}
};

// Sums over a row's units of which the gradients of its two boundaries are made; those that reach h and c by
// COPY, by the part of UPDATE that is not FLUSH, by FLUSH.
template <class T>
struct Choice {
  Vector<T> copy, update, flush;
};

// Rows of a layer whose shares of the weights' gradients are still to be added: a few at a time would cost as much as
// many, since all the sums are read and written for them.
template <class T>
struct Waiting {
  long rows = 0;
  Buffer<T> X, d_gates;  // as the step had them; [block][row][gate][width]

  explicit Waiting(const Weights<T>& w)
      : X(size_t(SLICE_ROWS * w.stride)), d_gates(size_t(SLICE_ROWS * w.layout.gates)) {}

  T* d_gates_of(const Block& block) const { return d_gates.data() + block.gates() * SLICE_ROWS; }
};

template <class T>
struct Backward : Worker<T> {
  using Worker<T>::problem, Worker<T>::call, Worker<T>::L, Worker<T>::first, Worker<T>::count;
  using Worker<T>::going, Worker<T>::above_from, Worker<T>::below_to, Worker<T>::moving, Worker<T>::working;
  using Worker<T>::X, Worker<T>::kept;
  static constexpr long SUMS = SUMS_STRIDE<T>, GROUPS = SLICE_ROWS / TILED_ROWS;
  // d_h, d_c and d_z of a layer stand at step t until the layer is done with it, and at step t - 1 from then on.
  std::vector<Buffer<T>> c_before, d_h, d_c, d_X;  // the first: c before all steps, or before those of the segment
  Buffer<T> d_z;      // [row][layer]
  Buffer<T> d_gates;  // [row][gate][width] of one block
  std::vector<Choice<T>> choices;
  std::vector<T> d_x_z;  // of the rows that go on
  std::vector<WeightGradient<T>> sums;
  std::vector<Waiting<T>> waiting;
  Buffer<Bf16> left, right, transposed;  // on tiles: pieces of two blocks' d_gates, twice, and of X
  std::unique_ptr<Room<T>> room;         // with segments, what makes them again, and where
  std::unique_ptr<Forward<T>> forward;

  explicit Backward(const Problem<T>& p)
      : Worker<T>(p, Kept<T>(p)), c_before(this->states()), d_h(this->states()), d_c(this->states()),
        d_z(size_t(SLICE_ROWS * L)), d_gates(size_t(SLICE_ROWS * SUMS)), choices(SLICE_ROWS), d_x_z(SLICE_ROWS) {
    for (const Weights<T>& w : problem.weights) {
      d_X.emplace_back(size_t(SLICE_ROWS * w.stride));
      sums.emplace_back(w);
      waiting.emplace_back(w);
    }
    if (ON_TILES<T> && tiles_run()) {
      long most = 0;
      for (const Weights<T>& w : problem.weights) most = std::max(most, w.stride / TILE * PIECES * TILE_SIZE);
      left = Buffer<Bf16>(size_t(2 * SLICE_ROWS * left_stride(SUMS)));
      right = Buffer<Bf16>(size_t(2 * GROUPS * GATES * PIECES * TILE_SIZE));
      transposed = Buffer<Bf16>(size_t(GROUPS * most));
    }
    if (!call.segment) return;
    room = std::make_unique<Room<T>>(p);
    kept = room->kept(p);
    forward = std::make_unique<Forward<T>>(p, kept);
  }

  // h, c and z after step t; after step -1 they are the first state.
  Rows<const T> h(long t, long l) const {
    const long H = problem.weights[l].layout.hidden;
    if (t < 0) return {at_step<T const>(call, call.layer[l].first_h, 0, first, H), H};
    return {at_step<T const>(call, call.h, t, first, problem.outputs) + problem.offset[l], problem.outputs};
  }
  Rows<const T> c(long t, long l) const {
    const long stride = problem.weights[l].layout.states;
    return {t < kept.first_step ? c_before[l].data() : kept.cells(t, l, first), stride};
  }
  // In the order of the list.
  KeptGates<T> gates_at(long t, long l) const { return kept.gates(t, l, first); }
  Rows<const T> z(long t, long l) const {
    if (t < 0) return {at_step<T const>(call, call.layer[l].first_z, 0, first, 1), 1};
    return {at_step<T const>(call, call.z, t, first, L) + l, L};
  }

  void run() {
    for (long l = 0; l < L; ++l) start(l);
    for (long to = call.steps; to > 0;) {
      const long from = call.segment ? (to - 1) / call.segment * call.segment : 0;
      for (long l = 0; l < L; ++l) recall_c(from, l);
      if (forward) {
        kept.first_row = first, kept.first_step = from;
        forward->first = first, forward->count = count;
        forward->run_again(from, to, c_before);
      }
      back(from, to);
      to = from;
    }
    for (long l = 0; l < L; ++l) {
      add_waiting(l);
      finish(l);
    }
  }

  // Steps [from, to), the last first.
  void back(long from, long to) {
    for (long t = to - 1; t >= from; --t) {
      for (long row = 0; row < count; ++row) {
        for (long l = 0; call.d_h && l < L; ++l)
          add(d_h[l].data() + row * problem.weights[l].layout.states, T(1),
              at_step<T const>(call, call.d_h, t, first + row, problem.outputs) + problem.offset[l],
              problem.weights[l].layout.hidden);
        if (call.d_z) add(d_z.data() + row * L, T(1), at_step<T const>(call, call.d_z, t, first + row, L), L);
      }
      for (long l = L - 1; l >= 0; --l) step(t, l);
    }
  }

  // c before step t, the first one or that of a segment.
  void recall_c(long t, long l) {
    const LayerCall& layer = call.layer[l];
    const Layout<T>& layout = problem.weights[l].layout;
    const long stride = layout.states, H = layout.hidden;
    T* const to = c_before[l].data();
    if (t > 0) return copy(to, start_of<T>(call, layer, t, first, stride), count * stride);
    for (long row = 0; row < count; ++row)
      copy(to + row * stride, at_step<T const>(call, layer.first_c, 0, first + row, H), H);
  }

  void start(long l) {
    const LayerCall& layer = call.layer[l];
    const Layout<T>& layout = problem.weights[l].layout;
    const long H = layout.hidden;
    for (long row = 0; row < count; ++row) {
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
    const Rows<const T> above = h(t - 1, w.above ? l + 1 : l), below = l ? h(t, l - 1) : this->x(t);
    this->list(t, z(t - 1, l), l ? z(t, l - 1) : Rows<const T>{nullptr, 0}, call.choice);
    for (long n = 0; n < moving; ++n) announce(gates_at(t, l), n, w.layout.blocks[0], c(t - 1, l).at(going[n].row));
    this->gather_own(l, long(going.size()), h(t - 1, l));
    for (long n = 0; n < long(going.size()); ++n) {
      choices[n] = Choice<T>{};
      d_x_z[n] = boundary_gradient(t, l, going[n].row);
      if (!has_sources(n)) continue;
      this->gather_others(l, n, above, below);
      scale(d_X[l].data() + n * w.stride, d_x_z[n], w.boundary.data(), w.stride);
      if (w.has_boundary) add(sums[l].boundary.data(), d_x_z[n], X[l].data() + n * w.stride, w.stride);
    }
    if (ON_TILES<T> && moving >= fewest_tiled_rows)
      go_back_on_tiles(t, l);
    else if (moving > 0)
      go_back(t, l);
    for (long n = moving; n < working; ++n) weigh(t, l, n);
    for (long n = 0; n < long(going.size()); ++n) hand_on(t, l, n, above, below);
  }

  // Take the moving rows back through the gates: d_X, and the sums of the weights' gradients.
  void go_back(long t, long l) {
    const Weights<T>& w = problem.weights[l];
    const long vectors = padded<T>(l || call.d_x ? w.K : w.below_column()) / LANES<T>;
    const bool few = 2 * moving <= SLICE_ROWS;
    if (few && waiting[l].rows + moving > SLICE_ROWS) add_waiting(l);
    for (const Block& block : w.layout.blocks) {
      for_row_tiles(moving, [&](auto tile, long row) { 
        differentiate<decltype(tile)::value>(t, l, block, row, d_gates.data() + row * SUMS);
      });
      add_product<T>(moving, vectors, block.lanes(), d_gates.data(), SUMS, 1,
                     w.backward.data() + block.gates() * w.stride, w.stride, d_X[l].data(), w.stride);
      if (few) {
        keep_waiting(l, block);
        continue;
      }
      const auto add_part = [&](long from, long to, long column, long columns) {
        if (from < to)
          add_product<T>(columns, block.lanes() / LANES<T>, to - from, X[l].data() + from * w.stride + column, 1,
                         w.stride, d_gates.data() + from * SUMS, SUMS,
                         sums[l].gates.data() + w.panel(block) + column * block.lanes(), block.lanes());
      };
      add_part(0, moving, 0, w.above_column());
      add_part(above_from, moving, w.above_column(), w.above);
      add_part(0, below_to, w.below_column(), w.below);
    }
    if (few) waiting[l].rows += moving;
  }

  // Put the moving rows' part of one block behind those that wait.
  void keep_waiting(long l, const Block& block) {
    const Weights<T>& w = problem.weights[l];
    const long from = waiting[l].rows;
    if (block.unit == 0) copy(waiting[l].X.data() + from * w.stride, X[l].data(), moving * w.stride);
    T* to = waiting[l].d_gates_of(block) + from * block.lanes();
    for (long n = 0; n < moving; ++n) copy(to + n * block.lanes(), d_gates.data() + n * SUMS, block.lanes());
  }

  Bf16* left_of(size_t block) const { return left.data() + long(block % 2) * SLICE_ROWS * left_stride(SUMS); }
  Bf16* right_of(size_t block, long group) const {
    return right.data() + (long(block % 2) * GROUPS + group) * GATES * PIECES * TILE_SIZE;
  }

  // go_back with its products on tiles. While they are at those of one block, vectors make the next one's gradients.
  void go_back_on_tiles([[maybe_unused]] long t, [[maybe_unused]] long l) {
    if constexpr (ON_TILES<T>) {
      const Weights<T>& w = problem.weights[l];
      const long columns = padded<T>(l || call.d_x ? w.K : w.below_column());
      const long pairs = (moving + 1) / 2, groups = (moving + TILED_ROWS - 1) / TILED_ROWS;
      const size_t blocks = w.layout.blocks.size();
      const bool few = groups == 1;
      if (few && waiting[l].rows + moving > SLICE_ROWS) add_waiting(l);
      Waiting<T>& later = waiting[l];
      if (few) copy(later.X.data() + later.rows * w.stride, X[l].data(), moving * w.stride);
      const auto rows_in = [&](long group) { return std::min(TILED_ROWS, moving - group * TILED_ROWS); };
      for (long group = 0; !few && group < groups; ++group)
        split_transposed(rows_in(group), w.K, X[l].data() + group * TILED_ROWS * w.stride, w.stride,
                         transposed_of(l, group));
      const auto prepare = [&](size_t k, long pair) {
        const Block& block = w.layout.blocks[k];
        const long n = 2 * pair, lanes = block.lanes(), group = n / TILED_ROWS;
        const bool two = n + 1 < moving;
        T d[2 * SUMS_STRIDE<T> + LANES<T>];
        two ? differentiate<2>(t, l, block, n, d) : differentiate<1>(t, l, block, n, d);
        split_both(n % TILED_ROWS / 2, lanes, d, two ? d + SUMS : nullptr,
                   left_of(k) + group * TILED_ROWS * left_stride(lanes), right_of(k, group));
        for (long r = 0; few && r < 1 + two; ++r)
          copy(later.d_gates_of(block) + (later.rows + n + r) * lanes, d + r * SUMS, lanes);
      };
      const auto finish = [&](size_t k, long pair) {
        for (; pair < pairs; ++pair) prepare(k, pair);
        const long lanes = w.layout.blocks[k].lanes(), stride = left_stride(lanes);
        const long whole = (moving + TILE - 1) / TILE * TILE;
        std::fill_n(left_of(k) + moving * stride, (whole - moving) * stride, Bf16(0));
        if (!few) clear_pairs((rows_in(groups - 1) + 1) / 2, lanes, right_of(k, groups - 1));
      };
      finish(0, 0);
      for (size_t k = 0; k < blocks; ++k) {
        const Block& block = w.layout.blocks[k];
        const long lanes = block.lanes();
        long pair = 0, calls = 0;
        const auto meanwhile = [&] {
          if (k + 1 == blocks || ++calls % 3 || pair == pairs) return;
          prepare(k + 1, pair++);
        };
        for (long group = 0; group < groups; ++group) {
          const long from = group * TILED_ROWS;
          multiply(rows_in(group), left_of(k) + from * left_stride(lanes), w.block_tiles[k], w.block_tiles[k].depth(), 0,
                   columns / TILE, d_X[l].data() + from * w.stride, w.stride, true, meanwhile);
          if (few) continue;
          for (const Depth& depth : this->depths(l, from, from + rows_in(group))) {
            const long first_tile = depth.first * TILE_DEPTH / TILE;
            const long last_tile = std::min(depth.last * TILE_DEPTH / TILE, w.stride / TILE);
            add_product_over_rows(last_tile - first_tile, lanes / TILE,
                                  transposed_of(l, group) + first_tile * PIECES * TILE_SIZE, right_of(k, group),
                                  sums[l].gates.data() + w.panel(block) + first_tile * TILE * lanes, lanes, meanwhile);
          }
        }
        if (k + 1 < blocks) finish(k + 1, pair);
      }
      if (few) later.rows += moving;
    }
  }

  // X of a group of rows.
  Bf16* transposed_of(long l, long group) const {
    return transposed.data() + group * (problem.weights[l].stride / TILE) * PIECES * TILE_SIZE;
  }

  void add_waiting_on_tiles([[maybe_unused]] long l) {
    if constexpr (ON_TILES<T>) {
      const Weights<T>& w = problem.weights[l];
      const Waiting<T>& all = waiting[l];
      for (long from = 0; from < all.rows; from += TILED_ROWS) {
        const long rows = std::min(TILED_ROWS, all.rows - from), pairs = (rows + 1) / 2;
        split_transposed(rows, w.K, all.X.data() + from * w.stride, w.stride, transposed_of(l, 0));
        const auto prepare = [&](size_t k, long pair) {
          const long lanes = w.layout.blocks[k].lanes(), n = 2 * pair;
          const T* const d = all.d_gates_of(w.layout.blocks[k]) + (from + n) * lanes;
          split_both(pair, lanes, d, n + 1 < rows ? d + lanes : nullptr, left_of(k), right_of(k, 0));
        };
        for (size_t k = 0; k < w.layout.blocks.size(); ++k) {
          const Block& block = w.layout.blocks[k];
          for (long pair = 0; pair < pairs; ++pair) prepare(k, pair);
          clear_pairs(pairs, block.lanes(), right_of(k, 0));
          add_product_over_rows(w.stride / TILE, block.lanes() / TILE, transposed_of(l, 0), right_of(k, 0),
                                sums[l].gates.data() + w.panel(block), block.lanes());
        }
      }
    }
  }

  void add_waiting(long l) {
    const Weights<T>& w = problem.weights[l];
    if (ON_TILES<T> && waiting[l].rows >= fewest_tiled_rows)
      add_waiting_on_tiles(l);
    else
      for (const Block& block : w.layout.blocks)
      add_product<T>(w.K, block.lanes() / LANES<T>, waiting[l].rows, waiting[l].X.data(), 1, w.stride,
                     waiting[l].d_gates_of(block), block.lanes(), sums[l].gates.data() + w.panel(block), block.lanes());
    waiting[l].rows = 0;
  }

  // The gradient of a row's z~, which is then done with.
  T boundary_gradient(long t, long l, long row) {
    if (!problem.weights[l].has_boundary) return 0;
    T& d = d_z.data()[row * L + l];
    const T gradient = d * problem.boundary_slope(at_step<T>(call, call.x_z, t, first + row, L)[l]);
    d = 0;
    return gradient;
  }

  // Whether anything of the sums that made row n, and so d_X, has a gradient.
  bool has_sources(long n) const { return n < moving || d_x_z[n] != 0; }

  // Tell memory what is wanted soon of one row and block.
  SEQPYRAMID_INLINE static void announce(KeptGates<T> gates, long n, const Block& block, const T* c_before) {
    gates.expect(n, block);
    __builtin_prefetch(c_before, 0, 2);
  }

  // Make the gradients of one block's four sums for R rows, and take d_h and d_c of the layer's own path back by one
  // step. The next block has the time of the products to come from memory.
  template <int R>
  SEQPYRAMID_INLINE void differentiate(long t, long l, const Block& block, long from, T* to) {
    const Weights<T>& w = problem.weights[l];
    const Rows<const T> before = c(t - 1, l), after = c(t, l);
    const KeptGates<T> gates = gates_at(t, l);
    const long width = block.width;
    const Block next{block.unit + width, width};
    Vector<T> squashed[R];
    SEQPYRAMID_UNROLL
    for (int r = 0; r < R; ++r) squashed[r] = load(after.at(going[from + r].row) + block.unit);
    squash<T, 0b11111111>(squashed);
    for (int r = 0; r < R; ++r) {
      const long n = from + r;
      const Mix<T>& mix = going[n];
      const T* c_row = before.at(mix.row) + block.unit;
      announce(gates, n, next, c_row + width);
      const Vector<T> i = gates.load(n, block, 0), f = gates.load(n, block, 1);
      const Vector<T> g = gates.load(n, block, 2), o = gates.load(n, block, 3);
      T* d_h_row = d_h[l].data() + mix.row * w.layout.states + block.unit;
      T* d_c_row = d_c[l].data() + mix.row * w.layout.states + block.unit;
      const Vector<T> c_before = load(c_row), tanh_c = squashed[r];
      const Vector<T> dh = load(d_h_row), d_new = mix.change * dh;
      const Vector<T> dc = load(d_c_row) + d_new * o * (T(1) - tanh_c * tanh_c), d_ig = mix.change * dc;
      T* d = to + r * SUMS;
      store<T>(d, d_ig * g * i * (T(1) - i));
      store<T>(d + width, mix.update * dc * c_before * f * (T(1) - f));
      store<T>(d + 2 * width, d_ig * i * (T(1) - g * g));
      store<T>(d + 3 * width, d_new * tanh_c * o * (T(1) - o));
      store<T>(d_h_row, mix.keep * dh);
      store<T>(d_c_row, (mix.update * f + mix.keep) * dc);
      if (call.choice) {
        const Vector<T> h_before = load(X[l].data() + n * w.stride + block.unit);
        choices[n].copy += dc * c_before + dh * h_before;
        choices[n].update += dc * f * c_before;
        choices[n].flush += dc * i * g + dh * o * tanh_c;
      }
    }
  }

  // What the boundaries learn from a row that copies, whose d_h and d_c stay. No product needs it, so it is taken from
  // one end to the other, as it lies in memory.
  void weigh(long t, long l, long n) {
    const Layout<T>& layout = problem.weights[l].layout;
    const long row = going[n].row;
    const KeptGates<T> gates = gates_at(t, l);
    const T *c_row = c(t, l).at(row), *h_row = X[l].data() + n * problem.weights[l].stride;
    const T *d_h_row = d_h[l].data() + row * layout.states, *d_c_row = d_c[l].data() + row * layout.states;
    for_row_tiles(long(layout.blocks.size()), [&](auto tile, long from) {
      constexpr int COUNT = decltype(tile)::value;
      Vector<T> squashed[COUNT];
      SEQPYRAMID_UNROLL
      for (int k = 0; k < COUNT; ++k) squashed[k] = load(c_row + (from + k) * LANES<T>);
      squash<T, 0b11111111>(squashed);
      SEQPYRAMID_UNROLL
      for (int k = 0; k < COUNT; ++k) {
        const Block& block = layout.blocks[size_t(from + k)];
        const Vector<T> i = gates.load(n, block, 0), f = gates.load(n, block, 1), g = gates.load(n, block, 2);
        const Vector<T> o = gates.load(n, block, 3), same = load(c_row + block.unit);
        const Vector<T> dh = load(d_h_row + block.unit), dc = load(d_c_row + block.unit);
        choices[n].copy += dc * same + dh * load(h_row + block.unit);
        choices[n].update += dc * f * same;
        choices[n].flush += dc * i * g + dh * o * squashed[k];
      }
    });
  }

  // Give the parts of a row of d_X to the states that they belong to, and to the boundaries that gated them.
  void hand_on(long t, long l, long n, Rows<const T> above, Rows<const T> below) {
    const Weights<T>& w = problem.weights[l];
    const Mix<T>& mix = going[n];
    const T by_copy = sum_lanes<T>(choices[n].copy), by_flush = sum_lanes<T>(choices[n].flush);
    const T by_update = sum_lanes<T>(choices[n].update) + by_flush;
    T* d_own = d_z.data() + mix.row * L + l;
    *d_own += by_flush - mix.below * by_update - (1 - mix.below) * by_copy;
    if (l) d_own[-1] += (1 - mix.own) * (by_update - by_copy);
    if (!has_sources(n)) return;
    const T* own = d_X[l].data() + n * w.stride;
    const T *to_above = own + w.above_column(), *to_below = own + w.below_column();
    add(d_h[l].data() + mix.row * w.layout.states, T(1), own, w.layout.hidden);
    if (w.above) {
      *d_own += dot(to_above, above.at(mix.row), w.above);
      add(d_h[l + 1].data() + mix.row * problem.weights[l + 1].layout.states, mix.own, to_above, w.above);
    }
    if (l) {
      d_own[-1] += dot(to_below, below.at(mix.row), w.below);
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

// How many steps make a segment so that starts and rooms together need the least memory.
template <class T>
void segment(const Call& call) {
  const long rooms = std::min(call.threads, call.batch);
  long start = 0, room = 0;
  for (long l = 0; l < call.layers; ++l) {
    const Layout<T> layout(call.layer[l].hidden);
    start += call.batch * layout.states, room += rooms * SLICE_ROWS * (layout.states + layout.stride);
  }
  *call.answer = best_segment(call.steps, start, room);
}

}  // namespace

SEQPYRAMID_KERNEL(hm_lstm_segment, Call, segment)
SEQPYRAMID_KERNEL(hm_lstm_forward, Call, forward)
SEQPYRAMID_KERNEL(hm_lstm_backward, Call, backward)
SEQPYRAMID_KERNEL(hm_lstm_read_forward, ReadCall, read_forward)
SEQPYRAMID_KERNEL(hm_lstm_read_backward, ReadCall, read_backward)
