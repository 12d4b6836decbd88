// The GRU whose reset gate acts after the recurrent product, on tiles for matrices (tiles.h); its equations stand in
// gru.cpp.
//
// Sources stand side by side, z = [h', 1, x]: r and z read all of them, q reads [h', 1] and the candidate's other sum
// a_n reads [1, x]. Numbers of a unit's gates lie in blocks as gates.h says, in the order r, z, q, n. A narrow block
// takes all four from z, since together they fill a tile.
//
// On the way back blocks go in pairs, whose da_r, da_z and dq fill what a product reads at once, in the order
// [r z of one | r z of the other | both q]:
//
//   [dh', dx] += [W, U]^T [da_r, da_z, dq] + [0, U_n]^T da_n
//   d[W, b, U] += [da_r, da_z] z^T;  d[W_n, b_q] += dq [h', 1]^T;  d[b_n, U_n] += da_n [1, x]^T
//
// Shapes: H hidden units, F inputs, P = padded H, V lanes, K = H + F + 1.
#pragma once

#include "elman_layer.h"
#include "gates.h"
#include "sources.h"
#include "tiles.h"

namespace seqpyramid {

// The gates that have weights for only one of h' and x; those of a block begin with r and z.
constexpr long GRU_PRODUCT = 2, GRU_CANDIDATE = 3;

// The place of a gate among those of the input's weights and of the biases.
constexpr long gru_plane(long gate) { return gate == GRU_CANDIDATE ? 0 : gate + 1; }

// Blocks whose gradients go into products together.
struct BlockPair {
  size_t first, last;         // blocks
  long gates, candidates;     // columns of r, z and q, and those of n where it stands apart
  long sums, candidate_sums;  // where their gradients begin
};

// Weights as products on tiles want them; none for a batch of fewer rows than such products take.
template <class T>
struct GruWeights : StateWeights<T> {
  Layout<T> layout;
  long inputs, hidden;
  bool tiled;
  std::vector<BlockPair> pairs;
  long sums = 0;                                            // numbers of all gradients
  std::vector<RightFactor<T>> gates, products, candidates;  // forward, of a block each
  std::vector<RightFactor<T>> gates_back, candidates_back;  // backward, of a pair each

  GruWeights(const StateLayerArguments& a, long gates_, long planes)
      : StateWeights<T>(a, gates_, planes),
        layout(a.hidden),
        inputs(a.inputs),
        hidden(a.hidden),
        tiled(ON_TILES<T> && a.batch >= fewest_tiled_rows) {
    if constexpr (ON_TILES<T>)
      if (tiled) {
        make_pairs();
        if (!a.d_weight_hh || a.segment) pack_forward(a);
        if (a.d_weight_hh) pack_backward(a);
      }
  }

  long depth() const { return hidden + inputs + 1; }
  long source_tiles() const { return (depth() + TILE - 1) / TILE; }
  long state_tiles() const { return hidden / TILE + 1; }       // of [h', 1]
  long first_input_tile() const { return hidden / TILE; }      // of [1, x]
  bool narrow(const Block& block) const { return block.width < LANES<T>; }

  // Where a pair's r and z end and its q begin; a narrow block has none apart.
  long first_product(const BlockPair& pair) const {
    return narrow(layout.blocks[pair.first]) ? pair.gates : 2 * LANES<T> * long(pair.last - pair.first);
  }

  // Call visit(block, place among its gates) for a column of a pair.
  template <class Visit>
  auto with_column(const BlockPair& pair, long column, const Visit& visit) const {
    constexpr long V = LANES<T>;
    const Block* const block = &layout.blocks[pair.first];
    const long products = first_product(pair), q = column - products;
    if (narrow(*block)) return visit(*block, column);
    if (q < 0) return visit(block[column / (2 * V)], column % (2 * V));
    return visit(block[q / V], GRU_PRODUCT * V + q % V);
  }

 private:
  // The last block, which may be narrow, comes first and alone: its gradients are made while no tile is busy.
  void make_pairs() {
    for (size_t last = layout.blocks.size(); last > 0;) {
      const size_t first = last == layout.blocks.size() ? last - 1 : last - std::min(last, size_t(2));
      BlockPair pair{first, last, 0, 0, sums, 0};
      for (size_t k = first; k < last; ++k) {
        const Block& block = layout.blocks[k];
        pair.gates += narrow(block) ? block.lanes() : 3 * block.width;
        pair.candidates += narrow(block) ? 0 : block.width;
      }
      pair.candidate_sums = sums + source_tiles() * TILE * pair.gates;
      sums = pair.candidate_sums + (source_tiles() - first_input_tile()) * TILE * pair.candidates;
      pairs.push_back(pair);
      last = first;
    }
  }

