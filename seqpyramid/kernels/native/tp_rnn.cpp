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
// Shapes: B batch, T time, F inputs, H hidden units, P = padded H, M states of a theta. Rows come longest first.
#include <array>
#include <utility>

#include "interface.h"
#include "lstm_cell.h"
#include "parallel.h"
#include "pyramid.h"
#include "theta.h"

using namespace seqpyramid;

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
  int64_t* node_count;                                     // out, of tp_rnn_nodes
  void *cells, *gates;                                     // (T, B, P), (T, B, 4P), for the backward pass, or none
  void *node_h, *node_c, *path;                            // (nodes, B, P) twice, (sub-pyramids, B, P); as cells
  const void* d_output;                                    // (B, P), or none
  const void* d_emitted;                                   // (B, T', H), units side by side, or none
  int64_t d_emitted_batch, d_emitted_time;
  void* d_x;                                               // (T, B, padded F), zeroed, or none
  void *d_weight_ih, *d_weight_hh, *d_bias;                // zeroed, as all that follow
  void *d_h_first, *d_h_second, *d_c_first, *d_c_second, *d_path_first, *d_path_second;
};

namespace {

Pyramid pyramid_of(const TpRnnArguments& a, bool keep) {
  return Pyramid(a.time, a.length, a.granularity, a.emitted_level, a.top_down, a.lengths, a.batch, keep);
}

template <class T>
Theta<T> theta_of(int64_t states, const void* first, const void* second) {
  return {states, static_cast<const T*>(first), static_cast<const T*>(second)};
}

// What forward and backward share: weights, pyramid, and where every state lies.
template <class T>
class Layer {
 public:
  using In = Rows<const T>;
  using Out = Rows<T>;

  Layer(const TpRnnArguments& a_, bool keep_)
      : a(a_),
        keep(keep_),
        pyramid(pyramid_of(a_, keep_)),
        w(static_cast<const T*>(a_.weight_ih), static_cast<const T*>(a_.weight_hh), static_cast<const T*>(a_.bias),
          a_.inputs, a_.hidden),
        P(w.width),
        B(a_.batch),
        theta_h(theta_of<T>(a_.granularity, a_.h_first, a_.h_second)),
        theta_c(theta_of<T>(a_.granularity, a_.c_first, a_.c_second)),
        theta_path(theta_of<T>(2, a_.path_first, a_.path_second)),
        table(a_.scrambled ? std::max(pyramid.group, 2L) : 0, a_.hidden, w.width),
        slices(cut(a_.lengths, a_.batch, slice_count(a_.batch, a_.threads))),
        ring(pyramid.group + 1),
        h_ring(size_t(ring * B * P)),
        c_ring(keep ? 0 : size_t(B * P * ring)),
        own_node_h(keep ? 0 : size_t(pyramid.nodes * B * P)),
        own_node_c(keep ? 0 : size_t(pyramid.nodes * B * P)),
        own_path(keep ? 0 : size_t(B * P)) {
    for (size_t k = 0; k < slices.size(); ++k) work.emplace_back(std::max(pyramid.group, 2L), P);
  }

  const Scramble* scramble() const { return a.scrambled ? &table : nullptr; }

  // States of the rows from `first` on. h of a step lives as long as its group.
  Out step_h(long t, long first) const { return {h_ring.data() + (t % ring * B + first) * P, P}; }
  Out step_c(long t, long first) const {
    return keep ? rows_of<T>(a.cells, t * B + first, P) : Out{c_ring.data() + (t % ring * B + first) * P, P};
  }
  Out gates(long t, long first) const { return rows_of<T>(a.gates, t * B + first, w.gates_width()); }
  Out node_h(long node, long first) const {
    return {(keep ? static_cast<T*>(a.node_h) : own_node_h.data()) + (node * B + first) * P, P};
  }
  Out node_c(long node, long first) const {
    return {(keep ? static_cast<T*>(a.node_c) : own_node_c.data()) + (node * B + first) * P, P};
  }
  Out path(long k, long first) const {
    return {keep ? static_cast<T*>(a.path) + (k * B + first) * P : own_path.data() + first * P, P};
  }
  In inputs(long t, long first) const {
    return {static_cast<const T*>(a.x) + first * a.x_batch + t * a.x_time, a.x_batch};
  }

  // What drives step t: nothing before the first.
  In h_before(long t, long first) const {
    if (t == 0) return {nullptr, 0};
    const long node = pyramid.driver[size_t(t) - 1];
    return node < 0 ? step_h(t - 1, first) : node_h(node, first);
  }
  In c_before(long t, long first) const {
    if (t == 0) return {nullptr, 0};
    const long node = a.aggregate_cell ? pyramid.driver[size_t(t) - 1] : -1;
    return node < 0 ? step_c(t - 1, first) : node_c(node, first);
  }

