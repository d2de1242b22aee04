"""Media that were altered by chance or on purpose: a sentence, never a crash, nothing outside of the store, and
whatever is restored is what was saved."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from archiver.core.clock import Clock
from archiver.core.events import ignore
from archiver.errors import ArchiverError
from archiver.store.store import Store
from archiver.tape.cataloguing import catalogue
from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.keys import TapeKeys
from archiver.tape.state.place import TapePlace
from archiver.tape.verify import verify
from formats.pxar.metadata import Stat
from formats.tape.blocks import BLOCK_SIZE, BlockWriter
from formats.tape.catalog import ChunkFile, SnapshotEntry, encode_chunk_file, encode_labels, encode_snapshot
from formats.tape.chunk_archive import chunk_archive, encode_entry
from formats.tape.content import Content, read_content
from formats.tape.labels import MediaSetLabel
from formats.tape.snapshot_archive import SnapshotArchiveWriter, snapshot_archive
from tests.formats.tape.media import logs, reader
from tests.golden_store import KEY
from tests.stores import damage, every_snapshot, listing, make_store
from tests.tape.media import golden_media
from tests.tape.restoring import Shelf, golden_catalog, restore_from, snapshots_of

UUID = bytes(range(16))
STAT = Stat(0o100644, 0, 0, 0, 1_700_000_000, 0)


def mutate(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    match rng.randrange(6):
        case 0:  # a byte that is used
            data[rng.randrange(min(len(data), 3000))] ^= 1 << rng.randrange(8)
        case 1:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2:
            del data[rng.randrange(len(data)) :]
        case 3:
            at = rng.randrange(min(len(data), 2000))
            data[at : at + 8] = rng.randbytes(8)
        case 4:
            data += data[:BLOCK_SIZE]
        case _:
            at = rng.randrange(16, 400)
            data[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)


def attacked(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    media = golden_media("multi", tmp_path / "media")
    for _ in range(rng.randrange(1, 4)):
        mutate(rng.choice([path for path in media.glob("tapefile-*") if not path.name.startswith("tapefile-0")]), rng)
    target = make_store(tmp_path / "target")
    catalog = golden_catalog("multi", logs("multi") if rng.random() < 0.5 else {})
    chosen = snapshots_of("multi") if catalog.logs and rng.random() < 0.5 else []
    done = restore_from(media, catalog, target, *chosen, crypt=KEY if rng.random() < 0.5 else None)
    assert damage(target, KEY) == []
    with Store.open(target) as store:
        assert {f"golden:{ref}" for ref in every_snapshot(store)} == set(done.result.restored)
    shelf = Shelf(media)
    try:
        found = verify(golden_catalog("multi", logs("multi")), catalog.members, shelf, KEY, ignore, Clock())
        assert found.errors or len(done.result.restored) == 3
        place = TapePlace(str(tmp_path / "state"))
        for label in ("M001L8", "M002L8"):
            shelf.drive.load(label)
            try:
                catalogue(place, shelf.drive, TapeKeys(str(tmp_path / "keys")), ignore, force=True)
            except ArchiverError as error:
                assert str(error)
    finally:
        shelf.close()
    for name in ("media", "target", "state"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)


def test_some_mutations(tmp_path: Path) -> None:
    for seed in range(25):
        attacked(tmp_path, seed)


@pytest.mark.slow
def test_many_mutations(tmp_path: Path) -> None:
    for seed in range(1000, 1400):
        attacked(tmp_path, seed)


# -- on purpose ------------------------------------------------------------------------------------------------------


def put(drive: VirtualDrive, fill: Callable[[BlockWriter], object]) -> None:
    with drive.create_file() as file:
        writer = BlockWriter(file.write)
        fill(writer)
        writer.finish()
        file.finish()


def snapshot_file(names: list[str], path: str, store: str = "golden") -> Callable[[BlockWriter], object]:
    def fill(writer: BlockWriter) -> None:
        writer.write(snapshot_archive(store, path, UUID, 5).encode())
        archive = SnapshotArchiveWriter(writer.write)
        for name in names:
            archive.start_file(name, STAT, 3)
            archive.write(b"abc")
        archive.finish()

    return fill


GOOD = "host/x/2023-11-14T22:13:20Z"


@pytest.mark.parametrize(
    ("names", "path"),
    [
        (["index.json.blob"], "../../etc/2023-11-14T22:13:20Z"),
        (["index.json.blob"], "host/../2023-11-14T22:13:20Z"),
        (["index.json.blob"], "host/x/2023-13-14T22:13:20Z"),
        (["index.json.blob"], "ns/" * 12 + GOOD),
        (["index.json.blob"], "host//" + GOOD),
        (["index.json.blob"], ""),
        (["owner"], GOOD),
        ([".protected"], GOOD),
        (["index.json.blob", "..didx"], GOOD),
        (["a.didx", "index.json.blob"], GOOD),
        (["index.json.blob", "index.json.blob"], GOOD),
        ([], GOOD),
    ],
)
def test_names(names: list[str], path: str, tmp_path: Path) -> None:
    """Nothing of a snapshot with impossible names arrives anywhere."""
    media = golden_media("single", tmp_path / "media")
    with VirtualDrive("x", str(media)) as drive:
        drive.load("TAPE01")
        drive.locate(2)
        put(drive, snapshot_file(names, path))
    target = make_store(tmp_path / "target")
    outside = listing(tmp_path / "media")
    before = sorted(path.name for path in target.iterdir())
    done = restore_from(media, golden_catalog("single", {}), target)
    assert done.result.restored == [] and [error.exit_code for error in done.result.errors] == [20]
    assert sorted(path.name for path in target.iterdir()) == before
    assert listing(tmp_path / "media").keys() == outside.keys()
    assert list((target / ".archiver/sessions").iterdir()) == []


def test_large_claims(tmp_path: Path) -> None:
    """Lengths are not believed before the bytes are there."""
    media = golden_media("single", tmp_path / "media")
    claims = [(1 << 62), (1 << 31), (129 << 20)]
    with VirtualDrive("x", str(media)) as drive:
        drive.load("TAPE01")
        drive.locate(2)
        for length in claims:

            def fill(writer: BlockWriter, length: int = length) -> None:
                writer.write(chunk_archive("golden", UUID, 5).encode())
                writer.write(encode_entry(bytes(32), length) + b"short")

            put(drive, fill)
    target = make_store(tmp_path / "target")
    done = restore_from(media, golden_catalog("single", {}), target)
    assert {error.exit_code for error in done.result.errors} == {20} and done.result.restored == []


def test_label_among_archives(tmp_path: Path) -> None:
    media = golden_media("single", tmp_path / "media")
    shutil.copy(media / "tapefile-0-TAPE01.json", media / "tapefile-4-TAPE01.json")
    target = make_store(tmp_path / "target")
    done = restore_from(media, golden_catalog("single", {}), target)
    assert "a media label among the archives" in str(done.result.errors[0])
    assert [text.removeprefix("golden:") for text in done.result.restored] == snapshots_of("single")[:1]


@pytest.mark.parametrize("wrong", ["names a chunk that is elsewhere", "names a file that is not there"])
def test_lying_catalog(wrong: str, tmp_path: Path) -> None:
    """A catalog that a medium carries is not believed against the medium."""
    media = golden_media("single", tmp_path / "media")
    member = golden_catalog("single", {}).members[0]
    label = MediaSetLabel.decode(read_content(reader((media / "tapefile-1-TAPE01.json").read_bytes()).read))
    snapshot = snapshots_of("single")[0]
    number = 4 if "elsewhere" in wrong else 40
    digests = golden_catalog("single", logs("single")).logs[0].archives[0].digests
    log = b"".join(
        (
            encode_labels(member.uuid, label.uuid, 0),
            encode_snapshot(SnapshotEntry(3, UUID, "golden", snapshot)),
            encode_chunk_file(ChunkFile(number, UUID, "golden", np.asarray(digests))),
        )
    )
    catalog = golden_catalog("single", {f"{_text(member.uuid)}.log": log})
    target = make_store(tmp_path / "target")
    done = restore_from(media, catalog, target, snapshot)
    assert done.result.restored == [] and [error.exit_code for error in done.result.errors] == [20]
    assert damage(target) == [] and not (target / snapshot).exists()


def _text(uuid: bytes) -> str:
    from formats.tape.content import encode_uuid

    return encode_uuid(uuid)


def test_json_that_is_none() -> None:
    """Contents whose JSON lacks what is asked for."""
    content = Content(bytes.fromhex("6d31636dd70283bf"), UUID, 5, {"store": 5})
    with pytest.raises(ValueError, match="store of a chunk archive"):
        content.text("store")
