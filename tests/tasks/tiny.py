"""A config of every task that is prepared in a moment, and the source it reads, where it reads any.

An entry without a source generates its own data or comes with an installed package.
"""

import gzip
import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from seqpyramid.data import idx
from seqpyramid.tasks import TASKS
from seqpyramid.tasks.base import TaskConfig


@dataclass(frozen=True)
class Tiny:
    config: TaskConfig
    write_source: Callable[[Path, pytest.MonkeyPatch], None] | None = None
    """Writes into a folder what the user would name with --source."""


def write_text(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Write 800 random letters, some of two bytes, as UTF-8."""
    letters = np.random.default_rng(0).choice(list("ab \näö"), 800)
    (folder / "letters.txt").write_bytes("".join(letters).encode())


def write_mnist_twin(folder: Path, patch: pytest.MonkeyPatch, images: idx.Images = "mnist") -> None:
    """Write random images in MNIST's format and make the package take their hashes for the published ones."""
    table, algorithm = ("MNIST_SHA256", "sha256") if images == "mnist" else ("FASHION_MD5", "md5")
    draw = np.random.default_rng(0 if images == "mnist" else 1)
    hashes = {}
    for name in idx.MNIST_SHA256:
        examples = 5_060 if name.startswith("train") else 40
        shape = (examples, 28, 28) if "images" in name else (examples,)
        values = draw.integers(0, 256 if "images" in name else 10, shape, dtype=np.uint8)
        content = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + values.tobytes()
        hashes[name] = hashlib.new(algorithm, content).hexdigest()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=0))
    patch.setattr(idx, table, hashes)


