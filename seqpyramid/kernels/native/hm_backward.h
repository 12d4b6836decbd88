// HM-LSTM backward, for the rows of one slice; the equations stand in seqpyramid/kernels/hm_lstm.py.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "hm_forward.h"

namespace seqpyramid::hm {

// One thread's sums of a layer's weight gradients, in the layouts of Weights.
template <class T>
struct WeightGradient {
  Buffer<T> gates, boundary;

  explicit WeightGradient(const Weights<T>& w) : gates(size_t(w.stride * w.layout.gates)), boundary(size_t(w.stride)) {}
};

// Sums over a row's units of which the gradients of its two boundaries are made; those that reach h and c by
// COPY, by the part of UPDATE that is not FLUSH, by FLUSH.
template <class T>
struct Choice {
  Vector<T> copy, update, flush;
};

// What the boundaries learn of from rows of a layer that copy: how far UPDATE's and FLUSH's results are from COPY's. As
// long as a row copies, it is the same at all steps, as are h, c and what the gates are made of.
template <class T>
struct Alternatives {
  std::vector<char> known;     // by row
  Buffer<T> flush_c, flush_h;  // i g - c, o tanh(c) - h, [row][padded H]
  Buffer<T> update_c;          // f c, the same; what UPDATE has more than FLUSH

  explicit Alternatives(const Weights<T>& w)
      : known(SLICE_ROWS), flush_c(size_t(SLICE_ROWS * w.layout.states)),
        flush_h(size_t(SLICE_ROWS * w.layout.states)), update_c(size_t(SLICE_ROWS * w.layout.states)) {}
};

// Rows of a layer whose shares of the weights' gradients are still to be added: a few at a time would cost as much as
// many, since all the sums are read and written for them.
template <class T>
struct Waiting {
  long rows = 0;
  Buffer<T> X, d_gates;  // as the step had them; [block][row][gate][width]

  explicit Waiting(const Weights<T>& w)
      : X(size_t(SLICE_ROWS * w.stride)), d_gates(size_t(SLICE_ROWS * w.layout.gates)) {}

  T* d_gates_of(const Block& block) const { return d_gates.data() + block.gates() * SLICE_ROWS; }
};

template <class T>
struct Backward : Worker<T> {
  using Worker<T>::problem, Worker<T>::call, Worker<T>::L, Worker<T>::first, Worker<T>::count;
  using Worker<T>::going, Worker<T>::flushed, Worker<T>::moving;
  using Worker<T>::X, Worker<T>::kept;
  static constexpr long SUMS = SUMS_STRIDE<T>, GROUPS = SLICE_ROWS / TILED_ROWS;
  // d_h, d_c and d_z of a layer stand at step t until the layer is done with it, and at step t - 1 from then on.
  std::vector<Buffer<T>> d_h, d_c, d_X;
  std::vector<Buffer<T>> h_before, c_before;  // all steps, or those of the segment
  Buffer<T> d_z;      // [row][layer]
  Buffer<T> d_gates;  // [row][gate][width] of one block
  std::vector<Alternatives<T>> alternatives;
  std::vector<Choice<T>> choices;
  std::vector<T> d_x_z;  // of the rows that go on
  std::vector<WeightGradient<T>> sums;
  std::vector<Waiting<T>> waiting;
  Buffer<Bf16> left, right, transposed;  // on tiles: pieces of two blocks' d_gates, twice, and of X
  std::optional<Reader<T>> reader;
  std::unique_ptr<Room<T>> room;         // with segments, what makes them again, and where
  std::unique_ptr<Forward<T>> forward;

