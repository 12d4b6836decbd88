// The aggregation of TP-RNN (Ma et al., AAAI 2020, equations (7)-(10)): n states of a row into one.
//
// Forward, e_m the states, all products element by element over the H units:
//
//   p_d = max(0, sum_m W1[d,m] e_m)          d = 1 ... 3n
//   s_m = sigmoid(sum_d W2[m,d] p_d)
//   y   = tanh(sum_m s'_m e_m)               s' = s, or s scrambled
//
// Scrambled: the row's weights, written unit by unit (n numbers each), are read again state by state (H numbers each).
//
// Backward, from dy; the scramble is undone on the way:
//
//   a = dy (1 - y^2);  ds'_m = a e_m;  dq_m = ds_m s_m (1 - s_m)
//   r_d = [p_d > 0] sum_m W2[m,d] dq_m;  de_m = a s'_m + sum_d W1[d,m] r_d
//   dW1[d,m] += sum r_d e_m;  dW2[m,d] += sum p_d dq_m        (over units and rows)
//
// W1 is (3M, M), W2 (M, 3M); fewer than M states use the top-left slices.
//
// p, q, r and de are products of a small matrix with a wide one, whose columns are the units of some rows of a batch,
// without a gap between one row's and the next one's: so few of a vector's numbers lie past the units.
//
// Shapes: M states at most, n states now, H units, P = padded H, V numbers a vector, G rows at a time, W = padded G H.
#pragma once

#include <vector>

#include "scramble.h"
#include "tile.h"

namespace seqpyramid {

constexpr long EXPANSION = 3;

// Of a product with a small matrix: at most so many of its rows, and vectors, on registers.
#if SEQPYRAMID_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int THETA_TILE = 8, THETA_VECTORS = 3;
#else
constexpr int THETA_TILE = 4, THETA_VECTORS = 2;
#endif

// The two matrices of a theta as torch has them, and transposed.
template <class T>
struct Theta {
  long states;  // M
  const T *first, *second;
  Buffer<T> first_transposed, second_transposed;  // (M, 3M), (3M, M)

  Theta(long states_, const void* first_, const void* second_)
      : states(states_), first(static_cast<const T*>(first_)), second(static_cast<const T*>(second_)) {
    if (!first) return;
    const long M = states, D = EXPANSION * M;
    first_transposed = Buffer<T>(size_t(D * M)), second_transposed = Buffer<T>(size_t(D * M));
    for (long d = 0; d < D; ++d)
      for (long m = 0; m < M; ++m) {
        first_transposed.data()[m * D + d] = first[d * M + m];
        second_transposed.data()[d * M + m] = second[m * D + d];
      }
  }

  explicit operator bool() const { return first != nullptr; }
};

// Columns of G rows that make a good product: enough to serve the sums of a weight gradient, and not too many for the
// caches.
constexpr long THETA_COLUMNS = 448;

// Rows side by side: of about so many columns together, and of whole vectors if some rows of fewer are.
template <class T>
long rows_together(long hidden) {
  long whole = LANES<T>;  // rows that make whole vectors
  while (whole % 2 == 0 && whole / 2 * hidden % LANES<T> == 0) whole /= 2;
  const long rows = std::max(1L, THETA_COLUMNS / hidden);
  return rows < whole ? rows : rows / whole * whole;
}

// Workspace for G rows. Each state or p_d has its columns `apart` from the next one's.
template <class T>
struct ThetaWork {
  long hidden, width, rows, apart;  // H, P, G; W, and room for the vector that the last row's lanes past H reach into
  Buffer<T> e, p, r, s, ds, de, a;  // ds becomes dq in place
  Scramble<T> scramble;
  Buffer<T> s_text, ds_text;
  Vector<T> last;  // bits of the numbers of a row's last vector that are units

  ThetaWork(long states, long hidden_)
      : hidden(hidden_),
        width(padded<T>(hidden_)),
        rows(rows_together<T>(hidden_)),
        apart(padded<T>(rows * hidden_ + LANES<T> - 1)),
        e(size_t(states * apart)),
        p(size_t(EXPANSION * states * apart)),
        r(size_t(EXPANSION * states * apart)),
        s(size_t(states * apart)),
        ds(size_t(states * apart)),
        de(size_t(states * apart)),
        a(size_t(apart)),
        scramble(states, hidden_),
        s_text(size_t(rows * scramble.length())),
        ds_text(size_t(scramble.length())) {
    typename VectorTypes<T>::bits bits{};
    for (long lane = 0; lane < hidden - (width - LANES<T>); ++lane) bits[lane] = -1;
    std::memcpy(&last, &bits, sizeof last);
  }
};

// What is added up for one theta over a slice, a vector for each number of W1 and of the transposed W2, three d's of one
// m side by side: [d / 3][m][d % 3][V].
template <class T>
struct ThetaGradients {
  long states;
  Buffer<T> first, second;

