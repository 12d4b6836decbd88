// HM-LSTM forward, for the rows of one slice: steps 1 to 5 of hm_lstm.cpp.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "hm_problem.h"
#include "rows.h"

namespace seqpyramid::hm {

// One thread's place for the slices that it takes, one after the other.
template <class T>
struct Worker {
  const Problem<T>& problem;
  const Call& call;
  const long L;
  long first = 0, count = 0;   // the slice's rows
  std::vector<Mix<T>> going;   // rows that have a step: UPDATE, FLUSH with an open layer below, FLUSH, COPY
  long above_from = 0;         // where FLUSH begins: from here on h of the layer above counts
  long below_to = 0;           // where the layer below is no more open: before, its h counts
  long flushed = 0;            // where rows begin, an even number of them before, that make no forget gate
  long moving = 0;             // where COPY begins, which needs no gates
  std::vector<Buffer<T>> X;    // of each layer
  Kept<T> kept;

  Worker(const Problem<T>& p, Kept<T> kept_) : problem(p), call(p.call), L(p.call.layers), kept(std::move(kept_)) {
    going.reserve(SLICE_ROWS);
    for (const Weights<T>& w : problem.weights) X.emplace_back(size_t(SLICE_ROWS * w.stride + TILE_DEPTH));
  }

  // One buffer (SLICE_ROWS, stride) a layer.
  std::vector<Buffer<T>> states() const {
    std::vector<Buffer<T>> each;
    for (const Weights<T>& w : problem.weights) each.emplace_back(size_t(SLICE_ROWS * w.layout.states));
    return each;
  }

  Rows<const T> x(long t) const {
    return {static_cast<const T*>(call.x) + first * call.x_row + t * call.x_step, call.x_row};
  }

  // List the rows that go on.
  void list(long t, Rows<const T> own, Rows<const T> below) {
    going.clear();
    const auto append = [&](bool flushes, bool open) {
      for (long row = 0; row < count; ++row) {
        if (t >= call.lengths[first + row]) continue;
        const T z = *own.at(row), z_below = below ? *below.at(row) : T(1);
        if ((z != 0) != flushes || (z_below != 0) != open) continue;
        const T keep = (1 - z) * (1 - z_below);
        going.push_back({row, z, z_below, 1 - keep, (1 - z) * z_below, keep});
      }
      return long(going.size());
    };
    above_from = append(false, true);
    below_to = append(true, true);
    moving = append(true, false);
    append(false, false);
    const bool forgets = call.soft || call.choice;  // even where the boundary is open
    flushed = forgets || above_from + FEWEST_FLUSHED > moving ? moving : (above_from + 1) / 2 * 2;
  }

  // How many gates row n makes.
  long gates_of(long n) const { return n < flushed ? GATES : FLUSH_GATES; }

  // Call visit(first row, the one past the last) for the moving rows that make all gates, and for those that do not.
  template <class Visit>
  SEQPYRAMID_INLINE void for_gates(const Visit& visit) const {
    if (flushed > 0) visit(0, flushed);
    if (flushed < moving) visit(flushed, moving);
  }

  // Call visit(first row, the one past the last, first column, columns) for the parts of X, among the rows [from, to),
  // that are not zero.
  template <class Visit>
  void for_parts(long l, long from, long to, const Visit& visit) const {
    const Weights<T>& w = problem.weights[l];
    visit(from, to, 0, w.above_column());
    if (std::max(from, above_from) < to) visit(std::max(from, above_from), to, w.above_column(), w.above);
    if (from < std::min(to, below_to)) visit(from, std::min(to, below_to), w.below_column(), w.below);
  }

  // Blocks of the depth K on tiles, at most two stretches of them, in which rows [from, to) of X are not all zero.
  std::vector<Depth> depths(long l, long from, long to) const {
    const Weights<T>& w = problem.weights[l];
    const bool has_above = w.above && above_from < std::min(to, moving) && from < moving, has_below = from < below_to;
    const long own = depth_blocks(w.above_column()), all = depth_blocks(w.K);
    if (has_above && has_below) return {{0, all}};
    if (has_above) return {{0, depth_blocks(w.below_column())}};
    const long below = std::max(own, w.below_column() / TILE_DEPTH);
    if (!has_below || below == all) return {{0, own}};
    if (below == own) return {{0, all}};
    return {{0, own}, {below, all}};
  }

