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
// Shapes: M states at most, n states now, H units, P = padded H, V lanes.
#pragma once

#include <vector>

#include "tile.h"

namespace seqpyramid {

constexpr long EXPANSION = 3;

template <class T>
struct Theta {
  long states;  // M
  const T *first, *second;
};

// Where each weight comes from when n states are scrambled, and back, as offsets into [state][P].
class Scramble {
 public:
  Scramble(long states, long hidden, long width) : forward_(size_t(states) + 1), back_(size_t(states) + 1) {
    for (long n = 1; n <= states; ++n) {
      std::vector<int32_t> there(size_t(n * width)), back(size_t(n * width));
      for (long k = 0; k < n * width; ++k) there[size_t(k)] = back[size_t(k)] = int32_t(k);  // padding stays
      for (long k = 0; k < n * hidden; ++k) {
        const long from = k % n * width + k / n, to = k / hidden * width + k % hidden;
        there[size_t(to)] = int32_t(from);
        back[size_t(from)] = int32_t(to);
      }
      forward_[size_t(n)] = std::move(there);
      back_[size_t(n)] = std::move(back);
    }
  }
  const int32_t* there(long n) const { return forward_[size_t(n)].data(); }
  const int32_t* back(long n) const { return back_[size_t(n)].data(); }

 private:
  std::vector<std::vector<int32_t>> forward_, back_;
};

// Workspace for one row: p, s, s' and their gradients.
template <class T>
struct ThetaWork {
  Buffer<T> p, s, s_read, r, dq, ds_read;
  Buffer<Vector<T>> vectors;   // e and q where they are too many for registers
  std::vector<const T*> rows;  // of dq
  std::vector<const T*> e;     // the row's states, and where their gradients go
  std::vector<T*> de;
  std::vector<Rows<const T>> sources;
  std::vector<Rows<T>> targets;

  ThetaWork(long states, long width)
      : p(size_t(EXPANSION * states * width)),
        s(size_t(states * width)),
        s_read(size_t(states * width)),
        r(size_t(EXPANSION * states * width)),
        dq(size_t(states * width)),
        ds_read(size_t(states * width)),
        vectors(size_t(2 * states)),
        rows(size_t(states)),
        e(size_t(states)),
        de(size_t(states)),
        sources(size_t(states)),
        targets(size_t(states)) {}
};

// What is added up for one theta over a slice, a vector for each number of W1 and of the transposed W2: [d][m][V].
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
        const long at = (d * states + m) * LANES<T>;
        d_first[d * states + m] += sum_lanes<T>(load(first.data() + at));
        d_second[m * EXPANSION * states + d] += sum_lanes<T>(load(second.data() + at));
      }
  }
};

template <class T>
SEQPYRAMID_INLINE void permute(const int32_t* table, long count, const T* from, T* to) {
  for (long k = 0; k < count; ++k) to[k] = from[table[k]];
}

// s of one row, and p where the backward pass wants it. N is n where it is small enough for registers, else 0.
template <class T, int N>
SEQPYRAMID_INLINE void theta_weights(const Theta<T>& theta, long n_, const T* const* e, long width, T* p, T* s,
                                     Vector<T>* vectors) {
  const long n = N ? N : n_, M = theta.states;
  Vector<T> e_registers[N ? N : 1], q_registers[N ? N : 1];
  Vector<T>* const e_now = N ? e_registers : vectors;
  Vector<T>* const q = N ? q_registers : vectors + n;
  for (long u = 0; u < width; u += LANES<T>) {
    SEQPYRAMID_UNROLL
    for (long m = 0; m < n; ++m) e_now[m] = load(e[m] + u), q[m] = Vector<T>{};
    for (long d = 0; d < EXPANSION * n; ++d) {
      Vector<T> sum{};
      SEQPYRAMID_UNROLL
      for (long m = 0; m < n; ++m) sum += theta.first[d * M + m] * e_now[m];
      sum = sum > Vector<T>{} ? sum : Vector<T>{};
      if (p) store(p + d * width + u, sum);
      SEQPYRAMID_UNROLL
      for (long m = 0; m < n; ++m) q[m] += theta.second[m * EXPANSION * M + d] * sum;
    }
    SEQPYRAMID_UNROLL
    for (long m = 0; m < n; ++m) store(s + m * width + u, sigmoid<T>(q[m]));
  }
}

template <class T, int N>
void theta_row(const Theta<T>& theta, const Scramble* scramble, long n, const T* const* e, long width, T* y,
               ThetaWork<T>& work) {
  theta_weights<T, N>(theta, n, e, width, nullptr, work.s.data(), work.vectors.data());
  const T* s = work.s.data();
  if (scramble) {
    permute(scramble->there(n), n * width, s, work.s_read.data());
    s = work.s_read.data();
  }
  for (long u = 0; u < width; u += LANES<T>) {
    Vector<T> sum{};
    for (long m = 0; m < n; ++m) sum += load(s + m * width + u) * load(e[m] + u);
    store(y + u, tanh<T>(sum));
  }
}

