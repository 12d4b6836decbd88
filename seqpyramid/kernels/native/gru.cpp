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
#include "elman_layer.h"

using namespace seqpyramid;

namespace {

// The planes from one of them on.
template <class Row>
Row from_plane(Row planes, long plane, long width) {
  return {planes.data + plane * width, planes.stride};
}

template <class T>
SEQPYRAMID_INLINE Vector<T> load_or_zero(Rows<const T> rows, long row, long unit) {
  return rows ? load(rows.at(row, unit)) : Vector<T>{};
}

template <class T>
class GruCell {
 public:
  static constexpr long PLANES = 4, SCRATCH = 4;

  explicit GruCell(const StateLayerArguments& a)
      : width_(padded<T>(a.hidden)),
        input_(static_cast<const T*>(a.weight_ih), 3, a.hidden, a.inputs),
        recurrent_(static_cast<const T*>(a.weight_hh), 3, a.hidden, a.hidden),
        bias_(static_cast<const T*>(a.bias), 4, a.hidden) {}

  size_t sums() const { return input_.size() + recurrent_.size() + bias_.size(); }

  void add_to(const T* sums, const StateLayerArguments& a) const {
    input_.add_to(sums, static_cast<T*>(a.d_weight_ih));
    recurrent_.add_to(sums + input_.size(), static_cast<T*>(a.d_weight_hh));
    bias_.add_to(sums + input_.size() + recurrent_.size(), static_cast<T*>(a.d_bias));
  }

  void forward(const StepForward<T>& s) const {
    bias_.fill(s.rows, s.planes);
    input_.apply(s.rows, s.x, s.planes);
    if (s.h_before) recurrent_.apply(s.rows, s.h_before, from_plane(s.planes, 1, width_));
    gate(s);
  }

  void backward(const StepBackward<T>& s, T* sums) const {
    const Rows<T> da = s.scratch, from_h = from_plane(da, 1, width_);
    differentiate(s, da);
    if (s.dh_before) recurrent_.apply_transposed(s.rows, from_h, s.dh_before);
    if (s.dx) input_.apply_transposed(s.rows, da, s.dx);
    input_.add_gradient(s.rows, da, s.x, sums);
    if (s.h_before) recurrent_.add_gradient(s.rows, from_h, s.h_before, sums + input_.size());
    bias_.add_gradient(s.rows, da, sums + input_.size() + recurrent_.size());
  }

 private:
  void gate(const StepForward<T>& s) const {
    const long P = width_;
    for (long row = 0; row < s.rows; ++row)
      for (long u = 0; u < P; u += LANES<T>) {
        T* plane = s.planes.at(row, u);
        const Vector<T> r = sigmoid<T>(load(plane + P)), z = sigmoid<T>(load(plane + 2 * P));
        const Vector<T> n = tanh<T>(load(plane) + r * load(plane + 3 * P));
        store(plane, n), store(plane + P, r), store(plane + 2 * P, z);
        store(s.h.at(row, u), n + z * (load_or_zero(s.h_before, row, u) - n));
      }
  }

  void differentiate(const StepBackward<T>& s, Rows<T> da) const {
    const long P = width_;
    for (long row = 0; row < s.rows; ++row)
      for (long u = 0; u < P; u += LANES<T>) {
        const T* plane = s.planes.at(row, u);
        const Vector<T> n = load(plane), r = load(plane + P), z = load(plane + 2 * P), q = load(plane + 3 * P);
        const Vector<T> dh = load(s.dh.at(row, u)), before = load_or_zero(s.h_before, row, u);
        const Vector<T> da_n = dh * (T(1) - z) * (T(1) - n * n), dq = da_n * r;
        T* out = da.at(row, u);
        store(out, da_n), store(out + P, dq * q * (T(1) - r));
        store(out + 2 * P, dh * (before - n) * z * (T(1) - z)), store(out + 3 * P, dq);
        if (s.dh_before) store(s.dh_before.at(row, u), dh * z);
      }
  }

  long width_;
  Matrix<T> input_, recurrent_;
  BiasRow<T> bias_;
};

template <class T>
class ResetBeforeCell {
 public:
  static constexpr long PLANES = 3, SCRATCH = 5;  // the planes' gradients, s, ds

  explicit ResetBeforeCell(const StateLayerArguments& a)
      : width_(padded<T>(a.hidden)),
        square_(a.hidden * a.hidden),
        input_(static_cast<const T*>(a.weight_ih), 3, a.hidden, a.inputs),
        candidate_(static_cast<const T*>(a.weight_hh), 1, a.hidden, a.hidden),
        gates_(static_cast<const T*>(a.weight_hh) + square_, 2, a.hidden, a.hidden),
        bias_(static_cast<const T*>(a.bias), 3, a.hidden) {}

  size_t sums() const { return input_.size() + candidate_.size() + gates_.size() + bias_.size(); }

  void add_to(const T* sums, const StateLayerArguments& a) const {
    auto* d_weight_hh = static_cast<T*>(a.d_weight_hh);
    input_.add_to(sums, static_cast<T*>(a.d_weight_ih)), sums += input_.size();
    candidate_.add_to(sums, d_weight_hh), sums += candidate_.size();
    gates_.add_to(sums, d_weight_hh + square_), sums += gates_.size();
    bias_.add_to(sums, static_cast<T*>(a.d_bias));
  }

