// Where a layer's inputs, and the outputs that are wanted of its steps, lie: what the calls of LSTM's layer and of layers
// whose only state is h have in common. Of `every` steps one is wanted, counted back from the last.
//
// Shapes: B batch, T time, T' steps that are wanted, F inputs, H hidden units.
#pragma once

#include "tile.h"

namespace seqpyramid {

constexpr int64_t MOST_SUMS = 64;  // of weights' gradients, before they are added up

template <class T, class Arguments>
Rows<const T> inputs_at(const Arguments& a, long row, long t) {
  return {static_cast<const T*>(a.x) + row * a.x_batch + t * a.x_time, a.x_batch};
}

// If it is, step t is number t / every of those that are.
template <class Arguments>
bool is_wanted(const Arguments& a, long t) {
  return (a.time - 1 - t) % a.every == 0;
}

// Take what reaches h of step t from outputs, d_steps (B, T', H), into dh (n, padded H) of the rows from `first` on.
template <class T, class Arguments>
void add_step_gradients(const Arguments& a, long t, long first, long n, Rows<T> dh) {
  if (!a.d_steps || !is_wanted(a, t)) return;
  const T* const from = static_cast<const T*>(a.d_steps) + first * a.d_steps_batch + t / a.every * a.d_steps_time;
  add_rows<T>(n, {from, a.d_steps_batch}, dh, a.hidden);
}

}  // namespace seqpyramid
