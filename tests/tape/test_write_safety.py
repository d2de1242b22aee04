"""What a backup must not do to media: forget what is on them, write over what is not its own, believe in a snapshot
whose chunks are not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archiver.core.events import ignore
from archiver.errors import ArchiverError, KeyProblem, NotFound, Skipped, UsageError
from archiver.tape.cataloguing import catalogue
from archiver.tape.drive.interface import Drive, FileReader, FileWriter, MediumError
from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.keys import TapeKeys
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import InventoryFile
from archiver.tape.state.pools import Pool
from archiver.tape.state.session import WriteSession
from archiver.tape.write.plan import WriteOptions
from formats.index import DYNAMIC_MAGIC
from formats.tape.blocks import BLOCK_SIZE
from formats.tape.catalog import decode_catalog
from formats.tape.labels import MediaSetLabel
from tests.random_trees import noise
from tests.stores import damage, make_store, save
from tests.sync.pair import finished
from tests.tape.restoring import restore_from
from tests.tape.test_write_runs import kinds
from tests.tape.writing import Library

START = 1_700_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    store, tree = make_store(place / "store"), place / "tree"
    tree.mkdir()
    for number in range(3):
        (tree / "own").write_bytes(noise(number, 900_000))
        save(store, tree, time=START + number)
    return store


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "store")
    return tmp_path / "store"


def all_back(library: Library, tmp_path: Path, store: Path) -> None:
    target = make_store(tmp_path / "back")
    assert restore_from(library.media, library.known(), target).result.errors == []
    assert finished(target) == finished(store) and damage(target) == []


def media_bytes(library: Library) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in library.media.glob("tape*")}


def again(library: Library) -> Library:
    """The same media in a pool where every run begins a new set, over the old one."""
    return Library(library.base, pool=Pool.make("daily", allocation="always", retention="overwrite"))


# -- before a medium is used again -----------------------------------------------------------------------------------


def refused_before_recycling(library: Library, run: Callable[[], Any]) -> ArchiverError:
    """Nothing of the medium, its catalog and its entry in the inventory is changed."""
    before, logs, inventory = media_bytes(library), library.logs(), library.inventory()
    stopped = run().result.stopped
    assert isinstance(stopped, ArchiverError)
    assert media_bytes(library) == before and library.logs() == logs and library.inventory() == inventory
    return stopped


def test_write_protected_medium_is_not_recycled(tmp_path: Path, store: Path) -> None:
    library = Library(tmp_path / "library")
    library.label("T1")
    assert library.backup(store).result.errors == []
    library.media.chmod(0o555)
    try:
        error = refused_before_recycling(library, lambda: again(library).backup(store))
    finally:
        library.media.chmod(0o755)
    assert error.code == "write-protected"
    all_back(library, tmp_path, store)


def test_another_medium_is_not_recycled_in_its_place(tmp_path: Path, store: Path) -> None:
    """The order of the media may change while one is waited for: what was not looked at is not taken."""
    library = Library(tmp_path / "library")
    library.label("T1", "T2")
    with WriteSession(library.place, library.pool, "shelf") as session:
        chosen = session.next_medium()
        assert chosen.name == "T1"

        def older(inventory: Any) -> None:
            medium = inventory.labelled("T2")
            inventory.put(replace(medium, label=replace(medium.label, time=1)))

        InventoryFile(library.place).change(older)
        assert session.allocate(chosen).medium.name == "T1"
        with pytest.raises(Skipped, match="taken by another process"):
            session.allocate(chosen)  # it is in the set by now, not as it was looked at
    assert library.inventory().labelled("T2").in_set is None


def test_joined_another_set_later(tmp_path: Path, store: Path) -> None:
    """A run ended before it wrote the set label; then another machine wrote the medium."""
    library = Library(tmp_path / "library")
    library.label("T1")
    shutil.copytree(library.base, tmp_path / "other")
    with WriteSession(library.place, library.pool, "shelf") as session:
        mine = session.allocate().medium

    def earlier(inventory: Any) -> None:
        assert mine.in_set is not None
        inventory.put(replace(mine, set_label=replace(mine.in_set, time=mine.in_set.time - 100)))

    InventoryFile(library.place).change(earlier)
    other = Library(tmp_path / "other")
    assert other.backup(store).result.errors == []
    shutil.rmtree(library.media)
    shutil.copytree(other.media, library.media)
    before = media_bytes(library)
    stopped = library.backup(store).result.stopped
    assert stopped is not None and stopped.code == "foreign-medium" and media_bytes(library) == before


# -- catalogs of earlier media ---------------------------------------------------------------------------------------


def test_lost_catalog_of_an_earlier_medium(tmp_path: Path, store: Path) -> None:
    """It is said, and the next medium is not begun; with a new set the backup goes on."""
    library = Library(tmp_path / "library", 9 * BLOCK_SIZE)
    library.label("T1", "T2", "T3", "T4")
    first = finished(store)[0]
    library.backup(store, snapshots=[first.path])

    def full(inventory: Any) -> None:
        inventory.put(replace(inventory.labelled("T1"), status="full"))

    InventoryFile(library.place).change(full)
    CatalogLogs(library.place).remove(library.inventory().labelled("T1").uuid)
    before = media_bytes(library)
    done = library.backup(store)
    assert isinstance(done.result.stopped, NotFound) and "no catalog of the medium T1" in str(done.result.stopped)
    assert done.result.written == [] and media_bytes(library) == before
    assert library.inventory().labelled("T2").in_set is None
    done = library.backup(store, force_new=True)
    assert done.result.errors == [] and len(done.result.written) == 3


def test_lost_catalog_of_the_medium_that_goes_on(tmp_path: Path, store: Path) -> None:
    library = Library(tmp_path / "library")
    library.label("T1")
    library.backup(store, options=WriteOptions(latest_only=True))
    CatalogLogs(library.place).remove(library.inventory().labelled("T1").uuid)
    before = media_bytes(library)
    done = library.backup(store)
    assert isinstance(done.result.stopped, NotFound) and "tape catalog" in str(done.result.stopped.hint)
    assert media_bytes(library) == before


def test_killed_in_the_last_of_the_earlier_catalogs(tmp_path: Path, store: Path) -> None:
    """It is written once more, whole."""
    library = Library(tmp_path / "library", 10 * BLOCK_SIZE)
    library.label("T1", "T2", "T3", "T4")
    library.backup(store, absent=["T3", "T4"])
    second = library.inventory().labelled("T2")
    for path in library.media.glob("tapefile-*-T2.json"):
        if int(path.name.split("-")[1]) > 2:
            path.unlink()
    (library.media / "tape-T2.json").write_text('{"files": 3}')
    catalog = library.media / "tapefile-2-T2.json"
    catalog.write_bytes(catalog.read_bytes()[: BLOCK_SIZE // 2])
    CatalogLogs(library.place).create(second.uuid, second.in_set.uuid, 1)
    InventoryFile(library.place).change(lambda inventory: inventory.put(replace(second, status=None)))

    def free(inventory: Any) -> None:
        for label in ("T3", "T4"):
            inventory.put(replace(inventory.labelled(label), status=None, set_label=None))

    InventoryFile(library.place).change(free)
    done = library.backup(store)
    assert done.result.errors == [] and kinds(library, "T2")[:3] == ["media label", "media-set label", "catalog"]
    all_back(library, tmp_path, store)


# -- what an interrupted run left ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["cut", "damaged", "gone", "index"])
def test_snapshot_without_its_chunks_is_not_adopted(what: str, tmp_path: Path, store: Path) -> None:
    """A power cut may take the chunks and leave the snapshot that was written behind them."""
    library = Library(tmp_path / "library")
    library.label("T1")
    library.backup(store, options=WriteOptions(latest_only=True))
    shutil.copytree(library.base, tmp_path / "before")
    library.backup(store)
    shutil.rmtree(tmp_path / "before/media")
    shutil.copytree(library.media, tmp_path / "before/media")
    lost = Library(tmp_path / "before")
    assert kinds(lost, "T1")[5:9] == ["chunk", "snapshot", "chunk", "snapshot"]
    path = lost.media / f"tapefile-{6 if what == 'index' else 5}-T1.json"
    data = bytearray(path.read_bytes())
    if what == "cut":
        path.write_bytes(data[: 2 * BLOCK_SIZE])
    elif what == "damaged":
        data[BLOCK_SIZE + 5000] ^= 1
        path.write_bytes(data)
    elif what == "gone":
        path.unlink()
    else:
        data[data.index(DYNAMIC_MAGIC) + 4096 + 20] ^= 1
        path.write_bytes(data)
    done = lost.backup(store)
    assert done.result.errors == [] and done.result.adopted == (3 if what == "index" else 2)
    first = finished(store)[0].path
    log = decode_catalog(lost.logs()["T1"])
    assert next(entry.file for entry in log.snapshots if entry.path == first) > 9, "it was written again"
    all_back(lost, tmp_path, store)


# -- drives that encrypt ---------------------------------------------------------------------------------------------


class Encrypting(VirtualDrive):
    """Files from the second on are read only with the key that they were written with."""

    can_encrypt = True
    keys: dict[tuple[str | None, int], bytes | None]
    key: bytes | None = None

    def set_key(self, key: bytes | None) -> None:
        self.key = key

    def create_file(self) -> FileWriter:
        number = self._position
        if number < 2:
            assert self.key is None, "labels are never encrypted"
        file = super().create_file()
        self.keys[self.label, number] = self.key
        return file

    def open_file(self) -> FileReader:
        place = self.label, self._position
        if place in self.keys and self.keys[place] not in (None, self.key):
            raise MediumError("the drive has not the key of this file")
        return super().open_file()


def test_encrypted_set_goes_on(tmp_path: Path, store: Path) -> None:
    """The end of what is on a medium is read with its key; a key that is not here stops the run before anything."""
    fingerprint = bytes(range(32))
    library = Library(tmp_path / "library", pool=replace(Pool.make("daily"), encrypt=fingerprint))
    library.label("T1")
    keys: dict[tuple[str | None, int], bytes | None] = {}

    def change(drive: VirtualDrive) -> VirtualDrive:
        drive.__class__ = Encrypting
        drive.keys = keys  # type: ignore[attr-defined]
        return drive

    def use_key(drive: Drive, label: MediaSetLabel | None) -> None:
        drive.set_key(None if label is None or label.fingerprint is None else label.uuid * 2)

    def no_such_key(drive: Drive, label: MediaSetLabel | None) -> None:
        if label is not None and label.fingerprint is not None:
            raise KeyProblem("the key is not here")

    keys["T1", 0] = None
    before, inventory = media_bytes(library), library.inventory()
    done = library.backup(store, change_drive=change, use_key=no_such_key)
    assert isinstance(done.result.stopped, KeyProblem)
    assert media_bytes(library) == before and library.inventory() == inventory
    first = finished(store)[0].path
    done = library.backup(store, change_drive=change, use_key=use_key, snapshots=[first])
    assert done.result.errors == [] and done.result.written == [first]
    assert keys["T1", 1] is None and keys["T1", 2] is not None
    done = library.backup(store, change_drive=change, use_key=use_key)
    assert done.result.errors == [] and len(done.result.written) == 2 and done.result.media == ["T1"]
    assert len(decode_catalog(library.logs()["T1"]).snapshots) == 3


def test_a_new_medium_that_cannot_be_written(tmp_path: Path, store: Path) -> None:
    """It is damaged, and the next run takes another one."""
    library = Library(tmp_path / "library")
    library.label("T1", "T2")

    class Worn(VirtualDrive):
        def create_file(self) -> FileWriter:
            if self.label == "T1":
                raise MediumError("file 1: input/output error")
            return super().create_file()

    def change(drive: VirtualDrive) -> VirtualDrive:
        drive.__class__ = Worn
        return drive

    done = library.backup(store, change_drive=change, listener=ignore)
    assert isinstance(done.result.stopped, MediumError) and library.inventory().labelled("T1").status == "damaged"
    done = library.backup(store, change_drive=change)
    assert done.result.errors == [] and done.result.media == ["T2"]


def test_a_drive_that_raises_an_alert(tmp_path: Path, store: Path) -> None:
    """Nothing is written on the medium, which counts as damaged; the next run takes another one."""
    library = Library(tmp_path / "library")
    library.label("T1", "T2")

    class Alarmed(VirtualDrive):
        def complaint(self) -> str | None:
            return "read failure" if self.label == "T1" else None

    def change(drive: VirtualDrive) -> VirtualDrive:
        drive.__class__ = Alarmed
        return drive

    before = media_bytes(library)
    done = library.backup(store, change_drive=change)
    assert isinstance(done.result.stopped, MediumError) and "read failure" in str(done.result.stopped)
    assert media_bytes(library) == before
    medium = library.inventory().labelled("T1")
    assert medium.status == "damaged" and medium.in_set is None
    done = library.backup(store, change_drive=change)
    assert done.result.errors == [] and done.result.media == ["T2"]


# -- catalogs that know too little -----------------------------------------------------------------------------------


def test_restore_from_a_medium_that_holds_more(tmp_path: Path, store: Path) -> None:
    """The catalog here is older than the medium: a whole restore reads what it does not know, and says so."""
    library = Library(tmp_path / "library")
    library.label("T1")
    library.backup(store, options=WriteOptions(latest_only=True))
    catalog = library.known()
    library.backup(store)
    with (library.media / "tapefile-10-T1.json").open("wb") as file:
        file.write(bytes(1000))
    (library.media / "tape-T1.json").write_text('{"files": 11}')
    told: list[str] = []
    target = make_store(tmp_path / "target")
    done = restore_from(library.media, catalog, target, listener=lambda event: told.append(str(event)))
    assert done.result.errors == [] and finished(target) == finished(store) and damage(target) == []
    assert sum("is not in its catalog here" in text for text in told) == 4
    assert any("file 10 of medium T1 cannot be read" in text for text in told)


def test_catalog_of_a_damaged_medium_is_no_last_word(tmp_path: Path, store: Path) -> None:
    """It was made of what could be read: a better one replaces it unasked."""
    library = Library(tmp_path / "library")
    library.label("T1")
    library.backup(store)
    path = library.media / "tapefile-2-T1.json"
    good = path.read_bytes()
    path.write_bytes(good[:1000])
    (library.media / "tapefile-8-T1.json").unlink()
    (library.media / "tape-T1.json").write_text('{"files": 8}')
    keys = TapeKeys(str(tmp_path / "keys"))
    uuid = library.inventory().labelled("T1").uuid
    with library.drive() as drive:
        drive.load("T1")
        done = catalogue(library.place, drive, keys, ignore, force=True)
        assert [error.file for error in done.damaged] == [2] and done.archives == 2
        assert CatalogLogs(library.place).unsure(uuid) == "1 of its files cannot be read"
        path.write_bytes(good)
        done = catalogue(library.place, drive, keys, ignore)
        assert done.damaged == [] and done.archives == 3 and CatalogLogs(library.place).unsure(uuid) is None
        with pytest.raises(UsageError, match="already"):
            catalogue(library.place, drive, keys, ignore)
