// What a step of a cell reads, side by side, as a factor of its products on tiles (tiles.h).
//
// z = [h', x, 1] or [h', 1, x]: one product with z adds up what h', x and the bias give, one with z^T the gradients of
// all their weights.
//
// Shapes: n rows, H hidden units, F inputs, K = H + F + 1.
#pragma once

#include "tiles.h"

namespace seqpyramid {

template <class T>
struct Sources {
  long hidden = 0, inputs = 0;
  long one = 0;     // where the 1 stands: H + F or H
  long stride = 0;  // of z
  Buffer<T> z;
  Buffer<Bf16> left, transposed;  // pieces of z and z^T

  Sources() = default;
  Sources(long hidden_, long inputs_, long one_)
      : hidden(hidden_),
        inputs(inputs_),
        one(one_),
        stride(depth_blocks(depth()) * TILE_DEPTH),
        z(size_t(TILED_ROWS * stride)),
        left(size_t(TILED_ROWS * left_stride(depth()))),
        transposed(size_t(tiles() * PIECES * TILE_SIZE)) {}

  long depth() const { return hidden + inputs + 1; }
  long tiles() const { return (depth() + TILE - 1) / TILE; }

  // z of some rows, as the left factor of a product.
  void gather(long rows, Rows<const T> x, Rows<const T> h_before) {
    fill(rows, x, h_before);
    for (long row = 0; row < rows; ++row)
      split_row(depth(), z.data() + row * stride, left.data() + row * left_stride(depth()));
  }

  // z^T of some rows, as that of a product over the rows.
  void gather_transposed(long rows, Rows<const T> x, Rows<const T> h_before) {
    fill(rows, x, h_before);
    split_transposed(rows, depth(), z.data(), stride, transposed.data());
  }

 private:
  void fill(long rows, Rows<const T> x, Rows<const T> h_before) {
    for (long row = 0; row < rows; ++row) {
      T* const to = z.data() + row * stride;
      if (h_before)
        std::copy_n(h_before.at(row), hidden, to);
      else
        std::fill_n(to, hidden, T(0));
      std::copy_n(x.at(row), inputs, to + (one == hidden ? hidden + 1 : hidden));
      to[one] = T(1);
    }
  }
};

}  // namespace seqpyramid