def write_iam_twin(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Write short lines of loops in IAM-OnDB's format, and the lists of its task."""
    draw = np.random.default_rng(0)
    lists = {"trainset.txt": 8, "testset_v.txt": 3, "testset_t.txt": 1, "testset_f.txt": 5}
    text = 0
    for name, forms in lists.items():
        names = [f"a{text + i:02}-{text + i:03}z" for i in range(forms)]
        text += forms
        (folder / name).write_text("".join(f"{form}\n" for form in names))
        for form in names:
            for line in range(1, 4):
                points = int(draw.integers(6, 30))
                path = folder / "lineStrokes" / form[:3] / form[:7] / f"{form}-{line:02}.xml"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(iam_line(loops(points, draw), draw), encoding="iso-8859-1")


def loops(points: int, draw: np.random.Generator) -> list[np.ndarray]:
    """Parametric writing: strokes (n, 2) of loops that move to the right, in whole units, y downwards."""
    t = np.arange(points) * draw.uniform(0.5, 0.7) + draw.uniform(0, 6)
    tall = 60 + 50 * (np.sin(t / 7 + draw.uniform(0, 6)) > 0.3)
    x = 1000 + 18 * t + 35 * np.sin(t + 1)
    y = 1200 - tall * np.cos(t)
    path = np.round(np.stack([x, y], axis=1) + draw.normal(0, 2, (points, 2)))
    cuts = np.flatnonzero(draw.random(points) < 0.04)
    path[:, 0] += 60 * np.searchsorted(cuts, np.arange(points), side="right")
    return [stroke for stroke in np.split(path, cuts) if len(stroke)]


def iam_line(strokes: list[np.ndarray], draw: np.random.Generator) -> str:
    """One file of lineStrokes."""
    time = 769.0
    rows = []
    for stroke in strokes:
        rows.append(f'    <Stroke colour="black" start_time="{time:.2f}" end_time="{time + 1:.2f}">')
        for x, y in stroke:
            time += draw.uniform(0.01, 0.03)
            rows.append(f'      <Point x="{x:.0f}" y="{y:.0f}" time="{time:.2f}"/>')
        rows.append("    </Stroke>")
    return "\n".join(
        [
            '<?xml version="1.0" encoding="ISO-8859-1"?>',
            "<WhiteboardCaptureSession>",
            "  <WhiteboardDescription>",
            '    <SensorLocation corner="top_left"/>',
            '    <DiagonallyOppositeCoords x="6512" y="1376"/>',
            '    <VerticallyOppositeCoords x="966" y="1376"/>',
            '    <HorizontallyOppositeCoords x="6512" y="787"/>',
            "  </WhiteboardDescription>",
            "  <StrokeSet>",
            *rows,
            "  </StrokeSet>",
            "</WhiteboardCaptureSession>",
            "",
        ]
    )


def write_recordings(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Write 45 short recordings of noise, a folder a class."""
    draw = np.random.default_rng(0)
    for label in ("b", "a10", "a9"):
        (folder / label).mkdir()
        for number in range(15):
            samples = draw.uniform(-0.5, 0.5, draw.integers(40, 90))
            soundfile.write(folder / label / f"{number}.wav", samples, 8000)


def write_vctk(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Write 45 short recordings of noise in the layout of VCTK 0.92; s5 spoke into the first microphone only."""
    draw = np.random.default_rng(0)
    for speaker in ("p225", "p9", "s5"):
        place = folder / "wav48_silence_trimmed" / speaker
        place.mkdir(parents=True)
        for number in range(1, 16):
            for microphone in ("mic1",) if speaker == "s5" else ("mic1", "mic2"):
                samples = draw.uniform(-0.5, 0.5, draw.integers(400, 4000))
                soundfile.write(place / f"{speaker}_{number:03d}_{microphone}.flac", samples, 48000)


def write_ts_twin(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Write random sequences of unequal lengths in three classes, some values missing, as a pair of .ts files."""
    draw = np.random.default_rng(0)
    for split, examples in (("TRAIN", 60), ("TEST", 30)):
        lines = [
            "@problemName Twin",
            "@timeStamps false",
            "@missing true",
            "@univariate false",
            "@dimensions 2",
        ]
        lines += ["@equalLength false", "@classLabel true 2 10 1", "@data"]
        for i in range(examples):
            channels = draw.standard_normal((2, int(draw.integers(4, 9)))).round(5).astype(str)
            channels[0, 1] = "?" if i % 5 == 0 else channels[0, 1]
            lines.append(":".join(",".join(channel) for channel in channels) + f":{('1', '2', '10')[i % 3]}")
        (folder / f"Twin_{split}.ts").write_text("\n".join(lines) + "\n", encoding="utf-8")


TINY = {
    "audio_folder": Tiny(
        TASKS["audio_folder"](
            features={"kind": "raw", "sample_rate": 8000},
            proportions=(1, 1, 1),
            standardise="train",
            workers=1,
        ),
        write_recordings,
    ),
    "char_lm": Tiny(TASKS["char_lm"](corpus="file", window=9, evaluation_streams=3), write_text),
    "copy_memory": Tiny(TASKS["copy_memory"](length=5, train=50, validation=20, test=30)),
    "digits": Tiny(TASKS["digits"]()),
    "handwriting": Tiny(
        TASKS["handwriting"](components=2, min_length=8, split="iam_ondb_t1", ending="halt"), write_iam_twin
    ),
    "masked_addition": Tiny(TASKS["masked_addition"](length=7, train=50, validation=20, test=30)),
    "pixel_mnist": Tiny(
        TASKS["pixel_mnist"](order="permuted", permutation="seeded", noise_to=800, validation_limit=50),
        write_mnist_twin,
    ),
    "series": Tiny(
        TASKS["series"](missing="interpolate", standardise="train", proportions=(3, 1, 1)), write_ts_twin
    ),
    "signals": Tiny(
        TASKS["signals"](label="distinct_frequencies", length=450, train=50, validation=20, test=30)
    ),
    "vctk": Tiny(
        TASKS["vctk"](
            version="0.92", microphone="mic1", features={"kind": "mfcc"}, proportions=(1, 1, 1), workers=1
        ),
        write_vctk,
    ),
}
