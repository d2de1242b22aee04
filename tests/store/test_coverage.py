"""How long ago the chunks of snapshots were verified, by the age that they have then."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from archiver.store.coverage import coverage
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from tests.cli.command import ask
from tests.cli.stores import filled_store, small_tree

DAY = 86400


@pytest.mark.parametrize(("days", "place"), [(0, 0), (6, 0), (20, 1), (80, 2), (100, 3)])
def test_ages(tmp_path: Path, days: int, place: int) -> None:
    filled_store(tmp_path / "store", small_tree(tmp_path / "source"))
    ask("--store", tmp_path / "store", "backup", tmp_path / "source", "--id", "other", "--note", "shares all chunks")
    ask("--store", tmp_path / "store", "verify")
    with Store.open(tmp_path / "store") as store:
        refs = [SnapshotRef(group, when) for group in store.groups() for when in store.times(group)]
        found = coverage(store, refs, int(time.time()) + days * DAY)
        assert found is not None and len(refs) == 2
        sizes = [path.stat().st_size for path in (tmp_path / "store/.chunks").glob("*/*")]
        parts = [*found.within, found.longer, found.never]
        assert parts == [sum(sizes) if number == place else 0 for number in range(5)]
        assert found.bytes == sum(sizes) and found.damaged_chunks == 0
        assert found.oldest is not None and abs(found.oldest - time.time()) < DAY
        assert coverage(store, [SnapshotRef(refs[0].group, 1)], 0) is None  # the database does not know it
        nothing = coverage(store, [], 0)
        assert nothing is not None and nothing.bytes == 0 and nothing.oldest is None


def test_without_a_database_nothing_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one knows sizes, but not when anything was read."""
    filled_store(tmp_path / "store", small_tree(tmp_path / "source"))
    monkeypatch.setenv("ARCHIVER_DB_DIR", str(tmp_path / "elsewhere"))
    with Store.open(tmp_path / "store") as store:
        refs = [SnapshotRef(group, when) for group in store.groups() for when in store.times(group)]
        found = coverage(store, refs, int(time.time()))
        assert found is not None and found.never == found.bytes > 0 and found.oldest is None
