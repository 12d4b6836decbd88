// One step of an LSTM for some rows of a batch, forward and backward.
//
// Forward, gates in torch's order i, f, g, o:
//
//   a = U x + W h' + b            h', c' the state before, h, c after
//   i, f, o = sigmoid(a_i, a_f, a_o);  g = tanh(a_g)
//   c = f c' + i g;  h = o tanh(c)
//
// Backward, with dh and dc the gradients that reach h and c from everything later, s = tanh(c):
//
//   dc += dh o (1 - s^2)
//   da_i = dc g i (1 - i);  da_f = dc c' f (1 - f);  da_g = dc i (1 - g^2);  da_o = dh s o (1 - o)
//   dc' = dc f;  dh' = W^T da;  dx = U^T da;  dW += da h'^T;  dU += da x^T;  db += da
//
// Forward keeps the gates and c; h = o s is formed again on the way back, and s with it, one tanh for both uses.
//
// Gates, weights and states are laid out as gates.h says; the lanes past H of a state stay zero. Where the machine has
// tiles for matrices (tiles.h) they make the products of many rows:
//
//   z = [h', x, 1];  a = [W, U, b] z;  [dh', dx] = [W, U]^T da;  d[W, U, b] += da z^T
//
// Shapes: n rows, F inputs, H hidden units, P = padded H, V lanes, K = H + F + 1.
#pragma once

#include "kept_gates.h"
#include "sources.h"
#include "tiles.h"

namespace seqpyramid {

template <class T>
struct LstmWeights {
  Layout<T> layout;
  long inputs, hidden, width;          // width: P
  Buffer<T> input, recurrent, bias;    // forward form; the bias as with depth 1
  RightFactor<T> sources;              // all three, of depth K, for a batch that is large enough

  // The shape alone, which is all that steps backward need.
  LstmWeights(long inputs_, long hidden_)
      : layout(hidden_), inputs(inputs_), hidden(hidden_), width(layout.states) {}

  LstmWeights(const T* weight_ih, const T* weight_hh, const T* bias_, long inputs_, long hidden_, long batch)
      : LstmWeights(inputs_, hidden_) {
    input = pack_forward(layout, weight_ih, inputs_);
    recurrent = pack_forward(layout, weight_hh, hidden_);
    bias = pack_forward(layout, bias_, 1);
    if constexpr (ON_TILES<T>)
      if (batch >= fewest_tiled_rows)
        sources = RightFactor<T>(depth(), layout.gates, [&](long k, long tile) { return weights_of(k, tile); });
  }

  long gates_width() const { return layout.stride; }
  long depth() const { return hidden + inputs + 1; }

 private:
  // What source k of z adds to a tile of gates.
  Vector<T> weights_of(long k, long tile) const {
    const Block& block = layout.block_of(tile * TILE);
    const auto row = [&](const Buffer<T>& packed, long K, long at) {
      return load(packed.data() + block.gates() * K + at * block.lanes() + tile * TILE - block.gates());
    };
    if (k < hidden) return row(recurrent, hidden, k);
    if (k < hidden + inputs) return row(input, inputs, k - hidden);
    return row(bias, 1, 0);
  }
};

// Those of a layer's arguments, packed if steps forward are to run.
template <class T, class Arguments>
LstmWeights<T> lstm_weights(const Arguments& a, bool forward) {
  if (!forward) return {a.inputs, a.hidden};
  const auto numbers = [](const void* p) { return static_cast<const T*>(p); };
  return {numbers(a.weight_ih), numbers(a.weight_hh), numbers(a.bias), a.inputs, a.hidden, a.batch};
}

// Memory that steps of up to `rows` rows work in.
template <class T>
struct LstmWork {
  Buffer<T> da;  // of one block
  // Of a product on tiles: z, a of two blocks, [dh', dx], pieces of da of two blocks.
  Sources<T> sources;
  Buffer<T> a, d_sources;
  Buffer<Bf16> da_left, da_right;

