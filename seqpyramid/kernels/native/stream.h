// Stores past the caches, for what nobody reads until the caches have long forgotten it.
//
// An ordinary store first fetches the line that it changes, and pushes another one out. Only where a vector fills a
// whole line is the store past the caches no slower than that, so elsewhere it is an ordinary one.
#pragma once

#include <cstdint>

#include "vector.h"

namespace seqpyramid {

// Whether so many numbers, stored by a pass over all steps, leave the caches before they are read again: whether they are
// more than a core's usual share of the last one.
template <class T>
bool outgrow_caches(int64_t numbers) {
  return numbers * int64_t(sizeof(T)) > 8 << 20;
}

// Whether vectors may be stored past the caches from p on.
template <class T>
bool can_stream(const T* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<uintptr_t>(p) % SEQPYRAMID_VECTOR_BYTES == 0;
#else
  return static_cast<void>(p), false;
#endif
}

// p as can_stream allows.
template <class T>
SEQPYRAMID_INLINE void stream(T* p, Vector<T> v) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    _mm512_stream_ps(p, v);
  else
    _mm512_stream_pd(p, v);
#else
  store(p, v);
#endif
}

// Let other threads see what this one has streamed.
inline void end_stream() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

}  // namespace seqpyramid