  explicit ThetaGradients(long states_)
      : states(states_),
        first(size_t(EXPANSION * states_ * states_ * LANES<T>)),
        second(size_t(EXPANSION * states_ * states_ * LANES<T>)) {}

  void add_to(T* d_first, T* d_second) const {
    for (long d = 0; d < EXPANSION * states; ++d)
      for (long m = 0; m < states; ++m) {
        const long at = ((d / EXPANSION * states + m) * EXPANSION + d % EXPANSION) * LANES<T>;
        d_first[d * states + m] += sum_lanes<T>(load(first.data() + at));
        d_second[m * EXPANSION * states + d] += sum_lanes<T>(load(second.data() + at));
      }
  }
};

// What becomes of a sum: it is stored, or the greater of it and 0 is, or it is where a number beside is positive (else
// 0), or it is added.
enum class Finish { STORE, POSITIVE, WHERE, ADD };

template <class T, Finish FINISH, int ROWS, int VECTORS>
SEQPYRAMID_INLINE void combine_tile(long depth, const T* a, long a_depth, const T* b, long apart, T* out,
                                    const T* where) {
  constexpr long V = LANES<T>;
  Vector<T> sum[ROWS][VECTORS];
  const auto multiply = [&](auto first) {
    Vector<T> right[VECTORS];
    SEQPYRAMID_UNROLL
    for (int j = 0; j < VECTORS; ++j) right[j] = load(b + j * V);
    SEQPYRAMID_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const Vector<T> left = broadcast<T>(a[i]);
      SEQPYRAMID_UNROLL
      for (int j = 0; j < VECTORS; ++j)
        if constexpr (decltype(first)::value)
          sum[i][j] = left * right[j];
        else
          sum[i][j] += left * right[j];
    }
  };
  multiply(std::true_type{});
  for (long k = 1; k < depth; ++k) {
    a += a_depth, b += apart;
    multiply(std::false_type{});
  }
  SEQPYRAMID_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    SEQPYRAMID_UNROLL
    for (int j = 0; j < VECTORS; ++j) {
      T* const to = out + i * apart + j * V;
      Vector<T> result = sum[i][j];
      if constexpr (FINISH == Finish::POSITIVE) result = greater<T>(Vector<T>{}, result);
      if constexpr (FINISH == Finish::WHERE)
        result = load(where + i * apart + j * V) > Vector<T>{} ? result : Vector<T>{};
      if constexpr (FINISH == Finish::ADD) result += load(to);
      store(to, result);
    }
  }
}

template <class T, Finish FINISH, int ROWS>
void combine_strip(long depth, const T* a, long a_depth, const T* b, long width, long apart, T* out, const T* where) {
  long u = 0;
  for (; u + THETA_VECTORS * LANES<T> <= width; u += THETA_VECTORS * LANES<T>)
    combine_tile<T, FINISH, ROWS, THETA_VECTORS>(depth, a, a_depth, b + u, apart, out + u, where + u);
  for (; u < width; u += LANES<T>)
    combine_tile<T, FINISH, ROWS, 1>(depth, a, a_depth, b + u, apart, out + u, where + u);
}

// out (rows, width) from a (depth, rows; a_depth apart) and b (depth, width): out[i] = sum over k of a[k][i] * b[k]. Rows
// of out, where and b lie `apart`.
template <class T, Finish FINISH>
void combine(long rows, long depth, const T* a, long a_depth, const T* b, long width, long apart, T* out,
             const T* where) {
  const long tiles = (rows + THETA_TILE - 1) / THETA_TILE;
  for (long tile = 0; tile < tiles; ++tile) {
    const long first = rows * tile / tiles, count = rows * (tile + 1) / tiles - first;
    const auto strip = [&](auto size) {
      combine_strip<T, FINISH, decltype(size)::value>(depth, a + first, a_depth, b, width, apart, out + first * apart,
                                                      where + first * apart);
    };
    switch (count) {
      case 1: strip(std::integral_constant<int, 1>{}); break;
      case 2: strip(std::integral_constant<int, 2>{}); break;
      case 3: strip(std::integral_constant<int, 3>{}); break;
      case 4: strip(std::integral_constant<int, 4>{}); break;
#if SEQPYRAMID_VECTOR_BYTES == 64 || defined(__aarch64__)
      case 5: strip(std::integral_constant<int, 5>{}); break;
      case 6: strip(std::integral_constant<int, 6>{}); break;
      case 7: strip(std::integral_constant<int, 7>{}); break;
      default: strip(std::integral_constant<int, 8>{}); break;
#endif
    }
  }
}

