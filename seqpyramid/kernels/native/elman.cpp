// Elman's layer, with tanh or ReLU.
//
// Forward:   h = f(U x + W h' + b)
// Backward:  da = dh (1 - h^2)  or  dh where h > 0;  dh' = W^T da;  dx = U^T da
//            dW += da h'^T;  dU += da x^T;  db += da
//
// Nothing is kept but h, and the sums stand in its place until f is applied.
#include "elman_layer.h"

using namespace seqpyramid;

namespace {

struct Tanh {
  template <class T, int K>
  static SEQPYRAMID_INLINE void apply(Vector<T> (&a)[K]) {
    squash<T, 0b11111111>(a);
  }
  template <class T>
  static SEQPYRAMID_INLINE Vector<T> backward(Vector<T> dh, Vector<T> h) {
    return dh * (T(1) - h * h);
  }
};

// NaN comes through both ways.
struct Relu {
  template <class T, int K>
  static SEQPYRAMID_INLINE void apply(Vector<T> (&a)[K]) {
    const Vector<T> zero{};
    for (Vector<T>& v : a) v = v < zero ? zero : v;
  }
  template <class T>
  static SEQPYRAMID_INLINE Vector<T> backward(Vector<T> dh, Vector<T> h) {
    const Vector<T> zero{};
    return h <= zero ? zero : dh;
  }
};

template <class Function>
struct ElmanCell : VectorCell {
  static constexpr long GATES = 1, SUMS = 1, PLANES = 0, SCRATCH = 1;

  template <class T>
  static void forward(const StateWeights<T>& w, const StepForward<T>& s, NoWork<T>&) {
    w.sum(0, SUMS, s.rows, s.x, s.h_before, s.h);
    for_row_tiles(s.rows, [&](auto tile, long first) {
      constexpr int R = decltype(tile)::value;
      for (long u = 0; u < w.width; u += LANES<T>) {
        Vector<T> a[R];
        SEQPYRAMID_UNROLL
        for (int r = 0; r < R; ++r) a[r] = load(s.h.at(first + r, u));
        Function::template apply<T>(a);
        SEQPYRAMID_UNROLL
        for (int r = 0; r < R; ++r) {
          store(s.h.at(first + r, u), a[r]);
          s.ahead.template fetch<true, T>(s.h, {}, first + r, u, PLANES, w.width);
        }
      }
    });
  }

  template <class T>
  static void backward(const StateWeights<T>& w, const StepBackward<T>& s, StateGradients<T>& sums, NoWork<T>&) {
    const Rows<T> da = s.scratch;
    differentiate(w, s, da);
    if (s.dh_before) w.recurrent.apply_transposed(0, GATES, s.rows, da, s.dh_before);
    if (s.dx) w.input.apply_transposed(0, GATES, s.rows, da, s.dx);
    w.input.add_gradient(0, GATES, s.rows, da, s.x, sums.input.data());
    if (s.h_before) w.recurrent.add_gradient(0, GATES, s.rows, da, s.h_before, sums.recurrent.data());
    sums.add_bias(w, s.rows, da);
  }

 private:
  template <class T>
  static void differentiate(const StateWeights<T>& w, const StepBackward<T>& s, Rows<T> da) {
    for (long row = 0; row < s.rows; ++row)
      for (long u = 0; u < w.width; u += LANES<T>) {
        s.ahead.template fetch<false, T>(s.h_before, {}, row, u, PLANES, w.width);
        store(da.at(row, u), Function::template backward<T>(load(s.dh.at(row, u)), load(s.h.at(row, u))));
        if (s.dh_before) store(s.dh_before.at(row, u), Vector<T>{});
      }
  }
};

}  // namespace

SEQPYRAMID_STATE_LAYER(elman_tanh, ElmanCell<Tanh>)
SEQPYRAMID_STATE_LAYER(elman_relu, ElmanCell<Relu>)
