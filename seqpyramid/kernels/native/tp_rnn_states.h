// A TP-RNN layer's arguments, what its two passes share, and where its states lie.
//
// Shapes: B batch, T time, F inputs, H hidden units, P = padded H.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "lstm_cell.h"
#include "parallel.h"
#include "pyramid.h"
#include "theta.h"

extern "C" struct TpRnnArguments {
  int64_t size, batch, time, inputs, hidden, threads;
  int64_t length, granularity, emitted_level, emitted_time;
  int64_t scrambled, top_down, aggregate_cell, top_first;  // top_first: the order of the two states of the path
  const int64_t* lengths;                                  // (B,), not increasing
  const void* x;                                           // (B, T, F), features side by side
  int64_t x_batch, x_time;
  const void *weight_ih, *weight_hh, *bias;
  const void *h_first, *h_second, *c_first, *c_second;     // W1 and W2 of theta for h and for c (or none)
  const void *path_first, *path_second;                    // of the shortcut path, or none: the last top is the output
  void* output;                                            // (B, P)
  void* emitted;                                           // (T', B, P), zeroed
  int64_t segment;                                         // sub-pyramids of a segment; 0: nothing is recomputed
  int64_t* answer;                                         // out, of tp_rnn_nodes and tp_rnn_segment
  void *cells, *gates;                                     // (T, B, P), (T, B, gates' width): to go back, or none
  int64_t rounded;                                         // gates are kept in 16 bits (kept_gates.h)
  void *node_h, *node_c, *path;                            // (nodes, B, P) twice, (sub-pyramids, B, P); as cells
  void* starts;                                            // (segments but the first, 3 or 2: no path, B, P), or none
  const void* d_output;                                    // (B, P), or none
  const void* d_emitted;                                   // (B, T', H), units side by side, or none
  int64_t d_emitted_batch, d_emitted_time;
  void* d_x;                                               // (T, B, padded F), zeroed, or none
  void *d_weight_ih, *d_weight_hh, *d_bias;                // zeroed, as all that follow
  void *d_h_first, *d_h_second, *d_c_first, *d_c_second, *d_path_first, *d_path_second;
};

namespace seqpyramid {

inline Pyramid pyramid_of(const TpRnnArguments& a, bool keep) {
  return Pyramid(a.time, a.length, a.granularity, a.emitted_level, a.top_down, a.lengths, a.batch, keep);
}

// Workspace of a slice: of the cell, of theta, and the rows that it reads and writes.
template <class T>
struct Work {
  LstmWork<T> cell;
  ThetaWork<T> theta;
  std::vector<Rows<const T>> sources;
  std::vector<Rows<T>> targets;

  Work(const LstmWeights<T>& w, long rows, long states)
      : cell(w, rows), theta(states, w.hidden), sources(size_t(states)), targets(size_t(states)) {}
};

// What forward and backward share: weights, pyramid, slices.
template <class T>
struct Layer {
  // keep: whether every aggregate is a node of its own (pyramid.h); forward: whether steps forward are to run.
  Layer(const TpRnnArguments& a_, bool keep, bool forward)
      : a(a_),
        pyramid(pyramid_of(a_, keep)),
        w(lstm_weights<T>(a_, forward)),
        P(w.width),
        B(a_.batch),
        ring(pyramid.group + 1),
        segment_steps(a_.segment * a_.length),
        theta_h(a_.granularity, a_.h_first, a_.h_second),
        theta_c(a_.granularity, a_.c_first, a_.c_second),
        theta_path(2, a_.path_first, a_.path_second),
        slices(cut(a_.lengths, a_.batch, slice_count(a_.batch, a_.threads))),
        h_ring(size_t(ring * B * P)) {
    for (const Slice& slice : slices) work.emplace_back(w, slice.rows(), std::max(pyramid.group, 2L));
  }

  Rows<const T> inputs(long t, long first) const {
    return {static_cast<const T*>(a.x) + first * a.x_batch + t * a.x_time, a.x_batch};
  }

  // What the forward pass keeps at the start of a segment: h (0), c (1) and the path (2). Nothing at the first.
  Rows<T> start(long segment, long which, long first) const {
    if (segment == 0) return {};
    return rows_of<T>(a.starts, (((segment - 1) * (theta_path ? 3 : 2)) + which) * B + first, P);
  }

  const TpRnnArguments& a;
  const Pyramid pyramid;
  const LstmWeights<T> w;
  const long P, B;
  const long ring;           // steps whose h is there; it lives as long as its group
  const long segment_steps;  // 0: nothing is recomputed
  const Theta<T> theta_h, theta_c, theta_path;
  const std::vector<Slice> slices;
  const Buffer<T> h_ring;
  std::vector<Work<T>> work;
};

// Memory for states of some rows.
template <class T>
struct Room {
  long rows;
  Buffer<T> cells, gates, node_h, node_c, path;

  // Of the newest c, aggregates and path of all rows.
  explicit Room(const Layer<T>& layer) : Room(layer, layer.B, layer.ring, 0, layer.pyramid.nodes, 1) {}

  // Of all that the backward pass reads of one segment, in some rows.
  Room(const Layer<T>& layer, long rows_)
      : Room(layer, rows_, layer.segment_steps, layer.segment_steps, layer.pyramid.most_nodes(layer.a.segment),
             layer.a.segment) {}

