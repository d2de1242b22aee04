"""Runs of backups onto media: only what is new, the end of a medium, what is damaged, what interrupted runs left."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archiver.errors import Damaged, Skipped
from archiver.store.filters import GroupFilter
from archiver.store.indexes import is_index, open_index
from archiver.store.layout import GroupRef
from archiver.store.store import Store
from archiver.tape.drive.interface import MediumFull
from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import InventoryFile
from archiver.tape.state.pools import Pool
from archiver.tape.state.session import NoMediaLeft
from archiver.tape.write.plan import WriteOptions
from formats.tape.blocks import BLOCK_SIZE
from formats.tape.catalog import decode_catalog
from formats.tape.content import read_content
from tests.formats.tape.media import reader
from tests.random_trees import noise
from tests.stores import KEY, chunk_files, damage, make_store, save
from tests.tape.restoring import Restored, restore_from
from tests.tape.writing import Library

START = 1_700_000_000
ROOM = 2 << 20  # a medium takes a little more


def tree(place: Path, seed: int, *, size: int = 300_000, count: int = 4) -> Path:
    place.mkdir(exist_ok=True)
    for number in range(count):
        (place / f"file-{number}").write_bytes(noise(seed * 100 + number, size))
    return place


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three snapshots of contents that do not shrink; the last one shares half with the one before."""
    place = tmp_path_factory.mktemp("made")
    path = make_store(place / "store")
    for number in range(3):
        source = tree(place / "tree", min(number, 1))
        (source / "own").write_bytes(noise(1000 + number, 200_000))
        conf = place / "conf"
        conf.write_bytes(noise(2000 + number, 900_000))
        save(path, {"tree": source, "big.conf": conf}, time=START + number)
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "store")
    return tmp_path / "store"


def restored(library: Library, target: Path, *snapshots: str, **options: Any) -> Restored:
    return restore_from(library.media, library.known(), target, *snapshots, **options)


def all_back(library: Library, tmp_path: Path, store: Path) -> None:
    """A whole restore gives every snapshot and every chunk."""
    target = make_store(tmp_path / "back")
    done = restored(library, target)
    assert done.result.errors == [] and damage(target) == []
    with Store.open(store) as ours, Store.open(target) as theirs:
        assert sorted(ours.snapshots()) == sorted(theirs.snapshots())
        for ref in ours.snapshots():
            assert ours.manifest(ref).canonical() == theirs.manifest(ref).canonical()
    shutil.rmtree(target)


def kinds(library: Library, label: str) -> list[str]:
    """What the files of a medium are, and how they end."""
    found = []
    for data in library.files(label):
        stream = reader(data)
        try:
            kind = str(read_content(stream.read).kind)
        except ValueError:
            found.append("nothing")
            continue
        while stream.skip(1 << 30):
            pass
        end = "" if stream.has_end_marker else " cut"
        found.append(kind.replace(" archive", "") + (" incomplete" if stream.incomplete else end))
    return found


def test_only_what_is_new(tmp_path: Path, store: Path) -> None:
    library = Library(tmp_path / "library")
    library.label("T1")
    with Store.open(store) as opened:
        last = max(opened.snapshots())
    first = library.backup(store, options=WriteOptions(latest_only=True))
    assert first.result.written == [last.path] and len(first.plan.steps) == 3
    second = library.backup(store)
    assert len(second.result.written) == 2 and second.result.errors == []
    assert first.result.chunks + second.result.chunks == len(chunk_files(store)), "each chunk once"
    third = library.backup(store)
    assert third.plan.work == [] and third.loads == [] and third.result.as_json()["bytes"] == 0
    assert kinds(library, "T1") == [
        *("media label", "media-set label", "chunk", "snapshot", "catalog"),
        *("chunk", "snapshot", "chunk", "snapshot", "catalog"),
    ]
    all_back(library, tmp_path, store)


