// Arithmetic on rows of n numbers, wherever they begin.
#pragma once

#include <cstring>

#include "stream.h"
#include "vector.h"

namespace seqpyramid {

// sum of a[i] b[i]
template <class T>
T dot(const T* a, const T* b, long n) {
  Vector<T> sums{};
  long i = 0;
  for (; i + LANES<T> <= n; i += LANES<T>) sums += load(a + i) * load(b + i);
  T sum = sum_lanes<T>(sums);
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// to = factor * from
template <class T>
void scale(T* to, T factor, const T* from, long n) {
  long i = 0;
  for (; i + LANES<T> <= n; i += LANES<T>) store(to + i, factor * load(from + i));
  for (; i < n; ++i) to[i] = factor * from[i];
}

// to += factor * from
template <class T>
void add(T* to, T factor, const T* from, long n) {
  long i = 0;
  for (; i + LANES<T> <= n; i += LANES<T>) store(to + i, load(to + i) + factor * load(from + i));
  for (; i < n; ++i) to[i] += factor * from[i];
}

template <class T>
void copy(T* to, const T* from, long n) {
  std::memcpy(to, from, size_t(n) * sizeof(T));
}

// to = from, past the caches where that can be; n whole vectors.
template <class T>
void copy_past(T* to, const T* from, long n) {
  if (!can_stream(to)) return copy(to, from, n);
  for (long i = 0; i < n; i += LANES<T>) stream<T>(to + i, load(from + i));
}

}  // namespace seqpyramid
