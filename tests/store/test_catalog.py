"""The storage of the file catalog: what is sealed, damaged, interrupted."""

from __future__ import annotations

import os
import shutil
import struct
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from archiver.browse.history import History
from archiver.browse.recorded import Lost, RunTree
from archiver.core.events import ignore
from archiver.core.row import ROW
from archiver.store.catalog.catalog import Catalog
from archiver.store.catalog.record import Draft, path_key
from archiver.store.catalog.writer import RunWriter
from archiver.store.database import records
from archiver.store.database.database import Database, open_database
from formats.crypt import CryptConfig
from formats.patterns import Pattern
from formats.pxar.encoder import encode_attributes, encode_file
from formats.pxar.metadata import Metadata, Stat
from tests.catalogs import KEY, Disk, Nights, Seen, open_catalog, seen, walked

pytestmark = pytest.mark.in_memory

Damage = Callable[[bytes, Random], bytes | None]
TABLES = (records.ARCHIVE, records.RUN, records.PACK, records.PLACE, records.NEWEST, records.NAMES)
EVERYTHING = Pattern.parse(b"**")
OTHER_KEY = CryptConfig(bytes(range(1, 33)))


def opened(directory: Path) -> Database:
    database = open_database(str(directory), str(uuid.UUID(int=1)), ignore)
    assert database is not None
    return database


def several_nights(database: Database, crypt: CryptConfig | None, count: int) -> dict[int, dict[bytes, Seen]]:
    """Record snapshots of a tree that changes; what each must say."""
    random = Random(1)
    disk = Disk(large=False)
    model = {}
    writer = Nights(open_catalog(database, crypt, random))
    for night in range(1, count + 1):
        for _ in range(12):
            disk.step(random)
        writer.catalog = open_catalog(database, crypt, random)
        writer.record(disk, night, random)
        model[night] = seen(disk.root)
    return model