def test_plan(tmp_path: Path, store: Path) -> None:
    library = Library(tmp_path / "library")
    library.label("T1")
    before = sorted(os.listdir(library.media))
    dry = library.backup(store, dry=True)
    assert [step.action for step in dry.plan.steps] == ["write"] * 3
    assert sum(step.chunks or 0 for step in dry.plan.steps) == len(chunk_files(store))
    assert sum(step.bytes or 0 for step in dry.plan.steps) == sum(file.stat().st_size for file in chunk_files(store))
    assert sorted(os.listdir(library.media)) == before
    done = library.backup(store)
    assert done.result.chunks == sum(step.chunks or 0 for step in dry.plan.steps)


def test_choice(tmp_path: Path) -> None:
    """Groups by type and id, numbers as numbers; namespaces, levels, filters."""
    made = make_store(tmp_path / "store")
    source = tree(tmp_path / "tree", 1, size=100, count=1)
    groups = [("", "vm", "100"), ("", "vm", "9"), ("", "host", "b"), ("a", "host", "a"), ("a/b", "ct", "7")]
    for namespace, kind, name in groups:
        save(made, source, group=GroupRef(namespace, kind, name), time=START)
    library = Library(tmp_path / "library")
    library.label("T1")

    def chosen(**options: Any) -> list[str]:
        plan = library.backup(made, options=WriteOptions(**options), dry=True).plan
        return [step.ref.group.path for step in plan.work]

    assert chosen() == ["ns/a/ns/b/ct/7", "ns/a/host/a", "host/b", "vm/9", "vm/100"]
    assert chosen(max_depth=0) == ["host/b", "vm/9", "vm/100"]
    assert chosen(namespace="a", max_depth=0) == ["ns/a/host/a"]
    assert chosen(filters=[GroupFilter.parse("exclude:type:vm")]) == ["ns/a/ns/b/ct/7", "ns/a/host/a", "host/b"]


# -- the end of a medium ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [9, 10, 11, 12, 13, 15, 17])
def test_media_change(blocks: int, tmp_path: Path, store: Path) -> None:
    """Wherever a medium ends, in chunks, snapshots or catalogs: all of it is on the media, and known."""
    library = Library(tmp_path / "library", blocks * BLOCK_SIZE)
    library.label(*(f"T{number:02}" for number in range(12)))
    done = library.backup(store)
    assert done.result.errors == [] and len(done.result.written) == 3
    assert done.result.chunks == len(chunk_files(store)) and len(done.result.media) > 1
    inventory = library.inventory()
    assert [inventory.labelled(label).status for label in done.result.media[:-1]] == ["full"] * (
        len(done.result.media) - 1
    )
    for number, label in enumerate(done.result.media):
        found = kinds(library, label)
        assert found[2 : 2 + number] == ["catalog"] * number, "of each earlier medium"
    all_back(library, tmp_path, store)
    assert library.backup(store).plan.work == []


def test_ends_that_were_met(tmp_path: Path, store: Path) -> None:
    """The test before this one is about all of them."""
    met: set[str] = set()
    for blocks in (10, 11, 12):
        library = Library(tmp_path / f"library-{blocks}", blocks * BLOCK_SIZE)
        library.label(*(f"T{number:02}" for number in range(12)))
        done = library.backup(store)
        met |= {kinds(library, label)[-1] for label in done.result.media[:-1]}
    assert met >= {"chunk", "snapshot incomplete"}