  // h of row n itself, and the 1 that meets b, in the first columns of X.
  void gather_own(long l, long n, Rows<const T> own) {
    const Weights<T>& w = problem.weights[l];
    T* row = X[l].data() + n * w.stride;
    copy(row, own.at(going[n].row), w.layout.hidden);
    row[w.layout.hidden] = 1;
  }

  // The other columns of row n.
  void gather_others(long l, long n, Rows<const T> above, Rows<const T> below) {
    const Weights<T>& w = problem.weights[l];
    const Mix<T>& mix = going[n];
    T* row = X[l].data() + n * w.stride;
    put_scaled(row + w.above_column(), mix.own, above.at(mix.row), w.above);
    put_scaled(row + w.below_column(), mix.below, below.at(mix.row), w.below);
  }

 private:
  // What a closed boundary hides is not even looked at.
  static void put_scaled(T* to, T boundary, const T* from, long n) {
    if (boundary == 0)
      std::fill_n(to, n, T(0));
    else
      scale(to, boundary, from, n);
  }
};

template <class T>
struct Forward : Worker<T> {
  using Worker<T>::problem, Worker<T>::call, Worker<T>::L, Worker<T>::first, Worker<T>::count;
  using Worker<T>::going, Worker<T>::flushed, Worker<T>::moving, Worker<T>::X, Worker<T>::kept;
  static constexpr long SUMS = SUMS_STRIDE<T>;
  std::vector<Buffer<T>> h, c;
  Buffer<T> z, x_z;  // [row][layer]
  Buffer<T> sums;    // [row][gate][width] of one block
  Buffer<Bf16> left;  // on tiles: X
  std::optional<Reader<T>> reader;
  Buffer<T> outputs;  // [row][outputs]: h of all layers where only the reader wants it

  explicit Forward(const Problem<T>& p) : Forward(p, Kept<T>(p)) {
    if (!p.output) return;
    reader.emplace(*p.output, call.read, SLICE_ROWS, false);
    if (!kept.outputs) outputs = Buffer<T>(size_t(SLICE_ROWS * p.outputs));
  }

  // One that makes steps again, for the backward pass.
  Forward(const Problem<T>& p, Kept<T> kept_)
      : Worker<T>(p, std::move(kept_)), h(this->states()), c(this->states()), z(size_t(SLICE_ROWS * L)),
        x_z(size_t(SLICE_ROWS * L)), sums(size_t(SLICE_ROWS * SUMS)) {
    long most = 0;
    for (const Weights<T>& w : problem.weights) most = std::max(most, left_stride(w.K));
    if (ON_TILES<T> && tiles_run()) left = Buffer<Bf16>(size_t(SLICE_ROWS * most));
  }

  Rows<const T> of(const std::vector<Buffer<T>>& state, long l) const {
    return {state[l].data(), problem.weights[l].layout.states};
  }

  void run() {
    for (long l = 0; l < L; ++l) start(l);
    for (long t = 0; t < call.steps; ++t) {
      if (call.segment && t > 0 && t % call.segment == 0)
        for (long l = 0; l < L; ++l) keep_start(t, l);
      advance(t);
      copy(at_step<T>(call, call.z, t, first, L), z.data(), count * L);
      if (call.x_z) copy(at_step<T>(call, call.x_z, t, first, L), x_z.data(), count * L);
    }
    for (long l = 0; l < L; ++l) finish(l);
  }

  // Steps [from, to) of a slice, whose z is known, for what is kept of them; the others are the states before `from`.
  void run_again(long from, long to, const std::vector<Buffer<T>>& h_before, const std::vector<Buffer<T>>& c_before) {
    kept.place.first_row = first, kept.place.first_step = from;
    for (long l = 0; l < L; ++l) {
      const long stride = problem.weights[l].layout.states;
      copy(h[l].data(), h_before[l].data(), count * stride);
      copy(c[l].data(), c_before[l].data(), count * stride);
      for (long row = 0; row < count; ++row)
        z.data()[row * L + l] = from > 0 ? at_step<T const>(call, call.z, from - 1, first + row, L)[l]
                                         : *at_step<T const>(call, call.layer[l].first_z, 0, first + row, 1);
    }
    for (long t = from; t < to; ++t) advance(t);
  }

  void start(long l) {
    const LayerCall& layer = call.layer[l];
    const Layout<T>& layout = problem.weights[l].layout;
    for (long row = 0; row < count; ++row) {
      copy(h[l].data() + row * layout.states, at_step<T const>(call, layer.first_h, 0, first + row, layout.hidden),
           layout.hidden);
      copy(c[l].data() + row * layout.states, at_step<T const>(call, layer.first_c, 0, first + row, layout.hidden),
           layout.hidden);
      z.data()[row * L + l] = *at_step<T const>(call, layer.first_z, 0, first + row, 1);
    }
  }

