"""Restoring golden media: whole sets and single snapshots, byte for byte, and what is told when something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.errors import NotFound, TargetAbsent
from archiver.store.store import Store
from formats import blob
from formats.manifest import Manifest
from formats.tape.blocks import BLOCK_SIZE
from formats.tape.catalog import ChunkFile
from tests.formats.tape.media import SETS, document, logs
from tests.golden_store import KEY, unpack
from tests.stores import chunk_files, damage, every_snapshot, make_store
from tests.tape.media import golden_media
from tests.tape.restoring import Restored, golden_catalog, restore_from, snapshots_of


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that the golden media were written from."""
    return unpack(tmp_path_factory.mktemp("golden"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return make_store(tmp_path / "target")


def golden_restore(name: str, tmp_path: Path, target: Path, *snapshots: str, with_logs: bool = True, **options: object) -> Restored:  # fmt: skip  # noqa: E501
    place = tmp_path / name
    if not place.exists():
        golden_media(name, place)
    return restore_from(place, golden_catalog(name, logs(name) if with_logs else {}), target, *snapshots, **options)  # type: ignore[arg-type]


def without_verify_state(data: bytes) -> bytes:
    manifest = Manifest.decode(blob.decode(data))
    rest = {key: value for key, value in manifest.unprotected.items() if key != "verify_state"}
    return manifest.canonical() + repr((manifest.signature, sorted(rest.items()))).encode()


def check_same(source: Path, target: Path, snapshot: str) -> None:
    """Every file that a medium holds of a snapshot, and all of its chunks."""
    ours = {file.name: file.read_bytes() for file in (source / snapshot).iterdir()}
    theirs = {file.name: file.read_bytes() for file in (target / snapshot).iterdir()}
    ours.pop(".protected", None)
    assert without_verify_state(ours.pop("index.json.blob")) == without_verify_state(theirs["index.json.blob"])
    assert b"verify_state" not in blob.decode(theirs.pop("index.json.blob"))
    assert theirs == ours
    assert (target / snapshot).parent.joinpath("owner").read_text() == "root@pam\n"


def check_chunks(source: Path, target: Path) -> None:
    for chunk in chunk_files(target):
        assert chunk.read_bytes() == (source / ".chunks" / chunk.name[:4] / chunk.name).read_bytes()


def said_chunks(name: str) -> set[str]:
    return {chunk["digest"] for said in document(name)["dump"] for chunk in said.get("chunks", ())}


@pytest.mark.parametrize("with_logs", [True, False], ids=["catalogs", "media-only"])
@pytest.mark.parametrize("name", SETS)
def test_whole_set(name: str, with_logs: bool, tmp_path: Path, source: Path, target: Path) -> None:
    done = golden_restore(name, tmp_path, target, with_logs=with_logs)
    assert done.result.errors == [] and done.result.stopped is None
    assert [text.removeprefix("golden:") for text in done.result.restored] == snapshots_of(name)
    for snapshot in snapshots_of(name):
        check_same(source, target, snapshot)
    check_chunks(source, target)
    assert {chunk.name for chunk in chunk_files(target)} == said_chunks(name)
    assert damage(target, KEY) == [] and damage(target) == []
    if not with_logs:  # what was read is catalogued: as the host of the golden media had it
        for member in golden_catalog(name, {}).members:
            found = done.catalogued[member.label]
            log = golden_catalog(name, logs(name)).logs[member.seq_nr]
            assert [entry[:3] for entry in found] == [entry[:3] for entry in sorted([*log.archives, *log.snapshots])]
            archives = [entry for entry in found if isinstance(entry, ChunkFile)]
            assert all((a.digests == b.digests).all() for a, b in zip(archives, log.archives, strict=True))


def all_snapshots() -> Iterator[tuple[str, str]]:
    for name in SETS:
        for snapshot in snapshots_of(name):
            yield name, snapshot


@pytest.mark.parametrize(("name", "snapshot"), list(all_snapshots()))
def test_one_snapshot(name: str, snapshot: str, tmp_path: Path, source: Path, target: Path) -> None:
    """Only its archive is read, and archives of chunks that it needs."""
    dry = golden_restore(name, tmp_path, target, snapshot, dry=True)
    with Store.open(target) as store:
        assert every_snapshot(store) == [] and chunk_files(target) == []
    done = golden_restore(name, tmp_path, target, f"golden:{snapshot}")
    assert done.result.errors == [] and done.result.restored == [f"golden:{snapshot}"]
    check_same(source, target, snapshot)
    check_chunks(source, target)
    with Store.open(target) as store:
        assert [str(ref) for ref in every_snapshot(store)] == [snapshot]
    assert damage(target, KEY) == []
    planned = sum(len(visit.snapshots) + len(visit.chunks or ()) for visit in dry.plan.visits)
    assert done.result.files == planned == 2 + (snapshot.startswith("host/alpha"))
    assert done.loads == [visit.member.label for visit in dry.plan.visits] and len(set(done.loads)) == len(done.loads)
    assert dry.plan.bytes is not None and done.result.bytes_read <= dry.plan.bytes + 8 * BLOCK_SIZE


@pytest.mark.parametrize("whole", [True, False])
def test_again_reads_nothing(whole: bool, tmp_path: Path, target: Path) -> None:
    chosen = () if whole else tuple(snapshots_of("multi"))
    assert golden_restore("multi", tmp_path, target, *chosen).result.errors == []
    again = golden_restore("multi", tmp_path, target, *chosen)
    assert again.loads == [] and again.result.bytes_read == 0 and again.plan.work == []
    assert [step.action for step in again.plan.steps] == ["skip"] * 3


def test_most_is_there(tmp_path: Path, target: Path) -> None:
    """Into a store that has the chunks only the snapshots' archives are read."""
    assert golden_restore("multi", tmp_path, target).result.errors == []
    for snapshot in snapshots_of("multi"):
        for file in (target / snapshot).iterdir():
            file.unlink()
        (target / snapshot).rmdir()
    whole = golden_restore("multi", tmp_path, target)
    assert whole.result.errors == [] and len(whole.result.restored) == 3
    assert whole.result.files == 3 and whole.result.brought.chunks == 0
    assert damage(target, KEY) == []


def test_namespaces_and_owner(tmp_path: Path, target: Path, source: Path) -> None:
    rules = ["source=one,target=x", "max-depth=0,target=y/z"]
    done = golden_restore("multi", tmp_path, target, namespaces=rules, owner="me@pbs")
    assert done.result.errors == []
    with Store.open(target) as store:
        found = sorted(map(str, every_snapshot(store)))
        assert all(store.owner(ref.group) == "me@pbs" for ref in every_snapshot(store))
    assert found == [
        "ns/x/ns/two/ct/200/2023-11-14T22:25:00Z",
        "ns/y/ns/z/host/alpha/2023-11-15T22:13:20Z",
        "ns/y/ns/z/host/signed/2023-11-14T22:13:29Z",
    ]
    assert damage(target, KEY) == []


def test_two_targets(tmp_path: Path, target: Path) -> None:
    done = golden_restore("single", tmp_path, target, namespaces=["target=x", "target=y"])
    assert done.result.errors == []
    with Store.open(target) as store:
        assert len(every_snapshot(store)) == 4
    files = list(target.rglob("*.didx"))
    assert files and all(file.stat().st_nlink == 1 for file in files)


def test_stores(tmp_path: Path, target: Path) -> None:
    """A source store without a place is left out."""
    other = make_store(tmp_path / "other")
    done = golden_restore("single", tmp_path, target, stores={"golden": other})
    assert len(done.result.restored) == 2 and damage(other) == [] and chunk_files(target) == []
    done = golden_restore("single", tmp_path, target, stores={"elsewhere": target}, with_logs=False)
    assert done.result.restored == [] and done.result.errors == [] and chunk_files(target) == []
    assert len(done.catalogued["TAPE01"]) == 4, "what has no place here is catalogued too"


def test_no_such_snapshot(tmp_path: Path, target: Path) -> None:
    with pytest.raises(NotFound, match="has no snapshot host/nobody"):
        golden_restore("single", tmp_path, target, "host/nobody/2023-11-14T22:13:29Z")


# -- what is wrong ---------------------------------------------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("mode", ["whole", "media-only", "chosen"])
def test_absent_medium(mode: str, tmp_path: Path, target: Path) -> None:
    """What is on the others is restored; what needs it is named, exit 13."""
    chosen = tuple(snapshots_of("multi")) if mode == "chosen" else ()
    done = golden_restore("multi", tmp_path, target, *chosen, absent=["M002L8"], with_logs=mode != "media-only")
    assert sorted(done.result.restored) == sorted("golden:" + name for name in snapshots_of("multi")[:2])
    assert {type(error) for error in done.result.errors} == {TargetAbsent}
    assert damage(target, KEY) == []


@pytest.mark.parametrize("mode", ["whole", "chosen"])
def test_first_medium_absent(mode: str, tmp_path: Path, target: Path) -> None:
    chosen = tuple(snapshots_of("multi")) if mode == "chosen" else ()
    done = golden_restore("multi", tmp_path, target, *chosen, absent=["M001L8"])
    assert done.result.restored == [] and done.result.errors
    assert any("host/alpha/2023-11-15T22:13:20Z" in problem.name for problem in done.result.problems)
    assert all(isinstance(error, TargetAbsent) for error in done.result.errors)


@pytest.mark.parametrize("where", ["header", "blob", "block"])
@pytest.mark.parametrize("mode", ["whole", "media-only", "chosen"])
def test_damaged_chunk_archive(mode: str, where: str, tmp_path: Path, target: Path) -> None:
    """The snapshot is named, the others are there, nothing of it is visible."""
    place = golden_media("multi", tmp_path / "multi")
    flip(place / "tapefile-4-M001L8.json", {"block": 3, "header": 100, "blob": 16 + 48 + 30 + 48 + 40}[where])
    chosen = tuple(snapshots_of("multi")) if mode == "chosen" else ()
    done = golden_restore("multi", tmp_path, target, *chosen, with_logs=mode != "media-only")
    bad = snapshots_of("multi")[1]
    assert sorted(done.result.restored) == sorted(f"golden:{name}" for name in snapshots_of("multi") if name != bad)
    assert any(problem.name == f"golden:{bad}" for problem in done.result.problems)
    assert {error.exit_code for error in done.result.errors} == {20}
    assert not (target / bad).exists() and damage(target, KEY) == []


@pytest.mark.parametrize("mode", ["whole", "media-only", "chosen"])
def test_damaged_snapshot_archive(mode: str, tmp_path: Path, target: Path) -> None:
    place = golden_media("multi", tmp_path / "multi")
    flip(place / "tapefile-3-M001L8.json", 420)
    chosen = tuple(snapshots_of("multi")) if mode == "chosen" else ()
    done = golden_restore("multi", tmp_path, target, *chosen, with_logs=mode != "media-only")
    assert len(done.result.restored) == 2 and {error.exit_code for error in done.result.errors} == {20}
    assert damage(target, KEY) == []


@pytest.mark.parametrize("length", [0, BLOCK_SIZE, BLOCK_SIZE + 1000])
def test_cut_chunk_archive(length: int, tmp_path: Path, target: Path) -> None:
    place = golden_media("multi", tmp_path / "multi")
    path = place / "tapefile-6-M001L8.json"
    path.write_bytes(path.read_bytes()[:length])
    done = golden_restore("multi", tmp_path, target, with_logs=False)
    assert len(done.result.restored) == 2
    assert [problem.name for problem in done.result.problems][-1] == "golden:host/alpha/2023-11-15T22:13:20Z"
    assert [entry.file for entry in done.catalogued["M001L8"]] == [2, 3, 4, 5]
    assert damage(target, KEY) == []


def test_catalog_of_another_medium(tmp_path: Path, target: Path) -> None:
    """Files are swapped: the catalog says so, the medium says otherwise."""
    place = golden_media("multi", tmp_path / "multi")
    (place / "tapefile-3-M001L8.json").rename(place / "x")
    (place / "tapefile-4-M001L8.json").rename(place / "tapefile-3-M001L8.json")
    (place / "x").rename(place / "tapefile-4-M001L8.json")
    done = golden_restore("multi", tmp_path, target, snapshots_of("multi")[0])
    assert done.result.restored == [] and "should hold" in str(done.result.errors[0])


def test_with_key(tmp_path: Path, target: Path) -> None:
    """With the key at hand the digests of encrypted chunks are checked too."""
    done = golden_restore("multi", tmp_path, target, crypt=KEY)
    assert done.result.errors == [] and damage(target, KEY) == []
    with Store.open(target) as store:
        assert store.database is not None
        sums = [store.database.recorded_sum(bytes.fromhex(chunk.name)) for chunk in chunk_files(target)]
    assert all(sums), "all of them are proven"
