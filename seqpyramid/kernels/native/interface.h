// What every function that Python calls has in common: one structure of arguments, a number back.
#pragma once

#include <cstdint>
#include <new>

#include "vector.h"

namespace seqpyramid {

constexpr int DONE = 0, NO_MEMORY = 1, STALE = 2;

// Run a kernel, unless the caller's structure (whose first field is its size) is not the one compiled here.
template <class Arguments, class Kernel>
int guarded(const Arguments* arguments, Kernel&& kernel) {
  if (arguments->size != int64_t(sizeof(Arguments))) return STALE;
  try {
    kernel(*arguments);
  } catch (const std::bad_alloc&) {
    return NO_MEMORY;
  }
  return DONE;
}

}  // namespace seqpyramid

// Export seqpyramid_<name>_<suffix>, which calls the template `kernel` for T.
#define SEQPYRAMID_KERNEL_OF(name, suffix, T, Arguments, kernel)                         \
  SEQPYRAMID_EXPORT int seqpyramid_##name##_##suffix(const Arguments* arguments) {       \
    return seqpyramid::guarded(arguments, [](const Arguments& a) { kernel<T>(a); }); \
  }

// Export both seqpyramid_<name>_float32 and _float64.
#define SEQPYRAMID_KERNEL(name, Arguments, kernel)               \
  SEQPYRAMID_KERNEL_OF(name, float32, float, Arguments, kernel)  \
  SEQPYRAMID_KERNEL_OF(name, float64, double, Arguments, kernel)