  void keep_start(long t, long l) {
    const long stride = problem.weights[l].layout.states;
    copy_past(start_of<T>(call, call.layer[l], t, 0, first, stride), h[l].data(), count * stride);
    copy_past(start_of<T>(call, call.layer[l], t, 1, first, stride), c[l].data(), count * stride);
  }

  void finish(long l) {
    const LayerCall& layer = call.layer[l];
    const long H = problem.weights[l].layout.hidden;
    for (long row = 0; row < count; ++row) {
      copy(at_step<T>(call, layer.last_h, 0, first + row, H), of(h, l).at(row), H);
      copy(at_step<T>(call, layer.last_c, 0, first + row, H), of(c, l).at(row), H);
      *at_step<T>(call, layer.last_z, 0, first + row, 1) = z.data()[row * L + l];
    }
  }

  // All layers by one step, and what is made of their h.
  void advance(long t) {
    for (long l = 0; l < L; ++l) step(t, l);
    T* const to = kept.outputs ? kept.h(t, first) : outputs.data();
    for (long row = 0; to && row < count; ++row)
      for (long l = 0; l < L; ++l)
        copy(to + row * problem.outputs + problem.offset[l], of(h, l).at(row), problem.weights[l].layout.hidden);
    if (reader) read(t, to);
  }

  void read(long t, const T* all_h) {
    const long E = call.read.embedded;
    T* const e = at_step<T>(call, call.read.e, t, first, E);
    reader->forward(count, all_h, call.read.g ? at_step<T>(call, call.read.g, t, first, L) : nullptr, e);
    for (long row = 0; row < count; ++row)
      if (t >= call.lengths[first + row]) std::fill_n(e + row * E, E, T(0));
  }

  void step(long t, long l) {
    const Weights<T>& w = problem.weights[l];
    T* own = z.data() + l;
    const KeptGates<T> gates = kept.gates(t, l, first);
    this->list(t, {own, L}, l ? Rows<const T>{own - 1, L} : Rows<const T>{nullptr, 0});
    const Rows<const T> above = of(h, w.above ? l + 1 : l), below = l ? of(h, l - 1) : this->x(t);
    const long read = w.has_boundary ? long(going.size()) : moving;
    for (long n = 0; n < read; ++n) {
      this->gather_own(l, n, of(h, l));
      this->gather_others(l, n, above, below);
    }
    if (ON_TILES<T> && moving >= fewest_tiled_rows)
      advance_on_tiles(l, gates);
    else
      for (const Block& block : w.layout.blocks) advance(l, block, gates);
    if (w.has_boundary)
      for (size_t n = 0; n < going.size(); ++n) {
        const T x = dot(X[l].data() + long(n) * w.stride, w.boundary.data(), w.stride);
        x_z.data()[going[n].row * L + l] = x;
        own[going[n].row * L] = problem.boundary(x);
      }
    if (T* const cells = kept.cells(t, l, first)) copy_past(cells, c[l].data(), count * w.layout.states);
  }

  // Take the moving rows through one block of units: gates, then c and h in place. What comes out in lanes without a
  // unit is finite and has no reader: its gradient is 0. The product is a loop of its own: beside the constants of exp, GCC
  // would not keep its sums on registers.
  void advance(long l, const Block& block, KeptGates<T> gates) {
    const Weights<T>& w = problem.weights[l];
    std::fill_n(sums.data(), moving * SUMS, T(0));
    this->for_gates([&](long first_row, long end) {
      const long vectors = block.vectors<T>(this->gates_of(first_row));
      this->for_parts(l, first_row, end, [&](long from, long to, long column, long depth) {
        add_product<T>(to - from, vectors, depth, X[l].data() + from * w.stride + column, w.stride, 1,
                       w.forward.data() + w.panel(block) + column * block.lanes(), block.lanes(),
                       sums.data() + from * SUMS, SUMS);
      });
    });
    finish_rows(l, block, sums.data(), gates, 0, moving);
  }