def test_cut_last_chunk(tmp_path: Path) -> None:
    """A large chunk that meets the end is left cut on the medium, and is whole on the next one."""
    made = make_store(tmp_path / "store")
    save(made, tree(tmp_path / "tree", 5, size=3 << 20, count=2), time=START, chunk_size=1 << 20)
    library = Library(tmp_path / "library", 14 * BLOCK_SIZE)
    library.label("T1", "T2", "T3", "T4", "T5")
    done = library.backup(made)
    assert done.result.errors == [] and done.result.chunks == len(chunk_files(made))
    sizes = {file.name: file.stat().st_size for file in chunk_files(made)}
    log = decode_catalog(library.logs()["T1"])
    listed = sum(sizes[digest.tobytes().hex()] + 48 for archive in log.archives for digest in archive.digests)
    stored = sum(reader(data).skip(1 << 30) for data in library.files("T1")[2:])
    assert stored > listed + 100_000, "there is a cut one behind"
    all_back(library, tmp_path, made)


def test_no_media_left(tmp_path: Path, store: Path) -> None:
    """What was written is known; with one more medium the next run goes on."""
    library = Library(tmp_path / "library", 10 * BLOCK_SIZE)
    library.label("T1")
    done = library.backup(store)
    assert isinstance(done.result.stopped, NoMediaLeft) and done.result.stopped.exit_code == 40
    there = sum(len(archive.digests) for archive in decode_catalog(library.logs()["T1"]).archives)
    assert there == done.result.chunks > 0
    library.label(*(f"T{number}" for number in range(2, 9)))
    again = library.backup(store)
    assert again.result.errors == [] and again.result.chunks + done.result.chunks == len(chunk_files(store))
    all_back(library, tmp_path, store)


