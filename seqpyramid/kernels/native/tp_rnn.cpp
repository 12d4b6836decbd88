// A TP-RNN layer over all steps of a batch: LSTM steps (lstm_cell.h), driven by the aggregates (theta.h) of its
// sub-pyramids (pyramid.h), and the shortcut path over their tops.
//
//   h_t, c_t from x_t and the state before: h_{t-1}, or the aggregate that step t-1 has just completed
//   o_0 = top_0;  o_k = theta(o_{k-1}, top_k)
//
// Backward runs the steps from the last to the first. A node's gradient is the sum of up to four: from its own
// aggregate, from the step that it drives, from the next layer, which reads it, and from the shortcut path. All but
// the first are at hand when its turn comes; the first waits in a slot for (level, position), since of one level only
// the nodes of one group are alive at a time.
//
// h of the steps is kept nowhere: it is formed again, group by group, from the gates and c.
//
// Recomputation (segments.h): of whole sub-pyramids, whose only ties with what was before are the h and c that drive
// their first step and the path. Forward keeps these three at the starts of segments; backward does the rest, bit for
// bit, in the same slice and thread.
//
// Shapes: B batch, T time, F inputs, H hidden units, P = padded H, M states of a theta. Rows come longest first.
#include <memory>
#include <utility>

#include "interface.h"
#include "segments.h"
#include "tp_rnn_states.h"

using namespace seqpyramid;

namespace {

// y = theta(states) for some rows; source(m) gives the rows of state m. y may be one of them.
template <class T, class Source>
void aggregate_rows(const Layer<T>& layer, const Theta<T>& theta, long n, Source&& source, Rows<T> y, long first,
                    long last, Work<T>& work) {
  for (long m = 0; m < n; ++m) work.sources[size_t(m)] = source(m);
  theta_forward<T>(theta, layer.a.scrambled, n, work.sources.data(), y, first, last, work.theta);
}

// The same backwards: target(m) gives the rows that get the gradient of state m.
template <class T, class Source, class Target>
void aggregate_rows_backward(const Layer<T>& layer, const Theta<T>& theta, long n, Source&& source, Rows<const T> y,
                             Rows<const T> dy, Target&& target, long first, long last, Work<T>& work,
                             ThetaGradients<T>& sums) {
  for (long m = 0; m < n; ++m) work.sources[size_t(m)] = source(m), work.targets[size_t(m)] = target(m);
  theta_backward<T>(theta, layer.a.scrambled, n, work.sources.data(), y, dy, work.targets.data(), first, last,
                    work.theta, sums);
}

// A slice of a batch, forward.
template <class T>
class ForwardSlice {
 public:
  ForwardSlice(const Layer<T>& layer, const States<T>& states, const Slice& slice, Work<T>& work)
      : layer_(layer), a_(layer.a), states_(states), slice_(slice), work_(work) {}

  // Steps [from, to).
  void run(long from, long to) {
    const Pyramid& pyramid = layer_.pyramid;
    for (long t = from; t < to; ++t) {
      const long rows = slice_.active(t), running = slice_.active(t + 1), first = slice_.first;
      if (t > from && layer_.segment_steps && t % layer_.segment_steps == 0) keep_start(t, rows);
      lstm_step<T>(layer_.w, rows, layer_.inputs(t, first), states_.h_before(t, first), states_.c_before(t, first),
                   states_.gates(t, first), states_.step_h(t, first), states_.step_c(t, first), work_.cell);
      aggregate(pyramid.common[size_t(t)], t, 0, rows, running);
      if ((t + 1) % a_.length != 0 && running < rows) aggregate(pyramid.leaving[size_t(t)], t, running, rows, running);
    }
  }

 private:
  void keep_start(long t, long rows) {
    const long segment = t / layer_.segment_steps, first = slice_.first, P = layer_.P;
    copy_rows<T>(0, rows, states_.h_before(t, first), layer_.start(segment, 0, first), P);
    copy_rows<T>(0, rows, states_.c_before(t, first), layer_.start(segment, 1, first), P);
    if (layer_.theta_path)
      copy_rows<T>(0, rows, states_.path_before(t / a_.length, first), layer_.start(segment, 2, first), P);
  }

