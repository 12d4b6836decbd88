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
#include <type_traits>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>  // a tenth of the time that a file takes to compile: AVX2 does without
#endif

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
  typedef int16_t shorts __attribute__((vector_size(SEQPYRAMID_VECTOR_BYTES / 2)));
  typedef uint16_t unsigned_shorts __attribute__((vector_size(SEQPYRAMID_VECTOR_BYTES / 2)));
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
  typedef int16_t shorts __attribute__((vector_size(SEQPYRAMID_VECTOR_BYTES / 4)));
  typedef uint16_t unsigned_shorts __attribute__((vector_size(SEQPYRAMID_VECTOR_BYTES / 4)));
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

// 1.5 * 2^mantissa: added to a number it rounds that to an integer, which is left in the low bits.
template <class T>
constexpr T ROUNDING = T(3) * T(int64_t(1) << (VectorTypes<T>::mantissa - 1));

template <class T>
SEQPYRAMID_INLINE typename VectorTypes<T>::bits bits_of(Vector<T> v) {
  typename VectorTypes<T>::bits bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

// The greater and the lesser of two, lane by lane; of two numbers with a NaN among them, the second.
template <class T>
SEQPYRAMID_INLINE Vector<T> greater(Vector<T> a, Vector<T> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_maskz_max_ps(0xffff, a, b);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) return __builtin_ia32_maxps256(a, b);
#endif
  return a > b ? a : b;
}

template <class T>
SEQPYRAMID_INLINE Vector<T> lesser(Vector<T> a, Vector<T> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_maskz_min_ps(0xffff, a, b);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) return __builtin_ia32_minps256(a, b);
#endif
  return a < b ? a : b;
}

// The first `count` lanes from memory, the others zero.
template <class T>
SEQPYRAMID_INLINE Vector<T> load_first(const T* p, long count) {
  if (count >= LANES<T>) return load(p);
  Vector<T> v{};
  for (long lane = 0; lane < count; ++lane) v[lane] = p[lane];
  return v;
}

// Lanes I... of a and, behind them, b.
template <class T, size_t... I>
SEQPYRAMID_INLINE Vector<T> pick(Vector<T> a, Vector<T> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, typename VectorTypes<T>::bits{I...});  // GCC knows the other one only from 12 on
#endif
}

// The first COUNT lanes of v, the others zero.
template <class T, long COUNT, size_t... I>
SEQPYRAMID_INLINE Vector<T> first_lanes(Vector<T> v, std::index_sequence<I...>) {
  return pick<T, (long(I) < COUNT ? I : I + LANES<T>)...>(v, Vector<T>{});
}

template <class T, long COUNT>
SEQPYRAMID_INLINE Vector<T> first_lanes(Vector<T> v) {
  return first_lanes<T, COUNT>(v, std::make_index_sequence<size_t(LANES<T>)>{});
}

