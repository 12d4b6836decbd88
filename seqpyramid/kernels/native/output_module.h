// The output module of HM-LSTM, for the rows of one slice at one step, whose h is still in the nearest cache.
//
// The equations stand in seqpyramid/kernels/hm_lstm.py.
//
// Shapes: n rows, L layers, S sum of their H, E embedding size.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "rows.h"
#include "tile.h"
#include "vector.h"

namespace seqpyramid::hm {

// Mirrored field by field in seqpyramid/kernels/hm_lstm.py.
struct ReadCall {
  int64_t embedded;               // E; 0: nothing reads h, and the rest is not looked at
  const void *gates, *embedding;  // (L, S), (E, S)
  void *g, *e;                    // (T, B, L), null: keep nothing; (T, B, E), 0 past a sequence's end
  const void* d_e;                // (T, B, E), the last axis contiguous; null: zero
  int64_t d_step, d_row;
  void *d_gates, *d_embedding;    // as gates and embedding, zero on entry
};

template <class T>
struct ReadWeights {
  std::vector<long> hidden;  // of each layer
  long L, S, E;
  long layers, wide, embedded;  // L, S and E as whole vectors
  Buffer<T> gates, embedding;   // forward: [S][layers], [S][embedded]
  Buffer<T> transposed;         // back: [E][wide]

  ReadWeights(const ReadCall& call, std::vector<long> hidden_, long outputs, bool back)
      : hidden(std::move(hidden_)), L(long(hidden.size())), S(outputs), E(call.embedded), layers(padded<T>(L)),
        wide(padded<T>(S)), embedded(padded<T>(E)), gates(back ? 0 : size_t(S * layers)),
        embedding(back ? 0 : size_t(S * embedded)), transposed(back ? size_t(E * wide) : 0) {
    const T *from_gates = static_cast<const T*>(call.gates), *from_embedding = static_cast<const T*>(call.embedding);
    for (long k = 0; !back && k < S; ++k) {
      for (long l = 0; l < L; ++l) gates.data()[k * layers + l] = from_gates[l * S + k];
      for (long n = 0; n < E; ++n) embedding.data()[k * embedded + n] = from_embedding[n * S + k];
    }
    for (long n = 0; back && n < E; ++n) copy(transposed.data() + n * wide, from_embedding + n * S, S);
  }
};

// One thread's place to read the rows of one step after the other, `most` at a time at most.
template <class T>
class Reader {
 public:
  Reader(const ReadWeights<T>& weights, const ReadCall& call, long most, bool back)
      : w_(weights), w_layers_(static_cast<const T*>(call.gates)), most_(most), g_(size_t(most * w_.layers)),
        s_(size_t(most * w_.embedded)), y_(size_t(most * w_.wide)), d_y_(back ? size_t(most * w_.wide) : 0),
        d_h_(back ? size_t(most * w_.wide) : 0), d_gates_(back ? size_t(w_.L * w_.wide) : 0),
        d_embedding_(back ? size_t(w_.S * w_.embedded) : 0) {}

  // Map h (n, S) to e (n, E), and to g (n, L) where that is kept.
  void forward(long n, const T* h, T* g, T* e) {
    const long layers = w_.layers, embedded = w_.embedded;
    std::fill_n(g_.data(), n * layers, T(0));
    std::fill_n(s_.data(), n * embedded, T(0));
    add_product<T>(n, layers / LANES<T>, w_.S, h, w_.S, 1, w_.gates.data(), layers, g_.data(), layers);
    for (long row = 0; row < n; ++row) {
      T* const g_row = g_.data() + row * layers;
      for (long lane = 0; lane < layers; lane += LANES<T>) store<T>(g_row + lane, sigmoid<T>(load(g_row + lane)));
      gate(g_row, h + row * w_.S, y_.data() + row * w_.wide);
      if (g) copy(g + row * w_.L, g_row, w_.L);
    }
    add_product<T>(n, embedded / LANES<T>, w_.S, y_.data(), w_.wide, 1, w_.embedding.data(), embedded, s_.data(),
                   embedded);
    for (long row = 0; row < n; ++row) {
      const T* const from = s_.data() + row * embedded;
      T* const to = e + row * w_.E;
      for (long k = 0; k < w_.E; ++k) to[k] = from[k] < 0 ? T(0) : from[k];  // a NaN stays one
    }
  }

