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
// Gates, weights and states are laid out as gates.h says; the lanes past H of a state stay zero.
//
// Shapes: n rows, F inputs, H hidden units, P = padded H, V lanes.
#pragma once

#include "gates.h"

namespace seqpyramid {

template <class T>
struct LstmWeights {
  Layout<T> layout;
  long inputs, hidden, width;          // width: P
  Buffer<T> input, recurrent, bias;    // forward form; the bias as with depth 1

  LstmWeights(const T* weight_ih, const T* weight_hh, const T* bias_, long inputs_, long hidden_)
      : layout(hidden_),
        inputs(inputs_),
        hidden(hidden_),
        width(layout.states),
        input(pack_forward(layout, weight_ih, inputs_)),
        recurrent(pack_forward(layout, weight_hh, hidden_)),
        bias(pack_forward(layout, bias_, 1)) {}

  long gates_width() const { return layout.stride; }
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
SEQPYRAMID_INLINE void advance_rows(const Block& block, T* a, Rows<const T> c_before, Rows<T> gates, Rows<T> h,
                                    Rows<T> c, long first) {
  constexpr long V = LANES<T>, WIDTH = VECTORS * V / GATES;
  constexpr int PAIR = R % 2 == 0 ? 2 : 1;
  for (int pair = 0; pair < R; pair += PAIR) {
    Vector<T> gate[PAIR * GATES];
    SEQPYRAMID_UNROLL
    for (int k = 0; k < PAIR * GATES; ++k) gate[k] = load(a + (pair + k / GATES) * GATES * V + k % GATES * WIDTH);
    squash<T, 0b01000100>(gate);
    SEQPYRAMID_UNROLL
    for (int k = 0; k < PAIR; ++k) {
      const long row = first + pair + k;
      const Vector<T> i = gate[4 * k], f = gate[4 * k + 1], g = gate[4 * k + 2], o = gate[4 * k + 3];
      if (gates) {
        T* kept = gates.at(row, block.gates());
        store(kept, i), store(kept + WIDTH, f), store(kept + 2 * WIDTH, g), store(kept + 3 * WIDTH, o);
      }
      Vector<T> cell = i * g;
      if (c_before) cell += f * load(c_before.at(row, block.unit));
      if constexpr (WIDTH < V) cell = first_lanes<T, WIDTH>(cell);
      store(c.at(row, block.unit), cell);
      store(a + (pair + k) * GATES * V, o);
    }
  }
  Vector<T> squashed[R];
  SEQPYRAMID_UNROLL
  for (int r = 0; r < R; ++r) squashed[r] = load(c.at(first + r, block.unit));
  squash<T, 0b11111111>(squashed);
  SEQPYRAMID_UNROLL
  for (int r = 0; r < R; ++r) store(h.at(first + r, block.unit), load(a + r * GATES * V) * squashed[r]);
}

// h, c of some rows from x and the state before; c may be the c before, h must not. Gates are kept if they have data.
template <class T>
void lstm_step(const LstmWeights<T>& w, long rows, Rows<const T> x, Rows<const T> h_before, Rows<const T> c_before,
               Rows<T> gates, Rows<T> h, Rows<T> c) {
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

// What is added up over a slice of a batch, and workspace for one block's gate gradients.
template <class T>
struct LstmGradients {
  Buffer<T> input, recurrent, bias, gates;

  LstmGradients(const LstmWeights<T>& w, long rows)
      : input(size_t(w.layout.gates * w.inputs)),
        recurrent(size_t(w.layout.gates * w.hidden)),
        bias(size_t(w.layout.gates + LANES<T>)),
        gates(size_t((rows * GATES + 1) * LANES<T>)) {}

  void add(const LstmGradients& more) {
    const auto sum = [](Buffer<T>& to, const Buffer<T>& from) {
      for (size_t k = 0; k < to.size(); ++k) to.data()[k] += from.data()[k];
    };
    sum(input, more.input), sum(recurrent, more.recurrent), sum(bias, more.bias);
  }

  // Add to gradients laid out as torch has them.
  void add_to(const LstmWeights<T>& w, T* weight_ih, T* weight_hh, T* bias_) const {
    unpack_add(w.layout, input.data(), weight_ih, w.inputs);
    unpack_add(w.layout, recurrent.data(), weight_hh, w.hidden);
    unpack_add(w.layout, bias.data(), bias_, 1);
  }
};

// Backward forms of the weights.
template <class T>
struct LstmTransposed {
  long inputs_width;
  Buffer<T> input, recurrent;

  LstmTransposed(const T* weight_ih, const T* weight_hh, long inputs, long hidden, bool with_input)
      : inputs_width(padded<T>(inputs)) {
    const Layout<T> layout(hidden);
    if (with_input) input = pack_backward(layout, weight_ih, inputs);
    recurrent = pack_backward(layout, weight_hh, hidden);
  }
};

// s = tanh(c) and h = o s, from what the forward pass kept.
template <class T>
void lstm_recall(const LstmWeights<T>& w, long rows, Rows<const T> gates, Rows<const T> c, Rows<T> s, Rows<T> h) {
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
        store(h.at(row, block.unit), squashed[k] * load(gates.at(row, block.gates() + 3 * block.width)));
      }
    });
}

