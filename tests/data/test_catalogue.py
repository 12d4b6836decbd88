import hashlib
import re
from pathlib import Path

import pytest

from seqpyramid.data import catalogue
from seqpyramid.data.catalogue import RESOURCES, Resource, missing, obtain
from seqpyramid.errors import DataError

BYTES = b"archive"
HASHED = Resource(
    name="corpus/part",
    title="A corpus",
    urls=("http://one/x", "http://two/x"),
    file_name="part.zip",
    size=len(BYTES),
    sha256=hashlib.sha256(BYTES).hexdigest(),
    md5="0" * 32,
    licence="free",
    manual="put it there",
)
BARE = Resource(
    name="bare",
    title="Bare",
    urls=("http://one/x",),
    file_name="bare.tgz",
    size=None,
    sha256=None,
    md5=None,
    licence="asked for",
    manual="register first",
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What would have been fetched; the file then lies there."""
    calls: list[tuple[object, ...]] = []

    def fetch(urls: object, path: Path, *, expected: object, size: object, progress: object) -> None:
        calls.append((urls, path, expected, size))
        path.parent.mkdir(parents=True)
        path.write_bytes(BYTES)

    monkeypatch.setattr(catalogue, "fetch", fetch)
    monkeypatch.setattr(catalogue, "RESOURCES", {resource.name: resource for resource in (HASHED, BARE)})
    return calls


def test_every_entry_is_well_formed() -> None:
    assert {"vctk_080", "vctk_092", "ptb", "text8", "enwik8", "iam_ondb"} <= set(RESOURCES)
    assert [
        sum(name.startswith(f"{corpus}/") for name in RESOURCES) for corpus in ("mnist", "fashion_mnist")
    ] == [4, 4]
    places = [(resource.folder(Path()), resource.file_name) for resource in RESOURCES.values()]
    assert len(set(places)) == len(places)
    for name, resource in RESOURCES.items():
        assert resource.name == name
        assert re.fullmatch(r"[a-z0-9_]+(/[a-z0-9-]+)?", name)
        assert Path(resource.file_name).name == resource.file_name
        assert resource.sha256 is None or re.fullmatch("[0-9a-f]{64}", resource.sha256)
        assert resource.md5 is None or re.fullmatch("[0-9a-f]{32}", resource.md5)
        assert resource.licence
        assert "--source" in resource.manual
        assert not resource.manual.endswith(".")
        assert all(
            re.fullmatch(r"https?://[^/ ]+/[^ ]*", url) and url.endswith(resource.file_name)
            for url in resource.urls
        )
        assert resource.fetchable == bool(
            resource.urls
        )  # nobody is sent to an address that cannot be trusted


def test_a_fetched_archive_lies_under_its_corpus(tmp_path: Path, asked: list[tuple[object, ...]]) -> None:
    for _ in range(2):
        path = obtain("corpus/part", tmp_path, offline=False)
        assert path == tmp_path / "corpus" / "part.zip"
        assert path.read_bytes() == BYTES
    assert asked == [(HASHED.urls, path, ("sha256", HASHED.sha256), len(BYTES))]


def test_what_is_there_is_checked(tmp_path: Path, asked: list[tuple[object, ...]]) -> None:
    path = tmp_path / "corpus" / "part.zip"
    path.parent.mkdir()
    path.write_bytes(b"something else")
    for offline in (True, False):
        with pytest.raises(DataError, match=r"part\.zip: has SHA-256 .* delete it"):
            obtain("corpus/part", tmp_path, offline=offline)
    path.write_bytes(BYTES)
    assert obtain("corpus/part", tmp_path, offline=True) == path
    assert asked == []


def test_offline_fetches_nothing(tmp_path: Path, asked: list[tuple[object, ...]]) -> None:
    with pytest.raises(DataError) as caught:
        obtain("corpus/part", tmp_path, offline=True)
    assert str(caught.value) == (
        f"A corpus (licence: free): part.zip is not in {tmp_path / 'corpus'}; put it there, or run again without "
        "--offline and --source to have it fetched"
    )
    assert caught.value.code == 3
    assert asked == []
    assert list(tmp_path.iterdir()) == []


def test_what_no_hash_can_prove_is_not_fetched_but_taken_from_the_users_hand(
    tmp_path: Path, asked: list[tuple[object, ...]]
) -> None:
    with pytest.raises(DataError, match=r"register first$"):
        obtain("bare", tmp_path, offline=False)
    assert asked == []
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "bare.tgz").write_bytes(b"anything")
    assert obtain("bare", tmp_path, offline=False) == tmp_path / "bare" / "bare.tgz"


@pytest.mark.parametrize("name", RESOURCES)
def test_missing_is_one_sentence(name: str) -> None:
    said = str(missing(name, [Path("here"), Path("there")]))
    assert f"{RESOURCES[name].file_name} is in none of here, there; " in said
    assert ("to have it fetched" in said) == RESOURCES[name].fetchable
    assert "\n" not in said
    assert ". " not in said


def test_the_md5_is_used_where_there_is_no_sha256() -> None:
    assert RESOURCES["vctk_092"].hash == ("sha256", RESOURCES["vctk_092"].sha256)
    assert RESOURCES["vctk_080"].hash == ("md5", "45e8dede780278ef5541fde0b82ac292")
    assert RESOURCES["ptb"].hash is None
