"""The kernels under the compiler's sanitizers: no race between threads, no access outside what was given."""

import subprocess
from pathlib import Path

import pytest

from seqpyramid.kernels import library
from tests.kernels import COMPILER, FIRST_AND_LAST, level_flags

FLOAT32_ONLY = r"""
#undef SEQPYRAMID_KERNEL
#define SEQPYRAMID_KERNEL(name, Arguments, kernel) SEQPYRAMID_KERNEL_OF(name, float32, float, Arguments, kernel)
"""
"""After interface.h and before the kernels: a driver takes half the time to compile."""

DRIVER = r"""
#include <cmath>
#include <vector>
#include "interface.h"
FLOAT32_ONLY
INCLUDES

// Memory of exactly the size that a kernel may touch, filled with small numbers.
struct Memory {
  std::vector<std::vector<float>> blocks;
  float* operator()(size_t size, float scale = 0) {
    std::vector<float> block(size);
    for (size_t k = 0; k < size; ++k) block[k] = scale * std::sin(1.7f * float(k));
    blocks.push_back(std::move(block));
    return blocks.back().data();
  }
};

constexpr long B = 70, T = 49, FEATURES = 3, H = 101, THREADS = 4;  // H: no whole vectors
constexpr long P = padded<float>(H), PF = padded<float>(FEATURES);
"""

LSTM_AND_TP_RNN = r"""
constexpr long L = 14, G = 3;

int run_lstm(const int64_t* lengths) {
  Memory m;
  m.blocks.reserve(64);
  LstmArguments a{};
  a.size = sizeof a, a.batch = B, a.time = T, a.inputs = FEATURES, a.hidden = H, a.threads = THREADS;
  a.lengths = lengths, a.x = m(B * T * FEATURES, 1), a.x_batch = T * FEATURES, a.x_time = FEATURES;
  a.weight_ih = m(4 * H * FEATURES, .1f), a.weight_hh = m(4 * H * H, .1f), a.bias = m(4 * H, .1f);
  float *h_first = m(B * P), *c_first = m(B * P);
  a.h_first = h_first, a.c_first = c_first, a.h_last = m(B * P), a.c_last = m(B * P);
  a.every = 2, a.steps = m((T + 1) / 2 * B * P);
  int code = seqpyramid_lstm_forward_float32(&a);  // nothing kept
  a.cells = m(T * B * P), a.gates = m(T * B * 4 * P);
  code |= seqpyramid_lstm_forward_float32(&a);
  a.d_steps = m(B * ((T + 1) / 2) * H, .1f), a.d_steps_batch = (T + 1) / 2 * H, a.d_steps_time = H;
  a.d_h_last = m(B * P), a.d_c_last = m(B * P), a.d_x = m(T * B * PF);
  a.d_weight_ih = m(4 * H * FEATURES), a.d_weight_hh = m(4 * H * H), a.d_bias = m(4 * H);
  a.d_h_first = m(B * P), a.d_c_first = m(B * P);
  code |= seqpyramid_lstm_backward_float32(&a);
  int64_t segment = 0;
  a.answer = &segment;
  code |= seqpyramid_lstm_segment_float32(&a);
  a.segment = segment, a.cells = nullptr, a.gates = nullptr;
  a.starts = m(((T + segment - 1) / segment - 1) * 2 * B * P);
  code |= seqpyramid_lstm_forward_float32(&a);
  return code | seqpyramid_lstm_backward_float32(&a);
}

int run_tp_rnn(const int64_t* lengths, bool top_down) {
  Memory m;
  m.blocks.reserve(64);
  TpRnnArguments a{};
  a.size = sizeof a, a.batch = B, a.time = T, a.inputs = FEATURES, a.hidden = H, a.threads = THREADS;
  a.length = L, a.granularity = G, a.emitted_level = 1, a.emitted_time = (T + L - 1) / L * ((L + G - 1) / G);
  a.scrambled = 1, a.top_down = top_down, a.aggregate_cell = 1, a.top_first = 1;
  a.lengths = lengths, a.x = m(B * T * FEATURES, 1), a.x_batch = T * FEATURES, a.x_time = FEATURES;
  a.weight_ih = m(4 * H * FEATURES, .1f), a.weight_hh = m(4 * H * H, .1f), a.bias = m(4 * H, .1f);
  a.h_first = m(3 * G * G, .3f), a.h_second = m(3 * G * G, .3f);
  a.c_first = m(3 * G * G, .3f), a.c_second = m(3 * G * G, .3f);
  a.path_first = m(12, .3f), a.path_second = m(12, .3f);
  a.output = m(B * P), a.emitted = m(a.emitted_time * B * P);
  int code = seqpyramid_tp_rnn_forward_float32(&a);  // nothing kept
  int64_t nodes = 0;
  a.answer = &nodes;
  code |= seqpyramid_tp_rnn_nodes_float32(&a);
  a.cells = m(T * B * P), a.gates = m(T * B * 4 * P);
  a.node_h = m(nodes * B * P), a.node_c = m(nodes * B * P), a.path = m((T + L - 1) / L * B * P);
  code |= seqpyramid_tp_rnn_forward_float32(&a);
  a.d_output = m(B * P), a.d_emitted = m(B * a.emitted_time * H, .1f);
  a.d_emitted_batch = a.emitted_time * H, a.d_emitted_time = H, a.d_x = m(T * B * PF);
  a.d_weight_ih = m(4 * H * FEATURES), a.d_weight_hh = m(4 * H * H), a.d_bias = m(4 * H);
  a.d_h_first = m(3 * G * G), a.d_h_second = m(3 * G * G), a.d_c_first = m(3 * G * G), a.d_c_second = m(3 * G * G);
  a.d_path_first = m(12), a.d_path_second = m(12);
  code |= seqpyramid_tp_rnn_backward_float32(&a);
  int64_t segment = 0;
  a.answer = &segment;
  code |= seqpyramid_tp_rnn_segment_float32(&a);
  a.segment = segment, a.cells = a.gates = a.node_h = a.node_c = a.path = nullptr;
  a.starts = m(((T + L - 1) / L - 1) / segment * 3 * B * P);
  code |= seqpyramid_tp_rnn_forward_float32(&a);
  a.output = a.emitted = nullptr;
  return code | seqpyramid_tp_rnn_backward_float32(&a);
}

int main() {
  std::vector<int64_t> full(B, T), ragged(B);
  for (long row = 0; row < B; ++row) ragged[size_t(row)] = T - row * (T - 1) / (B - 1);
  seqpyramid_use_tiles(1);
  int code = 0;
  for (const int64_t* lengths : {full.data(), ragged.data()})
    code |= run_lstm(lengths) | run_tp_rnn(lengths, true) | run_tp_rnn(lengths, false);
  return code;
}
"""

