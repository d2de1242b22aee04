"""Real file systems below stores and media: full ones, FAT; and drives that fail."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from archiver.core.events import ignore
from archiver.store.layout import MANIFEST, GroupRef, Layout, SnapshotRef
from archiver.store.store import Store
from archiver.tape.drive.interface import FileReader, FileWriter, MediumError
from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.restore.plan import make_plan
from archiver.tape.restore.routes import Routes
from archiver.tape.restore.run import carry_out
from formats import blob
from formats.crypt import chunk_digest
from formats.index import FixedIndexWriter
from formats.manifest import FileInfo, Manifest
from formats.tape.catalog import decode_catalog
from tests.cli.command import ask, call
from tests.mounts import fill, small_file_system, weak_file_system
from tests.random_trees import noise
from tests.stores import chunk_files, damage, make_store, save
from tests.sync.pair import finished
from tests.tape.media import golden_media
from tests.tape.restoring import Shelf, golden_catalog, restore_from, snapshots_of
from tests.tape.writing import Library

START = 1_700_000_000
MIB = 1 << 20


def filled(place: Path, snapshots: int, size: int) -> Path:
    path, tree = make_store(place / "store"), place / "tree"
    tree.mkdir()
    for number in range(snapshots):
        (tree / "file").write_bytes(noise(number, size))
        save(path, tree, time=START + number)
    return path


def set_up(media: Path, *labels: str) -> None:
    ask("tape", "drive", "add", "usb", "--path", media)
    ask("tape", "pool", "create", "daily")
    for label in labels:
        ask("tape", "label", "--label-text", label, "--pool", "daily")


@pytest.mark.parametrize("chosen", [False, True])
def test_restore_into_a_full_store(chosen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 40, what is visible is whole; with room the same command goes on."""
    monkeypatch.setenv("ARCHIVER_DB_DIR", str(tmp_path / "db"))
    store = filled(tmp_path, 3, 4 * MIB)
    set_up(tmp_path / "media", "ONE")
    ask("--store", store, "tape", "backup", "daily")
    names = [ref.path for ref in finished(store)] if chosen else []
    with small_file_system(tmp_path, 48 * MIB) as place:
        target = make_store(place / "store")
        fill(place, 7 * MIB)
        done = call("--store", target, "tape", "restore", "daily", *names, "--json")
        assert done.code == 40 and done.document["error"]["code"] == "no-space"
        assert damage(target) == [] and len(finished(target)) == (0 if chosen else 1)
        (place / "filler").unlink()
        done = call("--store", target, "tape", "restore", "daily", *names, "--json")
        assert done.code == 0 and finished(target) == finished(store) and damage(target) == []


def test_media_on_a_full_disk(tmp_path: Path) -> None:
    """A disk that is full is the end of its media; what is on them is known."""
    store = filled(tmp_path, 4, 5 * MIB)
    with small_file_system(tmp_path, 32 * MIB) as place:
        set_up(place / "tapes", "ONE")
        fill(place, 14 * MIB)
        done = call("--store", store, "tape", "backup", "daily", "--json")
        assert done.code == 40 and done.document["error"]["code"] == "no-media"
        assert 1 <= len(done.document["written"]) < 4
        assert call("tape", "verify", "daily").code == 0
        (place / "filler").unlink()
        ask("tape", "label", "--label-text", "TWO", "--pool", "daily")
        ask("--store", store, "tape", "backup", "daily")
        target = make_store(tmp_path / "target")
        ask("--store", target, "tape", "restore", "daily")
        assert finished(target) == finished(store) and damage(target) == []


def test_fat(tmp_path: Path) -> None:
    """A stick as it is bought."""
    store = filled(tmp_path, 2, MIB)
    with weak_file_system(tmp_path, "vfat") as place:
        set_up(place / "tapes", "ONE")
        assert len(ask("--store", store, "tape", "backup", "daily")["written"]) == 2
        target = make_store(tmp_path / "target")
        ask("--store", target, "tape", "restore", "daily")
        assert finished(target) == finished(store) and damage(target) == []
        assert call("tape", "verify", "daily").code == 0


# -- more than 4 GiB -------------------------------------------------------------------------------------------------


def large_store(path: Path, count: int) -> Path:
    """An image of ``count`` chunks of 16 MiB, random but for most of each."""
    make_store(path)
    layout, ref = Layout(str(path)), SnapshotRef(GroupRef("", "host", "large"), START)
    directory = Path(layout.snapshot(ref))
    directory.mkdir(parents=True)
    size = 16 * MIB
    index = FixedIndexWriter(bytes(16), START, count * size, size)
    base = noise(1, size)
    for number in range(count):
        data = number.to_bytes(8, "little") + base[8:]
        digest = chunk_digest(data, None)
        place = Path(layout.chunk(digest.hex()))
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(blob.encode(data, compress=False))
        index.add((number + 1) * size, digest)
    entries = index.take()
    (directory / "disk.img.fidx").write_bytes(index.finish() + entries)
    files = (FileInfo("disk.img.fidx", "none", count * size, index.csum),)
    (directory / MANIFEST).write_bytes(blob.encode(Manifest("host", "large", START, files).encode()))
    return path


@contextmanager
def large_file_system(directory: Path, kind: str, size: int) -> Iterator[Path]:
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    image, place = directory / "large.image", directory / "large"
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run([f"mkfs.{kind}", str(image)], check=True, capture_output=True)
    place.mkdir()
    done = subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
        image.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vfat", "exfat"])