  void forward(const StepForward<T>& s) const {
    const Rows<T> reset = from_plane(s.scratch, 3, width_);
    bias_.fill(s.rows, s.planes);
    input_.apply(s.rows, s.x, s.planes);
    if (s.h_before) gates_.apply(s.rows, s.h_before, from_plane(s.planes, 1, width_));
    gate(s, reset);
    if (s.h_before) candidate_.apply(s.rows, reset, s.planes);
    mix(s);
  }

  void backward(const StepBackward<T>& s, T* sums) const {
    const Rows<T> da = s.scratch, from_h = from_plane(da, 1, width_);
    const Rows<T> reset = from_plane(s.scratch, 3, width_), d_reset = from_plane(s.scratch, 4, width_);
    differentiate_mix(s, da, reset, d_reset);
    if (s.h_before) candidate_.apply_transposed(s.rows, da, d_reset);
    differentiate_gate(s, d_reset, da);
    if (s.dh_before) gates_.apply_transposed(s.rows, from_h, s.dh_before);
    if (s.dx) input_.apply_transposed(s.rows, da, s.dx);
    input_.add_gradient(s.rows, da, s.x, sums), sums += input_.size();
    if (s.h_before) candidate_.add_gradient(s.rows, da, reset, sums);
    sums += candidate_.size();
    if (s.h_before) gates_.add_gradient(s.rows, from_h, s.h_before, sums);
    bias_.add_gradient(s.rows, da, sums + gates_.size());
  }

 private:
  void gate(const StepForward<T>& s, Rows<T> reset) const {
    const long P = width_;
    for (long row = 0; row < s.rows; ++row)
      for (long u = 0; u < P; u += LANES<T>) {
        T* plane = s.planes.at(row, u);
        const Vector<T> r = sigmoid<T>(load(plane + P));
        store(plane + P, r), store(plane + 2 * P, sigmoid<T>(load(plane + 2 * P)));
        store(reset.at(row, u), r * load_or_zero(s.h_before, row, u));
      }
  }

  void mix(const StepForward<T>& s) const {
    for (long row = 0; row < s.rows; ++row)
      for (long u = 0; u < width_; u += LANES<T>) {
        T* plane = s.planes.at(row, u);
        const Vector<T> n = tanh<T>(load(plane)), z = load(plane + 2 * width_);
        store(plane, n);
        store(s.h.at(row, u), n + z * (load_or_zero(s.h_before, row, u) - n));
      }
  }

  void differentiate_mix(const StepBackward<T>& s, Rows<T> da, Rows<T> reset, Rows<T> d_reset) const {
    const long P = width_;
    for (long row = 0; row < s.rows; ++row)
      for (long u = 0; u < P; u += LANES<T>) {
        const T* plane = s.planes.at(row, u);
        const Vector<T> n = load(plane), r = load(plane + P), z = load(plane + 2 * P);
        const Vector<T> dh = load(s.dh.at(row, u)), before = load_or_zero(s.h_before, row, u);
        store(da.at(row, u), dh * (T(1) - z) * (T(1) - n * n));
        store(da.at(row, u + 2 * P), dh * (before - n) * z * (T(1) - z));
        store(reset.at(row, u), r * before);
        store(d_reset.at(row, u), Vector<T>{});
        if (s.dh_before) store(s.dh_before.at(row, u), dh * z);
      }
  }

  void differentiate_gate(const StepBackward<T>& s, Rows<T> d_reset, Rows<T> da) const {
    for (long row = 0; row < s.rows; ++row)
      for (long u = 0; u < width_; u += LANES<T>) {
        const Vector<T> r = load(s.planes.at(row, u + width_)), d = load(d_reset.at(row, u));
        store(da.at(row, u + width_), d * load_or_zero(s.h_before, row, u) * r * (T(1) - r));
        if (s.dh_before) store(s.dh_before.at(row, u), load(s.dh_before.at(row, u)) + d * r);
      }
  }

  long width_, square_;
  Matrix<T> input_, candidate_, gates_;
  BiasRow<T> bias_;
};

template <class T>
void gru_forward(const StateLayerArguments& a) {
  layer_forward<T, GruCell<T>>(a);
}

template <class T>
void gru_backward(const StateLayerArguments& a) {
  layer_backward<T, GruCell<T>>(a);
}

template <class T>
void reset_before_gru_forward(const StateLayerArguments& a) {
  layer_forward<T, ResetBeforeCell<T>>(a);
}

template <class T>
void reset_before_gru_backward(const StateLayerArguments& a) {
  layer_backward<T, ResetBeforeCell<T>>(a);
}

}  // namespace

SEQPYRAMID_KERNEL(gru_forward, StateLayerArguments, gru_forward)
SEQPYRAMID_KERNEL(gru_backward, StateLayerArguments, gru_backward)
SEQPYRAMID_KERNEL(reset_before_gru_forward, StateLayerArguments, reset_before_gru_forward)
SEQPYRAMID_KERNEL(reset_before_gru_backward, StateLayerArguments, reset_before_gru_backward)
