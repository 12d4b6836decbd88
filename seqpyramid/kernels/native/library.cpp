// What a process asks of the library as a whole.
#include "gates.h"
#include "interface.h"
#include "parallel.h"
#include "tiles.h"

#if defined(SEQPYRAMID_TILES) && defined(__linux__) && !defined(SEQPYRAMID_EMULATED)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

using namespace seqpyramid;

namespace {

// Whether the processor has tiles and the system lets this process use them.
bool have_tiles() {
#if defined(SEQPYRAMID_EMULATED)
  return true;
#elif defined(SEQPYRAMID_TILES) && defined(__linux__)
  constexpr unsigned BF16 = 1u << 22, TILES = 1u << 24;        // of CPUID's leaf 7, in edx
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // asm/prctl.h; the number of the registers' state
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & BF16) == 0 || (d & TILES) == 0) return false;
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}

}  // namespace

// Let float32 products run on tiles where there are any, or on vectors. Call it once before all else, and never beside
// a kernel that runs.
SEQPYRAMID_EXPORT void seqpyramid_use_tiles(int wanted) {
  fewest_tiled_rows = wanted && have_tiles() ? WORTH_TILES : LONG_MAX;
}

SEQPYRAMID_EXPORT int seqpyramid_tiles() { return tiles_run(); }

// Let kernels run on a runtime's threads, or, given none, on new ones in each call. Never beside a kernel that runs.
SEQPYRAMID_EXPORT void seqpyramid_use_team(Team given) { team = given; }

SEQPYRAMID_EXPORT int seqpyramid_vector_bytes() { return SEQPYRAMID_VECTOR_BYTES; }

// What a row of gates of a layer needs.
SEQPYRAMID_EXPORT int64_t seqpyramid_gates_width_float32(int64_t hidden) { return Layout<float>(hidden).stride; }
SEQPYRAMID_EXPORT int64_t seqpyramid_gates_width_float64(int64_t hidden) { return Layout<double>(hidden).stride; }