  // All blocks of a layer, in groups of rows. While the tiles are at the sums of one block, vectors finish the one before.
  void advance_on_tiles([[maybe_unused]] long l, [[maybe_unused]] KeptGates<T> gates) {
    if constexpr (ON_TILES<T>) {
      const Weights<T>& w = problem.weights[l];
      for (long row = 0; row < moving; ++row)
        split_row(w.K, X[l].data() + row * w.stride, left.data() + row * left_stride(w.K));
      const Block* done = nullptr;                 // whose sums are there,
      T *done_sums = nullptr, *now = sums.data();  // where,
      long row = 0, last = 0;                      // and its unfinished rows
      for (const Block& block : w.layout.blocks)
        for (long group = 0; group < moving; group += TILED_ROWS) {
          if (block.lanes() < SUMS) std::fill_n(now, TILED_ROWS * SUMS, T(0));
          long calls = 0;
          const auto meanwhile = [&] {
            if (++calls % 3 || row + 2 > last) return;
            open_gates<2>(l, *done, done_sums, row, gates);
            put_out<2>(l, *done, done_sums, row);
            row += 2;
          };
          const long end = std::min(moving, group + TILED_ROWS), tile = block.gates() / TILE;
          bool add = false;
          for (const Depth& depth : this->depths(l, group, end)) {
            multiply(end - group, left.data() + group * left_stride(w.K), w.tiles, depth, tile,
                     tile + block.vectors<T>(this->gates_of(group)), now, SUMS, add, meanwhile);
            add = true;
          }
          if (done) finish_rows(l, *done, done_sums, gates, row, last);
          done = &block, done_sums = now - group * SUMS, row = group, last = end;
          now = sums.data() + (now == sums.data() ? TILED_ROWS * SUMS : 0);
        }
      finish_rows(l, *done, done_sums, gates, row, last);
    }
  }

  // Rows [from, to) of a block, from their sums to h.
  void finish_rows(long l, const Block& block, T* block_sums, KeptGates<T> gates, long from, long to) {
    long row = from;
    for (; row + 2 <= to; row += 2) open_gates<2>(l, block, block_sums, row, gates);
    if (row < to) open_gates<1>(l, block, block_sums, row, gates);
    for_row_tiles(to - from, [&](auto tile, long n) { put_out<decltype(tile)::value>(l, block, block_sums, from + n); });
  }

  // The gates of R rows, and with them c.
  template <int R>
  SEQPYRAMID_INLINE void open_gates(long l, const Block& block, T* block_sums, long from, KeptGates<T> gates) {
    from < flushed ? open_gates<R, GATES>(l, block, block_sums, from, gates)
                   : open_gates<R, FLUSH_GATES>(l, block, block_sums, from, gates);
  }

  // What is kept of a whole block goes past the caches: the backward pass is far.
  template <int R, long N>
  SEQPYRAMID_INLINE void open_gates(long l, const Block& block, T* block_sums, long from, KeptGates<T> gates) {
    const Layout<T>& layout = problem.weights[l].layout;
    Vector<T> gate[R * N];
    SEQPYRAMID_UNROLL
    for (int k = 0; k < R * N; ++k) gate[k] = load(block_sums + (from + k / N) * SUMS + k % N * block.width);
    squash<T, (1 << G) | (R > 1 ? 1 << (N + G) : 0)>(gate);
    SEQPYRAMID_UNROLL
    for (int r = 0; r < R; ++r) {
      Vector<T> own[N];
      SEQPYRAMID_UNROLL
      for (int k = 0; k < N; ++k) own[k] = gate[r * N + k];
      if (gates) gates.store(from + r, block, own);
      const Mix<T>& mix = going[from + r];
      T* c_row = c[l].data() + mix.row * layout.states + block.unit;
      Vector<T> new_c = mix.change * (own[I] * own[G]);
      if constexpr (N > F) new_c += (mix.update * own[F] + mix.keep) * load(c_row);
      store<T>(c_row, new_c);
      store(block_sums + (from + r) * SUMS, own[O]);
    }
  }

  // h of R rows, from c and the o that open_gates left.
  template <int R>
  SEQPYRAMID_INLINE void put_out(long l, const Block& block, const T* block_sums, long from) {
    const long stride = problem.weights[l].layout.states;
    Vector<T> squashed[R];
    SEQPYRAMID_UNROLL
    for (int r = 0; r < R; ++r) squashed[r] = load(c[l].data() + going[from + r].row * stride + block.unit);
    squash<T, 0b11111111>(squashed);
    SEQPYRAMID_UNROLL
    for (int r = 0; r < R; ++r) {
      const Mix<T>& mix = going[from + r];
      T* h_row = h[l].data() + mix.row * stride + block.unit;
      const Vector<T> o = load(block_sums + (from + r) * SUMS);
      store<T>(h_row, mix.keep * load(h_row) + mix.change * (o * squashed[r]));
    }
  }
};

}  // namespace seqpyramid::hm
