// The output module of HM-LSTM, row after row of h; its rows are all steps of all sequences.
//
// The equations, and what is kept between the passes, stand in seqpyramid/kernels/hm_lstm.py.
//
// Shapes: B batch, T steps, L layers, S sum of their H, E embedding size.
#pragma once

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "rows.h"
#include "tile.h"
#include "vector.h"

namespace seqpyramid {

// Mirrored field by field in seqpyramid/kernels/hm_lstm.py.
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

// Rows that a thread takes through one product after the other.
constexpr long READ_ROWS = 64;

template <class T>
struct Reader {
  const ReadCall& call;
  const long S, E, L, wide, embedded;  // the last two: strides of rows of S and of E numbers
  long first = 0;                      // row of the slice
  Buffer<T> gated, d_gated, e, g;      // [row][wide], the same, [row][embedded], [row][padded L]
  Buffer<T> d_gates, d_embedding;      // [L][wide], [S][embedded]

  Reader(const ReadCall& c, bool back)
      : call(c), S(c.outputs), E(c.embedded), L(c.layers), wide(padded<T>(S)), embedded(padded<T>(E)),
        gated(size_t(READ_ROWS * wide)), d_gated(back ? size_t(READ_ROWS * wide) : 0),
        e(size_t(READ_ROWS * embedded)), g(size_t(READ_ROWS * padded<T>(L))),
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
  const long rows = call.steps * call.batch, slices = (rows + READ_ROWS - 1) / READ_ROWS;
  const long threads = std::min(long(call.threads), slices);
  std::vector<Reader<T>> readers;
  for (long n = 0; n < threads; ++n) readers.emplace_back(call, back);
  run_parallel(threads, [&](long n) {
    for (long slice = slices * n / threads; slice < slices * (n + 1) / threads; ++slice) {
      readers[n].first = slice * READ_ROWS;
      pass(readers[n], std::min(READ_ROWS, rows - slice * READ_ROWS));
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

}  // namespace seqpyramid