  void pack_forward(const StateLayerArguments& a) {
    const T *const input = static_cast<const T*>(a.weight_ih), *const recurrent = static_cast<const T*>(a.weight_hh);
    const T* const bias = static_cast<const T*>(a.bias);
    const auto weight = [&](long k, long gate, long unit) {
      if (k < hidden) return gate == GRU_CANDIDATE ? T(0) : recurrent[(gate * hidden + unit) * hidden + k];
      const long row = gru_plane(gate) * hidden + unit;
      if (k == hidden) return bias[row];
      return gate == GRU_PRODUCT ? T(0) : input[row * inputs + k - hidden - 1];
    };
    for (const Block& block : layout.blocks) {
      const long lanes = block.lanes();
      const Buffer<T> weights(size_t(depth() * lanes));  // of each source
      for (long gate = 0; gate < GATES; ++gate)
        for (long u = 0; u < std::min(block.width, hidden - block.unit); ++u)
          for (long k = 0; k < depth(); ++k)
            weights.data()[k * lanes + gate * block.width + u] = weight(k, gate, block.unit + u);
      const auto columns = [&](long first, long count) {
        return RightFactor<T>(depth(), count, [&](long k, long tile) {
          return load(weights.data() + k * lanes + first * block.width + tile * TILE);
        });
      };
      gates.push_back(columns(0, narrow(block) ? lanes : GRU_PRODUCT * block.width));
      products.push_back(columns(GRU_PRODUCT, narrow(block) ? 0 : block.width));
      candidates.push_back(columns(GRU_CANDIDATE, narrow(block) ? 0 : block.width));
    }
  }

  void pack_backward(const StateLayerArguments& a) {
    const T *const input = static_cast<const T*>(a.weight_ih), *const recurrent = static_cast<const T*>(a.weight_hh);
    const long P = layout.states, columns = P + (a.d_x ? padded<T>(inputs) : 0);
    // Weights of one gate of one unit.
    const auto weights = [&](long gate, long unit, long column) {
      if (unit >= hidden || gate == (column < P ? GRU_CANDIDATE : GRU_PRODUCT)) return Vector<T>{};
      if (column < P) return load_first(recurrent + (gate * hidden + unit) * hidden + column, hidden - column);
      return load_first(input + (gru_plane(gate) * hidden + unit) * inputs + column - P, inputs - column + P);
    };
    for (const BlockPair& pair : pairs) {
      gates_back.emplace_back(pair.gates, columns, [&](long k, long tile) {
        return with_column(pair, k, [&](const Block& block, long place) {
          return weights(place / block.width, block.unit + place % block.width, tile * TILE);
        });
      });
      candidates_back.emplace_back(pair.candidates, columns - P, [&](long k, long tile) {
        return weights(GRU_CANDIDATE, layout.blocks[pair.first].unit + k, P + tile * TILE);
      });
    }
  }
};

// Memory that steps work in.
template <class T>
struct GruWork {
  Sources<T> sources;
  Buffer<T> a, d_sources;
  Buffer<Bf16> da_left, da_right, dn_left, dn_right;  // pieces of da

  explicit GruWork(const GruWeights<T>& w) {
    if constexpr (ON_TILES<T>) {
      if (!w.tiled) return;
      constexpr long GATE_LANES = 6 * TILE, CANDIDATE_LANES = 2 * TILE;
      sources = Sources<T>(w.hidden, w.inputs, w.hidden);
      a = Buffer<T>(size_t(2 * TILED_ROWS * GATES * TILE));
      d_sources = Buffer<T>(size_t(TILED_ROWS * (w.width + padded<T>(w.inputs))));
      da_left = Buffer<Bf16>(size_t(2 * TILED_ROWS * left_stride(GATE_LANES)));
      dn_left = Buffer<Bf16>(size_t(2 * TILED_ROWS * left_stride(CANDIDATE_LANES)));
      da_right = Buffer<Bf16>(size_t(2 * PIECES * GATE_LANES * TILE_DEPTH));
      dn_right = Buffer<Bf16>(size_t(2 * PIECES * CANDIDATE_LANES * TILE_DEPTH));
    }
  }
};

// What is added up over a slice of a batch: from steps on vectors, and from steps on tiles.
template <class T>
struct GruGradients : StateGradients<T> {
  Buffer<T> tiled;

  explicit GruGradients(const GruWeights<T>& w) : StateGradients<T>(w), tiled(size_t(w.sums)) {}

