"""Bad days: a disk that is taken away in the middle, files that got lost, labels and catalogs made to do harm."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from archiver.core.events import ignore
from archiver.errors import TargetAbsent
from archiver.tape.drive.interface import FileReader, FileWriter
from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.reading import visit_files
from archiver.tape.verify import verify
from formats.errors import FormatError
from formats.tape.blocks import BLOCK_SIZE, BlockWriter
from formats.tape.catalog import MAX_FILE_NUMBER, decode_catalog, encode_labels
from formats.tape.chunk_archive import encode_entry
from formats.tape.content import CHUNK_ARCHIVE, MEDIA_SET_LABEL, SNAPSHOT_ARCHIVE, Content
from formats.tape.labels import MAX_SEQ_NR, MediaSetLabel
from tests.cli.command import ask, call
from tests.random_trees import noise
from tests.stores import make_store, save
from tests.sync.pair import finished
from tests.tape.restoring import restore_from
from tests.tape.writing import Library, Online

START = 1_700_000_000


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    tree.mkdir()
    for number in range(2):
        (tree / f"file-{number}").write_bytes(noise(number, 300_000))
        save(path, tree, time=START + number)
    return path


# -- a disk that is taken away -----------------------------------------------------------------------------------------


class Unplugged(VirtualDrive):
    """Its directory is moved away, and a bare one is left, when the file ``at`` was begun, or is to be read."""

    at = 3

    def _unplug(self) -> None:
        number = self._position - 1
        if number == self.at:
            os.rename(self.path, f"{self.path}-away")
            os.mkdir(self.path)

    def create_file(self) -> FileWriter:
        file = super().create_file()
        self._unplug()
        return file

    def open_file(self) -> FileReader:
        file = super().open_file()
        self._unplug()
        return file


class Unplugging(Library):
    def drive(self) -> VirtualDrive:
        return Unplugged("shelf", str(self.media), new=True)


def put_back(library: Library) -> None:
    library.media.rmdir()  # nothing was written beside the disk
    os.rename(f"{library.media}-away", library.media)


@pytest.mark.parametrize("at", [1, 2, 3, 5, 6])
def test_taken_away_while_written(at: int, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends with "not there", what was not safely on the disk is not claimed, and the next one goes on."""
    monkeypatch.setattr(Unplugged, "at", at)
    library = Unplugging(tmp_path)
    library.label("T1")
    done = library.backup(store).result
    assert isinstance(done.stopped, TargetAbsent) and "taken away" in str(done.stopped)
    put_back(library)
    known = library.known().logs.get(0)
    assert [entry.path for entry in known.snapshots] == done.written if known is not None else not done.written
    assert library.inventory().labelled("T1").status is None, "it is not damaged"
    again = Library(tmp_path).backup(store).result
    assert again.errors == []
    back = make_store(tmp_path / "back")
    assert restore_from(library.media, library.known(), back).result.errors == []
    assert finished(back) == finished(store)


@pytest.mark.parametrize("at", [2, 3, 4])
def test_taken_away_while_read(at: int, tmp_path: Path, store: Path) -> None:
    """What a medium has is not made less by its absence."""
    library = Library(tmp_path)
    library.label("T1")
    assert library.backup(store).result.errors == []
    with Unplugged("shelf", str(library.media)) as drive:
        drive.load("T1")
        drive.at = at
        with pytest.raises(TargetAbsent):
            visit_files(drive, "T1", 2, lambda file: None, lambda error: None)


@pytest.mark.parametrize("at", [2, 4])
def test_taken_away_while_verified(at: int, tmp_path: Path, store: Path) -> None:
    """What could not be read is absent; it is no damage."""
    library = Library(tmp_path)
    library.label("T1")
    assert library.backup(store).result.errors == []
    known = library.known()
    with Unplugged("shelf", str(library.media)) as drive:
        drive.at = at
        done = verify(known, known.members, Online(drive), None, ignore, library.clock)
    assert [type(error) for error in done.absent] == [TargetAbsent] and done.errors == []
    put_back(library)


