"""A power cut at any moment of a whole backup onto media: the next run ends the work, and everything comes back."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.reading import opened
from archiver.tape.tail import entry_of
from formats.tape.blocks import BLOCK_SIZE
from formats.tape.catalog import Entry, decode_catalog
from tests.crash.recording import Recorder
from tests.crash.states import State, States
from tests.random_trees import noise
from tests.stores import damage, make_store, save
from tests.sync.pair import finished
from tests.tape.restoring import restore_from
from tests.tape.writing import Library

START = 1_700_000_000
STATES = 24
MANY = 1500
SIZE = 8 * BLOCK_SIZE


@pytest.fixture
def root() -> Iterator[Path]:
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="crash-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path)


def filled(place: Path) -> Path:
    """Two snapshots that need two media."""
    store, tree = make_store(place / "store"), place / "source"
    tree.mkdir()
    for number in range(2):
        (tree / "own").write_bytes(noise(number, 900_000))
        save(store, tree, time=START + number)
    return store


def record(root: Path, store: Path) -> States:
    (root / "tree").mkdir()
    library = Library(root / "tree", SIZE)
    library.label(*(f"T{number}" for number in range(8)))
    shutil.rmtree(library.base / "db", ignore_errors=True)
    recorder = Recorder(root / "tree", root / "attic")
    with recorder.recording():
        done = library.backup(store)
    assert done.result.errors == [] and len(done.result.media) > 1
    return States(recorder.history, random.Random(4))


def lay_out(state: State, place: Path) -> Library:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for path in state.directories:
        (place / path).mkdir(exist_ok=True)
    for name, contents in state.files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(contents.data)
    shutil.rmtree(place / "db", ignore_errors=True)
    return Library(place, SIZE)


def catalogs_say_the_truth(library: Library) -> None:
    with library.drive() as drive:
        for label, data in library.logs().items():
            log = decode_catalog(data)
            entries: list[Entry] = [*log.archives, *log.snapshots]
            for entry in entries:
                drive.load(label)
                with opened(drive, label, entry.file) as file:
                    found = entry_of(file)
                assert found is not None and found[:3] == entry[:3], f"file {entry.file} of {label}"


def check(library: Library, store: Path, root: Path) -> None:
    catalogs_say_the_truth(library)
    done = library.backup(store)
    assert done.result.errors == [], done.result.errors
    catalogs_say_the_truth(library)
    target = root / "target"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(root / "empty", target)
    back = restore_from(library.media, library.known(), target)
    assert back.result.errors == [] and finished(target) == finished(store) and damage(target) == []


def check_some(root: Path, count: int) -> None:
    store = filled(root)
    make_store(root / "empty")
    found, seen = record(root, store), set[bytes]()
    kills = list(found.kills())
    for state in chain(kills[:: max(1, 3 * len(kills) // count)], found.any()):
        if len(seen) >= count:
            break
        if state.signature in seen:
            continue
        seen.add(state.signature)
        try:
            check(lay_out(state, root / "again"), store, root)
        except Exception as error:
            raise AssertionError(f"{state}: {error!r}") from error


def test_some_moments(root: Path) -> None:
    check_some(root, STATES)


@pytest.mark.slow
def test_many_moments(root: Path) -> None:
    check_some(root, MANY)


def test_it_would_be_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the flush there are states in which a catalog knows too much."""
    monkeypatch.setattr(VirtualDrive, "flush", lambda drive: None)
    with pytest.raises(AssertionError):
        check_some(root, 80)
