// Two forms of the GRU: the reset gate r acts after the recurrent product (torch) or before it (TensorFlow).
//
// After, planes n, r, z, q:
//
//   [a_n, a_r, a_z] = U x + [b_n, W_r h' + b_r, W_z h' + b_z];  q = W_n h' + b_q
//   r, z = sigmoid(a_r, a_z);  n = tanh(a_n + r q);  h = n + z (h' - n)
//
//   da_z = dh (h' - n) z (1 - z);  da_n = dh (1 - z) (1 - n^2);  dq = da_n r;  da_r = da_n q r (1 - r)
//   dh' = dh z + W^T [da_r, da_z, dq];  dx = U^T [da_n, da_r, da_z]
//   dW += [da_r, da_z, dq] h'^T;  dU += [da_n, da_r, da_z] x^T;  db += [da_n, da_r, da_z, dq]
//
// Before, planes n, r, z:
//
//   [a_n, a_r, a_z] = U x + b + [W_n (r h'), W_r h', W_z h'];  n = tanh(a_n)
//
//   da_z, da_n as above;  ds = W_n^T da_n, what reaches s = r h';  da_r = ds h' r (1 - r)
//   dh' = dh z + ds r + [W_r, W_z]^T [da_r, da_z];  dx = U^T [da_n, da_r, da_z]
//   dW_n += da_n s^T;  [dW_r, dW_z] += [da_r, da_z] h'^T;  dU += [da_n, da_r, da_z] x^T;  db += the same
//
// The order of the planes puts side by side what reads x, and what reads h'. Kept are all planes, after their
// functions, and h.
//
// Where the machine has tiles for matrices they make the products of 6 rows and more (gru_tiles.h), of the first form;
// the planes of such rows lie in another order.
#include "elman_layer.h"
#include "gru_tiles.h"

using namespace seqpyramid;

namespace {

template <class T>
SEQPYRAMID_INLINE Vector<T> load_or_zero(Rows<const T> rows, long row, long unit) {
  return rows ? load(rows.at(row, unit)) : Vector<T>{};
}

struct GruCell {
  static constexpr long GATES = 3, SUMS = 4, PLANES = 4, SCRATCH = 4;

  template <class T>
  using Weights = GruWeights<T>;
  template <class T>
  using Gradients = GruGradients<T>;
  template <class T>
  using Work = GruWork<T>;

  template <class T>
  static void forward(const GruWeights<T>& w, StepForward<T> s, GruWork<T>& work) {
    if constexpr (ON_TILES<T>)
      while (s.rows >= fewest_tiled_rows) {
        const long group = std::min(s.rows, TILED_ROWS);
        gru_step_on_tiles(w, s.first(group), work);
        s = s.from(group);
      }
    if (s.rows) forward_on_vectors(w, s);
  }

  template <class T>
  static void backward(const GruWeights<T>& w, StepBackward<T> s, GruGradients<T>& sums, GruWork<T>& work) {
    if constexpr (ON_TILES<T>)
      while (s.rows >= fewest_tiled_rows) {
        const long group = std::min(s.rows, TILED_ROWS);
        gru_step_backward_on_tiles(w, s.first(group), sums, work);
        s = s.from(group);
      }
    if (s.rows) backward_on_vectors(w, s, sums);
  }

 private:
  template <class T>
  static void forward_on_vectors(const StateWeights<T>& w, const StepForward<T>& s) {
    w.sum(0, SUMS, s.rows, s.x, s.h_before, s.planes);
    for_row_tiles(s.rows, [&](auto tile, long first) {
      for (long u = 0; u < w.width; u += LANES<T>) advance<T, decltype(tile)::value>(s, first, u, w.width);
    });
  }

  template <class T>
  static void backward_on_vectors(const StateWeights<T>& w, const StepBackward<T>& s, StateGradients<T>& sums) {
    const Rows<T> da = s.scratch, from_h = from_plane(da, 1, w.width);
    differentiate(s, da, w.width);
    if (s.dh_before) w.recurrent.apply_transposed(0, GATES, s.rows, from_h, s.dh_before);
    if (s.dx) w.input.apply_transposed(0, GATES, s.rows, da, s.dx);
    w.input.add_gradient(0, GATES, s.rows, da, s.x, sums.input.data());
    if (s.h_before) w.recurrent.add_gradient(0, GATES, s.rows, from_h, s.h_before, sums.recurrent.data());
    sums.add_bias(w, s.rows, da);
  }

