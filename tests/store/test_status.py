"""Status: the same numbers from the database, from the index files, and from both counted anew with plain sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from archiver.store.database.database import Database
from archiver.store.indexes import load_index
from archiver.store.layout import GroupRef
from archiver.store.status import store_status
from archiver.store.store import Store
from tests.random_trees import build_plain, mutate
from tests.stores import GROUP, Heard, save

pytestmark = pytest.mark.in_memory

NOW = 1_700_000_000
OTHER = GroupRef("a/b", "ct", "7")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Five snapshots in two groups that share most of their chunks."""
    Store.create(tmp_path / "store")
    build_plain(tmp_path / "source", 2, files=30, max_size=200_000)
    for number in range(5):
        mutate(tmp_path / "source", number, 6)
        save(tmp_path / "store", tmp_path / "source", group=(GROUP, OTHER)[number % 2], time=NOW + number)
    return tmp_path / "store"


def counted(path: Path, names: list[str]) -> dict[str, tuple[int, int]]:
    """(chunks, bytes of their files) of each of ``names`` and of all of them."""
    sets: dict[str, set[bytes]] = {}
    for name in names:
        indexes = map(load_index, map(str, (path / name).glob("*/*.didx")))
        sets[name] = {index.digest(number) for index in indexes for number in range(len(index))}
    sets["all"] = set().union(*sets.values())
    return {
        name: (len(digests), sum((path / ".chunks" / d.hex()[:4] / d.hex()).stat().st_size for d in digests))
        for name, digests in sets.items()
    }


def check_status(path: Path, store: Store, snapshots: int) -> None:
    status = store_status(store)
    names = [group.group for group in status.groups]
    right = counted(path, names)
    assert names == [GROUP.path, OTHER.path]
    assert {group.group: group.stored_bytes for group in status.groups} == {name: right[name][1] for name in names}
    assert (status.chunks, status.stored_bytes) == right["all"]
    assert status.snapshots == snapshots


def forgotten(store: Store) -> None:
    assert store.database is not None
    store.database.remove_snapshot(sorted(store.database.stamps())[1])


def given_up(store: Store) -> None:
    assert store.database is not None
    store.database._give_up("a test")


@pytest.mark.parametrize("change", [None, forgotten, given_up])
def test_counts_whatever_the_database_knows(path: Path, change: Any) -> None:
    with Store.open(path, listener=Heard()) as store:
        assert store.database is not None
        if change is not None:
            change(store)
        check_status(path, store, 5)


@pytest.mark.parametrize("after", range(4))
def test_database_given_up_while_counting(path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    references, asked = Database.references, []

    def ask(self: Database, snapshot: str) -> Any:
        asked.append(snapshot)
        if len(asked) > after:
            self._give_up("a test")
        return references(self, snapshot)

    monkeypatch.setattr(Database, "references", ask)
    with Store.open(path, listener=Heard()) as store:
        check_status(path, store, 5)
    assert len(asked) == after + 1


def test_without_any_database(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_DB_DIR", "/proc/nowhere")
    with Store.open(path, listener=Heard()) as store:
        assert store.database is None
        check_status(path, store, 5)


@pytest.mark.parametrize("place", [None, "/proc/nowhere"])
def test_damaged_snapshot_is_not_counted(path: Path, monkeypatch: pytest.MonkeyPatch, place: str | None) -> None:
    """Nor does it keep the others from being counted from the database."""
    first = sorted((path / GROUP.path).iterdir())[0]
    next(first.glob("*.mpxar.didx")).write_bytes(b"garbage")
    for file in (path / ".archiver" / "db").iterdir():
        file.unlink()
    if place is not None:
        monkeypatch.setenv("ARCHIVER_DB_DIR", place)
    with Store.open(path, listener=Heard()) as store:
        status = store_status(store)
    shown = {group.group: group.snapshots for group in status.groups}
    assert shown == {GROUP.path: 2, OTHER.path: 2}
    (first / "kept").mkdir()
    for index in first.glob("*.didx"):
        index.rename(first / "kept" / index.name)
    right = counted(path, [GROUP.path, OTHER.path])
    assert {group.group: group.stored_bytes for group in status.groups} == {name: right[name][1] for name in shown}