def test_more_than_four_gigabytes(kind: str, tmp_path: Path) -> None:
    """On FAT archives end below the largest file that there can be, elsewhere where a PBS ends them."""
    store = large_store(tmp_path / "store", 280)
    with large_file_system(tmp_path, kind, 6 << 30) as place:
        set_up(place / "tapes", "ONE")
        done = ask("--store", store, "tape", "backup", "daily")
        assert len(done["written"]) == 1 and done["chunks"] == 280
        sizes = sorted(path.stat().st_size for path in (place / "tapes").glob("tapefile-*"))
        if kind == "vfat":
            assert 4000 * MIB < sizes[-1] < 1 << 32
        else:
            assert sizes[-1] > 1 << 32
        shutil.rmtree(store / ".chunks")
        (store / ".chunks").mkdir()
        shutil.rmtree(store / "host")
        back = ask("--store", store, "tape", "restore", "daily")
        assert back["new_chunks"] == 280 and len(finished(store)) == 1
    shutil.rmtree(store)


# -- drives that fail ------------------------------------------------------------------------------------------------


class Failing(VirtualDrive):
    """``fails(file number, block number)``: that block can neither be read nor written."""

    fails: Callable[[int, int], bool] = staticmethod(lambda file, block: False)

    def _broken(self, file: Any, number: int, name: str) -> Any:
        do, count = getattr(file, name), iter(range(1 << 30))

        def broken(*arguments: Any) -> Any:
            if self.fails(number, next(count)):
                raise MediumError(f"file {number}: input/output error")
            return do(*arguments)

        setattr(file, name, broken)
        return file

    def create_file(self) -> FileWriter:
        number = self._position
        found: FileWriter = self._broken(super().create_file(), number, "write")
        return found

    def open_file(self) -> FileReader:
        number = self._position
        found: FileReader = self._broken(super().open_file(), number, "read_block")
        return found


def test_write_error(tmp_path: Path) -> None:
    """The medium is damaged, the run ends; what was known is there, and the next run takes another medium."""
    store = filled(tmp_path, 3, MIB)
    library = Library(tmp_path / "library")
    library.label("T1", "T2")

    def change(drive: VirtualDrive) -> VirtualDrive:
        drive.__class__ = Failing
        drive.fails = lambda file, block: (file, block) == (4, 2)  # type: ignore[attr-defined]
        return drive

    done = library.backup(store, change_drive=change)
    assert isinstance(done.result.stopped, MediumError) and done.result.stopped.exit_code == 20
    assert len(done.result.written) == 1 and library.inventory().labelled("T1").status == "damaged"
    target = make_store(tmp_path / "target")
    assert len(restore_from(library.media, library.known(), target).result.restored) == 1
    again = library.backup(store)
    assert again.result.errors == [] and again.result.media == ["T2"] and len(again.result.written) == 3


@pytest.mark.parametrize("block", [0, 2])
def test_unreadable_blocks(block: int, tmp_path: Path) -> None:
    """The drive goes on with the next file; what was in front of the bad block is stored."""
    media = golden_media("multi", tmp_path / "media")
    target = make_store(tmp_path / "target")
    shelf = Shelf(media)
    shelf.drive.__class__ = Failing
    shelf.drive.fails = lambda file, at: (shelf.drive.label, file, at) == ("M001L8", 6, block)  # type: ignore[attr-defined]
    catalog = golden_catalog("multi", {})
    with Store.open(target) as store:
        routes = Routes({}, store)
        result = carry_out(catalog, make_plan(catalog, routes), routes, shelf, None, ignore)
    shelf.close()
    assert [text.removeprefix("golden:") for text in result.restored] == snapshots_of("multi")[:2]
    assert {error.exit_code for error in result.errors} == {20}
    assert result.problems[0].name == "file 6 of medium M001L8"
    assert len(chunk_files(target)) > (8 if block else 4) and damage(target) == []


def test_lost_file(tmp_path: Path) -> None:
    """A file of a virtual medium that is not there any more: the others are restored."""
    media = golden_media("multi", tmp_path / "media")
    (media / "tapefile-2-M001L8.json").unlink()
    target = make_store(tmp_path / "target")
    done = restore_from(media, golden_catalog("multi", {}), target)
    assert len(done.result.restored) == 2 and done.result.problems[0].name == "file 2 of medium M001L8"
    assert damage(target) == []


@pytest.mark.parametrize("is_gone", [True, False])
def test_disk_is_taken_away(is_gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no damage of the medium: exit 13, and the next run goes on with it."""
    store = filled(tmp_path, 2, MIB)
    with small_file_system(tmp_path, 32 * MIB) as place:
        library = Library(place / "library")
        library.label("T1")
        if is_gone:
            (tmp_path / "block").mkdir()
            monkeypatch.setattr("archiver.tape.drive.virtual_place._BLOCK_DEVICES", str(tmp_path / "block"))

        def broken(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        def change(drive: VirtualDrive) -> VirtualDrive:
            create = drive.create_file

            def create_file() -> FileWriter:
                file = create()
                if drive._position > 4:
                    file._file.append = broken  # type: ignore[attr-defined]
                return file

            drive.create_file = create_file  # type: ignore[method-assign]
            return drive

        stopped = library.backup(store, change_drive=change).result.stopped
        assert stopped is not None and stopped.exit_code == (13 if is_gone else 20)
        assert library.inventory().labelled("T1").status == (None if is_gone else "damaged")
        monkeypatch.undo()
        if is_gone:
            assert library.backup(store).result.errors == []
            assert len(decode_catalog(library.logs()["T1"]).snapshots) == 2