  explicit Backward(const Problem<T>& p)
      : Worker<T>(p, Kept<T>(p)), d_h(this->states()), d_c(this->states()), h_before(this->states()),
        c_before(this->states()), d_z(size_t(SLICE_ROWS * L)), d_gates(size_t(SLICE_ROWS * SUMS)), choices(SLICE_ROWS),
        d_x_z(SLICE_ROWS) {
    for (const Weights<T>& w : problem.weights) {
      d_X.emplace_back(size_t(SLICE_ROWS * w.stride));
      sums.emplace_back(w);
      waiting.emplace_back(w);
      alternatives.emplace_back(w);
    }
    if (ON_TILES<T> && tiles_run()) {
      long most = 0;
      for (const Weights<T>& w : problem.weights) most = std::max(most, w.stride / TILE * PIECES * TILE_SIZE);
      left = Buffer<Bf16>(size_t(2 * SLICE_ROWS * left_stride(SUMS)));
      right = Buffer<Bf16>(size_t(2 * GROUPS * GATES * PIECES * TILE_SIZE));
      transposed = Buffer<Bf16>(size_t(GROUPS * most));
    }
    if (p.output) reader.emplace(*p.output, call.read, SLICE_ROWS, true);
    if (!call.segment) return;
    room = std::make_unique<Room<T>>(p);
    kept = room->kept(p);
    forward = std::make_unique<Forward<T>>(p, kept);
  }

  // h, c and z after step t; after step -1 they are the first state.
  Rows<const T> h(long t, long l) const {
    if (t < kept.place.first_step) return {h_before[l].data(), problem.weights[l].layout.states};
    return {kept.h(t, first) + problem.offset[l], problem.outputs};
  }
  Rows<const T> c(long t, long l) const {
    const long stride = problem.weights[l].layout.states;
    return {t < kept.place.first_step ? c_before[l].data() : kept.cells(t, l, first), stride};
  }
  // In the order of the list.
  KeptGates<T> gates_at(long t, long l) const { return kept.gates(t, l, first); }
  Rows<const T> z(long t, long l) const {
    if (t < 0) return {at_step<T const>(call, call.layer[l].first_z, 0, first, 1), 1};
    return {at_step<T const>(call, call.z, t, first, L) + l, L};
  }

  void run() {
    for (long l = 0; l < L; ++l) start(l);
    each_segment_back(call.steps, call.segment, [&](long from, long to) {
      for (long l = 0; l < L; ++l) recall(from, l);
      if (forward) {
        kept.place.first_row = first, kept.place.first_step = from;
        forward->first = first, forward->count = count;
        forward->run_again(from, to, h_before, c_before);
      }
      back(from, to);
    });
    if (reader) reader->add_waiting();
    for (long l = 0; l < L; ++l) {
      add_waiting(l);
      finish(l);
    }
  }

  // Steps [from, to), the last first.
  void back(long from, long to) {
    for (long t = to - 1; t >= from; --t) {
      if (call.read.d_e) read_back(t);
      for (long row = 0; row < count; ++row) {
        for (long l = 0; call.d_h && l < L; ++l)
          add(d_h[l].data() + row * problem.weights[l].layout.states, T(1),
              at_step<T const>(call, call.d_h, t, first + row, problem.outputs) + problem.offset[l],
              problem.weights[l].layout.hidden);
        if (call.d_z) add(d_z.data() + row * L, T(1), at_step<T const>(call, call.d_z, t, first + row, L), L);
      }
      for (long l = L - 1; l >= 0; --l) step(t, l);
    }
  }

  // From the gradient of e to that of h.
  void read_back(long t) {
    const ReadCall& read = call.read;
    const Rows<const T> d_e{static_cast<const T*>(read.d_e) + t * read.d_step + first * read.d_row, read.d_row};
    reader->backward(count, kept.h(t, first), at_step<T const>(call, read.g, t, first, L),
                     at_step<T const>(call, read.e, t, first, read.embedded), d_e);
    for (long row = 0; row < count; ++row)
      for (long l = 0; l < L; ++l) {
        const Layout<T>& layout = problem.weights[l].layout;
        add(d_h[l].data() + row * layout.states, T(1), reader->d_h(row) + problem.offset[l], layout.hidden);
      }
  }