  LstmWork(const LstmWeights<T>& w, long rows) : da(size_t((rows * GATES + 1) * LANES<T>)) {
    if constexpr (ON_TILES<T>) {
      if (!tiles_run()) return;
      constexpr long BLOCK = GATES * TILE;
      sources = Sources<T>(w.hidden, w.inputs, w.hidden + w.inputs);
      a = Buffer<T>(size_t(2 * TILED_ROWS * BLOCK));
      d_sources = Buffer<T>(size_t(TILED_ROWS * (w.width + padded<T>(w.inputs))));
      da_left = Buffer<Bf16>(size_t(2 * TILED_ROWS * left_stride(BLOCK)));
      da_right = Buffer<Bf16>(size_t(2 * GATES * PIECES * TILE_SIZE));
    }
  }
};

// a = U x + W h' + b for R rows and one block, rows of a 4 V apart. A function of its own: beside the constants of exp,
// GCC would not keep the sums on registers.
template <class T, int R, int VECTORS>
__attribute__((noinline)) void gate_sums(long inputs, const T* x, long x_row, const T* input, long hidden, const T* h,
                                         long h_row, const T* recurrent, const T* bias, T* a) {
  constexpr long V = LANES<T>, N = VECTORS * V;
  Vector<T> sum[R][VECTORS];
  SEQPYRAMID_UNROLL
  for (int r = 0; r < R; ++r) {
    SEQPYRAMID_UNROLL
    for (int j = 0; j < VECTORS; ++j) sum[r][j] = load(bias + j * V);
  }
  multiply_add<T, R, VECTORS>(inputs, x, x_row, 1, input, N, sum);
  multiply_add<T, R, VECTORS>(hidden, h, h_row, 1, recurrent, N, sum);
  SEQPYRAMID_UNROLL
  for (int r = 0; r < R; ++r) {
    SEQPYRAMID_UNROLL
    for (int j = 0; j < VECTORS; ++j) store(a + r * GATES * V + j * V, sum[r][j]);
    if constexpr (VECTORS < GATES) store(a + r * GATES * V + N, Vector<T>{});  // what the last gate's lanes reach into
  }
}

// The gates of R rows and one block, and with them c and h.
template <class T, int R, int VECTORS>
SEQPYRAMID_INLINE void advance_rows(const Block& block, T* a, Rows<const T> c_before, KeptGates<T> gates, Rows<T> h,
                                    Rows<T> c, long first) {
  constexpr long V = LANES<T>, WIDTH = VECTORS * V / GATES;
  constexpr int PAIR = R % 2 == 0 ? 2 : 1;
  for (int pair = 0; pair < R; pair += PAIR) {
    Vector<T> gate[PAIR * GATES];
    SEQPYRAMID_UNROLL
    for (int k = 0; k < PAIR * GATES; ++k) gate[k] = load(a + (pair + k / GATES) * GATES * V + k % GATES * WIDTH);
    squash<T, 0b01000100>(gate);
    Vector<T> squashed[PAIR];
    SEQPYRAMID_UNROLL
    for (int k = 0; k < PAIR; ++k) {
      const long row = first + pair + k;
      const Vector<T> i = gate[4 * k], f = gate[4 * k + 1], g = gate[4 * k + 2], o = gate[4 * k + 3];
      Vector<T> cell = i * g;
      if (c_before) cell += f * load(c_before.at(row, block.unit));
      if constexpr (WIDTH < V) cell = first_lanes<T, WIDTH>(cell);
      if (gates) gates.store(row, block, {i, f, g, o});
      store(c.at(row, block.unit), cell);
      squashed[k] = cell;
    }
    squash<T, 0b11111111>(squashed);
    SEQPYRAMID_UNROLL
    for (int k = 0; k < PAIR; ++k) store(h.at(first + pair + k, block.unit), gate[4 * k + 3] * squashed[k]);
  }
}

// The same for rows [first, last), from their sums.
template <class T, int VECTORS>
void advance_from(const Block& block, T* a, Rows<const T> c_before, KeptGates<T> gates, Rows<T> h, Rows<T> c,
                  long first, long last) {
  for_row_tiles(last - first, [&](auto tile, long row) {
    constexpr int R = decltype(tile)::value;
    advance_rows<T, R, VECTORS>(block, a + (first + row) * GATES * LANES<T>, c_before, gates, h, c, first + row);
  });
}

template <class T>
void lstm_step_on_tiles(const LstmWeights<T>& w, long rows, Rows<const T> x, Rows<const T> h_before,
                        Rows<const T> c_before, KeptGates<T> gates, Rows<T> h, Rows<T> c, LstmWork<T>& work) {
  constexpr long V = LANES<T>;
  work.sources.gather(rows, x, h_before);
  const auto sums = [&](const Block& block) { return work.a.data() + block.unit / V % 2 * TILED_ROWS * GATES * V; };
  const Block* done = nullptr;  // whose sums are there
  for (const Block& block : w.layout.blocks) {
    // The gates of one block while the tiles are at the sums of the next: all but the last have four vectors.
    long row = 0, calls = 0;
    const auto advance = [&] {
      if (!done || ++calls % 2 || row + 2 > rows) return;
      advance_rows<T, 2, 4>(*done, sums(*done) + row * GATES * V, c_before, gates, h, c, row);
      row += 2;
    };
    const long tile = block.gates() / TILE;
    multiply(rows, work.sources.left.data(), w.sources, w.sources.depth(), tile, tile + block.lanes() / TILE,
             sums(block), GATES * V, false, advance);
    if (done) advance_from<T, 4>(*done, sums(*done), c_before, gates, h, c, row, rows);
    done = &block;
  }
  with_vectors<T>(*done, [&](auto vectors) {
    constexpr int VECTORS = decltype(vectors)::value;
    T* const a = sums(*done);
    if constexpr (VECTORS < GATES)  // what the last gate's lanes reach into
      for (long row = 0; row < rows; ++row) store(a + (row * GATES + VECTORS) * V, Vector<T>{});
    advance_from<T, VECTORS>(*done, a, c_before, gates, h, c, 0, rows);
  });
}

// h, c of some rows from x and the state before; c may be the c before, h must not. Gates are kept if they have data.
template <class T>
void lstm_step(const LstmWeights<T>& w, long rows, Rows<const T> x, Rows<const T> h_before, Rows<const T> c_before,
               KeptGates<T> gates, Rows<T> h, Rows<T> c, LstmWork<T>& work) {
  if constexpr (ON_TILES<T>)
    while (rows >= fewest_tiled_rows) {
      const long group = std::min(rows, TILED_ROWS);
      lstm_step_on_tiles(w, group, x, h_before, c_before, gates, h, c, work);
      x = x.from(group), h_before = h_before.from(group), c_before = c_before.from(group);
      gates = gates.from(group), h = h.from(group), c = c.from(group), rows -= group;
    }
  for (const Block& block : w.layout.blocks)
    with_vectors<T>(block, [&](auto vectors) {
      constexpr int VECTORS = decltype(vectors)::value;
      for_row_tiles(rows, [&](auto tile, long first) {
        constexpr int R = decltype(tile)::value;
        T a[R * GATES * LANES<T>];
        gate_sums<T, R, VECTORS>(w.inputs, x.at(first), x.stride, w.input.data() + block.gates() * w.inputs,
                                 h_before ? w.hidden : 0, h_before.at(first), h_before.stride,
                                 w.recurrent.data() + block.gates() * w.hidden, w.bias.data() + block.gates(), a);
        advance_rows<T, R, VECTORS>(block, a, c_before, gates, h, c, first);
      });
    });
}

// What is added up over a slice of a batch: d[W, U, b] in the forward form, of a depth of whole tiles.
template <class T>
struct LstmGradients {
  long depth;
  Buffer<T> sources;

