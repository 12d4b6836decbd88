"""Recordings: one channel read from WAV, FLAC or Ogg Vorbis, and brought to a lower sample rate.

Decoding is libsndfile's (soundfile), resampling soxr's. libsndfile reads a WAV or Ogg file that was cut short as if it
were a shorter recording, so the sizes that the file announces are held against the file itself; the frames of FLAC
carry checksums, which libsndfile does check.

Integer samples are divided by 2 to the (bits - 1), so they lie in [-1, 1); 32-bit integers round to float32 and may
reach 1. Float and Ogg files may lie beyond and are not clipped.

Shapes: N samples, C channels.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from seqpyramid.errors import DataError

Samples = NDArray[np.float32]
Channel = Literal["only", "first", "second", "mean"]
"""Which channel is read: ``only`` refuses files of more than one; ``mean`` averages all."""
Quality = Literal["vhq", "hq", "mq", "lq", "qq"]
"""soxr's recipes, from very high quality to quick."""

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg"})

_FORMATS = frozenset({"WAV", "WAVEX", "RF64", "FLAC", "OGG"})
_MAX_RATE = 768_000
"""Hz; the fastest converters on the market. A header that announces more would make windows of absurd length."""
_MAX_SAMPLES = 2**27
"""46 minutes at 48 kHz, 512 MB: FLAC packs silence so well that a small file could fill the memory."""
_MAX_CHANNELS = 64
_BLOCK_SAMPLES = 2**20
"""Read at once over all channels, so that memory follows what is there and not what the header announces."""
_UNKNOWN_SIZE = 0xFFFFFFFF
"""A program that wrote WAV into a pipe could not know the size."""
_OGG_PAGE = b"OggS"
_OGG_MAX_PAGE = 27 + 255 + 255 * 255
_OGG_LAST_PAGE = 4
"""Flag of the page that ends a stream."""


@dataclass(frozen=True)
class Sound:
    """One channel of a recording."""

    samples: Samples
    """(N,), N at least 1."""
    sample_rate: int
    """Hz."""


def read_sound(path: Path, *, channel: Channel = "only") -> Sound:
    """Read one channel of a recording.

    Raises:
        DataError: the file is missing, no audio of a known format, empty, cut short or damaged, holds numbers that
            are not finite, is longer than 2**27 samples, or has not the channel asked for.
    """
    if path.suffix.lower() not in AUDIO_SUFFIXES:
        known = ", ".join(sorted(AUDIO_SUFFIXES))
        raise DataError(f"{path}: recordings are read from {known} files only; convert it to one of these")
    try:
        with path.open("rb") as stream:
            _check_complete(path, stream)
        with soundfile.SoundFile(path) as file:
            _check_header(path, file, channel)
            samples = _read(path, file, channel)
            rate = int(file.samplerate)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the name and the folder") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path}: cannot be read ({reason}); check the file or copy it again") from None
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".")
        raise DataError(
            f"{path}: damaged, or no audio file at all ({reason}); copy or convert it again"
        ) from None
    if not len(samples):
        raise DataError(f"{path}: holds no sound, or its header was never completed; remove or replace it")
    if not np.isfinite(samples).all():
        raise DataError(f"{path}: holds samples that are not finite numbers; convert or remove it")
    return Sound(samples, rate)


def resample(sound: Sound, sample_rate: int, *, quality: Quality = "vhq") -> Sound:
    """Bring a sound to a lower rate in Hz; at the same rate it comes back as it is.

    Raises:
        DataError: the sound has a lower rate than asked for, or is shorter than one sample at the new rate.
    """
    if sound.sample_rate == sample_rate:
        return sound
    if sound.sample_rate < sample_rate:
        raise DataError(
            f"has {sound.sample_rate} samples a second, and {sample_rate} would add nothing that was recorded; "
            f"set sample_rate to {sound.sample_rate} or less"
        )
    samples = soxr.resample(sound.samples, sound.sample_rate, sample_rate, quality=quality.upper())
    if not len(samples):
        raise DataError(
            f"is too short to leave a sample at {sample_rate} Hz ({len(sound.samples)} samples at "
            f"{sound.sample_rate} Hz); remove it or set a higher sample_rate"
        )
    return Sound(samples, sample_rate)