  // h and c before step t, the first ones or those of a segment.
  void recall(long t, long l) {
    const LayerCall& layer = call.layer[l];
    const Layout<T>& layout = problem.weights[l].layout;
    const long stride = layout.states, H = layout.hidden;
    if (t > 0) {
      copy(h_before[l].data(), start_of<T>(call, layer, t, 0, first, stride), count * stride);
      copy(c_before[l].data(), start_of<T>(call, layer, t, 1, first, stride), count * stride);
      return;
    }
    for (long row = 0; row < count; ++row) {
      copy(h_before[l].data() + row * stride, at_step<T const>(call, layer.first_h, 0, first + row, H), H);
      copy(c_before[l].data() + row * stride, at_step<T const>(call, layer.first_c, 0, first + row, H), H);
    }
  }

  void start(long l) {
    const LayerCall& layer = call.layer[l];
    const Layout<T>& layout = problem.weights[l].layout;
    std::fill(alternatives[l].known.begin(), alternatives[l].known.end(), false);
    const long H = layout.hidden;
    for (long row = 0; row < count; ++row) {
      copy(d_h[l].data() + row * layout.states, at_step<T>(call, layer.d_h, 0, first + row, H), H);
      copy(d_c[l].data() + row * layout.states, at_step<T>(call, layer.d_c, 0, first + row, H), H);
      d_z.data()[row * L + l] = *at_step<T>(call, layer.d_z, 0, first + row, 1);
    }
  }

  void finish(long l) {
    const LayerCall& layer = call.layer[l];
    const Layout<T>& layout = problem.weights[l].layout;
    const long H = layout.hidden;
    for (long row = 0; row < count; ++row) {
      copy(at_step<T>(call, layer.d_h, 0, first + row, H), d_h[l].data() + row * layout.states, H);
      copy(at_step<T>(call, layer.d_c, 0, first + row, H), d_c[l].data() + row * layout.states, H);
      *at_step<T>(call, layer.d_z, 0, first + row, 1) = d_z.data()[row * L + l];
    }
  }

  void step(long t, long l) {
    const Weights<T>& w = problem.weights[l];
    const Rows<const T> above = h(t - 1, w.above ? l + 1 : l), below = l ? h(t, l - 1) : this->x(t);
    this->list(t, z(t - 1, l), l ? z(t, l - 1) : Rows<const T>{nullptr, 0});
    const long known_from = sort_copies(l);
    for (long n = 0; n < moving; ++n) announce(gates_at(t, l), n, w.layout.blocks[0], c(t - 1, l).at(going[n].row));
    for (long n = 0; n < long(going.size()); ++n) {
      choices[n] = Choice<T>{};
      d_x_z[n] = boundary_gradient(t, l, going[n].row);
      if (has_sources(n) || n < known_from) this->gather_own(l, n, h(t - 1, l));
      if (!has_sources(n)) continue;
      this->gather_others(l, n, above, below);
      scale(d_X[l].data() + n * w.stride, d_x_z[n], w.boundary.data(), w.stride);
      if (w.has_boundary) add(sums[l].boundary.data(), d_x_z[n], X[l].data() + n * w.stride, w.stride);
    }
    if (ON_TILES<T> && moving >= fewest_tiled_rows)
      go_back_on_tiles(t, l);
    else if (moving > 0)
      go_back(t, l);
    if (moving < known_from) find_alternatives(t, l, known_from);
    for (long n = moving; call.choice && n < long(going.size()); ++n) weigh(l, n);
    for (long n = 0; n < long(going.size()); ++n) hand_on(t, l, n, above, below);
  }

  // Where the list has rows that copy and whose alternatives are known; it gets those that are not before them.
  long sort_copies(long l) {
    std::vector<char>& known = alternatives[l].known;
    for (long n = 0; n < moving; ++n) known[going[n].row] = false;
    if (!call.choice) return moving;
    const auto is_new = [&](const Mix<T>& mix) { return !known[mix.row]; };
    return std::partition(going.begin() + moving, going.end(), is_new) - going.begin();
  }