ELMAN_AND_GRU = r"""
using Kernel = int (*)(const StateLayerArguments*);

int run(Kernel segment, Kernel forward, Kernel backward, long gates, long biases, long planes,
        const int64_t* lengths) {
  Memory m;
  StateLayerArguments a{};
  a.size = sizeof a, a.batch = B, a.time = T, a.inputs = FEATURES, a.hidden = H, a.threads = THREADS;
  a.lengths = lengths, a.x = m(B * T * FEATURES, 1), a.x_batch = T * FEATURES, a.x_time = FEATURES;
  a.weight_ih = m(gates * H * FEATURES, .1f), a.weight_hh = m(gates * H * H, .1f), a.bias = m(biases * H, .1f);
  a.h_first = m(B * P), a.h_last = m(B * P);
  int code = forward(&a);  // nothing kept
  a.steps = m(T * B * P);
  code |= forward(&a);
  if (planes) a.planes = m(T * B * planes * P);
  code |= forward(&a);
  a.every = 2, a.d_steps = m(B * ((T + 1) / 2) * H, .1f);
  a.d_steps_batch = (T + 1) / 2 * H, a.d_steps_time = H;
  a.d_h_last = m(B * P), a.d_x = m(T * B * PF), a.d_h_first = m(B * P);
  a.d_weight_ih = m(gates * H * FEATURES), a.d_weight_hh = m(gates * H * H), a.d_bias = m(biases * H);
  code |= backward(&a);
  int64_t steps = 0;
  a.answer = &steps;
  code |= segment(&a);
  a.segment = steps, a.steps = nullptr, a.planes = nullptr;
  a.starts = m(((T + steps - 1) / steps - 1) * B * P);
  code |= forward(&a);
  return code | backward(&a);
}

// All functions of one cell.
#define KERNELS(name) \
  seqpyramid_##name##_segment_float32, seqpyramid_##name##_forward_float32, seqpyramid_##name##_backward_float32

int main() {
  std::vector<int64_t> full(B, T), ragged(B);
  for (long row = 0; row < B; ++row) ragged[size_t(row)] = T - row * (T - 1) / (B - 1);
  seqpyramid_use_tiles(1);
  int code = 0;
  for (const int64_t* lengths : {full.data(), ragged.data()}) {
    code |= run(KERNELS(elman_tanh), 1, 1, 0, lengths);
    code |= run(KERNELS(elman_relu), 1, 1, 0, lengths);
    code |= run(KERNELS(gru), 3, 4, 4, lengths);
    code |= run(KERNELS(reset_before_gru), 3, 3, 3, lengths);
  }
  return code;
}
"""