def test_chunk_larger_than_media(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store")
    save(made, tree(tmp_path / "tree", 5, size=6 << 20, count=1), time=START, chunk_size=4 << 20)
    library = Library(tmp_path / "library", BLOCK_SIZE)
    library.label(*(f"T{number}" for number in range(5)))
    done = library.backup(made)
    assert "does not fit onto a whole medium" in str(done.result.stopped) and len(done.result.media) <= 3


def test_file_system_is_full(tmp_path: Path, store: Path) -> None:
    """No room at all for a block: the archive is cut, and what was in it is written again elsewhere."""
    library = Library(tmp_path / "library")
    library.label("T1", "T2")

    class Full(VirtualDrive):
        def create_file(self) -> Any:
            file = super().create_file()
            if self.label == "T1" and self._position > 4:
                write, left = file.write, [3]

                def limited(block: Any) -> bool:
                    left[0] -= 1
                    if left[0] < 0:
                        raise MediumFull("the file system is full")
                    return write(block)

                file.write = limited  # type: ignore[method-assign]
            return file

    def change(drive: VirtualDrive) -> VirtualDrive:
        drive.__class__ = Full
        return drive

    done = library.backup(store, change_drive=change)
    assert done.result.errors == [] and done.result.media == ["T1", "T2"]
    assert "chunk cut" in kinds(library, "T1")
    all_back(library, tmp_path, store)


def test_archives_stay_small(tmp_path: Path, store: Path) -> None:
    """Where the file system limits files, and where a writer wants it so."""
    library = Library(tmp_path / "library")
    library.label("T1")

    class Fat(VirtualDrive):
        largest_file = 3 * BLOCK_SIZE

    def change(drive: VirtualDrive) -> VirtualDrive:
        drive.__class__ = Fat
        return drive

    done = library.backup(store, change_drive=change)
    assert done.result.errors == [] and largest_chunk_archive(library, "T1") == 3 * BLOCK_SIZE
    all_back(library, tmp_path, store)
    other = Library(tmp_path / "other")
    other.label("T1")
    assert other.backup(store, close_from=BLOCK_SIZE).result.errors == []
    assert largest_chunk_archive(other, "T1") <= 3 * BLOCK_SIZE
    all_back(other, tmp_path, store)


def largest_chunk_archive(library: Library, label: str) -> int:
    return max(
        len(data) for data, kind in zip(library.files(label), kinds(library, label), strict=True) if kind == "chunk"
    )


# -- what is damaged -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flip", "missing", "index", "manifest"])
def test_damaged_snapshot(how: str, tmp_path: Path, store: Path) -> None:
    """It is named and left out; the others are written."""
    with Store.open(store) as opened:
        first = min(opened.snapshots())
        digests = {bytes(digest).hex() for digest in _digests(opened, first)}
        others = {bytes(d).hex() for ref in opened.snapshots() if ref != first for d in _digests(opened, ref)}
    victim = next(path for path in chunk_files(store) if path.name in digests - others)
    if how == "flip":
        _flip(victim)
    elif how == "missing":
        victim.unlink()
    elif how == "index":
        _flip(store / first.path / "tree.ppxar.didx")
    else:
        _flip(store / first.path / "index.json.blob")
    library = Library(tmp_path / "library")
    library.label("T1")
    done = library.backup(store)
    assert len(done.result.written) == 2 and [problem.name for problem in done.result.problems] == [first.path]
    assert all(isinstance(error, Damaged) for error in done.result.errors)
    target = make_store(tmp_path / "back")
    assert len(restored(library, target).result.restored) == 2 and damage(target) == []
    count = len(library.files("T1"))
    assert len(library.backup(store).result.problems) == 1 and len(library.files("T1")) == count


def _digests(store: Store, ref: Any) -> Any:
    for file in store.manifest(ref).files:
        if is_index(file.filename):
            yield from open_index(store.layout, ref, file).digests


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(data)


def test_pool_that_wants_encryption(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store")
    source = tree(tmp_path / "tree", 1, size=1000, count=2)
    save(made, source, time=START)
    sealed = save(made, source, time=START + 1, crypt=KEY).snapshot
    library = Library(tmp_path / "library", pool=Pool.make("daily", require_encryption=True))
    library.label("T1")
    done = library.backup(made)
    assert done.result.written == [sealed.path]
    assert [type(error) for error in done.result.errors] == [Skipped]


# -- what is on the medium -------------------------------------------------------------------------------------------


def test_tail_is_adopted(tmp_path: Path, store: Path) -> None:
    """Power was lost between the medium and the catalog: what is whole is taken over, nothing is written twice."""
    library = Library(tmp_path / "library")
    library.label("T1")
    library.backup(store, options=WriteOptions(latest_only=True))
    shutil.copytree(library.base, tmp_path / "before")
    whole = library.backup(store)
    shutil.rmtree(tmp_path / "before/media")
    shutil.copytree(library.media, tmp_path / "before/media")
    lost = Library(tmp_path / "before")
    done = lost.backup(store)
    assert done.result.errors == [] and done.result.adopted == 4 and done.result.chunks == 0
    assert sorted(done.result.written) == sorted(whole.result.written)
    assert kinds(lost, "T1") == [*kinds(library, "T1"), "catalog"]
    all_back(lost, tmp_path, store)


@pytest.mark.parametrize("cut", ["empty", "half", "block"])
def test_cut_tail_is_passed_over(cut: str, tmp_path: Path, store: Path) -> None:
    library = Library(tmp_path / "library")
    library.label("T1")
    library.backup(store, options=WriteOptions(latest_only=True))
    shutil.copytree(library.base, tmp_path / "before")
    library.backup(store)
    shutil.rmtree(tmp_path / "before/media")
    shutil.copytree(library.media, tmp_path / "before/media")
    lost = Library(tmp_path / "before")
    for number in (6, 7, 8, 9):
        (lost.media / f"tapefile-{number}-T1.json").unlink()
    path = lost.media / "tapefile-5-T1.json"
    path.write_bytes(path.read_bytes()[: {"empty": 0, "half": 2 * BLOCK_SIZE + 1000, "block": BLOCK_SIZE}[cut]])
    (lost.media / "tape-T1.json").write_text('{"files": 6}')
    done = lost.backup(store)
    assert done.result.errors == [] and done.result.adopted == 0 and len(done.result.written) == 2
    all_back(lost, tmp_path, store)


@pytest.mark.parametrize("what", ["truncated", "overwritten", "another set", "unknown set"])
def test_medium_written_elsewhere(what: str, tmp_path: Path, store: Path) -> None:
    """Nothing is written on it, and nothing on it is lost."""
    library = Library(tmp_path / "library")
    library.label("T1")
    library.backup(store, options=WriteOptions(latest_only=True))
    shutil.copytree(library.base, tmp_path / "other")
    other = Library(tmp_path / "other")
    if what == "truncated":
        (library.media / "tape-T1.json").write_text('{"files": 3}')
        (library.media / "tapefile-3-T1.json").unlink()
    elif what == "overwritten":
        shutil.copy(library.media / "tapefile-2-T1.json", library.media / "tapefile-3-T1.json")
    else:
        if what == "unknown set":
            shutil.rmtree(library.base / "state")
            library.base.joinpath("state").mkdir()
            entry = other.inventory().labelled("T1")

            def enter(inventory: Any) -> None:
                Library._enter(inventory, entry.label)

            InventoryFile(library.place).change(enter)
        else:
            moved = Library(tmp_path / "other", pool=Pool.make("daily", allocation="always", retention="overwrite"))
            assert moved.backup(store).result.errors == []
            shutil.rmtree(library.media)
            shutil.copytree(other.media, library.media)
    before = {path.name: path.read_bytes() for path in library.media.glob("tape*")}
    done = library.backup(store)
    assert isinstance(done.result.stopped, Damaged) and done.result.written == []
    assert {path.name: path.read_bytes() for path in library.media.glob("tape*")} == before


def test_write_protected(tmp_path: Path, store: Path) -> None:
    library = Library(tmp_path / "library")
    library.label("T1")
    library.media.chmod(0o555)
    try:
        done = library.backup(store)
    finally:
        library.media.chmod(0o755)
    assert done.result.stopped is not None and done.result.stopped.code == "write-protected"
    assert library.inventory().labelled("T1").status is None, "it is not damaged"
    assert library.backup(store).result.errors == []
    all_back(library, tmp_path, store)


def test_begun_and_not_labelled(tmp_path: Path, store: Path) -> None:
    """A run died between the inventory and the medium, or between the set label and the catalogs."""
    for keep in (1, 2):
        library = Library(tmp_path / f"library-{keep}", 10 * BLOCK_SIZE)
        others = [f"T{number}" for number in range(3, 9)]
        library.label("T1", "T2", *others)
        library.backup(store)
        for path in library.media.glob("tapefile-*-T2.json"):
            if int(path.name.split("-")[1]) >= keep:
                path.unlink()
        (library.media / "tape-T2.json").write_text(f'{{"files": {keep}}}')
        inventory = library.inventory()
        second = inventory.labelled("T2")
        logs = CatalogLogs(library.place)
        logs.create(second.uuid, second.in_set.uuid, 1)

        def reset(inventory: Any, others: list[str] = others) -> None:
            for label in ("T2", *others):
                medium = inventory.labelled(label)
                inventory.put(replace(medium, status=None, set_label=medium.set_label if label == "T2" else None))

        InventoryFile(library.place).change(reset)
        for label in others:
            for path in library.media.glob(f"tapefile-*-{label}.json"):
                if int(path.name.split("-")[1]) >= 1:
                    path.unlink()
            (library.media / f"tape-{label}.json").write_text('{"files": 1}')
            logs.remove(inventory.labelled(label).uuid)
        done = library.backup(store)
        assert done.result.errors == [] and kinds(library, "T2")[1:3] == ["media-set label", "catalog"]
        all_back(library, tmp_path, store)


def test_bytes_used(tmp_path: Path, store: Path) -> None:
    library = Library(tmp_path / "library")
    library.label("T1")
    library.backup(store)
    used = library.inventory().labelled("T1").bytes_used
    assert used is not None and used <= sum(map(len, library.files("T1"))) < used + 3 * BLOCK_SIZE
