"""The media-set catalogs: right answers, in step with the logs, however these change, with a database and without."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from archiver.core.events import Event, ignore
from archiver.tape.media_sets import records
from archiver.tape.media_sets.media_sets import MediaSets, SnapshotPlace
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import Inventory, InventoryFile, MediaSet
from archiver.tape.state.place import TapePlace
from formats.tape.catalog import decode_catalog
from formats.tape.content import encode_uuid
from tests.formats.tape.media import SETS, document, logs
from tests.tape.media import golden_logs
from tests.tape.sets import append, archive, digests, in_set, inventory_of, medium, new_place, snapshot, uuid_of

A, B = in_set(medium("A"), "p", "one", 0, 10), in_set(medium("B"), "p", "one", 1, 20)


def the_set(*media: object) -> MediaSet:
    return inventory_of(A, B).media_set(uuid_of("one"))


def found(sets: MediaSets, numbers: range, store: str = "s") -> list[tuple[int, int]]:
    places = sets.find_chunks(uuid_of("one"), store, digests(numbers.start, len(numbers)))
    return [(int(each["position"]), int(each["file"])) for each in places]


@pytest.fixture
def place(tmp_path: Path) -> TapePlace:
    place = new_place(tmp_path)
    append(place, A, archive(2, digests(0, 50)), snapshot(3, "host/a/2023-11-14T22:13:20Z"))
    append(place, B, archive(3, digests(50, 10)), snapshot(4, "host/b/2023-11-14T22:13:20Z"))
    return place


@pytest.fixture(params=["database", "none"])
def with_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bool:
    if request.param == "none":
        (tmp_path / "file").touch()
        monkeypatch.setenv("ARCHIVER_DB_DIR", str(tmp_path / "file"))
    return bool(request.param == "database")


NOWHERE = (records.NOWHERE, records.NOWHERE)


def test_answers(place: TapePlace, with_database: bool) -> None:
    heard: list[Event] = []
    with MediaSets(place, heard.append) as sets:
        assert bool(heard) != with_database
        assert sets.refresh(the_set()) == []
        assert found(sets, range(48, 62)) == [(0, 2)] * 2 + [(1, 3)] * 10 + [NOWHERE] * 2
        assert found(sets, range(3), "other") == [NOWHERE] * 3
        assert found(sets, range(0)) == []
        twice = np.concatenate([digests(50, 1), digests(7, 1), digests(50, 1)])
        assert [int(each["file"]) for each in sets.find_chunks(uuid_of("one"), "s", twice)] == [3, 2, 3]
        paths = ["host/a/2023-11-14T22:13:20Z", "host/b/2023-11-14T22:13:20Z"]
        one, two = (SnapshotPlace("s", path, *where) for path, where in zip(paths, [(0, 3), (1, 4)], strict=True))
        assert sets.snapshots(uuid_of("one")) == [one, two]
        assert sets.find_snapshot(uuid_of("one"), "s", paths[1]) == two
        assert sets.find_snapshot(uuid_of("one"), "t", paths[1]) is None
        assert sets.find_snapshot(uuid_of("one"), "s", "host/c/2023-11-14T22:13:20Z") is None


@pytest.mark.parametrize("name", SETS)
def test_golden(name: str, tmp_path: Path, with_database: bool) -> None:
    """Each chunk and snapshot is where the golden data says."""
    place = TapePlace(str(golden_logs(name, tmp_path / "state")))
    inventory = Inventory()
    for file, data in sorted(logs(name).items()):
        catalog = decode_catalog(data)
        assert catalog.media_set is not None
        each = in_set(medium(file), "p", "x", catalog.seq_nr, 1)
        assert each.set_label is not None
        label = replace(each.label, uuid=catalog.media)
        inventory.put(replace(each, label=label, set_label=replace(each.set_label, uuid=catalog.media_set)))
    (media_set,) = inventory.sets()
    with MediaSets(place, ignore) as sets:
        assert sets.refresh(media_set) == []
        for position, each in media_set.members.items():
            entries = document(name)["catalogs"][f"{encode_uuid(each.uuid)}.log"]
            current = None
            for entry in entries:
                if entry["type"] == "A":
                    current = entry
                elif entry["type"] == "C":
                    assert current is not None
                    digest = np.frombuffer(bytes.fromhex(entry["digest"]), np.uint8).reshape(1, 32)
                    (where,) = sets.find_chunks(media_set.uuid, current["store"], digest)
                    assert (where["position"], where["file"]) == (position, current["file_number"])
                elif entry["type"] == "S":
                    there = sets.find_snapshot(media_set.uuid, entry["store"], entry["snapshot"])
                    assert there is not None and (there.position, there.file) == (position, entry["file_number"])


def test_appended(place: TapePlace) -> None:
    """Only what is new is read: what was read before is not looked at again."""
    with MediaSets(place, ignore) as sets:
        sets.refresh(the_set())
        append(place, B, archive(5, digests(100, 3)))
        with MediaSets(place, ignore) as others:
            assert found(others, range(100, 101)) == [NOWHERE]
            assert others.refresh(the_set()) == []
        assert found(sets, range(99, 104)) == [NOWHERE] + [(1, 5)] * 3 + [NOWHERE]
        assert found(sets, range(50, 51)) == [(1, 3)]
        append(place, B, archive(6, digests(50, 1)))  # the same once more: the later one is taken
        sets.refresh(the_set())
        assert found(sets, range(50, 52)) == [(1, 6), (1, 3)]


def test_torn_then_continued(place: TapePlace) -> None:
    path = CatalogLogs(place).path(B.uuid)
    with MediaSets(place, ignore) as sets:
        with open(path, "ab") as file:
            file.write(b"A\5\0\0")
        assert sets.refresh(the_set()) == []
        assert found(sets, range(59, 60)) == [(1, 3)]
        append(place, B, archive(5, digests(200, 1)))
        assert CatalogLogs(place).unsure(B.uuid) is not None
        sets.refresh(the_set())
        assert found(sets, range(200, 201)) == [(1, 5)] and found(sets, range(59, 60)) == [(1, 3)]


def test_replaced(place: TapePlace) -> None:
    """Nothing of a log that is another one now is still answered."""
    log = CatalogLogs(place)
    with MediaSets(place, ignore) as sets:
        sets.refresh(the_set())
        log.create(B.uuid, uuid_of("one"), 1)
        append(place, B, archive(2, digests(300, 2)))
        assert sets.refresh(the_set()) == []
        assert found(sets, range(50, 60)) == [NOWHERE] * 10 and found(sets, range(300, 301)) == [(1, 2)]
        assert found(sets, range(1)) == [(0, 2)]
        log.create(B.uuid, uuid_of("two"), 0)  # used for another set
        assert sets.refresh(the_set()) == [B.uuid]
        assert found(sets, range(300, 301)) == [NOWHERE] and len(sets.snapshots(uuid_of("one"))) == 1
        log.remove(B.uuid)
        assert sets.refresh(the_set()) == [B.uuid]
        alone = inventory_of(A).media_set(uuid_of("one"))
        assert sets.refresh(alone) == []


@pytest.mark.parametrize("damage", ["missing", "garbage", "cut", "other place"])
def test_database_lost(place: TapePlace, damage: str, tmp_path: Path) -> None:
    with MediaSets(place, ignore) as sets:
        sets.refresh(the_set())
    database = Path(os.environ["XDG_CACHE_HOME"]) / "archiver/tape"
    if damage == "missing":
        shutil.rmtree(database)
    elif damage == "other place":
        other = TapePlace(str(tmp_path / "elsewhere"))
        append(other, A, archive(2, digests(900, 1)))
        with MediaSets(other, ignore) as sets:
            assert found(sets, range(1)) == [NOWHERE]
    else:
        size = (database / "data.mdb").stat().st_size
        data = random.Random(1).randbytes(size if damage == "garbage" else 0)
        with open(database / "data.mdb", "r+b") as file:
            file.write(data)
            file.truncate(size if damage == "garbage" else size // 2)
    with MediaSets(place, ignore) as sets:
        assert sets.refresh(the_set()) == []
        assert found(sets, range(49, 51)) == [(0, 2), (1, 3)]


def test_interrupted_load(place: TapePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies while it reads a log leaves nothing that is believed."""
    with MediaSets(place, ignore) as sets:
        monkeypatch.setattr(MediaSets, "_tail", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sets.refresh(the_set())
        assert found(sets, range(1)) == [NOWHERE]
        monkeypatch.undo()
    place_again = TapePlace(place.path)
    with MediaSets(place_again, ignore) as sets:
        assert sets.refresh(the_set()) == []
        assert found(sets, range(1)) == [(0, 2)]


def test_random_history(tmp_path: Path) -> None:
    """Appends, new catalogs and lost ones in any order: the database says what a search of the logs says."""
    rng = random.Random(5)
    place = new_place(tmp_path)
    InventoryFile(place)
    last = {A.uuid: 1, B.uuid: 1}
    database, plain = MediaSets(place, ignore), MediaSets(place, ignore)
    plain.close()
    with database:
        for _ in range(60):
            each = rng.choice((A, B))
            match rng.randrange(8):
                case 0:
                    assert each.in_set is not None
                    CatalogLogs(place).create(each.uuid, uuid_of("one"), each.in_set.seq_nr)
                    last[each.uuid] = 1
                case 1:
                    CatalogLogs(place).remove(each.uuid)
                    last[each.uuid] = 1
                case _:
                    last[each.uuid] += rng.randrange(1, 3)
                    number = last[each.uuid]
                    entry = archive(number, digests(rng.randrange(100), rng.randrange(1, 20)), rng.choice("st"))
                    append(place, each, entry if rng.randrange(4) else snapshot(number, f"host/{number}/x"))
            if rng.randrange(2):
                assert sorted(database.refresh(the_set())) == sorted(plain.refresh(the_set()))
                for store in "st":
                    assert found(database, range(130), store) == found(plain, range(130), store)
                assert database.snapshots(uuid_of("one")) == plain.snapshots(uuid_of("one"))
