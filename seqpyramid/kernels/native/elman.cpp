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
  template <class T>
  static SEQPYRAMID_INLINE Vector<T> value(Vector<T> a) {
    return tanh<T>(a);
  }
  template <class T>
  static SEQPYRAMID_INLINE Vector<T> backward(Vector<T> dh, Vector<T> h) {
    return dh * (T(1) - h * h);
  }
};

// NaN comes through both ways.
struct Relu {
  template <class T>
  static SEQPYRAMID_INLINE Vector<T> value(Vector<T> a) {
    const Vector<T> zero{};
    return a < zero ? zero : a;
  }
  template <class T>
  static SEQPYRAMID_INLINE Vector<T> backward(Vector<T> dh, Vector<T> h) {
    const Vector<T> zero{};
    return h <= zero ? zero : dh;
  }
};

template <class T, class Function>
class ElmanCell {
 public:
  static constexpr long PLANES = 0, SCRATCH = 1;

  explicit ElmanCell(const StateLayerArguments& a)
      : width_(padded<T>(a.hidden)),
        input_(static_cast<const T*>(a.weight_ih), 1, a.hidden, a.inputs),
        recurrent_(static_cast<const T*>(a.weight_hh), 1, a.hidden, a.hidden),
        bias_(static_cast<const T*>(a.bias), 1, a.hidden) {}

  size_t sums() const { return input_.size() + recurrent_.size() + bias_.size(); }

  void add_to(const T* sums, const StateLayerArguments& a) const {
    input_.add_to(sums, static_cast<T*>(a.d_weight_ih));
    recurrent_.add_to(sums + input_.size(), static_cast<T*>(a.d_weight_hh));
    bias_.add_to(sums + input_.size() + recurrent_.size(), static_cast<T*>(a.d_bias));
  }

  void forward(const StepForward<T>& s) const {
    bias_.fill(s.rows, s.h);
    input_.apply(s.rows, s.x, s.h);
    if (s.h_before) recurrent_.apply(s.rows, s.h_before, s.h);
    squash(s.rows, s.h);
  }

  void backward(const StepBackward<T>& s, T* sums) const {
    const Rows<T> da = s.scratch;
    differentiate(s, da);
    if (s.dh_before) recurrent_.apply_transposed(s.rows, da, s.dh_before);
    if (s.dx) input_.apply_transposed(s.rows, da, s.dx);
    input_.add_gradient(s.rows, da, s.x, sums);
    if (s.h_before) recurrent_.add_gradient(s.rows, da, s.h_before, sums + input_.size());
    bias_.add_gradient(s.rows, da, sums + input_.size() + recurrent_.size());
  }

 private:
  void squash(long rows, Rows<T> h) const {
    for (long row = 0; row < rows; ++row)
      for (long u = 0; u < width_; u += LANES<T>)
        store(h.at(row, u), Function::template value<T>(load(h.at(row, u))));
  }

  void differentiate(const StepBackward<T>& s, Rows<T> da) const {
    for (long row = 0; row < s.rows; ++row)
      for (long u = 0; u < width_; u += LANES<T>) {
        store(da.at(row, u), Function::template backward<T>(load(s.dh.at(row, u)), load(s.h.at(row, u))));
        if (s.dh_before) store(s.dh_before.at(row, u), Vector<T>{});
      }
  }

  long width_;
  Matrix<T> input_, recurrent_;
  BiasRow<T> bias_;
};

template <class T>
void elman_tanh_forward(const StateLayerArguments& a) {
  layer_forward<T, ElmanCell<T, Tanh>>(a);
}

template <class T>
void elman_tanh_backward(const StateLayerArguments& a) {
  layer_backward<T, ElmanCell<T, Tanh>>(a);
}

template <class T>
void elman_relu_forward(const StateLayerArguments& a) {
  layer_forward<T, ElmanCell<T, Relu>>(a);
}

template <class T>
void elman_relu_backward(const StateLayerArguments& a) {
  layer_backward<T, ElmanCell<T, Relu>>(a);
}

}  // namespace

SEQPYRAMID_KERNEL(elman_tanh_forward, StateLayerArguments, elman_tanh_forward)
SEQPYRAMID_KERNEL(elman_tanh_backward, StateLayerArguments, elman_tanh_backward)
SEQPYRAMID_KERNEL(elman_relu_forward, StateLayerArguments, elman_relu_forward)
SEQPYRAMID_KERNEL(elman_relu_backward, StateLayerArguments, elman_relu_backward)
