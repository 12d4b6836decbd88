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
// Gates, weights and states are laid out as tile.h says; the lanes past H stay zero, because their weights are.
//
// Shapes: n rows, F inputs, H hidden units, P = padded H, V lanes.
#pragma once

#include "tile.h"

namespace seqpyramid {

constexpr long GATES = 4;

template <class T>
struct LstmWeights {
  long inputs, hidden, blocks, width;  // width: P
  Buffer<T> input, recurrent, bias;    // forward form; the bias as with depth 1

  LstmWeights(const T* weight_ih, const T* weight_hh, const T* bias_, long inputs_, long hidden_)
      : inputs(inputs_),
        hidden(hidden_),
        blocks(padded<T>(hidden_) / LANES<T>),
        width(padded<T>(hidden_)),
        input(pack_forward(weight_ih, inputs_, GATES, hidden_, inputs_)),
        recurrent(pack_forward(weight_hh, hidden_, GATES, hidden_, hidden_)),
        bias(pack_forward(bias_, 1, GATES, hidden_, 1)) {}

  long gates_width() const { return GATES * width; }
};

// h, c of some rows from x and the state before; c may be the c before, h must not. Gates are kept if they have data.
template <class T>
void lstm_step(const LstmWeights<T>& w, long rows, Rows<const T> x, Rows<const T> h_before, Rows<const T> c_before,
               Rows<T> gates, Rows<T> h, Rows<T> c) {
  constexpr long V = LANES<T>, N = GATES * V;
  for (long block = 0; block < w.blocks; ++block) {
    const T* input = w.input.data() + block * w.inputs * N;
    const T* recurrent = w.recurrent.data() + block * w.hidden * N;
    const T* bias = w.bias.data() + block * N;
    for_row_tiles(rows, [&](auto tile, long first) {
      constexpr int R = decltype(tile)::value;
      Vector<T> a[R][GATES];
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < GATES; ++j) a[r][j] = load(bias + j * V);
      multiply_add<T, R, GATES>(w.inputs, x.at(first), x.stride, 1, input, N, a);
      if (h_before) multiply_add<T, R, GATES>(w.hidden, h_before.at(first), h_before.stride, 1, recurrent, N, a);
      for (int r = 0; r < R; ++r) {
        const Vector<T> i = sigmoid<T>(a[r][0]), f = sigmoid<T>(a[r][1]);
        const Vector<T> g = tanh<T>(a[r][2]), o = sigmoid<T>(a[r][3]);
        Vector<T> cell = i * g;
        if (c_before) cell += f * load(c_before.at(first + r, block * V));
        if (gates) {
          T* kept = gates.at(first + r, block * N);
          store(kept, i), store(kept + V, f), store(kept + 2 * V, g), store(kept + 3 * V, o);
        }
        store(c.at(first + r, block * V), cell);
        store(h.at(first + r, block * V), o * tanh<T>(cell));
      }
    });
  }
}

// What is added up over a slice of a batch, and workspace for one block's gate gradients.
template <class T>
struct LstmGradients {
  Buffer<T> input, recurrent, bias, gates;

  LstmGradients(const LstmWeights<T>& w, long rows)
      : input(size_t(w.blocks) * w.inputs * GATES * LANES<T>),
        recurrent(size_t(w.blocks) * w.hidden * GATES * LANES<T>),
        bias(size_t(w.blocks) * GATES * LANES<T>),
        gates(size_t(rows) * GATES * LANES<T>) {}

  // Add to gradients laid out as torch has them.
  void add_to(const LstmWeights<T>& w, T* weight_ih, T* weight_hh, T* bias_) const {
    unpack_add(input.data(), weight_ih, w.inputs, GATES, w.hidden, w.inputs);
    unpack_add(recurrent.data(), weight_hh, w.hidden, GATES, w.hidden, w.hidden);
    unpack_add(bias.data(), bias_, 1, GATES, w.hidden, 1);
  }
};