def test_taken_away_while_erased(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is not done, and not said to be."""
    library = Library(tmp_path)
    library.label("T1")
    assert library.backup(store).result.errors == []
    with library.drive() as drive:
        drive.load("T1")
        drop = drive._drop_files

        def unplugged(*arguments: Any) -> None:
            os.rename(drive.path, f"{drive.path}-away")
            os.mkdir(drive.path)
            drop(*arguments)

        monkeypatch.setattr(drive, "_drop_files", unplugged)
        with pytest.raises(TargetAbsent):
            drive.format(fast=True)
    put_back(library)


# -- files that got lost -----------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path, store: Path) -> Path:
    """Files: labels, chunks 2, snapshot 3, chunks 4, snapshot 5, catalog 6."""
    ask("tape", "drive", "add", "usb", "--path", tmp_path / "media")
    ask("tape", "pool", "create", "daily")
    ask("tape", "label", "--label-text", "ONE", "--pool", "daily")
    ask("--store", store, "tape", "backup", "daily")
    return tmp_path / "media"


def test_lost_file(written: Path, tmp_path: Path) -> None:
    """Only what was in it is not restored, and everything else is looked at."""
    (written / "tapefile-3-ONE.json").unlink()
    target = make_store(tmp_path / "target")
    done = call("--json", "--store", target, "tape", "restore", "daily")
    assert done.code == 20 and done.document["restored"] == [f"test:{finished(target)[0]}"]
    assert [problem["name"] for problem in done.document["problems"]] == ["file 3 of medium ONE"]
    done = call("--json", "tape", "verify", "daily")
    assert done.code == 20 and done.document["snapshots"] == 1
    assert [item["file"] for item in done.document["items"]] == [3]
    done = call("--json", "tape", "catalog", "--scan", "--force")
    assert done.code == 20 and done.document["snapshots"] == 1
    assert [item["file"] for item in done.document["damaged"]] == [3]


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_catalog_of_a_damaged_archive(how: str, written: Path, store: Path, tmp_path: Path) -> None:
    """A catalog made anew still finds the sound chunks that are in it."""
    file = written / "tapefile-2-ONE.json"
    before = ask("tape", "catalog", "--scan", "--force")["chunks"]
    if how == "flip":
        data = bytearray(file.read_bytes())
        data[file.stat().st_size // 2] ^= 1
        file.write_bytes(data)
    else:
        os.truncate(file, file.stat().st_size - 1000)
    done = call("--json", "tape", "catalog", "--scan", "--force")
    assert done.code == 20 and [item["file"] for item in done.document["damaged"]] == [2]
    chunks = done.document["chunks"]
    target = make_store(tmp_path / "target")
    restored = call("--json", "--store", target, "tape", "restore", "daily").document
    assert restored["new_chunks"] == chunks and before - 2 <= chunks < before


def test_lost_last_file(written: Path, store: Path, tmp_path: Path) -> None:
    """The medium ends before it: that is seen, and told, before anything is written behind it."""
    for number in (5, 6):
        (written / f"tapefile-{number}-ONE.json").unlink()
    save(store, tmp_path / "tree", time=START + 5)
    done = call("--json", "--store", store, "tape", "backup", "daily")
    assert done.code == 20 and "its catalog knows of 6" in done.document["error"]["message"]
    assert not (written / "tapefile-5-ONE.json").exists()


def test_lost_last_files_restored(written: Path, tmp_path: Path) -> None:
    """A whole set of which the medium holds less than its catalog says is not restored whole, and that is said."""
    for number in (5, 6):
        (written / f"tapefile-{number}-ONE.json").unlink()
    target = make_store(tmp_path / "target")
    done = call("--json", "--store", target, "tape", "restore", "daily")
    assert done.code == 20 and done.document["restored"] == [f"test:{finished(target)[0]}"]
    assert [problem["name"] for problem in done.document["problems"]] == ["file 5 of medium ONE"]


@pytest.mark.parametrize("snapshot", [[], ["host/test/2023-11-14T22:13:20Z"]])
def test_cut_between_two_blocks(snapshot: list[str], written: Path, tmp_path: Path) -> None:
    """Why chunks are missing is said: their catalog knows where they should be."""
    os.truncate(written / "tapefile-2-ONE.json", BLOCK_SIZE)
    done = call("--json", "--store", make_store(tmp_path / "target"), "tape", "restore", "daily", *snapshot)
    assert done.code == 20 and "file 2 of medium ONE cannot be read" in done.document["error"]["message"]
    assert "test:host/test/2023-11-14T22:13:20Z" not in done.document["restored"]


@pytest.mark.parametrize("command", ["scan", "verify", "catalog"])
def test_a_thousand_million_files(command: str, written: Path) -> None:
    (written / "tape-ONE.json").write_text('{"files": 900000000}')
    (written / "tapefile-899999999-ONE.json").write_bytes(b"")
    options = {"scan": [], "verify": ["daily"], "catalog": ["--scan", "--force"]}[command]
    done = call("--json", "tape", command, *options)
    assert done.code == 20 and "can be read" in json.dumps(done.document)


# -- what a medium is not forgotten for --------------------------------------------------------------------------------


def test_write_protected_is_not_taken(written: Path, store: Path) -> None:
    """An expired medium that cannot be written keeps its place in its set, and its catalog."""
    ask("tape", "pool", "update", "daily", "--retention", "overwrite", "--allocation", "always")
    before = ask("tape", "media", "content")["items"]
    written.chmod(0o555)
    try:
        done = call("--json", "--store", store, "tape", "backup", "daily", "--new-set")
    finally:
        written.chmod(0o755)
    assert done.code in (1, 40)
    assert ask("tape", "media", "content")["items"] == before


@pytest.mark.parametrize("lost", ["log", "entry"])
def test_lost_state_is_told(lost: str, written: Path, store: Path, tmp_path: Path) -> None:
    """Nothing can be written behind what is not known: that is no success, and no snapshot was forgotten."""
    place = Path(os.environ["XDG_STATE_HOME"]) / "archiver" / "tape"
    if lost == "log":
        next(place.glob("*.log")).unlink()
        code, expected = 10, "not-found"
    else:
        (place / "inventory.json").unlink()
        code, expected = 40, "no-media"
    done = call("--json", "--store", store, "tape", "backup", "daily")
    assert (done.code, done.document["error"]["code"], done.document["written"]) == (code, expected, [])
    ask("tape", "inventory", "--read-all-labels")
    ask("tape", "load", "ONE")
    if lost == "log":
        assert ask("tape", "catalog")["snapshots"] == 2
    save(store, tmp_path / "tree", time=START + 5)
    assert len(ask("--store", store, "tape", "backup", "daily")["written"]) == 1


# -- made to do harm ---------------------------------------------------------------------------------------------------


def set_label(**changed: Any) -> Content:
    fields = {"ctime": 5, "pool": "daily", "seq_nr": 0, "uuid": "13998850-57f6-4bad-be54-b4392eb4e340"}
    return Content(MEDIA_SET_LABEL, bytes(16), 0, fields | changed)


def test_a_place_that_no_set_has() -> None:
    assert MediaSetLabel.decode(set_label(seq_nr=MAX_SEQ_NR)).seq_nr == MAX_SEQ_NR
    with pytest.raises(FormatError):
        MediaSetLabel.decode(set_label(seq_nr=MAX_SEQ_NR + 1))


def test_a_file_number_that_no_medium_has() -> None:
    def log(number: int) -> bytes:
        return (
            encode_labels(bytes(16), bytes(16), 0) + struct.pack("<cQ16sBxH4x", b"S", number, bytes(16), 1, 1) + b"s:p"
        )

    assert decode_catalog(log(MAX_FILE_NUMBER)).last_file == MAX_FILE_NUMBER
    with pytest.raises(FormatError):
        decode_catalog(log(MAX_FILE_NUMBER + 1))


@pytest.mark.parametrize("store", ["", "\ud800", "s" * 256, 7, None])
def test_a_store_that_no_catalog_can_hold(store: Any) -> None:
    for magic in (CHUNK_ARCHIVE, SNAPSHOT_ARCHIVE):
        with pytest.raises(FormatError):
            _ = Content(magic, bytes(16), 0, {"store": store}).store
    with pytest.raises(FormatError):
        Content(SNAPSHOT_ARCHIVE, bytes(16), 0, {"snapshot": "host/\ud800/2023-11-14T22:13:20Z"}).text("snapshot")


def blocks_of(content: Content, data: bytes = b"") -> Iterator[bytes]:
    found: list[bytes] = []

    def put(block: Any) -> bool:
        found.append(bytes(block))
        return False

    writer = BlockWriter(put)
    writer.write(content.encode() + data)
    writer.finish()
    return iter(found)


def test_hostile_medium_scanned(written: Path) -> None:
    """What a medium claims is told or left out; nothing but sentences comes of it."""
    long = Content(CHUNK_ARCHIVE, b"u" * 16, 0, {"store": "s" * 300})
    (written / "tapefile-4-ONE.json").write_bytes(b"".join(blocks_of(long, encode_entry(bytes(32), 0))))
    done = call("--json", "tape", "catalog", "--scan", "--force")
    assert done.code == 20 and [item["file"] for item in done.document["damaged"]] == [4]
    assert call("--json", "tape", "verify", "daily").code == 20


def test_a_medium_that_says_it_is_the_last_of_many(written: Path, tmp_path: Path) -> None:
    """A hole of sixty thousand media is no flood of sentences."""
    place = Path(os.environ["XDG_STATE_HOME"]) / "archiver" / "tape" / "inventory.json"
    place.write_text(place.read_text().replace('"seq_nr": 0', f'"seq_nr": {MAX_SEQ_NR}'))
    done = call("--json", "--store", make_store(tmp_path / "target"), "tape", "restore", "ONE", "--dry-run")
    assert len(done.document["problems"]) < 50


# -- names that are no UTF-8 -------------------------------------------------------------------------------------------


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    place = os.path.join(tmp_path, "tap\udce9s")
    ask("tape", "drive", "add", "odd", "--path", place)
    assert ask("tape", "drive", "list")["items"][0]["path"] == place
    ask("tape", "label", "--label-text", "ONE")
    refused: list[Callable[[], Any]] = [
        lambda: call("--json", "tape", "pool", "create", "one", "--comment", "\udcff"),
        lambda: call("--json", "tape", "pool", "create", "two", "--template", "x\udcff"),
    ]
    assert [done().code for done in refused] == [2, 2]
    ask("tape", "pool", "create", "three", "--comment", "Büro")
    assert "Büro" in (Path(os.environ["XDG_STATE_HOME"]) / "archiver" / "tape" / "pools.json").read_text()


def test_state_that_is_no_utf8(written: Path) -> None:
    place = Path(os.environ["XDG_STATE_HOME"]) / "archiver" / "tape" / "drives.json"
    place.write_text(place.read_text().replace('"path": "/', '"path": "/\\ud800'))
    for command in ("drive list", "media list", "inventory", "scan"):
        assert call("--json", "tape", *command.split()).code == 20


def test_waiting_for_no_number(written: Path, tmp_path: Path) -> None:
    """Which would be for ever, without a pause."""
    for file in written.glob("*ONE*"):
        file.unlink()
    store = make_store(tmp_path / "target")
    assert call("--store", store, "tape", "restore", "daily", "--wait", "nan").code == 2