  // Those of the rows before `to` that copy, from the gates that a step like COPY's would have: own h alone counts.
  void find_alternatives(long t, long l, long to) {
    const Weights<T>& w = problem.weights[l];
    Alternatives<T>& found = alternatives[l];
    const long rows = to - moving, stride = w.layout.states;
    const T* const own = X[l].data() + moving * w.stride;
    for (const Block& block : w.layout.blocks) {
      std::fill_n(d_gates.data(), rows * SUMS, T(0));
      add_product<T>(rows, block.lanes() / LANES<T>, w.above_column(), own, w.stride, 1,
                     w.forward.data() + w.panel(block), block.lanes(), d_gates.data(), SUMS);
      for (long n = 0; n < rows; ++n) {
        const long row = going[moving + n].row, place = row * stride + block.unit;
        const Vector<T> same_c = load(c(t, l).at(row) + block.unit), same_h = load(own + n * w.stride + block.unit);
        Vector<T> gate[GATES];
        SEQPYRAMID_UNROLL
        for (int k = 0; k < GATES; ++k) gate[k] = load(d_gates.data() + n * SUMS + k * block.width);
        squash<T, 1 << G>(gate);
        store<T>(found.flush_c.data() + place, gate[I] * gate[G] - same_c);
        store<T>(found.flush_h.data() + place, gate[O] * tanh<T>(same_c) - same_h);
        store<T>(found.update_c.data() + place, gate[F] * same_c);
        found.known[row] = true;
      }
    }
  }

  // Take the moving rows back through the gates: d_X, and the sums of the weights' gradients.
  void go_back(long t, long l) {
    const Weights<T>& w = problem.weights[l];
    const long vectors = padded<T>(l || call.d_x ? w.K : w.below_column()) / LANES<T>;
    const bool few = 2 * moving <= SLICE_ROWS;
    if (few && waiting[l].rows + moving > SLICE_ROWS) add_waiting(l);
    for (const Block& block : w.layout.blocks) {
      this->for_gates([&](long from, long to) {
        for_row_tiles(to - from, [&](auto tile, long n) {
          differentiate<decltype(tile)::value>(t, l, block, from + n, d_gates.data() + (from + n) * SUMS);
        });
        add_product<T>(to - from, vectors, this->gates_of(from) * block.width, d_gates.data() + from * SUMS, SUMS, 1,
                       w.backward.data() + block.gates() * w.stride, w.stride, d_X[l].data() + from * w.stride,
                       w.stride);
      });
      if (few) {
        keep_waiting(l, block);
        continue;
      }
      this->for_gates([&](long first_row, long end) {
        const long sums_vectors = block.vectors<T>(this->gates_of(first_row));
        this->for_parts(l, first_row, end, [&](long from, long to, long column, long columns) {
          add_product<T>(columns, sums_vectors, to - from, X[l].data() + from * w.stride + column, 1, w.stride,
                         d_gates.data() + from * SUMS, SUMS,
                         sums[l].gates.data() + w.panel(block) + column * block.lanes(), block.lanes());
        });
      });
    }
    if (few) waiting[l].rows += moving;
  }

  // Put the moving rows' part of one block behind those that wait.
  void keep_waiting(long l, const Block& block) {
    const Weights<T>& w = problem.weights[l];
    const long from = waiting[l].rows;
    if (block.unit == 0) copy(waiting[l].X.data() + from * w.stride, X[l].data(), moving * w.stride);
    T* to = waiting[l].d_gates_of(block) + from * block.lanes();
    for (long n = 0; n < moving; ++n) copy(to + n * block.lanes(), d_gates.data() + n * SUMS, block.lanes());
  }

  Bf16* left_of(size_t block) const { return left.data() + long(block % 2) * SLICE_ROWS * left_stride(SUMS); }
  Bf16* right_of(size_t block, long group) const {
    return right.data() + (long(block % 2) * GROUPS + group) * GATES * PIECES * TILE_SIZE;
  }

