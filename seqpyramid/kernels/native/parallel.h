// One fork and join a layer call: a batch is cut into slices of rows, and a thread takes one slice through all steps.
#pragma once

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#include "stream.h"
#include "tiles.h"

namespace seqpyramid {

// Rows [first, last) of a batch whose lengths do not increase from row to row.
struct Slice {
  long first, last;
  const int64_t* lengths;  // of the whole batch

  long rows() const { return last - first; }

  // How many rows, from the first, have a step t.
  long active(long t) const {
    long end = last;
    while (end > first && lengths[end - 1] <= t) --end;
    return end - first;
  }

  long steps() const { return rows() ? lengths[first] : 0; }
};

// How many slices make a batch: of some 32 rows, which keeps a step's states in a core's cache and still lets the
// weights and their gradients, read once a step, serve many rows; of fewer where that gives only a few slices, four of them, or
// two where that would leave tiles (tiles.h) half empty; and one for every thread at least. Up to so many threads it
// does not depend on the threads, and neither does any result.
inline long slice_count(long batch, long threads) {
  long rows = std::clamp((batch + 3) / 4, 8L, 32L);
  if (tiles_run() && rows < TILE) rows = std::clamp((batch + 1) / 2, 8L, 32L);
  return std::max((batch + rows - 1) / rows, std::min(threads, batch));
}

// At most `count` slices with about the same number of steps, none empty; a function of its arguments alone, so that
// sums over slices come out the same in every call.
inline std::vector<Slice> cut(const int64_t* lengths, long batch, long count) {
  long left = 0;
  for (long row = 0; row < batch; ++row) left += lengths[row];
  std::vector<Slice> slices;
  long first = 0;
  for (long parts = std::min(count, batch); parts > 0 && first < batch; --parts) {
    const long share = (left + parts - 1) / parts;
    long last = first, steps = 0;
    while (last < batch && (parts == 1 || last == first || steps + lengths[last] <= share))
      steps += lengths[last++];
    slices.push_back({first, last, lengths});
    left -= steps;
    first = last;
  }
  return slices;
}

// How an OpenMP runtime runs a function on a team of its threads, the caller's among them, and waits for all of them:
// GOMP_parallel.
using Team = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

// The runtime of torch's own operations, if there is one. Its threads spin for milliseconds after each operation, so
// where there are as many of them as cores, a new thread would have to wait for one.
inline Team team = nullptr;

// The floating-point mode (denormals) of a thread, put back at the end.
class FloatingPointMode {
 public:
  explicit FloatingPointMode(const std::fenv_t& mode) {
    std::fegetenv(&before_);
    std::fesetenv(&mode);
  }
  ~FloatingPointMode() { std::fesetenv(&before_); }
  FloatingPointMode(const FloatingPointMode&) = delete;
  FloatingPointMode& operator=(const FloatingPointMode&) = delete;

 private:
  std::fenv_t before_;
};

// Run work(0) ... work(count - 1) on some threads, the caller's among them; each takes the next piece that nobody has
// taken. One thread starts none. All have the caller's floating-point mode, and what they have stored past the caches is
// there in the end. `work` must not throw: let it allocate beforehand.
template <class Work>
void run_parallel(long count, long threads, const Work& work) {
  std::atomic<long> next{0};
  std::fenv_t callers;
  std::fegetenv(&callers);
  auto take = [&] {
    const FloatingPointMode mode(callers);
    const TileSession session;
    for (long piece = next++; piece < count; piece = next++) work(piece);
    end_stream();
  };
  const long wanted = std::min(threads, count);
  if (team && wanted > 1) {
    team([](void* taking) { (*static_cast<decltype(take)*>(taking))(); }, &take, unsigned(wanted), 0);
    return;
  }
  std::vector<std::thread> others;
  others.reserve(size_t(std::max(wanted, 1L)));
  try {
    for (long started = 1; started < wanted; ++started) others.emplace_back(take);
  } catch (const std::system_error&) {
    // The system grants no further thread: those there are do it all.
  }
  take();
  for (std::thread& thread : others) thread.join();
}

// A thread for each piece.
template <class Work>
void run_parallel(long count, const Work& work) {
  run_parallel(count, count, work);
}

}  // namespace seqpyramid