  // Aggregate rows [first, last): h of all, c of those that go on.
  void aggregate(Range range, long t, long first, long last, long running) {
    const long origin = slice_.first;
    for (long k = range.first; k < range.last; ++k) {
      const Aggregation& g = layer_.pyramid.aggregations[size_t(k)];
      const Rows<T> h = states_.node_h(g.destination, origin);
      if (g.size)
        aggregate_rows<T>(layer_, layer_.theta_h, g.size, [&](long m) { return states_.source_h(g, m, t, origin); }, h,
                          first, last, work_);
      if (g.size && a_.aggregate_cell)
        aggregate_rows<T>(layer_, layer_.theta_c, g.size, [&](long m) { return states_.source_c(g, m, t, origin); },
                          states_.node_c(g.destination, origin), first, running, work_);
      if (a_.emitted && g.emitted >= 0 && g.emitted < a_.emitted_time)
        copy_rows<T>(first, last, h, rows_of<T>(a_.emitted, g.emitted * layer_.B + origin, layer_.P), layer_.P);
      if (g.top) extend(t / a_.length, h, first, last, running);
    }
  }

  void extend(long k, Rows<const T> top, long first, long last, long running) {
    const long origin = slice_.first;
    const Rows<T> path = states_.path(k, origin);
    if (k == 0 || !layer_.theta_path) {
      copy_rows<T>(first, last, top, path, layer_.P);
    } else {
      const Rows<const T> before = states_.path_before(k, origin);
      aggregate_rows<T>(layer_, layer_.theta_path, 2, [&](long m) { return m == a_.top_first ? before : top; }, path,
                        first, last, work_);
    }
    if (a_.output) copy_rows<T>(running, last, path, rows_of<T>(a_.output, origin, layer_.P), layer_.P);
  }

  const Layer<T>& layer_;
  const TpRnnArguments& a_;
  const States<T>& states_;
  const Slice& slice_;
  Work<T>& work_;
};

// What is added up over a slice.
template <class T>
struct LayerGradients {
  LstmGradients<T> cell;
  ThetaGradients<T> h, c, path;

  explicit LayerGradients(const Layer<T>& layer)
      : cell(layer.w), h(layer.a.granularity), c(layer.a.aggregate_cell ? layer.a.granularity : 0), path(2) {}
};

// Gradients on their way, for all rows of a batch.
template <class T>
struct Carried {
  long B, P, group, s_ring;
  Buffer<T> s, slots_h, slots_c, single;

  explicit Carried(const Layer<T>& layer)
      : B(layer.B),
        P(layer.P),
        group(layer.pyramid.group),
        s_ring(group + 1),
        s(size_t(s_ring * B * P)),
        slots_h(size_t((layer.pyramid.levels + 1) * group * B * P)),
        slots_c(layer.a.aggregate_cell ? size_t((layer.pyramid.levels + 1) * group * B * P) : 0),
        single(size_t(6 * B * P)) {}

  Rows<T> squashed(long t, long first) const { return {s.data() + (t % s_ring * B + first) * P, P}; }
  Rows<T> slot_h(long level, long position, long first) const {
    return {slots_h.data() + ((level * group + position) * B + first) * P, P};
  }
  Rows<T> slot_c(long level, long position, long first) const {
    return {slots_c.data() + ((level * group + position) * B + first) * P, P};
  }
  Rows<T> other(long k, long first) const { return {single.data() + (k * B + first) * P, P}; }
};

// And backward.
template <class T>
class BackwardSlice {
 public:
  BackwardSlice(const Layer<T>& layer, States<T> states, const LstmTransposed<T>& transposed,
                const Carried<T>& carried, const Slice& slice, Work<T>& work, LayerGradients<T>& sums)
      : layer_(layer),
        a_(layer.a),
        states_(states),
        transposed_(transposed),
        carried_(carried),
        slice_(slice),
        origin_(slice.first),
        P_(layer.P),
        work_(work),
        sums_(sums),
        dh_(carried.other(0, origin_)),
        dh_before_(carried.other(1, origin_)),
        dc_(carried.other(2, origin_)),
        d_node_(carried.other(3, origin_)),
        d_top_(carried.other(4, origin_)),
        d_path_(carried.other(5, origin_)) {}