  // go_back with its products on tiles. While they are at those of one block, vectors make the next one's gradients.
  void go_back_on_tiles([[maybe_unused]] long t, [[maybe_unused]] long l) {
    if constexpr (ON_TILES<T>) {
      const Weights<T>& w = problem.weights[l];
      const long columns = padded<T>(l || call.d_x ? w.K : w.below_column());
      const long pairs = (moving + 1) / 2, groups = (moving + TILED_ROWS - 1) / TILED_ROWS;
      const size_t blocks = w.layout.blocks.size();
      const bool few = groups == 1;
      if (few && waiting[l].rows + moving > SLICE_ROWS) add_waiting(l);
      Waiting<T>& later = waiting[l];
      if (few) copy(later.X.data() + later.rows * w.stride, X[l].data(), moving * w.stride);
      const auto rows_in = [&](long group) { return std::min(TILED_ROWS, moving - group * TILED_ROWS); };
      for (long group = 0; !few && group < groups; ++group)
        split_transposed(rows_in(group), w.K, X[l].data() + group * TILED_ROWS * w.stride, w.stride,
                         transposed_of(l, group));
      const auto prepare = [&](size_t k, long pair) {
        const Block& block = w.layout.blocks[k];
        const long n = 2 * pair, lanes = block.lanes(), group = n / TILED_ROWS;
        const bool two = n + 1 < moving;
        T d[2 * SUMS_STRIDE<T> + LANES<T>];
        two ? differentiate<2>(t, l, block, n, d) : differentiate<1>(t, l, block, n, d);
        split_both(n % TILED_ROWS / 2, lanes, d, two ? d + SUMS : nullptr,
                   left_of(k) + group * TILED_ROWS * left_stride(lanes), right_of(k, group));
        for (long r = 0; few && r < 1 + two; ++r)
          copy(later.d_gates_of(block) + (later.rows + n + r) * lanes, d + r * SUMS, lanes);
      };
      const auto finish = [&](size_t k, long pair) {
        for (; pair < pairs; ++pair) prepare(k, pair);
        const long lanes = w.layout.blocks[k].lanes(), stride = left_stride(lanes);
        const long whole = (moving + TILE - 1) / TILE * TILE;
        std::fill_n(left_of(k) + moving * stride, (whole - moving) * stride, Bf16(0));
        if (!few) clear_pairs((rows_in(groups - 1) + 1) / 2, lanes, right_of(k, groups - 1));
      };
      finish(0, 0);
      for (size_t k = 0; k < blocks; ++k) {
        const Block& block = w.layout.blocks[k];
        const long lanes = block.lanes();
        long pair = 0, calls = 0;
        const auto meanwhile = [&] {
          if (k + 1 == blocks || ++calls % 3 || pair == pairs) return;
          prepare(k + 1, pair++);
        };
        for (long group = 0; group < groups; ++group) {
          const long from = group * TILED_ROWS;
          multiply(rows_in(group), left_of(k) + from * left_stride(lanes), w.block_tiles[k], w.block_tiles[k].depth(), 0,
                   columns / TILE, d_X[l].data() + from * w.stride, w.stride, true, meanwhile);
          if (few) continue;
          for (const Depth& depth : this->depths(l, from, from + rows_in(group))) {
            const long first_tile = depth.first * TILE_DEPTH / TILE;
            const long last_tile = std::min(depth.last * TILE_DEPTH / TILE, w.stride / TILE);
            add_product_over_rows(last_tile - first_tile, block.vectors<T>(this->gates_of(from)),
                                  transposed_of(l, group) + first_tile * PIECES * TILE_SIZE, right_of(k, group),
                                  sums[l].gates.data() + w.panel(block) + first_tile * TILE * lanes, lanes, meanwhile);
          }
        }
        if (k + 1 < blocks) finish(k + 1, pair);
      }
      if (few) later.rows += moving;
    }
  }

  // X of a group of rows.
  Bf16* transposed_of(long l, long group) const {
    return transposed.data() + group * (problem.weights[l].stride / TILE) * PIECES * TILE_SIZE;
  }

