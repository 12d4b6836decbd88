// HM-LSTM's arguments, its weights, and where what is kept between its passes lies; see hm_lstm.cpp.
//
// Shapes: B batch, T steps, L layers, H units of a layer, F features, K columns of X with the 1.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "kept_gates.h"
#include "output_module.h"
#include "segments.h"
#include "tile.h"
#include "tiles.h"

namespace seqpyramid::hm {

// Mirrored field by field in seqpyramid/kernels/hm_lstm.py. Arrays are contiguous unless strides are given.
struct LayerCall {
  int64_t hidden, above, below;              // H, and columns of the other two parts; above is 0 in the top layer
  int64_t columns, below_at;                 // of `weight`: row stride, and where the bottom-up columns begin
  int64_t boundary;                          // whether the layer has a z
  const void *weight, *bias;                 // (4 H + boundary, columns); no bias: null
  const void *first_h, *first_c, *first_z;   // (B, H), (B, H), (B)
  void *last_h, *last_c, *last_z;            // forward only
  void *cells, *gates;                       // (T, B, padded H), (T, B, gates' width); null: keep nothing, or
  void* starts;                              // (segments but the first, h and c, B, padded H); null: not that either
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
  void *h, *z;             // (T, B, sum of H), null: nobody wants it or it is made again; (T, B, L)
  void* x_z;               // (T, B, L), z~ before its function; null: keep nothing
  const void *d_h, *d_z;   // gradients of h and z; null: zero
  void* d_x;               // (B, T, F), zero on entry; null: not wanted
  ReadCall read;
  LayerCall* layer;
};

// Rows that a slice has at most: the gates' gradients of one block then fit a first-level cache.
constexpr long SLICE_ROWS = 64;

inline long threads_of(const Call& call) { return std::min(call.threads, call.batch); }

// How many slices the batch is cut into: the same number for every thread, where there are so many rows.
inline long slices_of(const Call& call) {
  const long rows = SLICE_ROWS * threads_of(call);
  return std::min(long(call.batch), (call.batch + rows - 1) / rows * threads_of(call));
}

inline long most_rows(const Call& call) { return (call.batch + slices_of(call) - 1) / slices_of(call); }

// The gates' order in memory: `weight` has f and o the other way round. FLUSH, where c = i g, leaves out the last one.
enum Gate { I, O, G, F };
constexpr long FLUSH_GATES = F;

// Fewer rows than this, all in FLUSH, are not worth products of their own.
constexpr long FEWEST_FLUSHED = 8;

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
    const long H = layout.hidden;
    each_weight(layout, stride, [&](long place, long row, long k) {
      const long gate = row / H;
      if (k < K) visit(gates[place], gate == O ? row + (F - O) * H : gate == F ? row - (F - O) * H : row, k);
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
  std::optional<ReadWeights<T>> output;

  Problem(const Call& c, bool both) : call(c) {
    for (long l = 0; l < call.layers; ++l) {
      weights.emplace_back(call.layer[l], both, call.batch);
      offset.push_back(outputs);
      outputs += call.layer[l].hidden;
    }
    if (!call.read.embedded) return;
    std::vector<long> hidden;
    for (const Weights<T>& w : weights) hidden.push_back(w.layout.hidden);
    output.emplace(call.read, hidden, outputs, both);
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

// Where h, c and the gates of all layers lie: of all steps, or of one segment in the rows of a slice.
template <class T>
struct Kept {
  struct Layer {
    T* cells;
    void* gates;
    long width, gates_width;
  };
  std::vector<Layer> layers;
  T* outputs;  // h of all layers side by side
  long outputs_width;
  bool rounded;
  Place place;

  explicit Kept(const Problem<T>& problem)
      : outputs(static_cast<T*>(problem.call.h)), outputs_width(problem.outputs),
        rounded(problem.call.rounded != 0), place{problem.call.batch} {
    for (long l = 0; l < problem.call.layers; ++l) {
      const LayerCall& layer = problem.call.layer[l];
      const Layout<T>& layout = problem.weights[l].layout;
      layers.push_back({static_cast<T*>(layer.cells), layer.gates, layout.states, layout.stride});
    }
  }

  T* h(long t, long row) const { return outputs ? outputs + place(t, row) * outputs_width : nullptr; }
  T* cells(long t, long l, long row) const {
    const Layer& layer = layers[size_t(l)];
    return layer.cells ? layer.cells + place(t, row) * layer.width : nullptr;
  }
  KeptGates<T> gates(long t, long l, long row) const {
    const Layer& layer = layers[size_t(l)];
    return kept_gates<T>(layer.gates, place(t, row), layer.gates_width, rounded, true);
  }
};

// Memory for one segment of a slice.
template <class T>
struct Room {
  Buffer<T> outputs;
  std::vector<Buffer<T>> cells, gates;  // of each layer

  explicit Room(const Problem<T>& problem) : outputs(rows(problem) * problem.outputs) {
    for (const Weights<T>& w : problem.weights)
      cells.emplace_back(rows(problem) * w.layout.states), gates.emplace_back(rows(problem) * w.layout.stride);
  }

  // The same, to be written and read.
  Kept<T> kept(const Problem<T>& problem) const {
    Kept<T> kept(problem);
    kept.outputs = outputs.data(), kept.place.rows = most_rows(problem.call), kept.rounded = false;
    for (size_t l = 0; l < kept.layers.size(); ++l)
      kept.layers[l].cells = cells[l].data(), kept.layers[l].gates = gates[l].data();
    return kept;
  }

 private:
  static size_t rows(const Problem<T>& problem) { return size_t(problem.call.segment * most_rows(problem.call)); }
};

// h (0) or c (1) before step t, where a segment but the first starts, from a row of the batch on.
template <class T>
T* start_of(const Call& call, const LayerCall& layer, long t, long which, long row, long stride) {
  return at_step<T>(call, layer.starts, (t / call.segment - 1) * 2 + which, row, stride);
}

}  // namespace seqpyramid::hm