  void add_to(const GruWeights<T>& w, const StateLayerArguments& a) const {
    StateGradients<T>::add_to(w, a);
    for (const BlockPair& pair : w.pairs) {
      for (long column = 0; column < pair.gates; ++column)
        w.with_column(pair, column, [&](const Block& block, long place) {
          add_gate(w, a, block, place, 0, tiled.data() + pair.sums + column, pair.gates);
        });
      const T* const candidate_sums =
          tiled.data() + pair.candidate_sums + (w.hidden - w.first_input_tile() * TILE) * pair.candidates;
      for (long column = 0; column < pair.candidates; ++column)
        add_gate(w, a, w.layout.blocks[pair.first], GRU_CANDIDATE * LANES<T> + column, w.hidden,
                 candidate_sums + column, pair.candidates);
    }
  }

 private:
  // The gradients of one unit's gate, from a source on; they lie `stride` apart.
  static void add_gate(const GruWeights<T>& w, const StateLayerArguments& a, const Block& block, long place, long from,
                       const T* sum, long stride) {
    const long H = w.hidden, F = w.inputs, gate = std::min(place / block.width, GRU_CANDIDATE);
    const long unit = block.unit + place - gate * block.width, row = gru_plane(gate) * H + unit;
    if (unit >= H) return;
    for (long k = from; k < w.depth(); ++k, sum += stride)
      if (k < H) {
        if (gate != GRU_CANDIDATE) static_cast<T*>(a.d_weight_hh)[(gate * H + unit) * H + k] += *sum;
      } else if (k == H) {
        static_cast<T*>(a.d_bias)[row] += *sum;
      } else {
        if (gate != GRU_PRODUCT) static_cast<T*>(a.d_weight_ih)[row * F + k - H - 1] += *sum;
      }
  }
};

#if defined(SEQPYRAMID_TILES)

// h and the kept numbers of R rows and one block, whose sums stand GATES V apart. Of a narrow block each store leaves
// its surplus where the next will stand; the lanes past the block are cleared of h.
template <class T, int R, int VECTORS>
SEQPYRAMID_INLINE void gru_advance_rows(const Block& block, const T* a, const StepForward<T>& s, long first) {
  constexpr long V = LANES<T>, WIDTH = VECTORS * V / GATES;
  Vector<T> gate[2 * R], n[R];
  SEQPYRAMID_UNROLL
  for (int r = 0; r < R; ++r)
    gate[2 * r] = load(a + r * GATES * V), gate[2 * r + 1] = load(a + r * GATES * V + WIDTH);
  squash<T, 0>(gate);
  SEQPYRAMID_UNROLL
  for (int r = 0; r < R; ++r)
    n[r] = load(a + r * GATES * V + 3 * WIDTH) + gate[2 * r] * load(a + r * GATES * V + 2 * WIDTH);
  squash<T, 0b11111111>(n);
  SEQPYRAMID_UNROLL
  for (int r = 0; r < R; ++r) {
    const long row = first + r;
    if (s.kept) {
      T* const kept = s.planes.at(row, block.gates());
      for (long j = 0; s.ahead.planes && j < GATES; ++j) __builtin_prefetch(kept + s.ahead.planes + j * WIDTH, 1, 2);
      store(kept, gate[2 * r]), store(kept + WIDTH, gate[2 * r + 1]);
      store(kept + 2 * WIDTH, load(a + r * GATES * V + 2 * WIDTH)), store(kept + 3 * WIDTH, n[r]);
    }
    Vector<T> h = n[r] - gate[2 * r + 1] * n[r];
    if (s.h_before) h += gate[2 * r + 1] * load(s.h_before.at(row, block.unit));
    if constexpr (WIDTH < V) h = first_lanes<T, WIDTH>(h);
    store(s.h.at(row, block.unit), h);
  }
}

// The same for rows [first, last).
template <class T, int VECTORS>
void gru_advance(const Block& block, const T* a, const StepForward<T>& s, long first, long last) {
  for_row_tiles(last - first, [&](auto tile, long row) {
    constexpr int R = decltype(tile)::value;
    gru_advance_rows<T, R, VECTORS>(block, a + (first + row) * GATES * LANES<T>, s, first + row);
  });
}

template <class T>
void gru_step_on_tiles(const GruWeights<T>& w, const StepForward<T>& s, GruWork<T>& work) {
  constexpr long V = LANES<T>;
  const Depth of_states{0, depth_blocks(w.hidden + 1)}, of_inputs{w.hidden / TILE_DEPTH, depth_blocks(w.depth())};
  work.sources.gather(s.rows, s.x, s.h_before);
  const auto sums = [&](const Block& block) { return work.a.data() + block.unit / V % 2 * TILED_ROWS * GATES * V; };
  const Block* done = nullptr;  // whose sums are there
  for (size_t k = 0; k < w.layout.blocks.size(); ++k) {
    const Block& block = w.layout.blocks[k];
    // One block's functions while the tiles are at the sums of the next: all but the last have four vectors.
    constexpr int ROWS = 4;
    long row = 0, calls = 0;
    const auto advance = [&] {
      if (!done || ++calls % ROWS || row + ROWS > s.rows) return;
      gru_advance_rows<T, ROWS, 4>(*done, sums(*done) + row * GATES * V, s, row);
      row += ROWS;
    };
    const auto sum = [&](const RightFactor<T>& factor, Depth depth, long gate) {
      multiply(s.rows, work.sources.left.data(), factor, depth, 0, factor.tiles(), sums(block) + gate * V, GATES * V,
               false, advance);
    };
    sum(w.gates[k], w.gates[k].depth(), 0);
    sum(w.products[k], of_states, GRU_PRODUCT);
    sum(w.candidates[k], of_inputs, GRU_CANDIDATE);
    if (done) gru_advance<T, 4>(*done, sums(*done), s, row, s.rows);
    done = &block;
  }
  with_vectors<T>(*done, [&](auto vectors) {
    gru_advance<T, decltype(vectors)::value>(*done, sums(*done), s, 0, s.rows);
  });
}

// da of a row and one block, in the order of its gates; dh' begins as dh z.
template <class T>
SEQPYRAMID_INLINE void gru_gate_gradients(const Block& block, const StepBackward<T>& s, long row, T* da) {
  const long width = block.width, unit = block.unit;
  const T* const kept = s.planes.at(row, block.gates());
  if (s.ahead.planes)
    for (long j = 0; j < GATES; ++j) __builtin_prefetch(kept + s.ahead.planes + j * width, 0, 2);
  if (s.ahead.h) __builtin_prefetch(s.h_before.at(row, unit) + s.ahead.h, 0, 2);
  const Vector<T> r = load(kept), z = load(kept + width), q = load(kept + 2 * width), n = load(kept + 3 * width);
  const Vector<T> dh = load(s.dh.at(row, unit));
  const Vector<T> before = s.h_before ? load(s.h_before.at(row, unit)) : Vector<T>{};
  const Vector<T> kept_share = dh * z, da_n = (dh - kept_share) * (T(1) - n * n), dq = da_n * r;
  store(da, dq * q * (T(1) - r)), store(da + width, kept_share * (before - n) * (T(1) - z));
  store(da + 2 * width, dq), store(da + 3 * width, da_n);
  if (s.dh_before) store(s.dh_before.at(row, unit), kept_share);
}

// Two rows of one vector, beside another of the same block of a left factor; else as split_pair.
SEQPYRAMID_INLINE void split_half(const float* first, const float* second, long width, Bf16* left, long stride,
                                  Bf16* right) {
  __m512i a[PIECES], b[PIECES];
  split(load(first), a), split(second ? load(second) : Vector<float>{}, b);
  SEQPYRAMID_UNROLL
  for (int p = 0; p < PIECES; ++p) {
    _mm512_store_si512(right + p * TILE_SIZE, paired_halves(a[p], b[p]));
    const auto keep = [&](Bf16* to, __m512i piece) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(upper_halves(piece, piece)));
    };
    keep(left + p * width, a[p]), keep(left + stride + p * width, b[p]);
  }
}