  void run() {
    if (a_.d_output)
      copy_rows<T>(0, slice_.rows(), rows_of<T>(static_cast<const void*>(a_.d_output), origin_, P_), d_path_, P_);
    each_segment_back(slice_.steps(), layer_.segment_steps, [&](long from, long to) {
      if (a_.segment) {
        states_.enter(from / layer_.segment_steps);
        ForwardSlice<T>(layer_, states_, slice_, work_).run(from, to);
      }
      back(from, to);
    });
  }

 private:
  // Steps [from, to), the last first.
  void back(long from, long to) {
    const Pyramid& pyramid = layer_.pyramid;
    for (long t = to - 1; t >= from; --t) {
      const long rows = slice_.active(t), running = slice_.active(t + 1);
      if ((t + 1) % a_.length != 0 && running < rows)
        aggregate(pyramid.leaving[size_t(t)], t, running, rows, running, false);
      aggregate(pyramid.common[size_t(t)], t, 0, rows, running, a_.top_down);
      step(t, rows);
    }
  }

  // Rows [first, last) of an aggregation at step t, of which those before `running` go on. With `drives`, the last
  // aggregate of the range is what step t + 1 started from.
  void aggregate(Range range, long t, long first, long last, long running, bool drives) {
    for (long k = range.last - 1; k >= range.first; --k) {
      const Aggregation& g = layer_.pyramid.aggregations[size_t(k)];
      const bool driver = drives && k == range.last - 1;
      if (g.level == 0) recall(t + 1 - g.size, t, first, last);  // of a size of 0: nothing
      if (g.top) extend(t / a_.length, states_.node_h(g.destination, origin_), first, last, running);

      collect(first, last, g.top ? d_top_ : carried_.slot_h(g.level + 1, g.position, origin_), driver ? dh_ : none());
      if (a_.d_emitted && g.emitted >= 0 && g.emitted < a_.emitted_time) add_emitted(g.emitted, first, last);
      if (g.size == 0) {  // for the aggregation that made this top
        copy_rows<T>(first, last, d_node_, carried_.slot_h(g.level + 1, g.position, origin_), P_);
        continue;
      }
      aggregate_rows_backward<T>(
          layer_, layer_.theta_h, g.size, [&](long m) { return states_.source_h(g, m, t, origin_); },
          states_.node_h(g.destination, origin_), d_node_,
          [&](long m) { return carried_.slot_h(g.level, m, origin_); }, first, last, work_, sums_.h);

      if (!a_.aggregate_cell) continue;
      collect(first, running, g.top ? none() : carried_.slot_c(g.level + 1, g.position, origin_),
              driver ? dc_ : none());
      aggregate_rows_backward<T>(
          layer_, layer_.theta_c, g.size, [&](long m) { return states_.source_c(g, m, t, origin_); },
          states_.node_c(g.destination, origin_), d_node_,
          [&](long m) { return carried_.slot_c(g.level, m, origin_); }, first, running, work_, sums_.c);
      // Of those that end here no c is read, and their slots are still zero: nothing has come back to them yet.
    }
  }

  // The shortcut path: d_path becomes the gradient of the path before, d_top that of the newest top.
  void extend(long k, Rows<const T> top, long first, long last, long running) {
    if (!layer_.theta_path) {
      clear(d_top_, first, running);
      copy_rows<T>(running, last, d_path_, d_top_, P_);
    } else if (k == 0) {
      copy_rows<T>(first, last, d_path_, d_top_, P_);
    } else {
      const Rows<const T> before = states_.path_before(k, origin_);
      aggregate_rows_backward<T>(
          layer_, layer_.theta_path, 2, [&](long m) { return m == a_.top_first ? before : top; },
          states_.path(k, origin_), d_path_, [&](long m) { return m == a_.top_first ? d_path_ : d_top_; }, first, last,
          work_, sums_.path);
    }
  }

