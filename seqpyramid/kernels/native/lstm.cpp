// An LSTM layer over all steps of a batch; the equations of a step stand in lstm_cell.h.
//
// A row that has ended keeps its state, gets no gradient from its padding and gives none to it. Rows come longest
// first, so that the rows still running are always the first ones of a slice.
//
// Recomputation (segments.h): forward keeps h and c at the starts of segments, backward does the rest, bit for bit.
//
// Shapes: B batch, T time, F inputs, H hidden units, P = padded H. States and what is kept are time-major.
#include <algorithm>

#include "interface.h"
#include "layer_steps.h"
#include "lstm_cell.h"
#include "parallel.h"
#include "segments.h"

using namespace seqpyramid;

namespace seqpyramid {
SEQPYRAMID_LSTM_CELL(, float)
SEQPYRAMID_LSTM_CELL(, double)
}  // namespace seqpyramid

extern "C" struct LstmArguments {
  int64_t size, batch, time, inputs, hidden, threads;
  const int64_t* lengths;                      // (B,), not increasing
  const void* x;                               // (B, T, F), features side by side
  int64_t x_batch, x_time;                     // its strides, in elements
  const void *weight_ih, *weight_hh, *bias;    // as torch has them
  const void *h_first, *c_first;               // (B, P), or none: zeros
  void *h_last, *c_last;                       // (B, P)
  void* steps;                                 // (T', B, P), h of the steps that are wanted, or none
  int64_t every;                               // of so many steps one is wanted, counted back from the last; T' they are
  void *cells, *gates;                         // (T, B, P), (T, B, gates' width): to go back, or none
  int64_t rounded;                             // gates are kept in 16 bits (kept_gates.h)
  int64_t segment;                             // steps of a segment; 0: nothing is recomputed
  int64_t* answer;                             // out, of lstm_segment
  void* starts;                                // (segments but the first, h and c, B, P), or none
  const void* d_steps;                         // (B, T', H), units side by side, or none
  int64_t d_steps_batch, d_steps_time;
  const void *d_h_last, *d_c_last;             // (B, P), or none
  void *d_x;                                   // (T, B, padded F), written up to each row's end, or none
  void *d_weight_ih, *d_weight_hh, *d_bias;    // zeroed
  void *d_h_first, *d_c_first;                 // (B, P), or none where there was no first state
};

namespace {

// Where c and the gates of steps lie: of all, of one segment in the rows of a slice, or the newest c alone.
template <class T>
struct Kept {
  T* cells;
  void* gates;
  bool rounded, past;
  long width, gates_width;
  Place place;

