// Small matrix products on register tiles, memory for them, and rows.
//
// Shapes: M rows, K depth, V lanes.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#include "vector.h"

namespace seqpyramid {

// Rows of a tile four vectors wide that fit the registers: sums, one row of the right factor, one broadcast.
#if SEQPYRAMID_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int TILE_ROWS = 6;
#elif SEQPYRAMID_VECTOR_BYTES == 32
constexpr int TILE_ROWS = 3;
#else
constexpr int TILE_ROWS = 2;
#endif

// Zeroed memory on a cache line's boundary, so that no vector crosses a line.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size) : size_(size) {
    const size_t bytes = (size * sizeof(T) + 63) / 64 * 64;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64)));
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, bytes);
  }
  T* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  size_t size_ = 0;
  std::unique_ptr<T[], Free> data_;
};

// Rows of a matrix: where the first lies, and how far apart they are. No data: zeros.
template <class T>
struct Rows {
  T* data = nullptr;
  long stride = 0;

  explicit operator bool() const { return data != nullptr; }
  T* at(long row, long column = 0) const { return data + row * stride + column; }
  Rows from(long row) const { return {data ? at(row) : nullptr, stride}; }
  operator Rows<const T>() const { return {data, stride}; }
};

// Rows of a matrix from one of them on.
template <class T>
Rows<const T> rows_of(const void* data, long row, long stride) {
  return {data ? static_cast<const T*>(data) + row * stride : nullptr, stride};
}

template <class T>
Rows<T> rows_of(void* data, long row, long stride) {
  return {data ? static_cast<T*>(data) + row * stride : nullptr, stride};
}

template <class T>
void clear_rows(long rows, Rows<T> to, long width) {
  for (long row = 0; row < rows; ++row) std::fill_n(to.at(row), width, T(0));
}

// to (n, padded width) += from (n, width)
template <class T>
void add_rows(long rows, Rows<const T> from, Rows<T> to, long width) {
  for (long row = 0; row < rows; ++row)
    for (long u = 0; u < width; u += LANES<T>)
      store(to.at(row, u), load(to.at(row, u)) + load_first(from.at(row, u), width - u));
}

template <class T>
void copy_rows(long first, long last, Rows<const T> from, Rows<T> to, long width) {
  for (long row = first; row < last; ++row) std::copy_n(from.at(row), width, to.at(row));
}

// sum[i][j] += over k of a[i * a_row + k * a_depth] * b[k * b_depth + j V]; sum stays on registers.
template <class T, int ROWS, int VECTORS>
SEQPYRAMID_INLINE void multiply_add(long depth, const T* a, long a_row, long a_depth, const T* b, long b_depth,
                                    Vector<T> (&sum)[ROWS][VECTORS]) {
  for (long k = 0; k < depth; ++k, a += a_depth, b += b_depth) {
    if constexpr (ROWS < VECTORS) {  // whichever factor needs fewer registers is held while the other one passes
      Vector<T> left[ROWS];
      SEQPYRAMID_UNROLL
      for (int i = 0; i < ROWS; ++i) left[i] = broadcast<T>(a[i * a_row]);
      SEQPYRAMID_UNROLL
      for (int j = 0; j < VECTORS; ++j) {
        const Vector<T> right = load(b + j * LANES<T>);
        SEQPYRAMID_UNROLL
        for (int i = 0; i < ROWS; ++i) sum[i][j] += left[i] * right;
      }
    } else {
      Vector<T> right[VECTORS];
      SEQPYRAMID_UNROLL
      for (int j = 0; j < VECTORS; ++j) right[j] = load(b + j * LANES<T>);
      SEQPYRAMID_UNROLL
      for (int i = 0; i < ROWS; ++i) {
        const Vector<T> left = broadcast<T>(a[i * a_row]);
        SEQPYRAMID_UNROLL
        for (int j = 0; j < VECTORS; ++j) sum[i][j] += left * right[j];
      }
    }
  }
}

// Call tile(std::integral_constant<int, R>, first row) for tiles of up to ROWS rows that cover `rows` rows.
template <int ROWS = TILE_ROWS, class Tile>
SEQPYRAMID_INLINE void for_row_tiles(long rows, Tile&& tile) {
  long i = 0;
  const auto cover = [&](auto size) {
    for (; i + size <= rows; i += size) tile(size, i);
  };
  cover(std::integral_constant<int, ROWS>{});
  if constexpr (ROWS > 4) cover(std::integral_constant<int, 4>{});
  if constexpr (ROWS > 2) cover(std::integral_constant<int, 2>{});
  if constexpr (ROWS > 1) cover(std::integral_constant<int, 1>{});
}

// Rows of a tile of fewer vectors: as many sums, since each of them waits for the one before.
constexpr int tile_rows(int vectors) { return std::min(8, TILE_ROWS * 4 / vectors); }

// What is done besides while a product runs: a little each time that it is called.
struct Nothing {
  void operator()() const {}
};

template <class T, int VECTORS, class Meanwhile>
void add_product_strip(long rows, long depth, const T* a, long a_row, long a_depth, const T* b, long b_depth, T* c,
                       long c_row, Meanwhile& meanwhile) {
  for_row_tiles<tile_rows(VECTORS)>(rows, [&](auto tile, long first) {
    constexpr int ROWS = decltype(tile)::value;
    meanwhile();
    T* out = c + first * c_row;
    Vector<T> sum[ROWS][VECTORS];
    SEQPYRAMID_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      SEQPYRAMID_UNROLL
      for (int j = 0; j < VECTORS; ++j) sum[i][j] = load(out + i * c_row + j * LANES<T>);
    }
    multiply_add<T, ROWS, VECTORS>(depth, a + first * a_row, a_row, a_depth, b, b_depth, sum);
    SEQPYRAMID_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      SEQPYRAMID_UNROLL
      for (int j = 0; j < VECTORS; ++j) store(out + i * c_row + j * LANES<T>, sum[i][j]);
    }
  });
}

// c (rows x vectors V, rows c_row apart) += a (rows x depth, any strides) * b (depth x vectors V, b_depth apart).
//
// A transposed a is a matter of strides.
template <class T, class Meanwhile = Nothing>
void add_product(long rows, long vectors, long depth, const T* a, long a_row, long a_depth, const T* b, long b_depth,
                 T* c, long c_row, Meanwhile&& meanwhile = {}) {
  const long V = LANES<T>;
  long j = 0;
  for (; j + 4 <= vectors; j += 4)
    add_product_strip<T, 4>(rows, depth, a, a_row, a_depth, b + j * V, b_depth, c + j * V, c_row, meanwhile);
  b += j * V, c += j * V;
  switch (vectors - j) {
    case 3: add_product_strip<T, 3>(rows, depth, a, a_row, a_depth, b, b_depth, c, c_row, meanwhile); break;
    case 2: add_product_strip<T, 2>(rows, depth, a, a_row, a_depth, b, b_depth, c, c_row, meanwhile); break;
    case 1: add_product_strip<T, 1>(rows, depth, a, a_row, a_depth, b, b_depth, c, c_row, meanwhile); break;
    default: break;
  }
}

}  // namespace seqpyramid
