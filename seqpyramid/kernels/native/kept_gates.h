// Gates of an LSTM's units that the forward pass leaves to the backward pass, laid out as gates.h says.
//
// They are kept as they are, or in 16 bits each: i, f and o, between 0 and 1, as multiples of 1/65535, and g, between -1
// and 1, as one of 1/32767. bfloat16, of the same size, has but eight significant bits, so that little is left of 1 - f
// where f is near 1, which is where it matters: over 784 steps gradients are then off by 0.3 %, and by 10 % with a forget
// bias of 4, where these are off by 1e-5 and 1e-4 (relative norms, in float64).
#pragma once

#include "gates.h"
#include "stream.h"

namespace seqpyramid {

// The integer nearest to x scale.
template <class T>
SEQPYRAMID_INLINE typename VectorTypes<T>::unsigned_shorts to_shorts(Vector<T> x, T scale) {
  return __builtin_convertvector(bits_of<T>(x * scale + ROUNDING<T>), typename VectorTypes<T>::unsigned_shorts);
}

template <class T, class Shorts>
SEQPYRAMID_INLINE Vector<T> from_shorts(const char* p, T scale) {
  Shorts shorts;
  std::memcpy(&shorts, p, sizeof shorts);
  const auto integers = __builtin_convertvector(shorts, typename VectorTypes<T>::bits);
  return __builtin_convertvector(integers, Vector<T>) * (1 / scale);
}

// Rows of kept gates; no data: none.
template <class T>
struct KeptGates {
  char* data = nullptr;
  long stride = 0;  // in numbers
  bool rounded = false;
  bool past = false;  // the caches, where a block is of whole vectors and memory allows it

  explicit operator bool() const { return data != nullptr; }
  char* at(long row, long place = 0) const { return data + (row * stride + place) * size(); }
  KeptGates from(long row) const { return {data ? at(row) : nullptr, stride, rounded, past}; }

  // The first N gates.
  template <int N>
  void store(long row, const Block& block, const Vector<T> (&gate)[N]) const {
    char* const to = at(row, block.gates());
    T* const numbers = reinterpret_cast<T*>(to);
    if (rounded) {
      for (int j = 0; j < N; ++j) {
        const auto shorts = to_shorts<T>(gate[j], scale(j));
        std::memcpy(to + j * block.width * size(), &shorts, sizeof shorts);
      }
    } else if (past && block.width == LANES<T> && can_stream(numbers)) {
      for (int j = 0; j < N; ++j) stream(numbers + j * LANES<T>, gate[j]);
    } else {
      for (int j = 0; j < N; ++j) seqpyramid::store(numbers + j * block.width, gate[j]);
    }
  }

  Vector<T> load(long row, const Block& block, int j) const {
    const char* const from = at(row, block.gates() + j * block.width);
    if (!rounded) return seqpyramid::load(reinterpret_cast<const T*>(from));
    return j == 2 ? from_shorts<T, typename VectorTypes<T>::shorts>(from, scale(j))
                  : from_shorts<T, typename VectorTypes<T>::unsigned_shorts>(from, scale(j));
  }

  // Tell memory that gates are wanted soon: those of a row and block, or so many bytes further on.
  void expect(long row, const Block& block, long ahead = 0) const {
    for (int j = 0; j < GATES; ++j) expect_gate(row, block, j, ahead);
  }

  void expect_gate(long row, const Block& block, int j, long ahead) const {
    __builtin_prefetch(at(row, block.gates() + j * block.width) + ahead, 0, 2);
  }

 private:
  long size() const { return rounded ? long(sizeof(uint16_t)) : long(sizeof(T)); }
  static constexpr T scale(int j) { return j == 2 ? T(32767) : T(65535); }
};

// Those from row `row` of memory on.
template <class T>
KeptGates<T> kept_gates(void* data, long row, long stride, bool rounded, bool past) {
  return KeptGates<T>{static_cast<char*>(data), stride, rounded, past}.from(row);
}

}  // namespace seqpyramid
