import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import python_speech_features
import soundfile
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from seqpyramid.data import features
from seqpyramid.data.audio import Sound, read_sound, resample
from seqpyramid.data.features import Features, MfccFeatures, RawFeatures, read_features
from seqpyramid.errors import DataError


def noise(samples: int, rate: int, *, seed: int = 0) -> Sound:
    drawn = np.random.default_rng(seed).uniform(-0.9, 0.9, samples)
    return Sound(drawn.astype(np.float32), rate)


def mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def reference(sound: Sound, config: MfccFeatures, length: int, step: int) -> NDArray[np.float64]:
    """MFCC written out from their definition, in float64; window and step in samples."""
    x = sound.samples.astype(np.float64)
    y = [x[0], *(x[n] - config.preemphasis * x[n - 1] for n in range(1, len(x)))]
    windows = 1 if len(y) <= length else 1 + math.ceil((len(y) - length) / step)
    y = np.array(y + [0.0] * ((windows - 1) * step + length - len(y)))
    points = 1
    while points < length:
        points *= 2
    shape = np.ones(length)
    if config.window == "hamming":
        shape = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(length) / (length - 1))
    bank = np.zeros((config.filters, points // 2 + 1))
    top = mel(sound.sample_rate / 2)
    edges = [
        math.floor(
            (points + 1) * 700 * (10 ** (top * m / (config.filters + 1) / 2595) - 1) / sound.sample_rate
        )
        for m in range(config.filters + 2)
    ]
    for m in range(config.filters):
        left, centre, right = edges[m : m + 3]
        for k in range(left, right):
            bank[m, k] = (k - left) / (centre - left) if k < centre else (right - k) / (right - centre)
    rows = []
    for n in range(windows):
        spectrum = np.fft.rfft(y[n * step : n * step + length] * shape, points)
        power = (spectrum.real**2 + spectrum.imag**2) / points
        tiny = np.finfo(float).eps
        logs = np.log([value if value else tiny for value in bank @ power])
        row = []
        for k in range(config.coefficients):
            angles = np.pi * k * (2 * np.arange(config.filters) + 1) / (2 * config.filters)
            c = math.sqrt((1 if k == 0 else 2) / config.filters) * np.sum(logs * np.cos(angles))
            if config.lifter:
                c *= 1 + config.lifter / 2 * math.sin(math.pi * k / config.lifter)
            row.append(c)
        if config.energy:
            row[0] = math.log(power.sum() or tiny)
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(
    ("rate", "length", "step"),
    [(8000, 200, 80), (16_000, 400, 160), (22_050, 551, 221), (44_100, 1103, 441), (48_000, 1200, 480)],
)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"window": "hamming"},
        {"energy": False},
        {"lifter": 0, "preemphasis": 0.0},
        {"coefficients": 20, "filters": 20, "lifter": 5},
    ],
    ids=str,
)
def test_mfcc_is_its_definition(rate: int, length: int, step: int, change) -> None:
    config = MfccFeatures(**change)
    sound = noise(length + 7 * step + 3, rate)
    ours = config.cepstra(sound)
    assert ours.shape == (9, config.size)
    np.testing.assert_allclose(ours, reference(sound, config, length, step), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(config.extract(sound), ours.astype(np.float32))


def test_every_window_counts_to_its_last_sample() -> None:
    """With the library's own 512 points, what lies behind them in a window of 1200 would change nothing."""
    sound = noise(1200, 48_000)
    changed = sound.samples.copy()
    changed[1100:] *= -0.5
    one, other = (MfccFeatures().extract(Sound(s, 48_000)) for s in (sound.samples, changed))
    assert one.shape == (1, 13)
    assert np.abs(one - other).min() > 1e-3


@pytest.mark.parametrize(
    ("samples", "steps"), [(1, 1), (199, 1), (200, 1), (201, 2), (280, 2), (281, 3), (360, 3)]
)
def test_steps(samples: int, steps: int) -> None:
    sound = noise(samples, 8000)
    ours = MfccFeatures().cepstra(sound)
    assert len(ours) == steps
    np.testing.assert_allclose(ours, reference(sound, MfccFeatures(), 200, 80), rtol=0, atol=1e-10)


def test_windows_in_blocks_are_windows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = noise(8000, 8000)
    whole = MfccFeatures(window="hamming").cepstra(sound)
    monkeypatch.setattr(features, "_BLOCK_VALUES", 7 * 200)
    blocks = MfccFeatures(window="hamming").cepstra(sound)
    np.testing.assert_allclose(blocks, whole, rtol=0, atol=1e-12)
    plain = python_speech_features.mfcc(
        sound.samples.astype(np.float64), samplerate=8000, nfft=256, winfunc=np.hamming
    )
    np.testing.assert_allclose(whole, plain, rtol=0, atol=1e-12)


def test_the_scale_of_the_samples_moves_the_energy_alone() -> None:
    """The docstring's constant: most programs feed 16-bit integers."""
    sound = noise(2000, 8000)
    ours = MfccFeatures().cepstra(sound)
    integers = MfccFeatures().cepstra(Sound(sound.samples * 2**15, 8000))
    np.testing.assert_allclose(ours[:, 1:], integers[:, 1:], atol=1e-9)
    np.testing.assert_allclose(ours[:, 0] - integers[:, 0], -2 * math.log(32768), atol=1e-9)


def test_silence_is_finite() -> None:
    silence = Sound(np.zeros(1000, dtype=np.float32), 8000)
    for config in (
        MfccFeatures(),
        MfccFeatures(energy=False),
        RawFeatures(normalise="peak"),
        RawFeatures(normalise="rms"),
    ):
        assert np.isfinite(config.extract(silence)).all()


def test_mfcc_may_resample_first() -> None:
    sound = noise(9600, 48_000)
    expected = MfccFeatures().extract(resample(sound, 16_000))
    np.testing.assert_array_equal(MfccFeatures(sample_rate=16_000).extract(sound), expected)
    with pytest.raises(DataError, match="would add nothing"):
        MfccFeatures(sample_rate=96_000).extract(sound)


def test_too_low_a_rate_for_the_window() -> None:
    with pytest.raises(DataError, match=r"has 30 samples a second, too few for a window of 25\.0 ms"):
        MfccFeatures().extract(noise(100, 30))


def test_max_length_cuts_steps() -> None:
    sound = noise(8000, 8000)
    for config in (MfccFeatures(), RawFeatures()):
        whole = config.extract(sound)
        cut = config.model_copy(update={"max_length": 5}).extract(sound)
        np.testing.assert_allclose(cut, whole[:5], atol=1e-6)
        long = config.model_copy(update={"max_length": 10**6}).extract(sound)
        np.testing.assert_array_equal(long, whole)


def test_raw() -> None:
    sound = noise(8000, 8000)
    expected = resample(sound, 1000).samples
    raw = RawFeatures().extract(sound)
    assert raw.shape == (1000, 1) == (1000, RawFeatures().size)
    assert raw.dtype == np.float32
    np.testing.assert_array_equal(raw[:, 0], expected)
    peak = RawFeatures(normalise="peak", max_length=10).extract(sound)[:, 0]
    np.testing.assert_allclose(peak, expected[:10] / np.abs(expected).max(), rtol=1e-6)
    rms = RawFeatures(normalise="rms").extract(sound)[:, 0]
    assert np.sqrt(np.mean(rms**2)) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(RawFeatures(sample_rate=8000).extract(sound)[:, 0], sound.samples)
    assert not np.array_equal(RawFeatures(quality="qq").extract(sound), raw)


class Holder(BaseModel):
    features: Features


def test_a_config_chooses_by_kind() -> None:
    assert Holder.model_validate({"features": {"kind": "raw"}}).features == RawFeatures()
    chosen = Holder.model_validate({"features": {"kind": "mfcc", "coefficients": 20}}).features
    assert chosen == MfccFeatures(coefficients=20)
    assert chosen.size == 20
    assert pickle.loads(pickle.dumps(chosen)) == chosen


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"kind": "mel"}, "kind"),
        ({"kind": "raw", "coefficients": 13}, "coefficients"),
        ({"kind": "raw", "sample_rate": 0}, "greater than 0"),
        ({"kind": "raw", "sample_rate": "8000"}, "valid integer"),
        ({"kind": "mfcc", "coefficients": 27}, "coefficients=27 are more than filters=26"),
        ({"kind": "mfcc", "window_ms": math.nan}, "finite"),
        ({"kind": "mfcc", "step_ms": 0}, "greater than or equal"),
    ],
)
def test_wrong_configs(bad, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Holder.model_validate({"features": bad})


def test_faults_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(100), 500)
    with pytest.raises(DataError) as caught:
        read_features(path, features=RawFeatures())
    assert str(caught.value).startswith(f"{path}: has 500 samples a second")
    with pytest.raises(DataError) as caught:
        read_features(tmp_path / "none.wav", features=RawFeatures())
    assert str(caught.value).count("none.wav") == 1


def test_real_speech(shared: Path) -> None:
    for path in sorted((shared / "data" / "fsdd").glob("*.wav"))[::750]:
        sound = read_sound(path)
        ours = MfccFeatures().cepstra(sound)
        np.testing.assert_allclose(ours, reference(sound, MfccFeatures(), 200, 80), rtol=0, atol=1e-10)
        np.testing.assert_array_equal(read_features(path, features=MfccFeatures()), ours.astype(np.float32))