// Backward forms of the weights.
template <class T>
struct LstmTransposed {
  long inputs_width;
  Buffer<T> input, recurrent;

  LstmTransposed(const T* weight_ih, const T* weight_hh, long inputs, long hidden, bool with_input)
      : inputs_width(padded<T>(inputs)),
        input(with_input ? pack_backward(weight_ih, inputs, GATES, hidden, inputs) : Buffer<T>()),
        recurrent(pack_backward(weight_hh, hidden, GATES, hidden, hidden)) {}
};

// s = tanh(c) and h = o s, from what the forward pass kept.
template <class T>
void lstm_recall(const LstmWeights<T>& w, long rows, Rows<const T> gates, Rows<const T> c, Rows<T> s, Rows<T> h) {
  constexpr long V = LANES<T>;
  for (long row = 0; row < rows; ++row)
    for (long block = 0; block < w.blocks; ++block) {
      const Vector<T> squashed = tanh<T>(load(c.at(row, block * V)));
      store(s.at(row, block * V), squashed);
      store(h.at(row, block * V), squashed * load(gates.at(row, (block * GATES + 3) * V)));
    }
}

// dh is read, dc turned into dc' in place, dh' and dx (where they have data) are added to. Nothing of the inner loops
// but one block's da ever exists: dx, dW, dU and db take it while it is in the nearest cache.
template <class T>
void lstm_step_backward(const LstmWeights<T>& w, const LstmTransposed<T>& transposed, long rows, Rows<const T> x,
                        Rows<const T> h_before, Rows<const T> c_before, Rows<const T> gates, Rows<const T> s,
                        Rows<const T> dh, Rows<T> dc, Rows<T> dh_before, Rows<T> dx, LstmGradients<T>& sums) {
  constexpr long V = LANES<T>, N = GATES * V;
  T* da = sums.gates.data();
  for (long block = 0; block < w.blocks; ++block) {
    Vector<T> bias[GATES];
    for (int j = 0; j < GATES; ++j) bias[j] = load(sums.bias.data() + block * N + j * V);
    for (long row = 0; row < rows; ++row) {
      const T* kept = gates.at(row, block * N);
      const Vector<T> i = load(kept), f = load(kept + V), g = load(kept + 2 * V), o = load(kept + 3 * V);
      const Vector<T> squashed = load(s.at(row, block * V));
      const Vector<T> dh_now = load(dh.at(row, block * V));
      const Vector<T> dc_now = load(dc.at(row, block * V)) + dh_now * o * (T(1) - squashed * squashed);
      const Vector<T> before = c_before ? load(c_before.at(row, block * V)) : Vector<T>{};
      const Vector<T> parts[GATES] = {dc_now * g * i * (T(1) - i), dc_now * before * f * (T(1) - f),
                                      dc_now * i * (T(1) - g * g), dh_now * squashed * o * (T(1) - o)};
      for (int j = 0; j < GATES; ++j) {
        store(da + row * N + j * V, parts[j]);
        bias[j] += parts[j];
      }
      store(dc.at(row, block * V), dc_now * f);
    }
    for (int j = 0; j < GATES; ++j) store(sums.bias.data() + block * N + j * V, bias[j]);
    if (dh_before)
      add_product(rows, w.blocks, N, da, N, 1, transposed.recurrent.data() + block * N * w.width, w.width,
                  dh_before.data, dh_before.stride);
    if (dx)
      add_product(rows, transposed.inputs_width / V, N, da, N, 1,
                  transposed.input.data() + block * N * transposed.inputs_width, transposed.inputs_width, dx.data,
                  dx.stride);
    if (h_before)
      add_product(w.hidden, GATES, rows, h_before.data, 1, h_before.stride, da, N,
                  sums.recurrent.data() + block * w.hidden * N, N);
    add_product(w.inputs, GATES, rows, x.data, 1, x.stride, da, N, sums.input.data() + block * w.inputs * N, N);
  }
}

}  // namespace seqpyramid
