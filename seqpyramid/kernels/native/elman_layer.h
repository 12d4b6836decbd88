// A layer whose only state is h, over all steps of a batch: what Elman's layer and the two GRUs have in common.
//
// A cell gives one step for some rows, as products with weights (class Matrix) and passes over single numbers between
// them. The two are kept in functions of their own: constants of exp and tanh would push the products' sums out of
// their registers. Numbers of several gates lie in planes: [row][gate][P], so that one product makes all gates.
//
// A row that has ended keeps its state, gets no gradient from its padding and gives none to it. Rows come longest
// first, so that the rows still running are always the first ones of a slice.
//
// Shapes: n rows, B batch, T time, F inputs, H hidden units, P = padded H, G gates, V lanes. States and what is kept
// are time-major; lanes past H stay zero, because their weights are.
#pragma once

#include <algorithm>
#include <vector>

#include "interface.h"
#include "parallel.h"
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
  const void* d_steps;                       // (B, T, H), units side by side, or none
  int64_t d_steps_batch, d_steps_time;
  const void* d_h_last;                      // (B, P), or none
  void* d_x;                                 // (T, B, padded F), zeroed, or none
  void *d_weight_ih, *d_weight_hh, *d_bias;  // zeroed
  void* d_h_first;                           // (B, P), or none where there was no first state
};

namespace seqpyramid {

// Weights W (G H, K) of G gates that all read the same source (n, K).
template <class T>
class Matrix {
 public:
  Matrix(const T* weight, long gates, long hidden, long depth)
      : gates_(gates),
        hidden_(hidden),
        depth_(depth),
        width_(padded<T>(hidden)),
        depth_width_(padded<T>(depth)),
        columns_(size_t(depth) * gates * width_),
        rows_(size_t(gates) * hidden * depth_width_) {
    for (long g = 0; g < gates; ++g)
      for (long u = 0; u < hidden; ++u) {
        const T* row = weight + (g * hidden + u) * depth;
        for (long k = 0; k < depth; ++k) columns_.data()[(k * gates + g) * width_ + u] = row[k];
        std::copy_n(row, depth, rows_.data() + (g * hidden + u) * depth_width_);
      }
  }

  // Numbers of a gradient: [K][G][P].
  size_t size() const { return size_t(depth_) * gates_ * width_; }

  // planes (n, G P) += source W^T
  void apply(long n, Rows<const T> source, Rows<T> planes) const {
    const long columns = gates_ * width_;
    add_product(n, columns / LANES<T>, depth_, source.data, source.stride, 1, columns_.data(), columns, planes.data,
                planes.stride);
  }

  // d_source (n, padded K) += d_planes W. One gate after the other: the weights of one stay in the nearest cache while
  // all rows meet them, and the planes' padding is left out.
  void apply_transposed(long n, Rows<const T> d_planes, Rows<T> d_source) const {
    for (long g = 0; g < gates_; ++g)
      add_product(n, depth_width_ / LANES<T>, hidden_, d_planes.data + g * width_, d_planes.stride, 1,
                  rows_.data() + g * hidden_ * depth_width_, depth_width_, d_source.data, d_source.stride);
  }

  // sum += source^T d_planes
  void add_gradient(long n, Rows<const T> d_planes, Rows<const T> source, T* sum) const {
    const long columns = gates_ * width_;
    add_product(depth_, columns / LANES<T>, n, source.data, 1, source.stride, d_planes.data, d_planes.stride, sum,
                columns);
  }

  // Add such a sum to a gradient laid out as the weights were given.
  void add_to(const T* sum, T* gradient) const {
    for (long g = 0; g < gates_; ++g)
      for (long u = 0; u < hidden_; ++u)
        for (long k = 0; k < depth_; ++k)
          gradient[(g * hidden_ + u) * depth_ + k] += sum[(k * gates_ + g) * width_ + u];
  }

 private:
  long gates_, hidden_, depth_, width_, depth_width_;
  Buffer<T> columns_, rows_;  // [K][G][P] and [G][H][padded K]
};

// A bias (G H) as a row of planes.
template <class T>
class BiasRow {
 public:
  BiasRow(const T* bias, long gates, long hidden)
      : gates_(gates), hidden_(hidden), width_(padded<T>(hidden)), row_(size()) {
    for (long g = 0; g < gates; ++g) std::copy_n(bias + g * hidden, hidden, row_.data() + g * width_);
  }

  size_t size() const { return size_t(gates_) * width_; }

  void fill(long n, Rows<T> planes) const {
    for (long row = 0; row < n; ++row) std::copy_n(row_.data(), gates_ * width_, planes.at(row));
  }

  void add_gradient(long n, Rows<const T> d_planes, T* sum) const {
    for (long row = 0; row < n; ++row)
      for (long k = 0; k < gates_ * width_; k += LANES<T>) store(sum + k, load(sum + k) + load(d_planes.at(row, k)));
  }

  void add_to(const T* sum, T* gradient) const {
    for (long g = 0; g < gates_; ++g)
      for (long u = 0; u < hidden_; ++u) gradient[g * hidden_ + u] += sum[g * width_ + u];
  }