def noise(random: Random, length: int) -> bytes:
    """Bytes that no compression makes shorter, fit for a name."""
    return bytes(random.choice([byte for byte in range(1, 256) if byte != ord("/")]) for _ in range(length))


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "sealed"])
def test_nothing_of_a_sealed_catalog_can_be_read(tmp_path: Path, crypt: CryptConfig | None) -> None:
    """The plain catalog shows that the test would find it."""
    random = Random(2)
    database = opened(tmp_path)
    catalog = open_catalog(database, crypt, random)
    writer = RunWriter(catalog, None, str(tmp_path))
    draft = Draft(own=encode_attributes(Metadata(Stat(0o40755, 0, 0, 0, 0, 0))))
    secrets: list[bytes] = []
    for _ in range(1500):
        name, size, mtime = noise(random, 40), random.randrange(2**61, 2**62), random.randrange(2**61, 2**62)
        item = encode_file(name, Metadata(Stat(0o100644, 0, 0, 0, mtime // 10**9, 0)), 16, size)
        draft.add(b"f", name, ROW.pack(1, size, mtime, mtime), item)
        secrets += [name, struct.pack("<q", size), struct.pack("<q", mtime)]
    raw, base = draft.encode()
    writer.put(path_key(b""), raw, base)
    for _ in range(20):  # enough to be written out before the end
        writer.names(b"", draft.names)
    spooled = b"".join(deleted_files(tmp_path))
    assert writer.record(1, csum=bytes(32), fields="", root=path_key(b""))
    written = (tmp_path / "data.mdb").read_bytes()
    writer.close()
    for where in (spooled, written):
        assert len(where) > 100_000
        found = sum(secret in where for secret in secrets)
        assert found > len(secrets) / 2 if crypt is None else found == 0
    database.close()


def deleted_files(directory: Path) -> list[bytes]:
    """What is in the open files of this process that had been in a directory."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{fd}"
        if os.path.lexists(path) and os.readlink(path).startswith(f"{directory}/") and "(deleted)" in os.readlink(path):
            found.append(Path(path).read_bytes())
    return found


def test_another_key_opens_nothing(tmp_path: Path) -> None:
    database = opened(tmp_path)
    model = several_nights(database, KEY, 3)
    for key in (None, OTHER_KEY):
        catalog = open_catalog(database, key, Random(1))
        assert catalog.newest() is None
        for time in model:
            assert catalog.run(time) is None and catalog.places(time) is None and list(catalog.names(time)) == []
            with pytest.raises(Lost):
                RunTree(catalog, time)
    assert database.usable
    for time, expected in model.items():
        assert walked(RunTree(open_catalog(database, KEY, Random(1)), time)) == expected
    database.close()


def flip(value: bytes, random: Random) -> bytes:
    place = random.randrange(len(value))
    return value[:place] + bytes([value[place] ^ 1 << random.randrange(8)]) + value[place + 1 :]


def cut(value: bytes, random: Random) -> bytes:
    return value[: random.randrange(len(value))]


def swap(value: bytes, random: Random) -> bytes:
    return random.randbytes(len(value))


def remove(value: bytes, random: Random) -> None:
    return None


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "sealed"])
@pytest.mark.parametrize("damage", [flip, cut, swap, remove])
def test_damage_is_never_taken_for_an_answer(tmp_path: Path, crypt: CryptConfig | None, damage: Damage) -> None:
    random = Random(3)
    good = tmp_path / "good"
    database = opened(good)
    model = several_nights(database, crypt, 10)
    newest = open_catalog(database, crypt, random).newest()
    assert newest is not None
    keys = {table: database.keys(table, b"") for table in TABLES}
    paths = set(History(open_catalog(database, crypt, random), [10]).glob(EVERYTHING))
    database.close()
    lost = 0
    for number, table in enumerate(TABLES * 3):
        assert keys[table], table
        bad = tmp_path / f"bad{number}"
        shutil.copytree(good, bad)
        database = opened(bad)
        key = random.choice(keys[table])
        database.change(partial(spoil, database, table, key, damage, random))
        lost += answers(open_catalog(database, crypt, random), model, newest.keys.tolist(), paths)
        database.close()
    assert lost > 6  # damage to what is not needed for any answer does no harm


def spoil(
    database: Database,
    table: bytes,
    key: bytes,
    damage: Damage,
    random: Random,
    txn: Any,
) -> None:
    value = damage(txn.get(key, db=database.table(table)), random)
    if value is None:
        txn.delete(key, db=database.table(table))
    else:
        txn.put(key, value, db=database.table(table))


def answers(catalog: Catalog, model: dict[int, dict[bytes, Seen]], keys: list[int], paths: set[bytes]) -> bool:
    """Ask everything; each answer is the right one or none. Whether there was none."""
    lost = False
    for time, expected in model.items():
        try:
            assert walked(RunTree(catalog, time)) == expected
        except Lost:
            lost = True
    newest = catalog.newest()
    if newest is None:
        lost = True
    else:
        assert newest.keys.tolist() == keys
    try:
        history = History(catalog, list(model))
        assert set(history.glob(EVERYTHING)) == paths
        for path in list(model[10])[:10]:
            times = [time for version in history.versions(path) for time in version.times]
            assert sorted(times) == [time for time, expected in model.items() if path in expected]
    except Lost:
        lost = True
    return lost


class Stop(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize("again", [False, True], ids=["new", "in the place of another"])
def test_an_interrupted_run_is_as_if_it_had_never_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    monkeypatch.setattr("archiver.store.catalog.writer._BATCH", 1)  # every value by itself
    random = Random(5)
    database = opened(tmp_path)
    disk = Disk()
    for _ in range(30):
        disk.step(random)
    writer = Nights(open_catalog(database, None, random))
    writer.record(disk, 10, random)
    before = seen(disk.root)
    change = Database.change
    for patience in range(1000):
        left = patience

        def interrupted(self: Database, work: Callable[[Any], Any]) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Stop
            return change(self, work)

        disk.step(random)
        writer.catalog = open_catalog(database, None, random)
        monkeypatch.setattr(Database, "change", interrupted)
        try:
            writer.record(disk, 10 if again else 20, random)
        except Stop:
            monkeypatch.setattr(Database, "change", change)
            catalog = open_catalog(database, None, random)
            assert catalog.times() in ([10], [] if again else [10])
            if catalog.times():
                assert walked(RunTree(catalog, 10)) == before
            writer = Nights(catalog)
            continue
        break
    monkeypatch.setattr(Database, "change", change)
    assert patience > 3
    catalog = open_catalog(database, None, random)
    assert walked(RunTree(catalog, catalog.times()[-1])) == seen(disk.root)
    newest = catalog.newest()
    assert newest is not None and newest.time == catalog.times()[-1]
    database.close()