// x = sigmoid(x), or tanh(x), of whole vectors.
template <class T, unsigned TANH>
void squash_row(T* x, long width) {
  for_row_tiles(width / LANES<T>, [&](auto tile, long first) {
    constexpr int COUNT = decltype(tile)::value;
    T* const from = x + first * LANES<T>;
    Vector<T> now[COUNT];
    SEQPYRAMID_UNROLL
    for (int k = 0; k < COUNT; ++k) now[k] = load(from + k * LANES<T>);
    squash<T, TANH>(now);
    SEQPYRAMID_UNROLL
    for (int k = 0; k < COUNT; ++k) store(from + k * LANES<T>, now[k]);
  });
}

// Without the call that a copy of unknown length is.
template <class T>
SEQPYRAMID_INLINE void copy_vectors(const T* from, long width, T* to) {
  for (long u = 0; u < width; u += LANES<T>) store(to + u, load(from + u));
}

// `count` rows of a state side by side, zeros behind them: each row covers what the one before has past H. As states come
// they may lie whole pages apart, where one's stores hold up the other's loads.
template <class T>
void join_rows(Rows<const T> from, long row, long count, const ThetaWork<T>& work, T* to) {
  store(to + padded<T>(count * work.hidden) - LANES<T>, Vector<T>{});
  for (long k = 0; k < count; ++k) copy_vectors(from.at(row + k), work.width, to + k * work.hidden);
}

// And back: rows whose lanes past H are zero.
template <class T>
void part_rows(const T* from, long row, long count, const ThetaWork<T>& work, Rows<T> to) {
  const long last = work.width - LANES<T>;
  for (long k = 0; k < count; ++k, from += work.hidden) {
    copy_vectors(from, last, to.at(row + k));
    const auto bits = bits_of<T>(load(from + last)) & bits_of<T>(work.last);
    std::memcpy(to.at(row + k, last), &bits, sizeof bits);
  }
}

// Where s' of some rows lies, each state's of each row on its own.
template <class T>
struct RowWeights {
  const T* data;
  long state, row;  // how far it is to the next one

  const T* at(long k, long m) const { return data + k * row + m * state; }
};

// s' of some rows, and their e, p and s in the workspace.
template <class T>
RowWeights<T> theta_weights(const Theta<T>& theta, bool scrambled, long n, const Rows<const T>* states, long row,
                              long count, ThetaWork<T>& work) {
  const long M = theta.states, apart = work.apart, H = work.hidden, width = padded<T>(count * H);
  T *const e = work.e.data(), *const p = work.p.data(), *const s = work.s.data();
  for (long m = 0; m < n; ++m) join_rows(states[m], row, count, work, e + m * apart);
  combine<T, Finish::POSITIVE>(EXPANSION * n, n, theta.first_transposed.data(), EXPANSION * M, e, width, apart, p,
                               nullptr);
  combine<T, Finish::STORE>(n, EXPANSION * n, theta.second_transposed.data(), M, p, width, apart, s, nullptr);
  for (long m = 0; m < n; ++m) squash_row<T, 0>(s + m * apart, width);
  if (!scrambled) return {s, apart, H};
  const long length = work.scramble.length();
  for (long k = 0; k < count; ++k) work.scramble.write(n, s + k * H, apart, work.s_text.data() + k * length);
  return {work.s_text.data(), H, length};
}

// y = theta(states) for rows [first, last). y may be one of the states.
template <class T>
void theta_forward(const Theta<T>& theta, bool scrambled, long n, const Rows<const T>* states, Rows<T> y, long first,
                   long last, ThetaWork<T>& work) {
  const long P = work.width, H = work.hidden;
  T* const sums = work.a.data();
  for (long row = first, count; row < last; row += count) {
    count = std::min(work.rows, last - row);
    const RowWeights<T> s = theta_weights(theta, scrambled, n, states, row, count, work);
    for (long k = 0; k < count; ++k)
      for (long u = 0; u < P; u += LANES<T>) {
        Vector<T> sum{};
        for (long m = 0; m < n; ++m) sum += load(s.at(k, m) + u) * load(work.e.data() + m * work.apart + k * H + u);
        store(sums + k * H + u, sum);
      }
    squash_row<T, 0b11111111>(sums, padded<T>(count * H));
    part_rows<T>(sums, row, count, work, y);
  }
}