  void step(long t, long rows) {
    const Pyramid& pyramid = layer_.pyramid;
    const long position = pyramid.position[size_t(t)];
    add(dh_, carried_.slot_h(0, position, origin_), rows);
    if (a_.aggregate_cell) add(dc_, carried_.slot_c(0, position, origin_), rows);
    // h of the step before is there if it is of the same group
    if (t > states_.first_step() && position == 0 && pyramid.driver[size_t(t) - 1] < 0) recall(t - 1, t - 1, 0, rows);
    if (t > 0) clear(dh_before_, 0, rows);
    lstm_step_backward<T>(layer_.w, transposed_, rows, layer_.inputs(t, origin_), states_.h_before(t, origin_),
                          states_.c_before(t, origin_), states_.gates(t, origin_), carried_.squashed(t, origin_), dh_,
                          dc_, t > 0 ? dh_before_ : none(),
                          rows_of<T>(a_.d_x, t * layer_.B + origin_, transposed_.inputs_width), sums_.cell, work_.cell,
                          from_to(t, t - 1).gates);
    std::swap(dh_, dh_before_);
  }

  // How far it is from what was kept of one step to what was of another; no way where there was no such step.
  Ahead from_to(long t, long other) const {
    if (other < states_.first_step()) return {};
    return {states_.gates(other, origin_).data - states_.gates(t, origin_).data,
            states_.step_c(other, origin_).data - states_.step_c(t, origin_).data};
  }

  // Form s and h of steps [from, to] again. After the last of them the group before is wanted.
  void recall(long from, long to, long first, long last) {
    for (long t = from; t <= to; ++t)
      lstm_recall<T>(layer_.w, last - first, states_.gates(t, origin_ + first), states_.step_c(t, origin_ + first),
                     carried_.squashed(t, origin_ + first), states_.step_h(t, origin_ + first),
                     from_to(t, t < to ? t + 1 : from - (to - from + 1)));
  }

  // d_node = one gradient (or none) + another (or none), which is thereby used up.
  void collect(long first, long last, Rows<const T> one, Rows<T> other) {
    for (long row = first; row < last; ++row)
      for (long u = 0; u < P_; u += LANES<T>) {
        Vector<T> sum{};
        if (one) sum += load(one.at(row, u));
        if (other) sum += load(other.at(row, u)), store(other.at(row, u), Vector<T>{});
        store(d_node_.at(row, u), sum);
      }
  }

  void add_emitted(long position, long first, long last) {
    const T* d = static_cast<const T*>(a_.d_emitted) + origin_ * a_.d_emitted_batch + position * a_.d_emitted_time;
    const Rows<const T> emitted{d, a_.d_emitted_batch};
    add_rows<T>(last - first, emitted.from(first), d_node_.from(first), a_.hidden);
  }

  void add(Rows<T> sum, Rows<const T> more, long rows) const {
    for (long row = 0; row < rows; ++row)
      for (long u = 0; u < P_; u += LANES<T>) store(sum.at(row, u), load(sum.at(row, u)) + load(more.at(row, u)));
  }

  void clear(Rows<T> rows, long first, long last) const {
    for (long row = first; row < last; ++row) std::fill_n(rows.at(row), P_, T(0));
  }

  static Rows<T> none() { return {nullptr, 0}; }