HM_LSTM = r"""
#include <random>

int main() {
  seqpyramid_use_tiles(1);
  const int64_t B = 70, T = 12, F = 3, L = 3, H[] = {100, 37, 20}, total = 157;
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.3f);
  std::vector<std::vector<float>> kept;
  auto make = [&](long n, bool draw) {
    kept.emplace_back(n);
    if (draw) for (float& value : kept.back()) value = normal(random);
    return kept.back().data();
  };
  std::vector<int64_t> lengths(B);
  for (long row = 0; row < B; ++row) lengths[row] = 1 + row % T;
  for (long choice = 0; choice < 2; ++choice) {
    LayerCall layers[L] = {};
    Call call = {};
    call.size = sizeof call, call.layers = L, call.steps = T, call.batch = B, call.threads = 4;
    call.choice = choice, call.slope = 1, call.lengths = lengths.data(), call.layer = layers;
    call.x = make(B * T * F, true), call.x_row = T * F, call.x_step = F;
    call.h = make(B * T * total, false), call.z = make(B * T * L, false), call.x_z = make(B * T * L, false);
    call.d_h = make(B * T * total, true), call.d_z = make(B * T * L, true), call.d_x = make(B * T * F, false);
    for (long l = 0; l < L; ++l) {
      LayerCall& layer = layers[l];
      const long above = l + 1 < L ? H[l + 1] : 0, below = l ? H[l - 1] : F;
      layer.hidden = H[l], layer.above = above, layer.below = below, layer.boundary = l + 1 < L;
      layer.columns = H[l] + above + below, layer.below_at = H[l] + above;
    }
    for (long l = 0; l < L; ++l) {
      LayerCall& layer = layers[l];
      const long rows = 4 * H[l] + layer.boundary;
      layer.weight = make(rows * layer.columns, true), layer.bias = make(rows, true);
      layer.first_h = make(B * H[l], true), layer.first_c = make(B * H[l], true), layer.first_z = make(B, false);
      layer.last_h = make(B * H[l], false), layer.last_c = make(B * H[l], false), layer.last_z = make(B, false);
      layer.cells = make(T * B * padded<float>(H[l]), false);
      layer.gates = make(T * B * Layout<float>(H[l]).stride, false);
      layer.d_weight = make(rows * layer.columns, false), layer.d_bias = make(rows, false);
      layer.d_h = make(B * H[l], true), layer.d_c = make(B * H[l], true), layer.d_z = make(B, true);
    }
    if (seqpyramid_hm_lstm_forward_float32(&call) || seqpyramid_hm_lstm_backward_float32(&call)) return 1;
    call.segment = 5;
    for (long l = 0; l < L; ++l) {
      layers[l].cells = layers[l].gates = nullptr;
      layers[l].starts = make((T - 1) / call.segment * 2 * B * padded<float>(H[l]), false);
    }
    ReadCall& read = call.read;
    const long E = 41;
    read.embedded = E, read.gates = make(L * total, true), read.embedding = make(E * total, true);
    read.g = make(T * B * L, false), read.e = make(T * B * E, false), read.d_e = make(B * E, true), read.d_row = E;
    read.d_gates = make(L * total, false), read.d_embedding = make(E * total, false);
    call.h = nullptr, call.d_h = nullptr;
    if (seqpyramid_hm_lstm_forward_float32(&call) || seqpyramid_hm_lstm_backward_float32(&call)) return 1;
  }
}
"""

DRIVERS = {
    "lstm, tp_rnn": (("library.cpp", "lstm.cpp", "tp_rnn.cpp"), LSTM_AND_TP_RNN),
    "hm_lstm": (("library.cpp", "hm_lstm.cpp"), HM_LSTM),
    "elman, gru": (("library.cpp", "elman.cpp", "gru.cpp"), ELMAN_AND_GRU),
}
"""What each driver includes, and what it runs."""

WHERE = [
    *(("address,undefined", level) for level in FIRST_AND_LAST),
    ("thread", FIRST_AND_LAST[-1]),
]
"""Sanitizers and levels: what a vector may touch follows its width, what threads share does not."""


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("kernels", DRIVERS)
@pytest.mark.parametrize(("sanitizer", "level"), WHERE)
def test_no_race_and_no_stray_access(kernels: str, sanitizer: str, level: str, tmp_path: Path) -> None:
    assert COMPILER is not None
    source, program = tmp_path / "driver.cpp", tmp_path / "driver"
    included, body = DRIVERS[kernels]
    includes = "\n".join(f'#include "{name}"' for name in included)
    driver = DRIVER.replace("FLOAT32_ONLY", FLOAT32_ONLY).replace("INCLUDES", includes)
    source.write_text(driver + body, encoding="utf-8")
    flags = f"-std=c++17 -O1 -g1 -pthread -fsanitize={sanitizer} -fno-sanitize-recover=all -Wno-psabi".split()
    command = [COMPILER, *level_flags(level), *flags, "-Wno-ignored-attributes", "-I", str(library.FOLDER)]
    command += [str(source)]
    compiled = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr[:3000]
    finished = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stderr == ""