  Rows<T> c(long t, long row) const { return rows_of<T>(cells, place(t, row), width); }
  KeptGates<T> gates_of(long t, long row) const {
    return kept_gates<T>(gates, place(t, row), gates_width, rounded, past);
  }
};

// h (0) or c (1) before step t, where a segment starts.
template <class T>
Rows<T> start(const LstmArguments& a, long t, long which, long row, long width) {
  return rows_of<T>(a.starts, ((t / a.segment - 1) * 2 + which) * a.batch + row, width);
}

template <class T>
Rows<const T> h_start(const LstmArguments& a, long t, long row, long width) {
  return t ? Rows<const T>(start<T>(a, t, 0, row, width)) : rows_of<T>(a.h_first, row, width);
}

template <class T>
Rows<const T> c_start(const LstmArguments& a, long t, long row, long width) {
  return t ? Rows<const T>(start<T>(a, t, 1, row, width)) : rows_of<T>(a.c_first, row, width);
}

// Run a slice from one step, where a segment starts, to another; new_h(t) says where h goes, ended(rows, h, c) hears of
// the rows that have had their last step.
template <class T, class NewH, class Ended>
void run_steps(const LstmArguments& a, const LstmWeights<T>& w, const Slice& slice, long from, long to,
               const Kept<T>& kept, LstmWork<T>& work, NewH&& new_h, Ended&& ended) {
  const long first = slice.first, P = w.width;
  Rows<const T> h = h_start<T>(a, from, first, P), c = c_start<T>(a, from, first, P);
  for (long t = from; t < to; ++t) {
    const long rows = slice.active(t);
    if (t > from && a.segment && t % a.segment == 0) {
      copy_rows<T>(0, rows, h, start<T>(a, t, 0, first, P), P);
      copy_rows<T>(0, rows, c, start<T>(a, t, 1, first, P), P);
    }
    const Rows<T> h_new = new_h(t), c_new = kept.c(t, first);
    lstm_step<T>(w, rows, inputs_at<T>(a, first, t), h, c, kept.gates_of(t, first), h_new, c_new, work);
    ended(slice.active(t + 1), rows, h_new, c_new);
    h = h_new, c = c_new;
  }
}

template <class T>
void lstm_forward(const LstmArguments& a) {
  const auto w = lstm_weights<T>(a, true);
  const long P = w.width, B = a.batch;
  const std::vector<Slice> slices = cut(a.lengths, B, slice_count(B, a.threads));
  const Buffer<T> turns(a.steps && a.every == 1 ? 0 : size_t(2) * B * P), cell(a.cells ? 0 : size_t(B) * P);
  const bool past = outgrow_caches<T>(a.time * B * w.gates_width());
  Kept<T> kept{static_cast<T*>(a.cells), a.gates, a.rounded != 0, past, P, w.gates_width(), {B}};
  if (!a.cells) kept.cells = cell.data(), kept.place.steps = 1;
  std::vector<LstmWork<T>> work;
  for (const Slice& slice : slices) work.emplace_back(w, slice.rows());

  run_parallel(long(slices.size()), a.threads, [&](long piece) {
    const Slice& slice = slices[size_t(piece)];
    const long first = slice.first;
    const Rows<T> h_last = rows_of<T>(a.h_last, first, P), c_last = rows_of<T>(a.c_last, first, P);
    // What nobody wants takes turns between two buffers.
    const auto new_h = [&](long t) {
      return a.steps && is_wanted(a, t) ? rows_of<T>(a.steps, t / a.every * B + first, P)
                                        : Rows<T>{turns.data() + (t % 2 * B + first) * P, P};
    };
    const auto ended = [&](long running, long rows, Rows<T> h, Rows<T> c) {
      copy_rows<T>(running, rows, h, h_last, P);
      copy_rows<T>(running, rows, c, c_last, P);
    };
    run_steps<T>(a, w, slice, 0, slice.steps(), kept, work[size_t(piece)], new_h, ended);
  });
}

// Memory for one segment of a slice.
template <class T>
struct StepRoom {
  long rows;
  Buffer<T> cells, gates, turns;