def _check_header(path: Path, file: soundfile.SoundFile, channel: Channel) -> None:
    if file.format not in _FORMATS:
        raise DataError(f"{path}: holds {file.format}, not what its name says; convert it to WAV or FLAC")
    if not 0 < file.samplerate <= _MAX_RATE:
        raise DataError(
            f"{path}: announces {file.samplerate} samples a second, which no recording has; convert it again"
        )
    if file.channels > _MAX_CHANNELS:
        raise DataError(f"{path}: has {file.channels} channels, more than {_MAX_CHANNELS}; convert it")
    if channel == "only" and file.channels != 1:
        raise DataError(
            f"{path}: has {file.channels} channels, and one is read; make it mono, or set task.channel to first, "
            "second or mean"
        )
    if channel == "second" and file.channels < 2:
        raise DataError(f"{path}: has one channel, so channel=second cannot be read; set channel=first")


def _read(path: Path, file: soundfile.SoundFile, channel: Channel) -> Samples:
    rows = _BLOCK_SAMPLES // file.channels
    blocks: list[Samples] = []
    read = 0
    while True:
        block = file.read(min(rows, max(1, file.frames - read)), dtype="float32", always_2d=True)
        if not len(block):
            break
        read += len(block)
        if read > _MAX_SAMPLES:
            raise DataError(f"{path}: is longer than {_MAX_SAMPLES} samples; cut it into shorter recordings")
        blocks.append(_one_channel(block, channel))
        if read >= file.frames:
            break
    if read < file.frames:
        raise DataError(
            f"{path}: cut short (it announces {file.frames} samples, {read} are there); copy or fetch it again"
        )
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)


def _one_channel(block: Samples, channel: Channel) -> Samples:
    """(N, C) -> (N,)."""
    if block.shape[1] == 1:
        return block[:, 0]
    if channel == "mean":
        mean: Samples = block.mean(axis=1, dtype=np.float32)
        return mean
    return np.ascontiguousarray(block[:, 1 if channel == "second" else 0])


def _check_complete(path: Path, stream: BinaryIO) -> None:
    """Refuse what libsndfile would take for a shorter recording; leave the rest to it."""
    size = os.fstat(stream.fileno()).st_size
    head = stream.read(12)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:] == b"WAVE":
        announced, there = _wav_data(stream, size, big_endian=head[:4] == b"RIFX")
        if announced > there:
            raise DataError(
                f"{path}: cut short (its header announces {announced} bytes of sound, {there} are there); "
                "copy or fetch it again"
            )
    elif head[:4] == _OGG_PAGE and not _ogg_ends(stream, size):
        raise DataError(f"{path}: cut short (its last page is missing); copy or fetch it again")


def _wav_data(stream: BinaryIO, size: int, *, big_endian: bool) -> tuple[int, int]:
    """Return the bytes that the data chunk announces, and how many are there; (0, 0) where it cannot tell.

    Chunks are padded to even lengths. RF64 and BW64 keep the true size of the data in their chunk ds64.
    """
    order: Literal["big", "little"] = "big" if big_endian else "little"
    place, large = 12, None
    while place + 8 <= size:
        stream.seek(place)
        header = stream.read(8)
        name, announced = header[:4], int.from_bytes(header[4:], order)
        if name == b"ds64":
            large = int.from_bytes(stream.read(16)[8:], "little")
        if name == b"data":
            if announced == _UNKNOWN_SIZE:
                if large is None:
                    return 0, 0
                announced = large
            return announced, size - place - 8
        place += 8 + announced + announced % 2
    return 0, 0  # libsndfile says what it misses


def _ogg_ends(stream: BinaryIO, size: int) -> bool:
    """Whether the last page is whole and marked as the last."""
    stream.seek(max(0, size - 2 * _OGG_MAX_PAGE))
    tail = stream.read()
    place = tail.rfind(_OGG_PAGE)
    while place >= 0:
        page = tail[place:]
        segments = page[26] if len(page) > 26 else 0
        lengths = page[27 : 27 + segments]
        if len(lengths) == segments and len(page) == 27 + segments + sum(lengths):
            return bool(page[5] & _OGG_LAST_PAGE)
        place = tail.rfind(_OGG_PAGE, 0, place)  # the four letters may stand within a page by chance
    return False