// sums[d][m] += over a row of left[d] * right[m], for 3 rows of left and COUNT of right, on registers.
template <class T, int COUNT>
SEQPYRAMID_INLINE void outer_tile(const T* left, long width, const T* const* right, T* sums, long sums_row) {
  constexpr long V = LANES<T>;
  Vector<T> sum[EXPANSION][COUNT];
  for (int d = 0; d < EXPANSION; ++d)
    for (int m = 0; m < COUNT; ++m) sum[d][m] = load(sums + d * sums_row + m * V);
  for (long u = 0; u < width; u += V) {
    const Vector<T> a[EXPANSION] = {load(left + u), load(left + width + u), load(left + 2 * width + u)};
    SEQPYRAMID_UNROLL
    for (int m = 0; m < COUNT; ++m) {
      const Vector<T> b = load(right[m] + u);
      for (int d = 0; d < EXPANSION; ++d) sum[d][m] += a[d] * b;
    }
  }
  for (int d = 0; d < EXPANSION; ++d)
    for (int m = 0; m < COUNT; ++m) store(sums + d * sums_row + m * V, sum[d][m]);
}

// The same for all 3n rows of left and all n of right; sums has M columns.
template <class T>
void add_outer(long n, long M, const T* left, long width, const T* const* right, T* sums) {
  constexpr long V = LANES<T>, CHUNK = SEQPYRAMID_VECTOR_BYTES == 64 ? 8 : 4;
  for (long d = 0; d < EXPANSION * n; d += EXPANSION)
    for (long m = 0; m < n; m += CHUNK) {
      const T* from = left + d * width;
      T* to = sums + (d * M + m) * V;
      switch (n - m < CHUNK ? n - m : CHUNK) {
        case 8: outer_tile<T, 8>(from, width, right + m, to, M * V); break;
        case 7: outer_tile<T, 7>(from, width, right + m, to, M * V); break;
        case 6: outer_tile<T, 6>(from, width, right + m, to, M * V); break;
        case 5: outer_tile<T, 5>(from, width, right + m, to, M * V); break;
        case 4: outer_tile<T, 4>(from, width, right + m, to, M * V); break;
        case 3: outer_tile<T, 3>(from, width, right + m, to, M * V); break;
        case 2: outer_tile<T, 2>(from, width, right + m, to, M * V); break;
        default: outer_tile<T, 1>(from, width, right + m, to, M * V); break;
      }
    }
}

template <class T, int N>
void theta_row_backward(const Theta<T>& theta, const Scramble* scramble, long n_, const T* const* e, long width,
                        const T* y, const T* dy, T* const* de, ThetaWork<T>& work, ThetaGradients<T>& sums) {
  const long n = N ? N : n_, M = theta.states;
  T *p = work.p.data(), *s = work.s.data(), *r = work.r.data(), *dq = work.dq.data(), *ds = work.ds_read.data();
  theta_weights<T, N>(theta, n, e, width, p, s, work.vectors.data());
  const T* s_read = s;
  if (scramble) {
    permute(scramble->there(n), n * width, s, work.s_read.data());
    s_read = work.s_read.data();
  }
  for (long u = 0; u < width; u += LANES<T>) {
    const Vector<T> y_now = load(y + u), a = load(dy + u) * (T(1) - y_now * y_now);
    for (long m = 0; m < n; ++m) {
      store(de[m] + u, a * load(s_read + m * width + u));
      store(ds + m * width + u, a * load(e[m] + u));
    }
  }
  if (scramble) {
    permute(scramble->back(n), n * width, ds, work.s_read.data());
    ds = work.s_read.data();
  }
  Vector<T> de_registers[N ? N : 1], dq_registers[N ? N : 1];
  Vector<T>* const de_now = N ? de_registers : work.vectors.data();
  Vector<T>* const dq_now = N ? dq_registers : work.vectors.data() + n;
  for (long u = 0; u < width; u += LANES<T>) {
    SEQPYRAMID_UNROLL
    for (long m = 0; m < n; ++m) {
      const Vector<T> s_now = load(s + m * width + u);
      dq_now[m] = load(ds + m * width + u) * s_now * (T(1) - s_now);
      store(dq + m * width + u, dq_now[m]);
      de_now[m] = load(de[m] + u);
    }
    for (long d = 0; d < EXPANSION * n; ++d) {
      Vector<T> sum{};
      SEQPYRAMID_UNROLL
      for (long m = 0; m < n; ++m) sum += theta.second[m * EXPANSION * M + d] * dq_now[m];
      sum = load(p + d * width + u) > Vector<T>{} ? sum : Vector<T>{};
      store(r + d * width + u, sum);
      SEQPYRAMID_UNROLL
      for (long m = 0; m < n; ++m) de_now[m] += theta.first[d * M + m] * sum;
    }
    SEQPYRAMID_UNROLL
    for (long m = 0; m < n; ++m) store(de[m] + u, de_now[m]);
  }
  std::vector<const T*>& rows = work.rows;
  for (long m = 0; m < n; ++m) rows[size_t(m)] = dq + m * width;
  add_outer<T>(n, M, r, width, e, sums.first.data());
  add_outer<T>(n, M, p, width, rows.data(), sums.second.data());
}

// Call run(std::integral_constant<int, N>) with N = n where there is a form for it on registers, else with 0.
template <class Run>
void with_count(long n, Run&& run) {
  switch (n) {
    case 2: run(std::integral_constant<int, 2>{}); break;
    case 3: run(std::integral_constant<int, 3>{}); break;
    case 4: run(std::integral_constant<int, 4>{}); break;
    case 5: run(std::integral_constant<int, 5>{}); break;
    case 6: run(std::integral_constant<int, 6>{}); break;
    case 7: run(std::integral_constant<int, 7>{}); break;
    case 8: run(std::integral_constant<int, 8>{}); break;
    default: run(std::integral_constant<int, 0>{}); break;
  }
}

}  // namespace seqpyramid