  StepRoom(const LstmArguments& a, long rows_, long width)
      : rows(rows_),
        cells(size_t(a.segment * rows * width)),
        gates(size_t(a.segment * rows * Layout<T>(a.hidden).stride)),
        turns(size_t(2 * rows * width)) {}
};

// How many steps make a segment so that starts and rooms together need the least memory.
template <class T>
void lstm_segment(const LstmArguments& a) {
  const std::vector<Slice> slices = cut(a.lengths, a.batch, slice_count(a.batch, a.threads));
  const long rooms = std::min(a.threads, int64_t(slices.size()));
  *a.answer = best_segment(a.lengths[0], 2 * a.batch, rooms * most_rows(slices) * (1 + GATES));
}

template <class T>
void lstm_backward(const LstmArguments& a) {
  const auto* weight_ih = static_cast<const T*>(a.weight_ih);
  const auto* weight_hh = static_cast<const T*>(a.weight_hh);
  const auto w = lstm_weights<T>(a, a.segment != 0);
  const LstmTransposed<T> transposed(weight_ih, weight_hh, a.inputs, a.hidden, a.d_x != nullptr, a.batch);
  const long P = w.width, B = a.batch;
  const std::vector<Slice> slices = cut(a.lengths, B, slice_count(B, a.threads));
  // Many short slices share a sum, each group on one thread and in order: adding them up costs as much as some steps.
  const int64_t count = int64_t(slices.size()), groups = std::min(count, std::max(MOST_SUMS, a.threads));
  std::vector<LstmGradients<T>> sums;
  std::vector<LstmWork<T>> works;
  for (long group = 0; group < groups; ++group) sums.emplace_back(w), works.emplace_back(w, most_rows(slices));
  const Buffer<T> states(size_t(6) * B * P);  // of one step: dh, dh', dc, s, s of the step before, h of that

  Rooms<StepRoom<T>> rooms(a.segment ? std::min(a.threads, int64_t(slices.size())) : 0,
                       [&] { return StepRoom<T>(a, most_rows(slices), P); });

  const auto run = [&](long piece, LstmGradients<T>& sum, LstmWork<T>& work, Kept<T> kept, const StepRoom<T>* room) {
    const Slice& slice = slices[size_t(piece)];
    const long first = slice.first, all = slice.rows();
    const auto state = [&](long k) { return Rows<T>{states.data() + (k * B + first) * P, P}; };
    Rows<T> dh = state(0), dh_before = state(1), s = state(3), s_before = state(4), h_before = state(5);
    const Rows<T> dc = state(2);
    // A row whose turn has not come yet holds the gradients of its last state, in both buffers of dh.
    if (a.d_h_last) {
      copy_rows<T>(0, all, rows_of<T>(a.d_h_last, first, P), dh, P);
      copy_rows<T>(0, all, rows_of<T>(a.d_h_last, first, P), dh_before, P);
    }
    if (a.d_c_last) copy_rows<T>(0, all, rows_of<T>(a.d_c_last, first, P), dc, P);

    // From a step to the one before.
    const Ahead back_by_one{kept.gates_of(0, first).data - kept.gates_of(1, first).data,
                            kept.c(0, first).data - kept.c(1, first).data};
    // Step t, of a segment that starts at `from`; s of its first `recalled` rows is there.
    const auto back = [&](long t, long from, long recalled) {
      const long rows = slice.active(t);
      if (recalled < rows) {  // rows that end here
        const auto after = [&](Rows<const T> r) { return Rows<const T>{r.at(recalled), r.stride}; };
        lstm_recall<T>(w, rows - recalled, kept.gates_of(t, first).from(recalled), after(kept.c(t, first)),
                       Rows<T>{s.at(recalled), P}, Rows<T>{h_before.at(recalled), P}, Ahead{});
      }
      Rows<const T> h = h_start<T>(a, from, first, P), c = c_start<T>(a, from, first, P);
      if (t > from) {
        lstm_recall<T>(w, rows, kept.gates_of(t - 1, first), kept.c(t - 1, first), s_before, h_before,
                       t - 1 > from ? back_by_one : Ahead{});
        h = h_before, c = kept.c(t - 1, first);
      }
      add_step_gradients<T>(a, t, first, rows, dh);
      const bool further = t > 0 || a.d_h_first;
      if (further) clear_rows(rows, dh_before, P);
      const Rows<T> d_x = rows_of<T>(a.d_x, t * B + first, transposed.inputs_width);
      if (d_x) clear_rows(rows, d_x, transposed.inputs_width);
      lstm_step_backward<T>(w, transposed, rows, inputs_at<T>(a, first, t), h, c, kept.gates_of(t, first), s, dh, dc,
                            further ? dh_before : Rows<T>{}, d_x, sum, work, t > from ? back_by_one.gates : 0);
      std::swap(dh, dh_before);
      std::swap(s, s_before);
      return rows;
    };
    each_segment_back(slice.steps(), a.segment, [&](long from, long to) {
      if (room) {
        kept.place.first_step = from;
        const auto new_h = [&](long t) { return Rows<T>{room->turns.data() + t % 2 * room->rows * P, P}; };
        run_steps<T>(a, w, slice, from, to, kept, work, new_h, [](long, long, Rows<T>, Rows<T>) {});
      }
      long recalled = 0;
      for (long t = to - 1; t >= from; --t) recalled = back(t, from, recalled);
    });
    if (a.d_h_first) {
      copy_rows<T>(0, all, dh, rows_of<T>(a.d_h_first, first, P), P);
      copy_rows<T>(0, all, dc, rows_of<T>(a.d_c_first, first, P), P);
    }
  };
  run_parallel(groups, a.threads, [&](long group) {
    LstmGradients<T>& sum = sums[size_t(group)];
    LstmWork<T>& work = works[size_t(group)];
    for (long piece = group * count / groups; piece < (group + 1) * count / groups; ++piece) {
      if (!a.segment) {
        run(piece, sum, work, {static_cast<T*>(a.cells), a.gates, a.rounded != 0, false, P, w.gates_width(), {B}},
            nullptr);
        continue;
      }
      rooms.with([&](const StepRoom<T>& room) {
        const long first = slices[size_t(piece)].first;
        run(piece, sum, work,
            {room.cells.data(), room.gates.data(), false, false, P, w.gates_width(), {room.rows, first}}, &room);
      });
    }
  });
  for (size_t group = 1; group < sums.size(); ++group) sums[0].add(sums[group]);
  if (!sums.empty())
    sums[0].add_to(w, static_cast<T*>(a.d_weight_ih), static_cast<T*>(a.d_weight_hh), static_cast<T*>(a.d_bias));
}

}  // namespace

SEQPYRAMID_KERNEL(lstm_segment, LstmArguments, lstm_segment)
SEQPYRAMID_KERNEL(lstm_forward, LstmArguments, lstm_forward)
SEQPYRAMID_KERNEL(lstm_backward, LstmArguments, lstm_backward)