  explicit LstmGradients(const LstmWeights<T>& w)
      : depth((w.depth() + TILE - 1) / TILE * TILE), sources(size_t(w.layout.gates * depth + LANES<T>)) {}

  // Where source k has its gradients of a block.
  T* at(const Block& block, long k) const { return sources.data() + block.gates() * depth + k * block.lanes(); }

  void add(const LstmGradients& more) {
    for (size_t k = 0; k < sources.size(); ++k) sources.data()[k] += more.sources.data()[k];
  }

  // Add to gradients laid out as torch has them.
  void add_to(const LstmWeights<T>& w, T* weight_ih, T* weight_hh, T* bias) const {
    unpack_add(w.layout, sources.data(), depth, 0, weight_hh, w.hidden);
    unpack_add(w.layout, sources.data(), depth, w.hidden, weight_ih, w.inputs);
    unpack_add(w.layout, sources.data(), depth, w.hidden + w.inputs, bias, 1);
  }
};

// Backward forms of the weights.
template <class T>
struct LstmTransposed {
  long inputs_width;
  Buffer<T> input, recurrent;
  std::vector<RightFactor<T>> sources;  // of a block each, recurrent and input side by side

  LstmTransposed(const T* weight_ih, const T* weight_hh, long inputs, long hidden, bool with_input, long batch)
      : inputs_width(padded<T>(inputs)) {
    const Layout<T> layout(hidden);
    if (with_input) input = pack_backward(layout, weight_ih, inputs);
    recurrent = pack_backward(layout, weight_hh, hidden);
    if constexpr (ON_TILES<T>)
      for (size_t n = 0; batch >= fewest_tiled_rows && n < layout.blocks.size(); ++n) {
        const Block& block = layout.blocks[n];
        sources.emplace_back(block.lanes(), layout.states + (with_input ? inputs_width : 0), [&](long k, long tile) {
          const long row = block.gates() + k, column = tile * TILE;
          return column < layout.states ? load(recurrent.data() + row * layout.states + column)
                                        : load(input.data() + row * inputs_width + column - layout.states);
        });
      }
  }
};

// How far from some gates and c (in bytes, and in numbers) those of another step lie that are wanted soon; 0: none are.
struct Ahead {
  long gates = 0, cells = 0;
};

// s = tanh(c) and h = o s, from what the forward pass kept.
template <class T>
void lstm_recall(const LstmWeights<T>& w, long rows, KeptGates<T> gates, Rows<const T> c, Rows<T> s, Rows<T> h,
                 Ahead ahead) {
  constexpr long V = LANES<T>;
  for (long row = 0; row < rows; ++row)
    for_row_tiles(long(w.layout.blocks.size()), [&](auto tile, long first) {
      constexpr int COUNT = decltype(tile)::value;
      Vector<T> squashed[COUNT];
      SEQPYRAMID_UNROLL
      for (int k = 0; k < COUNT; ++k) squashed[k] = load(c.at(row, (first + k) * V));
      squash<T, 0b11111111>(squashed);
      SEQPYRAMID_UNROLL
      for (int k = 0; k < COUNT; ++k) {
        store(s.at(row, (first + k) * V), squashed[k]);
        const Block& block = w.layout.blocks[size_t(first + k)];
        store(h.at(row, block.unit), squashed[k] * gates.load(row, block, 3));
        if (ahead.gates) gates.expect_gate(row, block, 3, ahead.gates);
        if (ahead.cells) __builtin_prefetch(c.at(row, block.unit) + ahead.cells, 0, 2);
      }
    });
}

// Tell memory which gates are wanted soon: those of the next block or, after the last one, those of the step that comes
// next, `ahead` bytes away (0: there is none).
template <class T>
SEQPYRAMID_INLINE void expect_gates(const LstmWeights<T>& w, const Block& block, long row, KeptGates<T> gates,
                                    long ahead) {
  const std::vector<Block>& blocks = w.layout.blocks;
  if (&block != &blocks.back())
    gates.expect(row, *(&block + 1));
  else if (ahead)
    gates.expect(row, blocks.front(), ahead);
}

// da of a row and one block; dc becomes dc'.
template <class T>
SEQPYRAMID_INLINE void gate_gradients(const Block& block, long row, Rows<const T> c_before, KeptGates<T> gates,
                                      Rows<const T> s, Rows<const T> dh, Rows<T> dc, Vector<T> (&da)[GATES]) {
  const long unit = block.unit;
  const Vector<T> i = gates.load(row, block, 0), f = gates.load(row, block, 1);
  const Vector<T> g = gates.load(row, block, 2), o = gates.load(row, block, 3);
  const Vector<T> squashed = load(s.at(row, unit)), dh_now = load(dh.at(row, unit));
  const Vector<T> dc_now = load(dc.at(row, unit)) + dh_now * o * (T(1) - squashed * squashed);
  const Vector<T> before = c_before ? load(c_before.at(row, unit)) : Vector<T>{};
  da[0] = dc_now * g * i * (T(1) - i), da[1] = dc_now * before * f * (T(1) - f);
  da[2] = dc_now * i * (T(1) - g * g), da[3] = dh_now * squashed * o * (T(1) - o);
  store(dc.at(row, unit), dc_now * f);
}

template <class T>
void lstm_step_backward_on_tiles(const LstmWeights<T>& w, const LstmTransposed<T>& transposed, long rows,
                                 Rows<const T> x, Rows<const T> h_before, Rows<const T> c_before, KeptGates<T> gates,
                                 Rows<const T> s, Rows<const T> dh, Rows<T> dc, Rows<T> dh_before, Rows<T> dx,
                                 LstmGradients<T>& sums, LstmWork<T>& work, long ahead) {
  constexpr long V = LANES<T>;
  const long width = w.width + (dx ? transposed.inputs_width : 0), pairs = (rows + 1) / 2;
  T* const d_sources = work.d_sources.data();
  const auto left = [&](size_t k) { return work.da_left.data() + long(k % 2) * TILED_ROWS * left_stride(GATES * V); };
  const auto right = [&](size_t k) { return work.da_right.data() + long(k % 2) * GATES * PIECES * TILE_SIZE; };
  const auto gradients = [&](size_t k, long pair) {
    const Block& block = w.layout.blocks[k];
    T da[2][(GATES + 1) * LANES<T>];
    const bool two = 2 * pair + 1 < rows;
    for (int r = 0; r < 1 + two; ++r) {
      Vector<T> parts[GATES];
      expect_gates(w, block, 2 * pair + r, gates, ahead);
      gate_gradients<T>(block, 2 * pair + r, c_before, gates, s, dh, dc, parts);
      for (int j = 0; j < GATES; ++j) store(da[r] + j * block.width, parts[j]);
    }
    split_both(pair, block.lanes(), da[0], two ? da[1] : nullptr, left(k), right(k));
  };
  const auto finish = [&](size_t k, long pair) {
    for (; pair < pairs; ++pair) gradients(k, pair);
    clear_pairs(pairs, w.layout.blocks[k].lanes(), right(k));
  };

  work.sources.gather_transposed(rows, x, h_before);
  finish(0, 0);
  for (size_t k = 0; k < w.layout.blocks.size(); ++k) {
    const Block& block = w.layout.blocks[k];
    // The next block's da while the tiles are at the products of this one.
    long pair = 0, calls = 0;
    const auto prepare = [&] {
      if (k + 1 == w.layout.blocks.size() || ++calls % 5 || pair == pairs) return;
      gradients(k + 1, pair++);
    };
    multiply(rows, left(k), transposed.sources[k], transposed.sources[k].depth(), 0, width / TILE, d_sources, width,
             k > 0, prepare);
    add_product_over_rows(work.sources.tiles(), block.lanes() / TILE, work.sources.transposed.data(), right(k),
                          sums.at(block, 0), block.lanes(), prepare);
    if (k + 1 < w.layout.blocks.size()) finish(k + 1, pair);
  }
  for (long row = 0; row < rows; ++row) {
    const T* const from = d_sources + row * width;
    for (long u = 0; dh_before && u < w.width; u += V)
      store(dh_before.at(row, u), load(dh_before.at(row, u)) + load(from + u));
    for (long u = 0; dx && u < transposed.inputs_width; u += V)
      store(dx.at(row, u), load(dx.at(row, u)) + load(from + w.width + u));
  }
}

// dh is read, dc turned into dc' in place, dh' and dx (where they have data) are added to. Nothing of the inner loops
// but one block's da ever exists: dx, dW, dU and db take it while it is in the nearest cache. The gates of the step
// that comes next lie `ahead` bytes away; 0: none does.
template <class T>
void lstm_step_backward(const LstmWeights<T>& w, const LstmTransposed<T>& transposed, long rows, Rows<const T> x,
                        Rows<const T> h_before, Rows<const T> c_before, KeptGates<T> gates, Rows<const T> s,
                        Rows<const T> dh, Rows<T> dc, Rows<T> dh_before, Rows<T> dx, LstmGradients<T>& sums,
                        LstmWork<T>& work, long ahead) {
  if constexpr (ON_TILES<T>)
    while (rows >= fewest_tiled_rows) {
      const long group = std::min(rows, TILED_ROWS);
      lstm_step_backward_on_tiles(w, transposed, group, x, h_before, c_before, gates, s, dh, dc, dh_before, dx, sums,
                                  work, ahead);
      x = x.from(group), h_before = h_before.from(group), c_before = c_before.from(group), gates = gates.from(group);
      s = s.from(group), dh = dh.from(group), dc = dc.from(group), dh_before = dh_before.from(group);
      dx = dx.from(group), rows -= group;
    }
  if (rows == 0) return;
  T* const da = work.da.data();
  for (const Block& block : w.layout.blocks) {
    const long N = block.lanes(), vectors = N / LANES<T>;
    // What comes next is asked for a little at a time, while a product runs: all at once it would wait in a queue.
    long expected = 0;
    const auto expect_some = [&] {
      for (int k = 0; k < 2 && expected < rows; ++k) expect_gates(w, block, expected++, gates, ahead);
    };
    T* const bias_sums = sums.at(block, w.hidden + w.inputs);
    Vector<T> bias[GATES];
    for (int j = 0; j < GATES; ++j) bias[j] = load(bias_sums + j * block.width);
    for (long row = 0; row < rows; ++row) {
      Vector<T> parts[GATES];
      gate_gradients<T>(block, row, c_before, gates, s, dh, dc, parts);
      for (int j = 0; j < GATES; ++j) {
        store(da + row * N + j * block.width, parts[j]);
        bias[j] += parts[j];
      }
    }
    for (int j = 0; j < GATES; ++j) store(bias_sums + j * block.width, bias[j]);
    if (dh_before)
      add_product(rows, w.width / LANES<T>, N, da, N, 1, transposed.recurrent.data() + block.gates() * w.width, w.width,
                  dh_before.data, dh_before.stride);
    if (dx)
      add_product(rows, transposed.inputs_width / LANES<T>, N, da, N, 1,
                  transposed.input.data() + block.gates() * transposed.inputs_width, transposed.inputs_width, dx.data,
                  dx.stride);
    if (h_before)
      add_product(w.hidden, vectors, rows, h_before.data, 1, h_before.stride, da, N, sums.at(block, 0), N, expect_some);
    while (expected < rows) expect_some();
    add_product(w.inputs, vectors, rows, x.data, 1, x.stride, da, N, sums.at(block, w.hidden), N);
  }
}

// Compiled with lstm.cpp, once for all that use them.
#define SEQPYRAMID_LSTM_CELL(prefix, T)                                                                              \
  prefix template void lstm_step<T>(const LstmWeights<T>&, long, Rows<const T>, Rows<const T>, Rows<const T>,        \
                                    KeptGates<T>, Rows<T>, Rows<T>, LstmWork<T>&);                                   \
  prefix template void lstm_recall<T>(const LstmWeights<T>&, long, KeptGates<T>, Rows<const T>, Rows<T>, Rows<T>,    \
                                      Ahead);                                                                        \
  prefix template void lstm_step_backward<T>(const LstmWeights<T>&, const LstmTransposed<T>&, long, Rows<const T>,   \
                                             Rows<const T>, Rows<const T>, KeptGates<T>, Rows<const T>,              \
                                             Rows<const T>, Rows<T>, Rows<T>, Rows<T>, LstmGradients<T>&,            \
                                             LstmWork<T>&, long);

SEQPYRAMID_LSTM_CELL(extern, float)
SEQPYRAMID_LSTM_CELL(extern, double)

}  // namespace seqpyramid