  // R rows of one vector of units: r and z of some at a time, then n of all.
  template <class T, int R>
  static SEQPYRAMID_INLINE void advance(const StepForward<T>& s, long first, long u, long P) {
    constexpr int GROUP = R % 3 == 0 ? 3 : R;
    Vector<T> n[R];
    for (int group = 0; group < R; group += GROUP) {
      Vector<T> gate[2 * GROUP];
      SEQPYRAMID_UNROLL
      for (int k = 0; k < GROUP; ++k) {
        const T* plane = s.planes.at(first + group + k, u);
        gate[2 * k] = load(plane + P), gate[2 * k + 1] = load(plane + 2 * P);
      }
      squash<T, 0>(gate);
      SEQPYRAMID_UNROLL
      for (int k = 0; k < GROUP; ++k) {
        T* plane = s.planes.at(first + group + k, u);
        n[group + k] = load(plane) + gate[2 * k] * load(plane + 3 * P);
        store(plane + P, gate[2 * k]), store(plane + 2 * P, gate[2 * k + 1]);
      }
    }
    squash<T, 0b11111111>(n);
    SEQPYRAMID_UNROLL
    for (int r = 0; r < R; ++r) {
      T* plane = s.planes.at(first + r, u);
      s.ahead.template fetch<true, T>(s.h, s.planes, first + r, u, PLANES, P);
      store(plane, n[r]);
      store(s.h.at(first + r, u), n[r] + load(plane + 2 * P) * (load_or_zero(s.h_before, first + r, u) - n[r]));
    }
  }

  template <class T>
  static void differentiate(const StepBackward<T>& s, Rows<T> da, long P) {
    for (long row = 0; row < s.rows; ++row)
      for (long u = 0; u < P; u += LANES<T>) {
        const T* plane = s.planes.at(row, u);
        s.ahead.template fetch<false, T>(s.h_before, s.planes, row, u, PLANES, P);
        const Vector<T> n = load(plane), r = load(plane + P), z = load(plane + 2 * P), q = load(plane + 3 * P);
        const Vector<T> dh = load(s.dh.at(row, u)), before = load_or_zero(s.h_before, row, u);
        const Vector<T> da_n = dh * (T(1) - z) * (T(1) - n * n), dq = da_n * r;
        T* out = da.at(row, u);
        store(out, da_n), store(out + P, dq * q * (T(1) - r));
        store(out + 2 * P, dh * (before - n) * z * (T(1) - z)), store(out + 3 * P, dq);
        if (s.dh_before) store(s.dh_before.at(row, u), dh * z);
      }
  }
};

struct ResetBeforeCell : VectorCell {
  static constexpr long GATES = 3, SUMS = 3, PLANES = 3, SCRATCH = 5;

  template <class T>
  static void forward(const StateWeights<T>& w, const StepForward<T>& s, NoWork<T>&) {
    const Rows<T> reset = from_plane(s.scratch, 3, w.width);
    w.sum(1, 3, s.rows, s.x, s.h_before, s.planes);
    gate(s, reset, w.width);
    w.sum(0, 1, s.rows, s.x, s.h_before ? Rows<const T>(reset) : Rows<const T>{}, s.planes);
    mix(s, w.width);
  }

