// Recomputation: the forward pass keeps a recurrence's state at the starts of segments only, and the backward pass runs
// one segment after the other again, the last first, in a room of memory for the states of one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "parallel.h"

namespace seqpyramid {

// How many of `units` make a segment so that the least memory is needed: `start` for every segment but the first, whose
// state is known, and `room` for every unit of one segment.
inline long best_segment(long units, long start, long room) {
  long best = 1, least = INT64_MAX;
  for (long size = 1; size <= units; ++size) {
    const long needed = (units - 1) / size * start + size * room;
    if (needed < least) best = size, least = needed;
  }
  return best;
}

// Call visit(first step, the one past the last) for each segment of some steps, the last first; a segment of 0 steps
// stands for one of all.
template <class Visit>
void each_segment_back(long steps, long segment, Visit&& visit) {
  for (long to = steps; to > 0;) {
    const long from = segment ? (to - 1) / segment * segment : 0;
    visit(from, to);
    to = from;
  }
}

// Where the rows of steps lie in memory: those of a batch, or those of a segment and a slice.
struct Place {
  long rows;                           // of a step
  long first_row = 0, first_step = 0;  // what lies first
  long steps = INT64_MAX;              // how many there are before one takes the place of another

  long operator()(long t, long row) const { return (t - first_step) % steps * rows + row - first_row; }
};

inline long most_rows(const std::vector<Slice>& slices) {
  long most = 0;
  for (const Slice& slice : slices) most = std::max(most, slice.rows());
  return most;
}

// Rooms for the threads of one call. There are as many as threads, so that nobody ever waits for one.
template <class Room>
class Rooms {
 public:
  template <class Make>
  Rooms(long count, Make&& make) {
    for (long k = 0; k < count; ++k) free_.push_back(std::make_unique<Room>(make()));
  }

  // Run work(room) in a room that nobody else is in.
  template <class Work>
  void with(Work&& work) {
    std::unique_ptr<Room> room;
    {
      const std::lock_guard<std::mutex> guard(door_);
      room = std::move(free_.back());
      free_.pop_back();
    }
    work(*room);
    const std::lock_guard<std::mutex> guard(door_);
    free_.push_back(std::move(room));  // within the capacity of before: nothing is allocated
  }

 private:
  std::mutex door_;
  std::vector<std::unique_ptr<Room>> free_;
};

}  // namespace seqpyramid
