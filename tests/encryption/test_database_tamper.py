"""Sealed records of the database cannot be put back from an earlier time, or into another catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from archiver.backup.run import CryptMode
from archiver.core.clock import system_random
from archiver.store.catalog.catalog import _SEALED_FROM, NEWEST_KEY, RUN_KEY, Catalog
from archiver.store.catalog.seal import Seal
from archiver.store.database import records
from archiver.store.database.database import Database
from archiver.store.store import Store
from tests.compare import differences
from tests.stores import KEY, bring_back, make_store, save

pytestmark = pytest.mark.in_memory

SIZE = 150_000


def fill(source: Path, names: range, first: int) -> None:
    source.mkdir(parents=True, exist_ok=True)
    for number in names:
        (source / f"{number:02}").write_bytes(bytes([first + number]) * SIZE)


def newest_of(path: Path) -> dict[bytes, bytes]:
    """The places of the newest runs as they are in the database."""
    with Store.open(path) as store:
        assert store.database is not None
        found = {key: store.database.get(records.NEWEST, key) for key in store.database.keys(records.NEWEST, b"")}
    assert {NEWEST_KEY.size} == {len(key) for key in found}
    return {key: value for key, value in found.items() if value is not None}


def put(database: Database, values: dict[tuple[bytes, bytes], bytes]) -> None:
    """``values`` by table and key."""

    def work(txn: Any) -> None:
        for (table, key), value in values.items():
            txn.put(key, value, db=database.table(table))

    database.change(work)


@pytest.mark.parametrize("mode", ["none", "sign-only", "encrypt"])
def test_places_of_an_earlier_run_put_back(tmp_path: Path, mode: CryptMode) -> None:
    """They say where contents lay in another stream. A plain catalog takes them, which shows what they would do."""
    crypt = None if mode == "none" else KEY
    path, source = make_store(tmp_path / "store"), tmp_path / "source"
    source.mkdir()
    fill(source / "a", range(8), 0)
    fill(source / "b", range(20), 100)
    save(path, source, mode="metadata", crypt=crypt, crypt_mode=mode)
    earlier = newest_of(path)
    fill(source / "a", range(12), 30)
    save(path, source, mode="metadata", crypt=crypt, crypt_mode=mode)
    assert newest_of(path).keys() == earlier.keys()
    with Store.open(path) as store:
        assert store.database is not None
        put(store.database, {(records.NEWEST, key): value for key, value in earlier.items()})
    saved = save(path, source, mode="metadata", crypt=crypt, crypt_mode=mode)
    problems = bring_back(path, saved.snapshot, tmp_path / "out", crypt=crypt).problems
    wrong = bool(problems) or differences(source, tmp_path / "out") != []
    assert wrong == (crypt is None)


def test_catalogs_of_two_archives_exchanged(tmp_path: Path) -> None:
    """Both are sealed with the same key, and only an unsealed record says which is which."""
    path = make_store(tmp_path / "store")
    sources = {name: tmp_path / name for name in ("one", "two")}
    for number, source in enumerate(sources.values()):
        fill(source, range(10), 50 * number)
    ref = save(path, sources, mode="metadata", crypt=KEY).snapshot
    with Store.open(path) as store:
        database = store.database
        assert database is not None
        one, two = (Catalog(database, ref.group, f"{name}.pxar", Seal(KEY, system_random)) for name in sources)
        assert one.newest() is not None and two.newest() is not None
        rows = one.row(), two.row()
        assert rows[0] is not None and rows[1] is not None
        values = {(records.ARCHIVE, one.key): one.encode_row(rows[1])}
        values[records.ARCHIVE, two.key] = two.encode_row(rows[0])
        for row, owner, thief in ((rows[0], one, two), (rows[1], two, one)):
            key = RUN_KEY.pack(row.number, ref.time)
            value = database.get(records.RUN, key)
            assert value is not None
            sealed = value[_SEALED_FROM:]
            values[records.RUN, key] = thief._join_run(key, owner.decode_head(key, value), sealed)
        put(database, values)
        again = Catalog(database, ref.group, "one.pxar", Seal(KEY, system_random))
        assert again.row() == rows[1] and database.usable
        assert again.run(ref.time) is None and again.newest() is None
    saved = save(path, sources, mode="metadata", crypt=KEY)
    for name, source in sources.items():
        bring_back(path, saved.snapshot, tmp_path / "out" / name, archives=[f"{name}.pxar"], crypt=KEY)
        assert differences(source, tmp_path / "out" / name) == []
