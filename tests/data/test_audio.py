import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from seqpyramid.data import audio
from seqpyramid.data.audio import Sound, read_sound, resample
from seqpyramid.errors import DataError

RATE = 8000
SPEECH = np.random.default_rng(0).integers(-(2**15), 2**15, 4001)
TONE = (0.5 * np.sin(np.arange(20_000) / 7)).astype(np.float32)


def write(path: Path, samples, *, rate: int = RATE, **options) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def refused(path: Path, says: str, **options) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_sound(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.count(str(path)) == 1
    assert "\n" not in message


def test_sixteen_bits_are_divided_by_32768(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:  # another program's writer
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(SPEECH.astype("<i2").tobytes())
    sound = read_sound(path)
    assert sound.sample_rate == RATE
    assert sound.samples.dtype == np.float32
    np.testing.assert_array_equal(sound.samples, SPEECH / 2**15)


@pytest.mark.parametrize(
    ("name", "options", "bits"),
    [
        ("a.wav", {"subtype": "PCM_U8"}, 8),
        ("a.wav", {"subtype": "PCM_16"}, 16),
        ("a.wav", {"subtype": "PCM_24"}, 24),
        ("a.wav", {"subtype": "PCM_32"}, 24),  # float32 holds no more
        ("a.wav", {"subtype": "FLOAT"}, 24),
        ("a.wav", {"subtype": "DOUBLE"}, 24),
        ("a.WAV", {"format": "WAVEX", "subtype": "PCM_24"}, 24),
        ("a.wav", {"format": "RF64", "subtype": "PCM_24"}, 24),
        ("a.wav", {"endian": "BIG", "subtype": "PCM_16"}, 16),
        ("a.flac", {"subtype": "PCM_16"}, 16),
        ("a.flac", {"subtype": "PCM_24"}, 24),
    ],
)
@pytest.mark.parametrize("length", [1, 333, 20_000])  # odd lengths of odd widths are padded to even chunks
def test_formats(tmp_path: Path, name: str, options: dict[str, str], bits: int, length: int) -> None:
    samples = np.round(TONE[:length] * 2 ** (bits - 1)) / 2 ** (bits - 1)
    sound = read_sound(write(tmp_path / name, samples, **options))
    np.testing.assert_array_equal(sound.samples, samples.astype(np.float32))


def test_ogg_is_near(tmp_path: Path) -> None:
    sound = read_sound(write(tmp_path / "a.ogg", TONE))
    assert len(sound.samples) == len(TONE)
    assert np.abs(sound.samples - TONE).max() < 0.05


@pytest.mark.parametrize("suffix", ["flac", "wav"])
def test_long_files_are_read_in_pieces(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / f"a.{suffix}", np.stack([TONE, -TONE], axis=1))
    whole = read_sound(path, channel="second")
    monkeypatch.setattr(audio, "_BLOCK_SAMPLES", 1000)
    np.testing.assert_array_equal(read_sound(path, channel="second").samples, whole.samples)
    monkeypatch.setattr(audio, "_MAX_SAMPLES", len(TONE))
    read_sound(path, channel="second")
    monkeypatch.setattr(audio, "_MAX_SAMPLES", len(TONE) - 1)
    refused(path, "longer than 19999 samples; cut it", channel="second")


def test_channels(tmp_path: Path) -> None:
    both = np.stack([SPEECH, SPEECH[::-1]], axis=1) / 2**15
    path = write(tmp_path / "a.wav", both)
    refused(path, "2 channels, and one is read; make it mono, or set task.channel to first")
    np.testing.assert_array_equal(read_sound(path, channel="first").samples, both[:, 0])
    second = read_sound(path, channel="second").samples
    np.testing.assert_array_equal(second, both[:, 1])
    assert second.flags.c_contiguous
    np.testing.assert_allclose(read_sound(path, channel="mean").samples, both.mean(axis=1), atol=1e-7)
    mono = write(tmp_path / "b.wav", both[:, 0])
    np.testing.assert_array_equal(read_sound(mono, channel="mean").samples, both[:, 0])
    refused(mono, "one channel, so channel=second cannot be read", channel="second")


def test_what_is_no_recording(tmp_path: Path) -> None:
    refused(tmp_path / "none.wav", "no such file")
    (tmp_path / "folder.wav").mkdir()
    refused(tmp_path / "folder.wav", "cannot be read .Is a directory")
    (tmp_path / "text.wav").write_text("not audio at all")
    refused(tmp_path / "text.wav", "damaged, or no audio file at all")
    (tmp_path / "empty.wav").write_bytes(b"")
    refused(tmp_path / "empty.wav", "damaged, or no audio file at all")
    refused(write(tmp_path / "silence.wav", TONE[:0]), "holds no sound")
    refused(write(tmp_path / "silence.flac", TONE[:0]), "holds no sound|damaged")
    refused(tmp_path / "a.mp3", "recordings are read from .flac, .ogg, .wav files only")
    write(tmp_path / "a.wav", TONE, format="AIFF")
    refused(tmp_path / "a.wav", "holds AIFF, not what its name says")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    samples = TONE.copy()
    samples[777] = bad
    refused(write(tmp_path / "a.wav", samples, subtype="FLOAT"), "not finite")


@pytest.mark.parametrize(
    "options",
    [
        {"subtype": "PCM_U8"},
        {"subtype": "PCM_16"},
        {"subtype": "PCM_24"},
        {"format": "WAVEX", "subtype": "PCM_24"},
        {"format": "RF64", "subtype": "PCM_24"},
        {"endian": "BIG", "subtype": "PCM_16"},
    ],
)
def test_a_wav_file_cut_short(tmp_path: Path, options: dict[str, str]) -> None:
    """All of these libsndfile reads without a word."""
    path = write(tmp_path / "a.wav", TONE, **options)
    content = path.read_bytes()
    for missing in (4, 1000, 15_000):
        path.write_bytes(content[:-missing])
        refused(path, r"cut short .its header announces \d+ bytes of sound, \d+ are there")


def test_chunks_around_the_sound(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", TONE)
    content = path.read_bytes()
    place = content.index(b"data")
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    before = content[:place] + odd + content[place:]
    for good in (before, content + odd, content + odd[:-2]):  # what is cut behind the sound is no matter
        path.write_bytes(good)
        assert len(read_sound(path).samples) == len(TONE)
    path.write_bytes(before[:-2])
    refused(path, "cut short")


def test_a_wav_file_from_a_pipe_has_no_size(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", TONE)
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[4:8] = content[place : place + 4] = b"\xff" * 4
    path.write_bytes(content)
    assert len(read_sound(path).samples) == len(TONE)
    content[place : place + 4] = bytes(4)
    path.write_bytes(content)
    refused(path, "its header was never completed")


def test_absurd_headers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", TONE)
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", 2**31 - 1)
    path.write_bytes(content)
    refused(path, "announces 2147483647 samples a second|damaged")
    many = write(tmp_path / "b.wav", np.zeros((10, 65)))
    refused(many, "65 channels, more than 64", channel="mean")


def test_damaged_flac(tmp_path: Path) -> None:
    noise = TONE + 0.1 * np.random.default_rng(0).standard_normal(len(TONE)).astype(np.float32)
    path = write(tmp_path / "a.flac", noise, subtype="PCM_16")
    content = path.read_bytes()
    draw = np.random.default_rng(1)
    frames = content.index(b"\xff\xf8", 42)
    for place in draw.integers(frames, len(content), 30):
        bad = bytearray(content)
        bad[place] ^= 1 << draw.integers(8)
        path.write_bytes(bad)
        refused(path, "damaged|cut short")
    for kept in (3, 10, 42, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        refused(path, "damaged|cut short")


def test_a_lying_flac_costs_no_memory(tmp_path: Path) -> None:
    """The header may announce 2**36 samples."""
    path = write(tmp_path / "a.flac", TONE, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # the 36 bits of the number of samples
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    refused(path, "damaged|cut short")


def test_an_ogg_file_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ogg", np.tile(TONE, 10))
    content = path.read_bytes()
    for kept in (100, 5000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        refused(path, "cut short")


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"RIFF\xff\xff\xff\xffWAVE", b"fLaC\0\0\0\x22", b"OggS\0"])
)
def test_noise_is_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, head: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.wav"
    path.write_bytes(head + noise)
    with pytest.raises(DataError):
        read_sound(path)


@pytest.mark.parametrize(("rate", "target"), [(8000, 1000), (48_000, 1000), (44_100, 16_000)])
def test_resampling_keeps_what_the_new_rate_can_hold(rate: int, target: int) -> None:
    """A tone below half the new rate stays, one above it goes: -80 dB, where a plain decimation keeps all."""
    time = np.arange(2 * rate) / rate
    low, high = (np.sin(2 * np.pi * f * time).astype(np.float32) for f in (0.1 * target, 0.8 * target))
    kept = resample(Sound(low, rate), target)
    assert kept.sample_rate == target
    assert len(kept.samples) == 2 * target
    expected = np.sin(2 * np.pi * 0.1 * np.arange(2 * target))
    middle = slice(target // 2, -target // 2)
    np.testing.assert_allclose(kept.samples[middle], expected[middle], atol=1e-4)
    assert np.abs(resample(Sound(high, rate), target).samples[middle]).max() < 1e-4


def test_qualities_differ() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    made = [
        resample(Sound(noise, RATE), 1000, quality=quality).samples
        for quality in ("vhq", "hq", "mq", "lq", "qq")
    ]
    assert all(
        len(one) == 1000 and not np.array_equal(one, two) for i, one in enumerate(made) for two in made[:i]
    )


def test_the_same_rate_is_left_alone_and_a_higher_one_refused() -> None:
    sound = Sound(TONE, RATE)
    assert resample(sound, RATE) is sound
    with pytest.raises(
        DataError, match=r"8000 samples a second, and 16000 would add nothing.*set sample_rate to 8000"
    ):
        resample(sound, 16_000)
    with pytest.raises(DataError, match="too short to leave a sample at 1000 Hz"):
        resample(Sound(TONE[:1], RATE), 1000)


def test_real_speech(shared: Path) -> None:
    for path in sorted((shared / "data" / "fsdd").glob("*.wav"))[::300]:
        with wave.open(str(path)) as file:
            expected = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
            rate = file.getframerate()
        sound = read_sound(path)
        assert sound.sample_rate == rate == 8000
        np.testing.assert_array_equal(sound.samples, expected / 2**15)
        assert abs(len(resample(sound, 1000).samples) - len(expected) / 8) <= 1