  template <class T>
  static void backward(const StateWeights<T>& w, const StepBackward<T>& s, StateGradients<T>& sums, NoWork<T>&) {
    const Rows<T> da = s.scratch, from_h = from_plane(da, 1, w.width);
    const Rows<T> reset = from_plane(s.scratch, 3, w.width), d_reset = from_plane(s.scratch, 4, w.width);
    differentiate_mix(s, da, reset, d_reset, w.width);
    if (s.h_before) w.recurrent.apply_transposed(0, 1, s.rows, da, d_reset);
    differentiate_gate(s, d_reset, da, w.width);
    if (s.dh_before) w.recurrent.apply_transposed(1, 2, s.rows, from_h, s.dh_before);
    if (s.dx) w.input.apply_transposed(0, GATES, s.rows, da, s.dx);
    w.input.add_gradient(0, GATES, s.rows, da, s.x, sums.input.data());
    if (s.h_before) {
      w.recurrent.add_gradient(0, 1, s.rows, da, reset, sums.recurrent.data());
      w.recurrent.add_gradient(1, 2, s.rows, from_h, s.h_before, sums.recurrent.data());
    }
    sums.add_bias(w, s.rows, da);
  }

 private:
  template <class T>
  static void gate(const StepForward<T>& s, Rows<T> reset, long P) {
    for_row_tiles(s.rows, [&](auto tile, long first) {
      constexpr int R = decltype(tile)::value;
      for (long u = 0; u < 2 * P; u += LANES<T>) {
        Vector<T> gate[R];
        SEQPYRAMID_UNROLL
        for (int r = 0; r < R; ++r) gate[r] = load(s.planes.at(first + r, P + u));
        squash<T, 0>(gate);
        SEQPYRAMID_UNROLL
        for (int r = 0; r < R; ++r) {
          store(s.planes.at(first + r, P + u), gate[r]);
          if (u < P) store(reset.at(first + r, u), gate[r] * load_or_zero(s.h_before, first + r, u));
        }
      }
    });
  }

  template <class T>
  static void mix(const StepForward<T>& s, long P) {
    for_row_tiles(s.rows, [&](auto tile, long first) {
      constexpr int R = decltype(tile)::value;
      for (long u = 0; u < P; u += LANES<T>) {
        Vector<T> n[R];
        SEQPYRAMID_UNROLL
        for (int r = 0; r < R; ++r) n[r] = load(s.planes.at(first + r, u));
        squash<T, 0b11111111>(n);
        SEQPYRAMID_UNROLL
        for (int r = 0; r < R; ++r) {
          T* plane = s.planes.at(first + r, u);
          s.ahead.template fetch<true, T>(s.h, s.planes, first + r, u, PLANES, P);
          store(plane, n[r]);
          store(s.h.at(first + r, u), n[r] + load(plane + 2 * P) * (load_or_zero(s.h_before, first + r, u) - n[r]));
        }
      }
    });
  }

  template <class T>
  static void differentiate_mix(const StepBackward<T>& s, Rows<T> da, Rows<T> reset, Rows<T> d_reset, long P) {
    for (long row = 0; row < s.rows; ++row)
      for (long u = 0; u < P; u += LANES<T>) {
        const T* plane = s.planes.at(row, u);
        s.ahead.template fetch<false, T>(s.h_before, s.planes, row, u, PLANES, P);
        const Vector<T> n = load(plane), r = load(plane + P), z = load(plane + 2 * P);
        const Vector<T> dh = load(s.dh.at(row, u)), before = load_or_zero(s.h_before, row, u);
        store(da.at(row, u), dh * (T(1) - z) * (T(1) - n * n));
        store(da.at(row, u + 2 * P), dh * (before - n) * z * (T(1) - z));
        store(reset.at(row, u), r * before);
        store(d_reset.at(row, u), Vector<T>{});
        if (s.dh_before) store(s.dh_before.at(row, u), dh * z);
      }
  }

  template <class T>
  static void differentiate_gate(const StepBackward<T>& s, Rows<T> d_reset, Rows<T> da, long P) {
    for (long row = 0; row < s.rows; ++row)
      for (long u = 0; u < P; u += LANES<T>) {
        const Vector<T> r = load(s.planes.at(row, u + P)), d = load(d_reset.at(row, u));
        store(da.at(row, u + P), d * load_or_zero(s.h_before, row, u) * r * (T(1) - r));
        if (s.dh_before) store(s.dh_before.at(row, u), load(s.dh_before.at(row, u)) + d * r);
      }
  }
};

}  // namespace

SEQPYRAMID_STATE_LAYER(gru, GruCell)
SEQPYRAMID_STATE_LAYER(reset_before_gru, ResetBeforeCell)