// sums[d][m] += over the units of left[d] * right[m], for 3 d's and COUNT m's, on registers.
template <class T, int COUNT>
SEQPYRAMID_INLINE void outer_tile(const T* left, const T* right, long width, long apart, T* sums) {
  constexpr long V = LANES<T>;
  Vector<T> sum[EXPANSION][COUNT];
  for (int d = 0; d < EXPANSION; ++d)
    for (int m = 0; m < COUNT; ++m) sum[d][m] = load(sums + (m * EXPANSION + d) * V);
  for (long u = 0; u < width; u += V) {
    const Vector<T> a[EXPANSION] = {load(left + u), load(left + apart + u), load(left + 2 * apart + u)};
    SEQPYRAMID_UNROLL
    for (int m = 0; m < COUNT; ++m) {
      const Vector<T> b = held<T>(load(right + m * apart + u));
      for (int d = 0; d < EXPANSION; ++d) sum[d][m] += a[d] * b;
    }
  }
  for (int d = 0; d < EXPANSION; ++d)
    for (int m = 0; m < COUNT; ++m) store(sums + (m * EXPANSION + d) * V, sum[d][m]);
}

// The same for all 3n rows of left and all n of right; sums has M columns.
template <class T>
void add_outer(long n, long M, const T* left, const T* right, long width, long apart, T* sums) {
  constexpr long V = LANES<T>;
  for (long d = 0; d < EXPANSION * n; d += EXPANSION)
    for (long m = 0; m < n; m += THETA_TILE) {
      const T *const a = left + d * apart, *const b = right + m * apart;
      T* const to = sums + (d / EXPANSION * M + m) * EXPANSION * V;
      switch (std::min(n - m, long(THETA_TILE))) {
        case 1: outer_tile<T, 1>(a, b, width, apart, to); break;
        case 2: outer_tile<T, 2>(a, b, width, apart, to); break;
        case 3: outer_tile<T, 3>(a, b, width, apart, to); break;
        case 4: outer_tile<T, 4>(a, b, width, apart, to); break;
#if SEQPYRAMID_VECTOR_BYTES == 64 || defined(__aarch64__)
        case 5: outer_tile<T, 5>(a, b, width, apart, to); break;
        case 6: outer_tile<T, 6>(a, b, width, apart, to); break;
        case 7: outer_tile<T, 7>(a, b, width, apart, to); break;
        default: outer_tile<T, 8>(a, b, width, apart, to); break;
#endif
      }
    }
}

// The gradients of the states of rows [first, last) into de, of which one may be dy; those of the weights are added
// to sums.
template <class T>
void theta_backward(const Theta<T>& theta, bool scrambled, long n, const Rows<const T>* states, Rows<const T> y,
                    Rows<const T> dy, const Rows<T>* de, long first, long last, ThetaWork<T>& work,
                    ThetaGradients<T>& sums) {
  constexpr long V = LANES<T>;
  const long M = theta.states, P = work.width, H = work.hidden, apart = work.apart;
  T *const a = work.a.data(), *const de_now = work.de.data(), *const e = work.e.data(), *const p = work.p.data();
  T *const r = work.r.data(), *const dq = work.ds.data();
  for (long row = first, count; row < last; row += count) {
    count = std::min(work.rows, last - row);
    const long width = padded<T>(count * H);
    const RowWeights<T> s = theta_weights(theta, scrambled, n, states, row, count, work);
    for (long k = 0; k < count; ++k) {
      for (long u = 0; u < P; u += V) {
        const Vector<T> y_now = load(y.at(row + k, u));
        store(a + k * H + u, load(dy.at(row + k, u)) * (T(1) - y_now * y_now));
      }
      T* const ds = scrambled ? work.ds_text.data() : dq + k * H;
      const long ds_apart = scrambled ? H : apart;
      for (long m = 0; m < n; ++m)  // where states lie side by side, too, the next one covers what is past the units
        for (long u = 0; u < P; u += V) {
          const long at = m * apart + k * H + u;
          const Vector<T> a_now = load(a + k * H + u);
          store(ds + m * ds_apart + u, a_now * load(e + at));
          store(de_now + at, a_now * load(s.at(k, m) + u));
        }
      if (scrambled) work.scramble.read(n, ds, dq + k * H, apart);
    }
    for (long m = 0; m < n; ++m)
      for (long u = m * apart; u < m * apart + width; u += V) {
        const Vector<T> s_now = load(work.s.data() + u);
        store(dq + u, load(dq + u) * s_now * (T(1) - s_now));
      }
    combine<T, Finish::WHERE>(EXPANSION * n, n, theta.second, EXPANSION * M, dq, width, apart, r, p);
    combine<T, Finish::ADD>(n, EXPANSION * n, theta.first, M, r, width, apart, de_now, nullptr);
    for (long m = 0; m < n; ++m) part_rows<T>(de_now + m * apart, row, count, work, de[m]);
    add_outer<T>(n, M, r, e, width, apart, sums.first.data());
    add_outer<T>(n, M, p, dq, width, apart, sums.second.data());
  }
}

}  // namespace seqpyramid