  void add_waiting_on_tiles([[maybe_unused]] long l) {
    if constexpr (ON_TILES<T>) {
      const Weights<T>& w = problem.weights[l];
      const Waiting<T>& all = waiting[l];
      for (long from = 0; from < all.rows; from += TILED_ROWS) {
        const long rows = std::min(TILED_ROWS, all.rows - from), pairs = (rows + 1) / 2;
        split_transposed(rows, w.K, all.X.data() + from * w.stride, w.stride, transposed_of(l, 0));
        const auto prepare = [&](size_t k, long pair) {
          const long lanes = w.layout.blocks[k].lanes(), n = 2 * pair;
          const T* const d = all.d_gates_of(w.layout.blocks[k]) + (from + n) * lanes;
          split_both(pair, lanes, d, n + 1 < rows ? d + lanes : nullptr, left_of(k), right_of(k, 0));
        };
        for (size_t k = 0; k < w.layout.blocks.size(); ++k) {
          const Block& block = w.layout.blocks[k];
          for (long pair = 0; pair < pairs; ++pair) prepare(k, pair);
          clear_pairs(pairs, block.lanes(), right_of(k, 0));
          add_product_over_rows(w.stride / TILE, block.lanes() / TILE, transposed_of(l, 0), right_of(k, 0),
                                sums[l].gates.data() + w.panel(block), block.lanes());
        }
      }
    }
  }

  void add_waiting(long l) {
    const Weights<T>& w = problem.weights[l];
    if (ON_TILES<T> && waiting[l].rows >= fewest_tiled_rows)
      add_waiting_on_tiles(l);
    else
      for (const Block& block : w.layout.blocks)
      add_product<T>(w.K, block.lanes() / LANES<T>, waiting[l].rows, waiting[l].X.data(), 1, w.stride,
                     waiting[l].d_gates_of(block), block.lanes(), sums[l].gates.data() + w.panel(block), block.lanes());
    waiting[l].rows = 0;
  }

  // The gradient of a row's z~, which is then done with.
  T boundary_gradient(long t, long l, long row) {
    if (!problem.weights[l].has_boundary) return 0;
    T& d = d_z.data()[row * L + l];
    const T gradient = d * problem.boundary_slope(at_step<T>(call, call.x_z, t, first + row, L)[l]);
    d = 0;
    return gradient;
  }

  // Whether anything of the sums that made row n, and so d_X, has a gradient.
  bool has_sources(long n) const { return n < moving || d_x_z[n] != 0; }

  // Tell memory what is wanted soon of one row and block.
  SEQPYRAMID_INLINE static void announce(KeptGates<T> gates, long n, const Block& block, const T* c_before) {
    gates.expect(n, block);
    __builtin_prefetch(c_before, 0, 2);
  }

  // Make the gradients of one block's sums for R rows, and take d_h and d_c of the layer's own path back by one step.
  // The next block has the time of the products to come from memory.
  template <int R>
  SEQPYRAMID_INLINE void differentiate(long t, long l, const Block& block, long from, T* to) {
    from < flushed ? differentiate<R, GATES>(t, l, block, from, to) : differentiate<R, FLUSH_GATES>(t, l, block, from, to);
  }

