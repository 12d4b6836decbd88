// How the four gates of an LSTM's units, and the weights that make them, lie in memory.
//
// Units are cut into blocks of as many as a vector has lanes (V), and a rest of V/4 or V/2 units or less into a block
// of that width, so that a rest of four units (H = 100, V = 16) costs one vector instead of four. Rows of gates and of
// their gradients are [block][gate][width]; states [row][padded H], zero past H. Weights (4 H, K), rows ordered gate by
// gate, have two packed forms:
//
//   forward   [block][k][gate][width]          one tile of rows gives all gates of a block's units, on registers
//   backward  [block][gate][width][padded K]   one block's gate gradients give their share of the sources' gradient
//
// Gates of a narrow block are loaded and stored as whole vectors in the order of the gates: each store leaves its
// surplus where the next gate will stand, and the last one behind the row's gates.
//
// Shapes: H hidden units, K depth, V lanes.
#pragma once

#include <algorithm>
#include <vector>

#include "tile.h"

namespace seqpyramid {

constexpr long GATES = 4;

// Units whose gates are made together.
struct Block {
  long unit, width;

  long gates() const { return GATES * unit; }     // where they begin in a row
  long lanes() const { return GATES * width; }

  // Vectors that hold the first n gates.
  template <class T>
  long vectors(long n) const { return (n * width + LANES<T> - 1) / LANES<T>; }
};

template <class T>
struct Layout {
  long hidden, states;  // H, and the stride of h and c
  long gates, stride;   // gates of all blocks, and the stride of a row of them
  std::vector<Block> blocks;

  explicit Layout(long H) : hidden(H), states(padded<T>(H)) {
    for (long unit = 0; unit < H; unit += LANES<T>) {
      long width = LANES<T>;
      while (width > 1 && width * 4 > LANES<T> && width / 2 >= H - unit) width /= 2;
      blocks.push_back({unit, width});
    }
    const Block& last = blocks.back();
    gates = last.gates() + last.lanes();
    stride = padded<T>(last.gates() + 3 * last.width + LANES<T>);
  }

  // The block of a gate's place in a row.
  const Block& block_of(long place) const { return blocks[size_t(place / (GATES * LANES<T>))]; }
};

// Call run(std::integral_constant<int, VECTORS>) with the vectors of a block's gates.
template <class T, class Run>
SEQPYRAMID_INLINE void with_vectors(const Block& block, Run&& run) {
  switch (block.lanes() / LANES<T>) {
    case 4: run(std::integral_constant<int, 4>{}); break;
    case 2: run(std::integral_constant<int, 2>{}); break;
    default: run(std::integral_constant<int, 1>{}); break;
  }
}

// Call visit(place in the forward form, row, k) for all weights of depth K.
template <class T, class Visit>
void each_weight(const Layout<T>& layout, long depth, const Visit& visit) {
  for (const Block& block : layout.blocks)
    for (long gate = 0; gate < GATES; ++gate)
      for (long u = 0; u < std::min(block.width, layout.hidden - block.unit); ++u)
        for (long k = 0; k < depth; ++k)
          visit(block.gates() * depth + (k * GATES + gate) * block.width + u, gate * layout.hidden + block.unit + u, k);
}

template <class T>
Buffer<T> pack_forward(const Layout<T>& layout, const T* weight, long depth) {
  Buffer<T> packed(size_t(layout.gates * depth));
  each_weight(layout, depth, [&](long at, long row, long k) { packed.data()[at] = weight[row * depth + k]; });
  return packed;
}

template <class T>
Buffer<T> pack_backward(const Layout<T>& layout, const T* weight, long depth) {
  const long width = padded<T>(depth);
  Buffer<T> packed(size_t(layout.gates * width));
  for (const Block& block : layout.blocks)
    for (long gate = 0; gate < GATES; ++gate)
      for (long u = 0; u < std::min(block.width, layout.hidden - block.unit); ++u)
        std::copy_n(weight + (gate * layout.hidden + block.unit + u) * depth, depth,
                    packed.data() + (block.gates() + gate * block.width + u) * width);
  return packed;
}

// Add rows [first, first + K) of a gradient of depth `rows` in the forward form to one laid out as torch has it.
template <class T>
void unpack_add(const Layout<T>& layout, const T* packed, long rows, long first, T* gradient, long depth) {
  each_weight(layout, rows, [&](long at, long row, long k) {
    if (k >= first && k < first + depth) gradient[row * depth + k - first] += packed[at];
  });
}

}  // namespace seqpyramid
