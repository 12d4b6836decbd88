// Vectors of one instruction set's width, and exp, sigmoid and tanh on them.
//
// The width follows the flags that the file is compiled with: with wider vectors than the machine has, GCC keeps
// them in memory. One source is therefore compiled once for each level of the architecture.
//
// T is float or double everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define SEQPYRAMID_VECTOR_BYTES 64
#elif defined(__AVX__)
#define SEQPYRAMID_VECTOR_BYTES 32
#else
#define SEQPYRAMID_VECTOR_BYTES 16
#endif

#define SEQPYRAMID_INLINE inline __attribute__((always_inline))
#define SEQPYRAMID_UNROLL _Pragma("GCC unroll 8")
#define SEQPYRAMID_EXPORT extern "C" __attribute__((visibility("default")))

namespace seqpyramid {

template <class T>
struct VectorTypes;

template <>
struct VectorTypes<float> {
  typedef float value __attribute__((vector_size(SEQPYRAMID_VECTOR_BYTES)));
  typedef float memory __attribute__((vector_size(SEQPYRAMID_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t bits __attribute__((vector_size(SEQPYRAMID_VECTOR_BYTES)));
  static constexpr int mantissa = 23, bias = 127, terms = 7;
  static constexpr float largest = 88.f, smallest = -87.f;
  // ln 2 in two parts; the first has so few digits that its product with an exponent is exact.
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};

template <>
struct VectorTypes<double> {
  typedef double value __attribute__((vector_size(SEQPYRAMID_VECTOR_BYTES)));
  typedef double memory __attribute__((vector_size(SEQPYRAMID_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t bits __attribute__((vector_size(SEQPYRAMID_VECTOR_BYTES)));
  static constexpr int mantissa = 52, bias = 1023, terms = 13;
  static constexpr double largest = 709., smallest = -708.;
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
};

template <class T>
using Vector = typename VectorTypes<T>::value;

// Lanes of a vector.
template <class T>
constexpr long LANES = SEQPYRAMID_VECTOR_BYTES / sizeof(T);

// n rounded up to whole vectors.
template <class T>
constexpr long padded(long n) {
  return (n + LANES<T> - 1) / LANES<T> * LANES<T>;
}

template <class T>
SEQPYRAMID_INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorTypes<T>::memory*>(p);
}

template <class T>
SEQPYRAMID_INLINE void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename VectorTypes<T>::memory*>(p) = v;
}

template <class T>
SEQPYRAMID_INLINE Vector<T> broadcast(T x) {
  return x - Vector<T>{};
}

// The first `count` lanes from memory, the others zero.
template <class T>
SEQPYRAMID_INLINE Vector<T> load_first(const T* p, long count) {
  if (count >= LANES<T>) return load(p);
  Vector<T> v{};
  for (long lane = 0; lane < count; ++lane) v[lane] = p[lane];
  return v;
}

// Sum over the lanes, in their order.
template <class T>
SEQPYRAMID_INLINE T sum_lanes(Vector<T> v) {
  T sum = 0;
  for (long lane = 0; lane < LANES<T>; ++lane) sum += v[lane];
  return sum;
}

// exp(x) = scale + scale * rest, scale a power of two and rest = exp(r) - 1 with |r| <= ln(2)/2.
template <class T>
struct Exponential {
  Vector<T> scale, rest;
};

// x within the limits of VectorTypes, or NaN, which comes out as NaN.
//
// With n = round(x / ln 2) and r = x - n ln 2 the Taylor series of exp(r) - 1 is off by less than a tenth of a
// rounding error after `terms` terms. Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits.
template <class T>
SEQPYRAMID_INLINE Exponential<T> exponential(Vector<T> x) {
  using Types = VectorTypes<T>;
  using Bits = typename Types::bits;
  constexpr T magic = T(3) * T(int64_t(1) << (Types::mantissa - 1));
  const Vector<T> shifted = x * T(1.44269504088896340736) + magic;
  const Vector<T> n = shifted - magic;
  const Vector<T> r = (x - n * Types::ln2_high) - n * Types::ln2_low;

  constexpr T factorial[] = {1.,     1.,      2.,       6.,        24.,        120.,        720.,
                             5040.,  40320.,  362880.,  3628800.,  39916800.,  479001600.,  6227020800.};
  Vector<T> series = broadcast<T>(T(1) / factorial[Types::terms]);
  _Pragma("GCC unroll 16")
  for (int k = Types::terms - 1; k >= 1; --k) series = series * r + T(1) / factorial[k];

  Bits exponent;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent + Types::bias) << Types::mantissa;  // the magic number's own bits are shifted out
  Vector<T> scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return {scale, series * r};
}

template <class T>
SEQPYRAMID_INLINE Vector<T> clamp(Vector<T> x, T low, T high) {
  const Vector<T> lows = broadcast<T>(low), highs = broadcast<T>(high);
  x = x < lows ? lows : x;
  return x > highs ? highs : x;
}

template <class T>
SEQPYRAMID_INLINE Vector<T> exp(Vector<T> x) {
  const Exponential<T> e = exponential<T>(clamp<T>(x, VectorTypes<T>::smallest, VectorTypes<T>::largest));
  return e.scale * e.rest + e.scale;
}

template <class T>
SEQPYRAMID_INLINE Vector<T> sigmoid(Vector<T> x) {
  return T(1) / (T(1) + exp<T>(-x));
}

// tanh(x) = m / (m + 2) with m = exp(2x) - 1, which loses no digits near 0; beyond |x| = 20 it is 1 in both types.
template <class T>
SEQPYRAMID_INLINE Vector<T> tanh(Vector<T> x) {
  const Exponential<T> e = exponential<T>(clamp<T>(x + x, T(-40), T(40)));
  const Vector<T> m = e.scale * e.rest + (e.scale - T(1));
  return m / (m + T(2));
}

}  // namespace seqpyramid