  // Source m of an aggregation at step t.
  In source_h(const Aggregation& g, long m, long t, long first) const {
    return g.level == 0 ? step_h(t + 1 - g.size + m, first) : node_h(source(g, m), first);
  }
  In source_c(const Aggregation& g, long m, long t, long first) const {
    return g.level == 0 ? step_c(t + 1 - g.size + m, first) : node_c(source(g, m), first);
  }

  const TpRnnArguments& a;
  const bool keep;
  const Pyramid pyramid;
  const LstmWeights<T> w;
  const long P, B;
  const Theta<T> theta_h, theta_c, theta_path;
  const Scramble table;
  const std::vector<Slice> slices;
  std::vector<ThetaWork<T>> work;

 private:
  long source(const Aggregation& g, long m) const { return pyramid.sources[size_t(g.first_source + m)]; }

  const long ring;
  const Buffer<T> h_ring, c_ring, own_node_h, own_node_c, own_path;
};

// y = theta(states) for some rows; source(m) gives the rows of state m. y may be one of them.
template <class T, class Source>
void aggregate_rows(const Layer<T>& layer, const Theta<T>& theta, long n, Source&& source, Rows<T> y, long first,
                    long last, ThetaWork<T>& work) {
  for (long m = 0; m < n; ++m) work.sources[size_t(m)] = source(m);
  with_count(n, [&](auto count) {
    for (long row = first; row < last; ++row) {
      for (long m = 0; m < n; ++m) work.e[size_t(m)] = work.sources[size_t(m)].at(row);
      theta_row<T, decltype(count)::value>(theta, layer.scramble(), n, work.e.data(), layer.P, y.at(row), work);
    }
  });
}

// The same backwards: target(m) gives the rows that get the gradient of state m.
template <class T, class Source, class Target>
void aggregate_rows_backward(const Layer<T>& layer, const Theta<T>& theta, long n, Source&& source, Rows<const T> y,
                             Rows<const T> dy, Target&& target, long first, long last, ThetaWork<T>& work,
                             ThetaGradients<T>& sums) {
  for (long m = 0; m < n; ++m) work.sources[size_t(m)] = source(m), work.targets[size_t(m)] = target(m);
  with_count(n, [&](auto count) {
    for (long row = first; row < last; ++row) {
      for (long m = 0; m < n; ++m) {
        work.e[size_t(m)] = work.sources[size_t(m)].at(row);
        work.de[size_t(m)] = work.targets[size_t(m)].at(row);
      }
      theta_row_backward<T, decltype(count)::value>(theta, layer.scramble(), n, work.e.data(), layer.P, y.at(row),
                                                    dy.at(row), work.de.data(), work, sums);
    }
  });
}

// A slice of a batch, forward.
template <class T>
class ForwardSlice {
 public:
  ForwardSlice(const Layer<T>& layer, const Slice& slice, ThetaWork<T>& work)
      : layer_(layer), a_(layer.a), slice_(slice), work_(work) {}

  void run() {
    const Pyramid& pyramid = layer_.pyramid;
    for (long t = 0; t < slice_.steps(); ++t) {
      const long rows = slice_.active(t), running = slice_.active(t + 1), first = slice_.first;
      lstm_step<T>(layer_.w, rows, layer_.inputs(t, first), layer_.h_before(t, first), layer_.c_before(t, first),
                   layer_.gates(t, first), layer_.step_h(t, first), layer_.step_c(t, first));
      aggregate(pyramid.common[size_t(t)], t, 0, rows, running);
      if ((t + 1) % a_.length != 0 && running < rows) aggregate(pyramid.leaving[size_t(t)], t, running, rows, running);
    }
  }

 private:
  // Aggregate rows [first, last): h of all, c of those that go on.
  void aggregate(Range range, long t, long first, long last, long running) {
    const long origin = slice_.first;
    for (long k = range.first; k < range.last; ++k) {
      const Aggregation& g = layer_.pyramid.aggregations[size_t(k)];
      const Rows<T> h = layer_.node_h(g.destination, origin);
      if (g.size)
        aggregate_rows<T>(layer_, layer_.theta_h, g.size, [&](long m) { return layer_.source_h(g, m, t, origin); }, h,
                          first, last, work_);
      if (g.size && a_.aggregate_cell)
        aggregate_rows<T>(layer_, layer_.theta_c, g.size, [&](long m) { return layer_.source_c(g, m, t, origin); },
                          layer_.node_c(g.destination, origin), first, running, work_);
      if (g.emitted >= 0 && g.emitted < a_.emitted_time)
        copy_rows<T>(first, last, h, rows_of<T>(a_.emitted, g.emitted * layer_.B + origin, layer_.P), layer_.P);
      if (g.top) extend(t / a_.length, h, first, last, running);
    }
  }