  const Layer<T>& layer_;
  const TpRnnArguments& a_;
  States<T> states_;
  const LstmTransposed<T>& transposed_;
  const Carried<T>& carried_;
  const Slice& slice_;
  const long origin_, P_;
  Work<T>& work_;
  LayerGradients<T>& sums_;
  Rows<T> dh_, dh_before_, dc_, d_node_, d_top_, d_path_;
};

template <class T>
void tp_rnn_nodes(const TpRnnArguments& a) {
  *a.answer = pyramid_of(a, true).nodes;
}

// How many sub-pyramids make a segment so that starts and rooms together need the least memory.
template <class T>
void tp_rnn_segment(const TpRnnArguments& a) {
  const Pyramid pyramid = pyramid_of(a, true);
  const std::vector<Slice> slices = cut(a.lengths, a.batch, slice_count(a.batch, a.threads));
  const long rooms = std::min(a.threads, int64_t(slices.size()));
  const long of_pyramid = a.length * (1 + GATES) + pyramid.most_nodes(1) * (a.aggregate_cell ? 2 : 1) + 1;
  *a.answer = best_segment(long(pyramid.first_node.size()), a.batch * (a.path_first ? 3 : 2),
                           rooms * most_rows(slices) * of_pyramid);
}

template <class T>
void tp_rnn_forward(const TpRnnArguments& a) {
  const bool keep = a.cells != nullptr;
  Layer<T> layer(a, keep, true);
  const std::unique_ptr<Room<T>> room = keep ? nullptr : std::make_unique<Room<T>>(layer);
  const States<T> states = keep ? States<T>(layer) : States<T>::newest(layer, *room);
  run_parallel(long(layer.slices.size()), a.threads, [&](long piece) {
    const Slice& slice = layer.slices[size_t(piece)];
    ForwardSlice<T>(layer, states, slice, layer.work[size_t(piece)]).run(0, slice.steps());
  });
}

template <class T>
void tp_rnn_backward(const TpRnnArguments& a) {
  Layer<T> layer(a, true, a.segment != 0);
  const LstmTransposed<T> transposed(static_cast<const T*>(a.weight_ih), static_cast<const T*>(a.weight_hh), a.inputs,
                                     a.hidden, a.d_x != nullptr, a.batch);
  const Carried<T> carried(layer);
  std::vector<LayerGradients<T>> sums;
  for (size_t k = 0; k < layer.slices.size(); ++k) sums.emplace_back(layer);
  Rooms<Room<T>> rooms(a.segment ? std::min(a.threads, int64_t(layer.slices.size())) : 0,
                       [&] { return Room<T>(layer, most_rows(layer.slices)); });
  run_parallel(long(layer.slices.size()), a.threads, [&](long piece) {
    const size_t k = size_t(piece);
    const auto run = [&](const States<T>& states) {
      BackwardSlice<T>(layer, states, transposed, carried, layer.slices[k], layer.work[k], sums[k]).run();
    };
    if (a.segment) {
      rooms.with([&](const Room<T>& room) { run(States<T>::of_slice(layer, room, layer.slices[k])); });
    } else {
      run(States<T>(layer));
    }
  });
  const auto to = [](void* gradient) { return static_cast<T*>(gradient); };
  for (size_t k = 1; k < sums.size(); ++k) sums[0].cell.add(sums[k].cell);
  if (!sums.empty()) sums[0].cell.add_to(layer.w, to(a.d_weight_ih), to(a.d_weight_hh), to(a.d_bias));
  for (const LayerGradients<T>& sum : sums) {
    sum.h.add_to(to(a.d_h_first), to(a.d_h_second));
    if (a.aggregate_cell) sum.c.add_to(to(a.d_c_first), to(a.d_c_second));
    if (layer.theta_path) sum.path.add_to(to(a.d_path_first), to(a.d_path_second));
  }
}

}  // namespace

SEQPYRAMID_KERNEL(tp_rnn_nodes, TpRnnArguments, tp_rnn_nodes)
SEQPYRAMID_KERNEL(tp_rnn_segment, TpRnnArguments, tp_rnn_segment)
SEQPYRAMID_KERNEL(tp_rnn_forward, TpRnnArguments, tp_rnn_forward)
SEQPYRAMID_KERNEL(tp_rnn_backward, TpRnnArguments, tp_rnn_backward)