 private:
  Room(const Layer<T>& layer, long rows_, long steps, long steps_with_gates, long nodes, long paths)
      : rows(rows_),
        cells(size_t(steps * rows * layer.P)),
        gates(size_t(steps_with_gates * rows * layer.w.gates_width())),
        node_h(size_t(nodes * rows * layer.P)),
        node_c(layer.a.aggregate_cell ? size_t(nodes * rows * layer.P) : 0),
        path(size_t(paths * rows * layer.P)) {}
};

// Where the states lie: of a whole batch, of one segment of a slice, or the newest alone.
template <class T>
class States {
 public:
  using In = Rows<const T>;
  using Out = Rows<T>;

  // All of a batch, in the caller's memory.
  explicit States(const Layer<T>& layer)
      : layer_(layer),
        cells_(static_cast<T*>(layer.a.cells)),
        gates_(layer.a.gates),
        rounded_(layer.a.rounded != 0),
        past_(outgrow_caches<T>(layer.a.time * layer.B * layer.w.gates_width())),
        node_h_(static_cast<T*>(layer.a.node_h)),
        node_c_(static_cast<T*>(layer.a.node_c)),
        path_(static_cast<T*>(layer.a.path)),
        rows_(layer.B) {}

  // The newest of a batch: c of a step gives way after a group, the path to the next.
  static States newest(const Layer<T>& layer, const Room<T>& room) {
    States states(layer, room);
    states.gates_ = nullptr;
    states.steps_ = layer.ring, states.paths_ = 1;
    return states;
  }

  // Those of one segment at a time, in the rows of a slice.
  static States of_slice(const Layer<T>& layer, const Room<T>& room, const Slice& slice) {
    States states(layer, room);
    states.first_row_ = slice.first;
    return states;
  }

  void enter(long segment) {
    segment_ = segment;
    first_pyramid_ = segment * layer_.a.segment;
    first_step_ = segment * layer_.segment_steps;
    first_node_ = layer_.pyramid.first_node[size_t(first_pyramid_)];
  }

  long first_step() const { return first_step_; }

  // States of the rows from `first` on.
  Out step_h(long t, long first) const {
    return {layer_.h_ring.data() + (t % layer_.ring * layer_.B + first) * layer_.P, layer_.P};
  }
  Out step_c(long t, long first) const { return at(cells_, (t - first_step_) % steps_, first, layer_.P); }
  KeptGates<T> gates(long t, long first) const {
    return kept_gates<T>(gates_, place(t - first_step_, first), layer_.w.gates_width(), rounded_, past_);
  }
  Out node_h(long node, long first) const { return at(node_h_, node - first_node_, first, layer_.P); }
  Out node_c(long node, long first) const { return at(node_c_, node - first_node_, first, layer_.P); }
  Out path(long k, long first) const { return at(path_, (k - first_pyramid_) % paths_, first, layer_.P); }

  // What drives step t: nothing before the first.
  In h_before(long t, long first) const {
    if (t == first_step_) return layer_.start(segment_, 0, first);
    const long node = layer_.pyramid.driver[size_t(t) - 1];
    return node < 0 ? step_h(t - 1, first) : node_h(node, first);
  }
  In c_before(long t, long first) const {
    if (t == first_step_) return layer_.start(segment_, 1, first);
    const long node = layer_.a.aggregate_cell ? layer_.pyramid.driver[size_t(t) - 1] : -1;
    return node < 0 ? step_c(t - 1, first) : node_c(node, first);
  }
  In path_before(long k, long first) const {
    return k == first_pyramid_ ? layer_.start(segment_, 2, first) : path(k - 1, first);
  }

  // Source m of an aggregation at step t.
  In source_h(const Aggregation& g, long m, long t, long first) const {
    return g.level == 0 ? step_h(t + 1 - g.size + m, first) : node_h(source(g, m), first);
  }
  In source_c(const Aggregation& g, long m, long t, long first) const {
    return g.level == 0 ? step_c(t + 1 - g.size + m, first) : node_c(source(g, m), first);
  }

 private:
  States(const Layer<T>& layer, const Room<T>& room)
      : layer_(layer),
        cells_(room.cells.data()),
        gates_(room.gates.data()),
        node_h_(room.node_h.data()),
        node_c_(room.node_c.data()),
        path_(room.path.data()),
        rows_(room.rows) {}

  long source(const Aggregation& g, long m) const { return layer_.pyramid.sources[size_t(g.first_source + m)]; }

  // A row's, of a step's or node's.
  long place(long step, long row) const { return step * rows_ + row - first_row_; }

  Out at(T* data, long step, long first, long width) const { return rows_of<T>(data, place(step, first), width); }

  const Layer<T>& layer_;
  T* cells_;
  void* gates_;
  bool rounded_ = false, past_ = false;
  T *node_h_, *node_c_, *path_;
  long rows_;
  long first_row_ = 0, first_step_ = 0, first_node_ = 0, first_pyramid_ = 0, segment_ = 0;  // what lies first
  long steps_ = INT64_MAX, paths_ = INT64_MAX;  // how many are there before one takes the place of another
};

}  // namespace seqpyramid
