"""What a recording becomes before a model sees it: its samples at a low rate, or mel-frequency cepstral coefficients.

Sources: Chang et al., "Dilated Recurrent Neural Networks", NIPS 2017, Sec. 4.4 (raw speech), and its MFCC rows,
computed with python_speech_features; the defaults here are that library's. Not established by the papers, and so
options: resampling quality, normalisation, window.

Where this file differs from calling the library plainly:

* the length of the Fourier transform is the next power of two that holds a window; the library's default, 512, cuts
  the 1,200 samples of 25 ms at 48 kHz short;
* window and step are rounded (halves up) from the milliseconds as written, not from a product of floats;
* samples lie in [-1, 1), not in 16-bit integers, which adds the constant -2 ln 32768 to the log energy (and its like
  to coefficient 0) and changes no other coefficient, except where an energy is exactly zero and counts as 2.2e-16;
* long recordings are cut into windows some thousand at a time, so that memory does not grow with the overlap.

A recording shorter than one window gives one step; the last window is filled up with zeros.

Shapes: N samples, T steps, F features of a step.
"""

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from python_speech_features import mfcc, sigproc

from seqpyramid.data.audio import Channel, Quality, Samples, Sound, read_sound, resample
from seqpyramid.errors import DataError

_BLOCK_VALUES = 2**20
"""Of windows at once, in samples."""


class _Extractor(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RawFeatures(_Extractor):
    """The waveform at a low rate."""

    kind: Literal["raw"] = "raw"
    sample_rate: int = Field(default=1000, gt=0, le=768_000, description="Hz after resampling")
    quality: Quality = Field(default="vhq", description="soxr's recipe for resampling")
    normalise: Literal["none", "peak", "rms"] = Field(
        default="none",
        description="divide by the largest absolute value, or by the root mean square, of the whole recording",
    )
    max_length: int | None = Field(default=None, gt=0, description="T, steps kept from the beginning")

    @property
    def size(self) -> int:
        """F."""
        return 1

    def extract(self, sound: Sound) -> NDArray[np.float32]:
        """Return (T, 1).

        Silence is not normalised: there is nothing to divide by.

        Raises:
            DataError: the sound has a lower sample rate, or is too short.
        """
        samples = resample(sound, self.sample_rate, quality=self.quality).samples
        if self.normalise != "none":
            samples = _normalised(samples, self.normalise)
        return samples[: self.max_length, np.newaxis]


class MfccFeatures(_Extractor):
    """Mel-frequency cepstral coefficients by python_speech_features."""

    kind: Literal["mfcc"] = "mfcc"
    coefficients: int = Field(default=13, gt=0, le=512, description="F, coefficients of a step")
    filters: int = Field(
        default=26, gt=0, le=512, description="mel filters from 0 Hz to half the sample rate"
    )
    window_ms: float = Field(default=25.0, ge=1, le=1000, description="length of a window in ms")
    step_ms: float = Field(default=10.0, ge=1, le=1000, description="time between windows in ms")
    preemphasis: float = Field(
        default=0.97, ge=0, le=1, description="x[n] - a x[n-1] before all else; 0: none"
    )
    lifter: int = Field(default=22, ge=0, description="L of the sine lifter of the cepstra; 0: none")
    energy: bool = Field(default=True, description="put the log energy of the window for coefficient 0")
    window: Literal["rectangular", "hamming"] = Field(
        default="rectangular", description="rectangular is python_speech_features' own default"
    )
    sample_rate: int | None = Field(
        default=None, gt=0, le=768_000, description="Hz to resample to first; none: as recorded"
    )
    max_length: int | None = Field(default=None, gt=0, description="T, steps kept from the beginning")

    @model_validator(mode="after")
    def _refuse_more_coefficients_than_filters(self) -> Self:
        if self.coefficients > self.filters:
            raise ValueError(
                f"coefficients={self.coefficients} are more than filters={self.filters} can give"
            )
        return self

    @property
    def size(self) -> int:
        """F."""
        return self.coefficients

    def extract(self, sound: Sound) -> NDArray[np.float32]:
        """Return (T, F).

        Raises:
            DataError: the sound has a lower sample rate, is too short, or its rate is too low for the window.
        """
        return self.cepstra(sound).astype(np.float32)

    def cepstra(self, sound: Sound) -> NDArray[np.float64]:
        """Return (T, F) before rounding to float32; errors as :meth:`extract`."""
        if self.sample_rate is not None:
            sound = resample(sound, self.sample_rate)
        rate = sound.sample_rate
        length, step = _samples(self.window_ms, rate), _samples(self.step_ms, rate)
        if length < 2 or step < 1:
            raise DataError(
                f"has {rate} samples a second, too few for a window of {self.window_ms} ms every "
                f"{self.step_ms} ms; lengthen them or remove the recording"
            )
        steps = 1 + max(0, -(-(len(sound.samples) - length) // step))
        steps = min(steps, self.max_length or steps)
        signal = sigproc.preemphasis(sound.samples.astype(np.float64), self.preemphasis)
        at_once = max(1, _BLOCK_VALUES // length)
        blocks = [
            mfcc(
                signal[first * step : (min(first + at_once, steps) - 1) * step + length],
                samplerate=rate,
                winlen=length / rate,
                winstep=step / rate,
                numcep=self.coefficients,
                nfilt=self.filters,
                nfft=1 << (length - 1).bit_length(),
                preemph=0.0,  # done above: a block's first sample has one before it
                ceplifter=self.lifter,
                appendEnergy=self.energy,
                winfunc=np.hamming if self.window == "hamming" else np.ones,
            )
            for first in range(0, steps, at_once)
        ]
        return np.concatenate(blocks)


Features = Annotated[RawFeatures | MfccFeatures, Field(discriminator="kind")]
"""The field of a task's config: ``features: {kind: mfcc, coefficients: 13}``."""


def read_features(
    path: Path, *, features: RawFeatures | MfccFeatures, channel: Channel = "only"
) -> NDArray[np.float32]:
    """Read a recording and return (T, F); with ``functools.partial``, what a corpus is built with.

    Raises:
        DataError: as :func:`seqpyramid.data.audio.read_sound` and ``extract``, naming the file.
    """
    sound = read_sound(path, channel=channel)
    try:
        return features.extract(sound)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _samples(milliseconds: float, rate: int) -> int:
    """Milliseconds in samples, halves rounded up.

    >>> _samples(25.0, 44_100), _samples(10.0, 22_050)
    (1103, 221)
    """
    exact = Decimal(str(milliseconds)) * rate / 1000
    return int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def _normalised(samples: Samples, by: Literal["peak", "rms"]) -> Samples:
    size = np.abs(samples).max() if by == "peak" else np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
    return samples if size == 0 else (samples / size).astype(np.float32)