// How far from the gates and the c before those lie that are wanted two steps later; 0: nothing more is wanted.
struct Ahead {
  long gates = 0, cells = 0;
};

// dh is read, dc turned into dc' in place, dh' and dx (where they have data) are added to. Nothing of the inner loops
// but one block's da ever exists: dx, dW, dU and db take it while it is in the nearest cache.
template <class T>
void lstm_step_backward(const LstmWeights<T>& w, const LstmTransposed<T>& transposed, long rows, Rows<const T> x,
                        Rows<const T> h_before, Rows<const T> c_before, Rows<const T> gates, Rows<const T> s,
                        Rows<const T> dh, Rows<T> dc, Rows<T> dh_before, Rows<T> dx, LstmGradients<T>& sums,
                        Ahead ahead = {}) {
  constexpr long V = LANES<T>;
  T* da = sums.gates.data();
  for (const Block& block : w.layout.blocks) {
    const long N = block.lanes(), width = block.width, unit = block.unit;
    T* const bias_sums = sums.bias.data() + block.gates();
    Vector<T> bias[GATES];
    for (int j = 0; j < GATES; ++j) bias[j] = load(bias_sums + j * width);
    for (long row = 0; row < rows; ++row) {
      const T* kept = gates.at(row, block.gates());
      for (int j = 0; j < GATES; ++j) __builtin_prefetch(kept + ahead.gates + j * width, 0, 2);
      if (ahead.cells) __builtin_prefetch(c_before.at(row, unit) + ahead.cells, 0, 2);
      const Vector<T> i = load(kept), f = load(kept + width), g = load(kept + 2 * width), o = load(kept + 3 * width);
      const Vector<T> squashed = load(s.at(row, unit));
      const Vector<T> dh_now = load(dh.at(row, unit));
      const Vector<T> dc_now = load(dc.at(row, unit)) + dh_now * o * (T(1) - squashed * squashed);
      const Vector<T> before = c_before ? load(c_before.at(row, unit)) : Vector<T>{};
      const Vector<T> parts[GATES] = {dc_now * g * i * (T(1) - i), dc_now * before * f * (T(1) - f),
                                      dc_now * i * (T(1) - g * g), dh_now * squashed * o * (T(1) - o)};
      for (int j = 0; j < GATES; ++j) {
        store(da + row * N + j * width, parts[j]);
        bias[j] += parts[j];
      }
      store(dc.at(row, unit), dc_now * f);
    }
    for (int j = 0; j < GATES; ++j) store(bias_sums + j * width, bias[j]);
    if (dh_before)
      add_product(rows, w.width / V, N, da, N, 1, transposed.recurrent.data() + block.gates() * w.width, w.width,
                  dh_before.data, dh_before.stride);
    if (dx)
      add_product(rows, transposed.inputs_width / V, N, da, N, 1,
                  transposed.input.data() + block.gates() * transposed.inputs_width, transposed.inputs_width, dx.data,
                  dx.stride);
    if (h_before)
      add_product(w.hidden, N / V, rows, h_before.data, 1, h_before.stride, da, N,
                  sums.recurrent.data() + block.gates() * w.hidden, N);
    add_product(w.inputs, N / V, rows, x.data, 1, x.stride, da, N, sums.input.data() + block.gates() * w.inputs, N);
  }
}

}  // namespace seqpyramid