template <class T>
void gru_step_backward_on_tiles(const GruWeights<T>& w, const StepBackward<T>& s, GruGradients<T>& sums,
                                GruWork<T>& work) {
  constexpr long V = LANES<T>;
  const long width = w.width + (s.dx ? padded<T>(w.inputs) : 0), row_pairs = (s.rows + 1) / 2;
  T* const d_sources = work.d_sources.data();
  const auto half = [](const Buffer<Bf16>& both, size_t p) {
    return both.data() + long(p % 2) * long(both.size() / 2);
  };

  // Two rows of a block.
  const auto gradients = [&](const BlockPair& pair, size_t p, size_t k, long rows) {
    const Block& block = w.layout.blocks[k];
    const bool two = 2 * rows + 1 < s.rows, alone = pair.last - pair.first == 1;
    T da[2][5 * LANES<T>];
    for (long r = 0; r < 1 + two; ++r) gru_gate_gradients<T>(block, s, 2 * rows + r, da[r]);
    // Vectors from one on, that go to a column.
    const auto split = [&](auto&& how, long from, long column, long columns, const Buffer<Bf16>& left,
                           const Buffer<Bf16>& right) {
      const long stride = left_stride(columns);
      how(da[0] + from, two ? da[1] + from : nullptr, depth_blocks(columns) * TILE_DEPTH,
          half(left, p) + 2 * rows * stride + column, stride,
          half(right, p) + rows * TILE_DEPTH + column / TILE * PIECES * TILE_SIZE);
    };
    const auto one = [](auto... parts) { split_pair<1>(parts...); };
    const auto both = [](auto... parts) { split_pair<2>(parts...); };
    const auto beside = [&](auto... parts) { alone ? split_pair<1>(parts...) : split_half(parts...); };
    const long place = long(k - pair.first);
    switch (block.lanes() / V) {
      case 1: split(one, 0, 0, pair.gates, work.da_left, work.da_right); break;
      case 2: split(both, 0, 0, pair.gates, work.da_left, work.da_right); break;
      default: {
        split(both, 0, place * 2 * V, pair.gates, work.da_left, work.da_right);
        split(beside, GRU_PRODUCT * V, w.first_product(pair) + place * V, pair.gates, work.da_left, work.da_right);
        split(beside, GRU_CANDIDATE * V, place * V, pair.candidates, work.dn_left, work.dn_right);
      }
    }
  };

  work.sources.gather_transposed(s.rows, s.x, s.h_before);
  // What is left to do before pair p goes into products: from `next` on, rows first.
  struct Progress {
    size_t block = 0;
    long rows = 0;
  };
  const auto advance = [&](size_t p, Progress& next) {
    gradients(w.pairs[p], p, next.block, next.rows);
    if (++next.rows == row_pairs) next = {next.block + 1, 0};
  };
  const auto finish = [&](size_t p, Progress next) {
    const BlockPair& pair = w.pairs[p];
    while (next.block < pair.last) advance(p, next);
    clear_pairs(row_pairs, pair.gates, half(work.da_right, p));
    clear_pairs(row_pairs, pair.candidates, half(work.dn_right, p));
  };
  finish(0, {w.pairs[0].first, 0});
  for (size_t p = 0; p < w.pairs.size(); ++p) {
    const BlockPair& pair = w.pairs[p];
    // The next pair's da while the tiles are at the products of this one.
    const bool more = p + 1 < w.pairs.size();
    Progress next;
    if (more) next.block = w.pairs[p + 1].first;
    long calls = 0;
    const auto prepare = [&] {
      if (!more || next.block == w.pairs[p + 1].last || ++calls % 5) return;
      advance(p + 1, next);
    };
    const auto add_sources = [&](const Buffer<Bf16>& left, const RightFactor<T>& factor, float* to, bool add) {
      multiply(s.rows, half(left, p), factor, factor.depth(), 0, factor.tiles(), to, width, add, prepare);
    };
    const auto add_weights = [&](long first, long last, const Buffer<Bf16>& right, long column, long end, T* to,
                                 long columns) {
      add_product_over_rows(last - first, (end - column) / TILE,
                            work.sources.transposed.data() + first * PIECES * TILE_SIZE,
                            half(right, p) + column / TILE * PIECES * TILE_SIZE, to + column, columns, prepare);
    };
    if (s.dh_before || s.dx) add_sources(work.da_left, w.gates_back[p], d_sources, p > 0);
    if (s.dx && pair.candidates) add_sources(work.dn_left, w.candidates_back[p], d_sources + w.width, true);
    const long products = w.first_product(pair);
    T* const to = sums.tiled.data() + pair.sums;
    add_weights(0, w.source_tiles(), work.da_right, 0, products, to, pair.gates);
    add_weights(0, w.state_tiles(), work.da_right, products, pair.gates, to, pair.gates);
    add_weights(w.first_input_tile(), w.source_tiles(), work.dn_right, 0, pair.candidates,
                sums.tiled.data() + pair.candidate_sums, pair.candidates);
    if (more) finish(p + 1, next);
  }
  for (long row = 0; row < s.rows; ++row) {
    const T* const from = d_sources + row * width;
    for (long u = 0; s.dh_before && u < w.width; u += V)
      store(s.dh_before.at(row, u), load(s.dh_before.at(row, u)) + load(from + u));
    for (long u = 0; s.dx && u < padded<T>(w.inputs); u += V)
      store(s.dx.at(row, u), load(s.dx.at(row, u)) + load(from + w.width + u));
  }
}

#endif

}  // namespace seqpyramid