// Hold v in a register; GCC would rather load it again for every use. (Tests emulate vectors that fit no register.)
template <class T>
SEQPYRAMID_INLINE Vector<T> held(Vector<T> v) {
#if defined(__x86_64__) && !defined(SEQPYRAMID_EMULATED)
  asm("" : "+v"(v));
#endif
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

template <class T>
SEQPYRAMID_INLINE Vector<T> clamp(Vector<T> x, T low, T high) {
  const Vector<T> lows = broadcast<T>(low), highs = broadcast<T>(high);
  x = x < lows ? lows : x;
  return x > highs ? highs : x;
}

// x outside the limits of VectorTypes counts as the limit; NaN comes out as NaN.
//
// With n = round(x / ln 2) and r = x - n ln 2 the Taylor series of exp(r) - 1 is off by less than a tenth of a
// rounding error after `terms` terms.
template <class T>
SEQPYRAMID_INLINE Exponential<T> exponential(Vector<T> x) {
  using Types = VectorTypes<T>;
  using Bits = typename Types::bits;
  x = clamp<T>(x, Types::smallest, Types::largest);
  const Vector<T> shifted = x * T(1.44269504088896340736) + ROUNDING<T>;
  const Vector<T> n = shifted - ROUNDING<T>;
  const Vector<T> r = (x - n * Types::ln2_high) - n * Types::ln2_low;

  constexpr T factorial[] = {1.,     1.,      2.,       6.,        24.,        120.,        720.,
                             5040.,  40320.,  362880.,  3628800.,  39916800.,  479001600.,  6227020800.};
  Vector<T> series = broadcast<T>(T(1) / factorial[Types::terms]);
  _Pragma("GCC unroll 16")
  for (int k = Types::terms - 1; k >= 1; --k) series = series * r + T(1) / factorial[k];

  const Bits exponent = (bits_of<T>(shifted) + Types::bias) << Types::mantissa;  // those of ROUNDING are shifted out
  Vector<T> scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return {scale, series * r};
}

template <class T>
SEQPYRAMID_INLINE Vector<T> exp(Vector<T> x) {
  const Exponential<T> e = exponential<T>(x);
  return e.scale * e.rest + e.scale;
}

#if defined(__AVX2__) || defined(__AVX512F__)
#define SEQPYRAMID_QUICK_SQUASH

// With n the integer nearest to x a / ln 2: x a / ln 2 - n, and 2^n in `power`. |x a| < 84; a is a small integer. The
// product with `high` has no other use than two sums, so that it is fused into both and never rounded.
SEQPYRAMID_INLINE Vector<float> take_power(Vector<float> x, float a, Vector<float>& power) {
  constexpr float high = 1.44269502f, low = 1.92596303e-8f;  // 1 / ln 2 in two parts
  constexpr float rounding = ROUNDING<float> + VectorTypes<float>::bias;
  const Vector<float> shifted = x * (a * high) + rounding, n = shifted - rounding;
  const VectorTypes<float>::bits exponent = bits_of<float>(shifted) << 23;
  std::memcpy(&power, &exponent, sizeof power);
  return x * (a * low) + (x * (a * high) - n);
}

// squash in float32, operation by operation for all K: each of them waits some 70 cycles from its first to its last, and
// one after the other too few would be under way.
//
// With t = x / ln 2 and n = round(t), (2^f - 1) / f of f = t - n is a polynomial (interpolated at Chebyshev's points of
// [-1/2, 1/2], off by 1.3e-8). With AVX-512 one of Newton's steps doubles the 14 bits of an estimated reciprocal, which
// a division would find in eight times the time of a product; vectors of half the width divide in less.
template <unsigned TANH, int K>
SEQPYRAMID_INLINE void quick_squash(Vector<float> (&x)[K]) {
  using V = Vector<float>;
  constexpr float c[] = {6.9314718e-1f, 2.4022651e-1f, 5.550357e-2f, 9.618083e-3f, 1.3390863e-3f, 1.5453163e-4f};
  V f[K], n[K], y[K];
#define SEQPYRAMID_EACH _Pragma("GCC unroll 16") for (int k = 0; k < K; ++k)
  SEQPYRAMID_EACH x[k] = greater<float>(broadcast<float>(TANH >> k & 1 ? -41.f : -83.f), x[k]);
  SEQPYRAMID_EACH x[k] = lesser<float>(broadcast<float>(TANH >> k & 1 ? 41.f : 83.f), x[k]);
  SEQPYRAMID_EACH f[k] = take_power(x[k], TANH >> k & 1 ? 2.f : -1.f, n[k]);
  SEQPYRAMID_EACH y[k] = f[k] * c[5] + c[4];
  SEQPYRAMID_EACH y[k] = y[k] * f[k] + c[3];
  SEQPYRAMID_EACH y[k] = y[k] * f[k] + c[2];
  SEQPYRAMID_EACH y[k] = y[k] * f[k] + c[1];
  SEQPYRAMID_EACH y[k] = y[k] * f[k] + c[0];
  SEQPYRAMID_EACH f[k] *= n[k];
  SEQPYRAMID_EACH n[k] += TANH >> k & 1 ? -1.f : 1.f;
  SEQPYRAMID_EACH f[k] = f[k] * y[k] + n[k];                         // exp(2x) - 1, exp(-x) + 1
  SEQPYRAMID_EACH n[k] = TANH >> k & 1 ? f[k] + 2.f : f[k];
#if defined(__AVX512F__)
  SEQPYRAMID_EACH y[k] = _mm512_maskz_rcp14_ps(0xffff, n[k]);
  SEQPYRAMID_EACH n[k] = 1.f - n[k] * y[k];
  SEQPYRAMID_EACH y[k] += y[k] * n[k];
  SEQPYRAMID_EACH x[k] = TANH >> k & 1 ? f[k] * y[k] : y[k];
#else
  SEQPYRAMID_EACH x[k] = (TANH >> k & 1 ? f[k] : broadcast<float>(1.f)) / n[k];
#endif
#undef SEQPYRAMID_EACH
}

constexpr int QUICK_GROUP = SEQPYRAMID_VECTOR_BYTES == 64 ? 16 : 4;  // of more, numbers would not fit the registers

// GROUP at a time.
template <unsigned TANH, int GROUP, int K>
SEQPYRAMID_INLINE void quick_squash_in_groups(Vector<float> (&x)[K]) {
  if constexpr (K <= GROUP) {
    quick_squash<TANH>(x);
  } else {
    Vector<float> group[GROUP], rest[K - GROUP];
    for (int k = 0; k < K; ++k) (k < GROUP ? group[k] : rest[k - GROUP]) = x[k];
    quick_squash<TANH>(group);
    quick_squash_in_groups<(TANH >> GROUP), GROUP>(rest);
    for (int k = 0; k < K; ++k) x[k] = k < GROUP ? group[k] : rest[k - GROUP];
  }
}
#endif

// sigmoid(x), or tanh(x) where bit k of TANH is set, of K vectors x[k].
//
//   sigmoid(x) = 1 / (1 + exp(-x));  tanh(x) = m / (m + 2), m = exp(2x) - 1, which loses no digits near 0
template <class T, unsigned TANH, int K>
SEQPYRAMID_INLINE void squash(Vector<T> (&x)[K]) {
#if defined(SEQPYRAMID_QUICK_SQUASH)
  if constexpr (std::is_same_v<T, float>) return quick_squash_in_groups<TANH, QUICK_GROUP>(x);
#endif
  for (int k = 0; k < K; ++k)
    if (TANH >> k & 1) {
      const Exponential<T> e = exponential<T>(x[k] + x[k]);
      const Vector<T> m = e.scale * e.rest + (e.scale - T(1));
      x[k] = m / (m + T(2));
    } else {
      x[k] = T(1) / (T(1) + exp<T>(-x[k]));
    }
}

template <class T>
SEQPYRAMID_INLINE Vector<T> sigmoid(Vector<T> x) {
  Vector<T> one[1] = {x};
  squash<T, 0>(one);
  return one[0];
}

template <class T>
SEQPYRAMID_INLINE Vector<T> tanh(Vector<T> x) {
  Vector<T> one[1] = {x};
  squash<T, 1>(one);
  return one[0];
}

}  // namespace seqpyramid