  template <int R, long N>
  SEQPYRAMID_INLINE void differentiate(long t, long l, const Block& block, long from, T* to) {
    const Weights<T>& w = problem.weights[l];
    const Rows<const T> before = c(t - 1, l), after = c(t, l);
    const KeptGates<T> gates = gates_at(t, l);
    const long width = block.width;
    const Block next{block.unit + width, width};
    Vector<T> squashed[R];
    SEQPYRAMID_UNROLL
    for (int r = 0; r < R; ++r) squashed[r] = load(after.at(going[from + r].row) + block.unit);
    squash<T, 0b11111111>(squashed);
    for (int r = 0; r < R; ++r) {
      const long n = from + r;
      const Mix<T>& mix = going[n];
      const T* c_row = before.at(mix.row) + block.unit;
      announce(gates, n, next, c_row + width);
      const Vector<T> i = gates.load(n, block, I), o = gates.load(n, block, O), g = gates.load(n, block, G);
      T* d_h_row = d_h[l].data() + mix.row * w.layout.states + block.unit;
      T* d_c_row = d_c[l].data() + mix.row * w.layout.states + block.unit;
      const Vector<T> tanh_c = squashed[r];
      const Vector<T> dh = load(d_h_row), d_new = mix.change * dh;
      const Vector<T> dc = load(d_c_row) + d_new * o * (T(1) - tanh_c * tanh_c), d_ig = mix.change * dc;
      T* d = to + r * SUMS;
      store<T>(d + I * width, d_ig * g * i * (T(1) - i));
      store<T>(d + O * width, d_new * tanh_c * o * (T(1) - o));
      store<T>(d + G * width, d_ig * i * (T(1) - g * g));
      store<T>(d_h_row, mix.keep * dh);
      if constexpr (N <= F) {
        store<T>(d + F * width, Vector<T>{});
        store<T>(d_c_row, Vector<T>{});
        continue;
      }
      const Vector<T> f = gates.load(n, block, F), c_before = load(c_row);
      store<T>(d + F * width, mix.update * dc * c_before * f * (T(1) - f));
      store<T>(d_c_row, (mix.update * f + mix.keep) * dc);
      if (call.choice) {
        const Vector<T> h_before = load(X[l].data() + n * w.stride + block.unit);
        choices[n].copy += dc * c_before + dh * h_before;
        choices[n].update += dc * f * c_before;
        choices[n].flush += dc * i * g + dh * o * tanh_c;
      }
    }
  }

  // What the boundaries learn from a row that copies, whose d_h and d_c stay.
  void weigh(long l, long n) {
    const Alternatives<T>& other = alternatives[l];
    const long stride = problem.weights[l].layout.states, row = going[n].row * stride;
    for (long u = row; u < row + stride; u += LANES<T>) {
      const Vector<T> dh = load(d_h[l].data() + u), dc = load(d_c[l].data() + u);
      choices[n].flush += dc * load(other.flush_c.data() + u) + dh * load(other.flush_h.data() + u);
      choices[n].update += dc * load(other.update_c.data() + u);
    }
  }

  // Give the parts of a row of d_X to the states that they belong to, and to the boundaries that gated them.
  void hand_on(long t, long l, long n, Rows<const T> above, Rows<const T> below) {
    const Weights<T>& w = problem.weights[l];
    const Mix<T>& mix = going[n];
    const T by_copy = sum_lanes<T>(choices[n].copy), by_flush = sum_lanes<T>(choices[n].flush);
    const T by_update = sum_lanes<T>(choices[n].update) + by_flush;
    T* d_own = d_z.data() + mix.row * L + l;
    *d_own += by_flush - mix.below * by_update - (1 - mix.below) * by_copy;
    if (l) d_own[-1] += (1 - mix.own) * (by_update - by_copy);
    if (!has_sources(n)) return;
    const T* own = d_X[l].data() + n * w.stride;
    const T *to_above = own + w.above_column(), *to_below = own + w.below_column();
    add(d_h[l].data() + mix.row * w.layout.states, T(1), own, w.layout.hidden);
    if (w.above) {
      *d_own += dot(to_above, above.at(mix.row), w.above);
      add(d_h[l + 1].data() + mix.row * problem.weights[l + 1].layout.states, mix.own, to_above, w.above);
    }
    if (l) {
      d_own[-1] += dot(to_below, below.at(mix.row), w.below);
      add(d_h[l - 1].data() + mix.row * problem.weights[l - 1].layout.states, mix.below, to_below, w.below);
    } else if (call.d_x) {
      copy(static_cast<T*>(call.d_x) + ((first + mix.row) * call.steps + t) * w.below, to_below, w.below);
    }
  }
};

}  // namespace seqpyramid::hm
