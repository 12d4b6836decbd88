"""What is found in a folder that may hold VCTK; no recording is opened for that."""

from pathlib import Path

import pytest

from seqpyramid.data import vctk
from seqpyramid.errors import DataError


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write(
        tmp_path / "VCTK-Corpus",
        *(f"wav48/{speaker}/{speaker}_{n:03d}.wav" for speaker in ("p225", "p9", "p315") for n in (10, 1, 2)),
        *(f"txt/{speaker}/{speaker}_{n:03d}.txt" for speaker in ("p225", "p9") for n in (1, 2, 3, 10)),
        "wav48/p225/p9_001.wav",
        "wav48/p225/p225_001 (copy).wav",
        "wav48/p225/.hidden",
        "wav48/readme.txt",
        "txt/p376/p376_001.txt",
        "speaker-info.txt",
    )


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return write(
        tmp_path / "VCTK-Corpus-0.92",
        *(
            f"wav48_silence_trimmed/{speaker}/{speaker}_{n:03d}_{microphone}.flac"
            for speaker in ("p280", "s5", "p362")
            for n in (1, 2, 3)
            for microphone in ("mic1", "mic2")
            if (speaker, microphone) != ("p280", "mic2") and (speaker, n, microphone) != ("p362", 2, "mic2")
        ),
        "wav48_silence_trimmed/log.txt",
    )


def test_the_audio_says_what_is_there(old: Path) -> None:
    found = vctk.list_utterances(vctk.find(old, "0.80"), "0.80")
    assert [(one.speaker, one.number) for one in found.utterances] == [
        (speaker, n) for speaker in ("p9", "p225", "p315") for n in (1, 2, 10)
    ]
    assert all(one.path.is_file() for one in found.utterances)
    assert found.absent == ("p376",)
    assert found.missing == {"p9": 1, "p225": 1}
    assert found.strange == 2


@pytest.mark.parametrize(
    ("microphone", "speakers", "absent", "missing"),
    [("mic1", ["p280", "p362", "s5"], (), {}), ("mic2", ["p362", "s5"], ("p280",), {"p362": 1})],
)
def test_a_microphone_of_the_new_release(
    new: Path,
    microphone: vctk.Microphone,
    speakers: list[str],
    absent: tuple[str, ...],
    missing: dict[str, int],
) -> None:
    found = vctk.list_utterances(new, "0.92", microphone)
    assert sorted({one.speaker for one in found.utterances}, key=vctk.speaker_order) == speakers
    assert {one.path.name[-9:-5] for one in found.utterances} == {microphone}
    assert (found.absent, found.missing, found.strange) == (absent, missing, 0)


def test_the_corpus_may_lie_one_folder_below_or_be_named_by_its_audio(old: Path, new: Path) -> None:
    assert vctk.find(old.parent, "0.80") == vctk.find(old, "0.80") == vctk.find(old / "wav48", "0.80") == old
    assert vctk.find(new.parent, "0.92") == vctk.find(new, "0.92") == new


def test_the_order_is_not_the_file_systems(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = vctk.list_utterances(old, "0.80")
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(listed(self), reverse=True))
    assert vctk.list_utterances(vctk.find(old, "0.80"), "0.80") == before


def test_one_release_is_not_taken_for_the_other(old: Path, new: Path) -> None:
    with pytest.raises(DataError, match=r"this is VCTK 0\.80.*task\.version=0\.80$"):
        vctk.find(old, "0.92")
    with pytest.raises(DataError, match=r"this is VCTK 0\.92.*task\.version=0\.92 with task\.microphone"):
        vctk.find(new, "0.80")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "is empty"),
        (["VCTK-Corpus.zip"], r"archive VCTK-Corpus\.zip, not extracted"),
        (["VCTK-Corpus-0.92.zip", "other.txt"], "not extracted"),
        (["txt/p225/p225_001.txt", "speaker-info.txt"], "texts"),
        (["p225/p225_001.txt"], "without wav48"),
        (["wav48/readme.txt"], "no speaker's folder"),
        (["bed/a_nohash_0.wav", "_background_noise_/pink.wav", "testing_list.txt"], "Speech Commands"),
        (["train-images-idx3-ubyte.gz"], "MNIST"),
        (["MNIST/raw/train-images-idx3-ubyte"], "MNIST"),
        ([f"{n}.txt" for n in range(9)], r"here is 0\.txt, .* and 4 more"),
    ],
)
def test_something_else_is_told_apart_in_one_sentence(tmp_path: Path, names: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        vctk.find(write(tmp_path, *names), "0.80")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: expected VCTK 0.80 (wav48/p225/p225_001.wav ...), but ")
    assert message.endswith("--source")
    assert "\n" not in message


def test_a_folder_without_recordings(tmp_path: Path) -> None:
    root = write(tmp_path, "wav48/p225/notes.txt")
    assert vctk.find(root, "0.80") == root
    with pytest.raises(DataError, match=r"no recording is named like p225/p225_001\.wav"):
        vctk.list_utterances(root, "0.80")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        vctk.find(tmp_path / "none", "0.80")