  void extend(long k, Rows<const T> top, long first, long last, long running) {
    const long origin = slice_.first;
    const Rows<T> path = layer_.path(k, origin);
    if (k == 0 || !layer_.theta_path.first) {
      copy_rows<T>(first, last, top, path, layer_.P);
    } else {
      const Rows<const T> before = layer_.path(k - 1, origin);
      aggregate_rows<T>(layer_, layer_.theta_path, 2, [&](long m) { return m == a_.top_first ? before : top; }, path,
                        first, last, work_);
    }
    copy_rows<T>(running, last, path, rows_of<T>(a_.output, origin, layer_.P), layer_.P);
  }

  const Layer<T>& layer_;
  const TpRnnArguments& a_;
  const Slice& slice_;
  ThetaWork<T>& work_;
};

// What is added up over a slice.
template <class T>
struct LayerGradients {
  LstmGradients<T> cell;
  ThetaGradients<T> h, c, path;

  LayerGradients(const Layer<T>& layer, long rows)
      : cell(layer.w, rows), h(layer.a.granularity), c(layer.a.aggregate_cell ? layer.a.granularity : 0), path(2) {}
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
  BackwardSlice(const Layer<T>& layer, const LstmTransposed<T>& transposed, const Carried<T>& carried,
                const Slice& slice, ThetaWork<T>& work, LayerGradients<T>& sums)
      : layer_(layer),
        a_(layer.a),
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
    const Pyramid& pyramid = layer_.pyramid;
    for (long t = slice_.steps() - 1; t >= 0; --t) {
      const long rows = slice_.active(t), running = slice_.active(t + 1);
      if ((t + 1) % a_.length != 0 && running < rows)
        aggregate(pyramid.leaving[size_t(t)], t, running, rows, running, false);
      aggregate(pyramid.common[size_t(t)], t, 0, rows, running, a_.top_down);
      step(t, rows);
    }
  }

 private:
  // Rows [first, last) of an aggregation at step t, of which those before `running` go on. With `drives`, the last
  // aggregate of the range is what step t + 1 started from.
  void aggregate(Range range, long t, long first, long last, long running, bool drives) {
    for (long k = range.last - 1; k >= range.first; --k) {
      const Aggregation& g = layer_.pyramid.aggregations[size_t(k)];
      const bool driver = drives && k == range.last - 1;
      if (g.level == 0) recall(t + 1 - g.size, t, first, last);  // of a size of 0: nothing
      if (g.top) extend(t / a_.length, layer_.node_h(g.destination, origin_), first, last, running);

      collect(first, last, g.top ? d_top_ : carried_.slot_h(g.level + 1, g.position, origin_), driver ? dh_ : none());
      if (a_.d_emitted && g.emitted >= 0 && g.emitted < a_.emitted_time) add_emitted(g.emitted, first, last);
      if (g.size == 0) {  // for the aggregation that made this top
        copy_rows<T>(first, last, d_node_, carried_.slot_h(g.level + 1, g.position, origin_), P_);
        continue;
      }
      aggregate_rows_backward<T>(
          layer_, layer_.theta_h, g.size, [&](long m) { return layer_.source_h(g, m, t, origin_); },
          layer_.node_h(g.destination, origin_), d_node_,
          [&](long m) { return carried_.slot_h(g.level, m, origin_); }, first, last, work_, sums_.h);

      if (!a_.aggregate_cell) continue;
      collect(first, running, g.top ? none() : carried_.slot_c(g.level + 1, g.position, origin_),
              driver ? dc_ : none());
      aggregate_rows_backward<T>(
          layer_, layer_.theta_c, g.size, [&](long m) { return layer_.source_c(g, m, t, origin_); },
          layer_.node_c(g.destination, origin_), d_node_,
          [&](long m) { return carried_.slot_c(g.level, m, origin_); }, first, running, work_, sums_.c);
      // Of those that end here no c is read, and their slots are still zero: nothing has come back to them yet.
    }
  }