  // Take the gradient of e back to d_h(), and add the weights' up; the others are as forward had and left them.
  void backward(long n, const T* h, const T* g, const T* e, Rows<const T> d_e) {
    const long embedded = w_.embedded, wide = w_.wide;
    if (waiting_ + n > most_) add_waiting();
    T *const d_s = s_.data() + waiting_ * embedded, *const y = y_.data() + waiting_ * wide;
    waiting_ += n;
    for (long row = 0; row < n; ++row) {
      const T *const d = d_e.at(row), *const after = e + row * w_.E;
      for (long k = 0; k < w_.E; ++k) d_s[row * embedded + k] = after[k] > 0 ? d[k] : T(0);
      gate(g + row * w_.L, h + row * w_.S, y + row * wide);
    }
    std::fill_n(d_y_.data(), n * wide, T(0));
    add_product<T>(n, wide / LANES<T>, w_.E, d_s, embedded, 1, w_.transposed.data(), wide, d_y_.data(), wide);
    for (long row = 0; row < n; ++row) {
      const T *const g_row = g + row * w_.L, *const h_row = h + row * w_.S, *const d_y = d_y_.data() + row * wide;
      T* const to = d_h_.data() + row * wide;
      gate(g_row, d_y, to);
      for (long l = 0, at = 0; l < w_.L; at += w_.hidden[l++]) {
        const T d_u = dot(d_y + at, h_row + at, w_.hidden[l]) * g_row[l] * (1 - g_row[l]);
        add(to, d_u, w_layers_ + l * w_.S, w_.S);
        add(d_gates_.data() + l * wide, d_u, h_row, w_.S);
      }
    }
  }

  // (n, S) of the last backward; rows `w.wide` apart.
  const T* d_h(long row) const { return d_h_.data() + row * w_.wide; }

  // Rows wait until there are many: a few cost as much, since all sums are read and written for them.
  void add_waiting() {
    add_product<T>(w_.S, w_.embedded / LANES<T>, waiting_, y_.data(), 1, w_.wide, s_.data(), w_.embedded,
                   d_embedding_.data(), w_.embedded);
    waiting_ = 0;
  }

  // Give this thread's sums to the whole; none may wait.
  void add_to(const ReadCall& call) const {
    T *const d_gates = static_cast<T*>(call.d_gates), *const d_embedding = static_cast<T*>(call.d_embedding);
    for (long l = 0; l < w_.L; ++l) add(d_gates + l * w_.S, T(1), d_gates_.data() + l * w_.wide, w_.S);
    for (long n = 0; n < w_.E; ++n)
      for (long k = 0; k < w_.S; ++k) d_embedding[n * w_.S + k] += d_embedding_.data()[k * w_.embedded + n];
  }

 private:
  // Scale each layer's part of a row by its gate.
  void gate(const T* g, const T* from, T* to) const {
    for (long l = 0, at = 0; l < w_.L; at += w_.hidden[l++]) scale(to + at, g[l], from + at, w_.hidden[l]);
  }

  const ReadWeights<T>& w_;
  const T* w_layers_;  // w^l in rows
  long most_, waiting_ = 0;
  Buffer<T> g_, s_, y_, d_y_, d_h_;  // [row][layers], then [row][embedded] and [row][wide]
  Buffer<T> d_gates_, d_embedding_;  // [L][wide], [S][embedded]
};

}  // namespace seqpyramid::hm