 private:
  long gates_, hidden_, width_;
  Buffer<T> row_;
};

// What one step reads and writes on its way forward.
template <class T>
struct StepForward {
  long rows;
  Rows<const T> x, h_before;  // no h_before: zeros
  Rows<T> planes;             // those that backward gets
  Rows<T> h;
  Rows<T> scratch;
};

// And on its way back: dh_before is written and dx added to, where they have data.
template <class T>
struct StepBackward {
  long rows;
  Rows<const T> x, h_before, planes, h, dh;
  Rows<T> dh_before, dx;
  Rows<T> scratch;
};

template <class T>
Rows<const T> inputs_at(const StateLayerArguments& a, long row, long t) {
  return {static_cast<const T*>(a.x) + row * a.x_batch + t * a.x_time, a.x_batch};
}

// A Cell<T> has
//   PLANES   planes that it keeps for backward; SCRATCH: of working space, PLANES at least
//   forward(StepForward), backward(StepBackward, T* sums)
//   sums()   numbers of all its weights' gradients together, add_to(sums, arguments)
template <class T, class Cell>
void layer_forward(const StateLayerArguments& a) {
  const Cell cell(a);
  const long P = padded<T>(a.hidden), B = a.batch;
  const std::vector<Slice> slices = cut(a.lengths, B, slice_count(B, a.threads));
  const Buffer<T> turns(a.steps ? 0 : size_t(2) * B * P), space(size_t(Cell::SCRATCH) * B * P);

  run_parallel(long(slices.size()), a.threads, [&](long piece) {
    const Slice& slice = slices[size_t(piece)];
    const long first = slice.first;
    const Rows<T> scratch{space.data() + Cell::SCRATCH * first * P, Cell::SCRATCH * P};
    const Rows<T> h_last = rows_of<T>(a.h_last, first, P);
    Rows<const T> h = rows_of<T>(a.h_first, first, P);
    for (long t = 0; t < slice.steps(); ++t) {
      const long rows = slice.active(t);
      // Without an output a step, h takes turns between two buffers.
      const Rows<T> h_new = a.steps ? rows_of<T>(a.steps, t * B + first, P)
                                    : Rows<T>{turns.data() + (t % 2 * B + first) * P, P};
      const Rows<T> planes = a.planes ? rows_of<T>(a.planes, t * B + first, Cell::PLANES * P) : scratch;
      cell.forward({rows, inputs_at<T>(a, first, t), h, planes, h_new, scratch});
      copy_rows<T>(slice.active(t + 1), rows, h_new, h_last, P);
      h = h_new;
    }
  });
}

// h (n, P) += from (n, H)
template <class T>
void add_rows(long rows, Rows<const T> from, Rows<T> h, long hidden) {
  for (long row = 0; row < rows; ++row)
    for (long u = 0; u < hidden; u += LANES<T>)
      store(h.at(row, u), load(h.at(row, u)) + load_first(from.at(row, u), hidden - u));
}

template <class T, class Cell>
void layer_backward(const StateLayerArguments& a) {
  const Cell cell(a);
  const long P = padded<T>(a.hidden), PF = padded<T>(a.inputs), B = a.batch;
  const std::vector<Slice> slices = cut(a.lengths, B, slice_count(B, a.threads));
  std::vector<Buffer<T>> sums;
  for (size_t k = 0; k < slices.size(); ++k) sums.emplace_back(cell.sums());
  const Buffer<T> states(size_t(2) * B * P), space(size_t(Cell::SCRATCH) * B * P);

  run_parallel(long(slices.size()), a.threads, [&](long piece) {
    const Slice& slice = slices[size_t(piece)];
    const long first = slice.first, all = slice.rows();
    const Rows<T> scratch{space.data() + Cell::SCRATCH * first * P, Cell::SCRATCH * P};
    Rows<T> dh{states.data() + first * P, P}, dh_before{states.data() + (B + first) * P, P};
    // A row whose turn has not come yet holds the gradient of its last state, in both buffers.
    if (a.d_h_last)
      for (const Rows<T>& buffer : {dh, dh_before})
        copy_rows<T>(0, all, rows_of<T>(a.d_h_last, first, P), buffer, P);
    const auto kept = [&](const void* data, long t, long width) { return rows_of<T>(data, t * B + first, width); };

    for (long t = slice.steps() - 1; t >= 0; --t) {
      const long rows = slice.active(t);
      if (a.d_steps) {
        const T* d_steps = static_cast<const T*>(a.d_steps) + first * a.d_steps_batch + t * a.d_steps_time;
        add_rows<T>(rows, {d_steps, a.d_steps_batch}, dh, a.hidden);
      }
      const bool further = t > 0 || a.d_h_first;
      const Rows<const T> h_before = t > 0 ? kept(a.steps, t - 1, P) : rows_of<T>(a.h_first, first, P);
      cell.backward({rows, inputs_at<T>(a, first, t), h_before, kept(a.planes, t, Cell::PLANES * P),
                     kept(a.steps, t, P), dh, further ? dh_before : Rows<T>{}, rows_of<T>(a.d_x, t * B + first, PF),
                     scratch},
                    sums[size_t(piece)].data());
      std::swap(dh, dh_before);
    }
    if (a.d_h_first) copy_rows<T>(0, all, dh, rows_of<T>(a.d_h_first, first, P), P);
  });
  for (const Buffer<T>& sum : sums) cell.add_to(sum.data(), a);
}

}  // namespace seqpyramid
