// What the kernels ask of AVX-512 and AMX, lane by lane in plain C++, so that tests can run the code of the widest level
// on a processor that has neither. Found before the compiler's own header of this name; slow, and for tests only.
//
// Where the processor's result is not the exact one, this is as wrong as it may be: an estimated reciprocal has 14 bits,
// and tiles take denormal numbers for zero.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef double __m512d __attribute__((vector_size(64), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef long long __m256i __attribute__((vector_size(32), may_alias));
typedef uint16_t __mmask16;

namespace emulated {

typedef uint16_t u16 __attribute__((vector_size(64), may_alias));
typedef uint32_t u32 __attribute__((vector_size(64), may_alias));
typedef uint64_t u64 __attribute__((vector_size(64), may_alias));

template <class Function>
__m512 each(Function&& function) {
  __m512 result{};
  for (int k = 0; k < 16; ++k) result[k] = function(k);
  return result;
}

// In each of four groups, lanes of a and b by turns: the group's lower half of them, or its upper.
template <class Lanes>
Lanes unpack(Lanes a, Lanes b, bool upper) {
  constexpr int COUNT = int(sizeof(Lanes) / sizeof a[0]), GROUP = COUNT / 4, HALF = GROUP / 2;
  Lanes result{};
  for (int k = 0; k < COUNT; ++k) {
    const int from = k / GROUP * GROUP + k % GROUP / 2 + (upper ? HALF : 0);
    result[k] = k % 2 ? b[from] : a[from];
  }
  return result;
}

inline float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? 0.f : x; }

inline thread_local uint8_t tiles[8][16][64];

// Number `k` of a tile's row of bfloat16.
inline float half(int tile, int row, int k) {
  uint16_t bits;
  std::memcpy(&bits, &tiles[tile][row][2 * k], sizeof bits);
  return flushed(as_float(uint32_t(bits) << 16));
}

}  // namespace emulated

inline __m512 _mm512_maskz_max_ps(__mmask16, __m512 a, __m512 b) {
  return emulated::each([&](int k) { return a[k] > b[k] ? a[k] : b[k]; });
}
inline __m512 _mm512_maskz_min_ps(__mmask16, __m512 a, __m512 b) {
  return emulated::each([&](int k) { return a[k] < b[k] ? a[k] : b[k]; });
}
inline __m512 _mm512_maskz_rcp14_ps(__mmask16, __m512 a) {
  return emulated::each([&](int k) {
    const float exact = 1.f / a[k];
    uint32_t bits;
    std::memcpy(&bits, &exact, sizeof bits);
    return std::isfinite(exact) ? emulated::as_float((bits + 0x100) & ~0x1ffu) : exact;
  });
}

inline __m512i _mm512_castps_si512(__m512 a) { return (__m512i)a; }
inline __m512 _mm512_castsi512_ps(__m512i a) { return (__m512)a; }
inline __m512i _mm512_set1_epi32(int a) { return (__m512i)(emulated::u32{} + uint32_t(a)); }
inline __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
inline __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
inline __m512i _mm512_add_epi32(__m512i a, __m512i b) { return (__m512i)((emulated::u32)a + (emulated::u32)b); }
inline __m512i _mm512_srli_epi32(__m512i a, unsigned bits) { return (__m512i)((emulated::u32)a >> bits); }
inline __m512i _mm512_load_si512(const void* p) { return *static_cast<const __m512i*>(p); }
inline void _mm512_store_si512(void* p, __m512i a) { *static_cast<__m512i*>(p) = a; }
inline void _mm512_stream_ps(float* p, __m512 a) { *reinterpret_cast<__m512*>(p) = a; }
inline void _mm512_stream_pd(double* p, __m512d a) { *reinterpret_cast<__m512d*>(p) = a; }
inline void _mm_sfence() {}
inline __m256i _mm512_castsi512_si256(__m512i a) { return __m256i{a[0], a[1], a[2], a[3]}; }
inline void _mm256_store_si256(__m256i* p, __m256i a) { *p = a; }

inline __m512i _mm512_permutex2var_epi16(__m512i a, __m512i index, __m512i b) {
  const emulated::u16 from[2] = {(emulated::u16)a, (emulated::u16)b}, at = (emulated::u16)index;
  emulated::u16 result{};
  for (int k = 0; k < 32; ++k) result[k] = from[at[k] >> 5 & 1][at[k] & 31];
  return (__m512i)result;
}
inline __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) {
  return (__m512i)emulated::unpack((emulated::u32)a, (emulated::u32)b, false);
}
inline __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) {
  return (__m512i)emulated::unpack((emulated::u32)a, (emulated::u32)b, true);
}
inline __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) {
  return (__m512i)emulated::unpack((emulated::u64)a, (emulated::u64)b, false);
}
inline __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) {
  return (__m512i)emulated::unpack((emulated::u64)a, (emulated::u64)b, true);
}
inline __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int order) {
  emulated::u64 result{};
  for (int group = 0; group < 4; ++group, order >>= 2)
    for (int k = 0; k < 2; ++k)
      result[2 * group + k] = ((emulated::u64)(group < 2 ? a : b))[2 * (order & 3) + k];
  return (__m512i)result;
}

inline void _tile_loadconfig(const void*) {}
inline void _tile_release() {}
inline void _tile_zero(int tile) { std::memset(emulated::tiles[tile], 0, sizeof emulated::tiles[tile]); }
inline void _tile_loadd(int tile, const void* p, long stride) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(emulated::tiles[tile][row], static_cast<const char*>(p) + row * stride, 64);
}
inline void _tile_stored(int tile, void* p, long stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(static_cast<char*>(p) + row * stride, emulated::tiles[tile][row], 64);
}
inline void _tile_dpbf16ps(int sums, int left, int right) {
  __m512 factors[32];
  for (int k = 0; k < 32; ++k)
    factors[k] = emulated::each([&](int column) { return emulated::half(right, k / 2, 2 * column + k % 2); });
  for (int row = 0; row < 16; ++row) {
    __m512 before, parts[2] = {};  // even and odd terms add up apart, and join the sum before at the end
    std::memcpy(&before, emulated::tiles[sums][row], sizeof before);
    for (int k = 0; k < 32; ++k) parts[k % 2] += emulated::half(left, row, k) * factors[k];
    const __m512 sum = before + (parts[0] + parts[1]);
    const __m512 kept = emulated::each([&](int column) { return emulated::flushed(sum[column]); });
    std::memcpy(emulated::tiles[sums][row], &kept, sizeof kept);
  }
}
