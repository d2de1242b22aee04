"""A power cut or kill -9 at any moment while media are labelled and written: no catalog knows more than is on its
medium, and everything that is left can be gone on with.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.tape.access import Access, open_access
from archiver.tape.drive.interface import EndOfData
from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.labelling import label_medium
from archiver.tape.labels import NotALabel, read_labels, write_set_label
from archiver.tape.request import request_medium
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.drives import DriveConfig, Drives
from archiver.tape.state.inventory import InventoryFile
from archiver.tape.state.place import TapePlace
from archiver.tape.state.pools import Pool, Pools
from archiver.tape.state.session import NoMediaLeft, WriteSession
from formats.tape.blocks import PAYLOAD_SIZE, BlockReader, BlockWriter
from formats.tape.catalog import ChunkFile
from formats.tape.chunk_archive import chunk_archive
from formats.tape.content import read_content
from tests.crash.recording import Recorder
from tests.crash.states import State, States
from tests.tape.media import put_stream
from tests.tape.sets import StoppedClock, digests, uuid_of

STATES = 120
_ARCHIVES = 2  # of each medium


@pytest.fixture
def root() -> Iterator[Path]:
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="crash-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path)


def prepare(root: Path) -> TapePlace:
    root.mkdir()
    place = TapePlace(str(root / "state"))
    VirtualDrive("usb", str(root / "disk"), new=True).close()
    Drives(place).add_drive(DriveConfig("usb", "virtual", str(root / "disk")))
    Pools(place).create(Pool.make("pool"))
    return place


def put_archive(access: Access, number: int) -> ChunkFile:
    """A chunk archive at the end of the medium, finished as a backup does it."""
    drive, uuid = access.drive, uuid_of(f"archive {number}")
    file = drive.locate_end()
    with drive.create_file() as target:
        blocks = BlockWriter(target.write)
        blocks.write(chunk_archive("store", uuid, 5).encode())
        blocks.write(bytes(PAYLOAD_SIZE + number))
        blocks.finish()
        target.finish()
    return ChunkFile(file, uuid, "store", digests(10 * number, 3))


def run(place: TapePlace) -> None:
    """Two media are labelled; both are written, the first one until it is full."""
    with open_access(place, "usb") as access:
        for text in ("ONE", "TWO"):
            label_medium(access, text, "pool", clock=StoppedClock())
        with WriteSession(place, Pools(place).get("pool"), "usb", clock=StoppedClock()) as session:
            for number in range(2):
                medium = session.allocate().medium
                label = medium.in_set
                assert label is not None
                request_medium(access, medium, lambda event: None)
                write_set_label(access.drive, label, 5)
                log = CatalogLogs(place).open(medium.uuid, label.uuid, label.seq_nr)
                for each in range(_ARCHIVES):
                    log.add(put_archive(access, 10 * number + each))
                    access.drive.flush()
                    session.set_bytes_used(medium.uuid, access.drive.status().bytes_used)
                    log.commit()
                session.set_full(medium.uuid)


def record(root: Path) -> States:
    place = prepare(root / "tree")
    recorder = Recorder(root / "tree", root / "attic")
    with recorder.recording():
        run(place)
    return States(recorder.history, random.Random(9))


def lay_out(state: State, place: Path) -> TapePlace:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for path in state.directories:
        (place / path).mkdir()
    for path, contents in state.files.items():
        (place / path).write_bytes(contents.data)
    found = TapePlace(str(place / "state"))
    config = Drives(found).load().drive("usb")
    Drives(found).remove_drive("usb")
    Drives(found).add_drive(DriveConfig("usb", config.kind, str(place / "disk")))
    return found


def check(place: TapePlace, *, is_done: bool) -> None:
    """Everything that a catalog names is on its medium, to its end; and the next run goes on."""
    inventory, logs = InventoryFile(place).load(), CatalogLogs(place)
    entries = 0
    with open_access(place, "usb") as access:
        drive = access.drive
        assert isinstance(drive, VirtualDrive)
        for uuid in logs.media():
            catalog = logs.load(uuid)
            assert catalog is not None
            if not catalog.archives:
                continue
            medium = inventory.get(uuid)
            found = request_medium(access, medium, lambda event: None)
            assert found.set_label == medium.set_label is not None
            for archive in catalog.archives:
                entries += 1
                drive.locate(archive.file)
                with drive.open_file() as file:
                    stream = BlockReader(file.read_block)
                    assert read_content(stream.read).uuid == archive.uuid
                    while stream.skip(1 << 20):
                        pass
                assert stream.has_end_marker and not stream.incomplete
        assert entries == 2 * _ARCHIVES or not is_done
        for text in drive.labels():
            drive.load(text)
            try:
                read_labels(drive)
            except (NotALabel, EndOfData):
                pass  # it was being written
            drive.locate(drive.locate_end())
            put_stream(drive, b"behind it")
        try:
            with WriteSession(place, Pools(place).get("pool"), "usb", clock=StoppedClock()) as session:
                medium = session.allocate().medium
                label = medium.in_set
                assert label is not None and logs.is_of(medium.uuid, label.uuid, label.seq_nr)
        except NoMediaLeft:
            pass


def states(found: States) -> Iterator[State]:
    seen = set()
    kills = list(found.kills())
    sources = [*kills[:: max(1, len(kills) * 2 // STATES)], kills[-1]]
    for state in sources:
        seen.add(state.signature)
        yield state
    for state in found.any():
        if len(seen) >= STATES:
            return
        if state.signature not in seen:
            seen.add(state.signature)
            yield state


def check_all(root: Path) -> None:
    for state in states(record(root)):
        place = lay_out(state, root / "again")
        try:
            check(place, is_done=state.is_done)
        except Exception as error:
            raise AssertionError(f"{state}: {error!r}") from error


def test_any_moment(root: Path) -> None:
    check_all(root)


def test_it_would_be_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the flush there are states in which a catalog knows too much."""
    monkeypatch.setattr(VirtualDrive, "flush", lambda drive: None)
    with pytest.raises(AssertionError):
        check_all(root)