  // The shortcut path: d_path becomes the gradient of the path before, d_top that of the newest top.
  void extend(long k, Rows<const T> top, long first, long last, long running) {
    if (!layer_.theta_path.first) {
      clear(d_top_, first, running);
      copy_rows<T>(running, last, d_path_, d_top_, P_);
    } else if (k == 0) {
      copy_rows<T>(first, last, d_path_, d_top_, P_);
    } else {
      const Rows<const T> before = layer_.path(k - 1, origin_);
      aggregate_rows_backward<T>(
          layer_, layer_.theta_path, 2, [&](long m) { return m == a_.top_first ? before : top; },
          layer_.path(k, origin_), d_path_, [&](long m) { return m == a_.top_first ? d_path_ : d_top_; }, first, last,
          work_, sums_.path);
    }
  }

  void step(long t, long rows) {
    const Pyramid& pyramid = layer_.pyramid;
    const long position = pyramid.position[size_t(t)];
    add(dh_, carried_.slot_h(0, position, origin_), rows);
    if (a_.aggregate_cell) add(dc_, carried_.slot_c(0, position, origin_), rows);
    // h of the step before is there if it is of the same group
    if (t > 0 && position == 0 && pyramid.driver[size_t(t) - 1] < 0) recall(t - 1, t - 1, 0, rows);
    if (t > 0) clear(dh_before_, 0, rows);
    lstm_step_backward<T>(layer_.w, transposed_, rows, layer_.inputs(t, origin_), layer_.h_before(t, origin_),
                          layer_.c_before(t, origin_), layer_.gates(t, origin_), carried_.squashed(t, origin_), dh_,
                          dc_, t > 0 ? dh_before_ : none(),
                          rows_of<T>(a_.d_x, t * layer_.B + origin_, transposed_.inputs_width), sums_.cell);
    std::swap(dh_, dh_before_);
  }

  // Form s and h of steps [from, to] again.
  void recall(long from, long to, long first, long last) {
    for (long t = from; t <= to; ++t)
      lstm_recall<T>(layer_.w, last - first, layer_.gates(t, origin_ + first), layer_.step_c(t, origin_ + first),
                     carried_.squashed(t, origin_ + first), layer_.step_h(t, origin_ + first));
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
    for (long row = first; row < last; ++row)
      for (long u = 0; u < a_.hidden; u += LANES<T>)
        store(d_node_.at(row, u),
              load(d_node_.at(row, u)) + load_first(d + row * a_.d_emitted_batch + u, a_.hidden - u));
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
  const LstmTransposed<T>& transposed_;
  const Carried<T>& carried_;
  const Slice& slice_;
  const long origin_, P_;
  ThetaWork<T>& work_;
  LayerGradients<T>& sums_;
  Rows<T> dh_, dh_before_, dc_, d_node_, d_top_, d_path_;
};

template <class T>
void tp_rnn_nodes(const TpRnnArguments& a) {
  *a.node_count = pyramid_of(a, true).nodes;
}

template <class T>
void tp_rnn_forward(const TpRnnArguments& a) {
  Layer<T> layer(a, a.cells != nullptr);
  run_parallel(long(layer.slices.size()), a.threads, [&](long piece) {
    const size_t k = size_t(piece);
    ForwardSlice<T>(layer, layer.slices[k], layer.work[k]).run();
  });
}

template <class T>
void tp_rnn_backward(const TpRnnArguments& a) {
  Layer<T> layer(a, true);
  const LstmTransposed<T> transposed(static_cast<const T*>(a.weight_ih), static_cast<const T*>(a.weight_hh), a.inputs,
                                     a.hidden, a.d_x != nullptr);
  const Carried<T> carried(layer);
  std::vector<LayerGradients<T>> sums;
  for (const Slice& slice : layer.slices) sums.emplace_back(layer, slice.rows());
  run_parallel(long(layer.slices.size()), a.threads, [&](long piece) {
    const size_t k = size_t(piece);
    BackwardSlice<T>(layer, transposed, carried, layer.slices[k], layer.work[k], sums[k]).run();
  });
  const auto to = [](void* gradient) { return static_cast<T*>(gradient); };
  for (const LayerGradients<T>& sum : sums) {
    sum.cell.add_to(layer.w, to(a.d_weight_ih), to(a.d_weight_hh), to(a.d_bias));
    sum.h.add_to(to(a.d_h_first), to(a.d_h_second));
    if (a.aggregate_cell) sum.c.add_to(to(a.d_c_first), to(a.d_c_second));
    if (layer.theta_path.first) sum.path.add_to(to(a.d_path_first), to(a.d_path_second));
  }
}

}  // namespace

SEQPYRAMID_KERNEL(tp_rnn_nodes, TpRnnArguments, tp_rnn_nodes)
SEQPYRAMID_KERNEL(tp_rnn_forward, TpRnnArguments, tp_rnn_forward)
SEQPYRAMID_KERNEL(tp_rnn_backward, TpRnnArguments, tp_rnn_backward)
