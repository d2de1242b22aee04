"""Garbage collections and removals of others while a sync runs: nothing that it needs goes (P4)."""

from __future__ import annotations

from pathlib import Path

import pytest

from archiver.core.events import Listener, Progress
from archiver.core.locks import lock_range
from archiver.errors import Locked
from archiver.store.gc.collect import collect
from archiver.store.removal import plan_forget, remove
from archiver.store.store import Store
from tests.store.collecting import make_old
from tests.stores import chunk_files, damage, restored_differences
from tests.sync.pair import Pair

pytestmark = pytest.mark.in_memory


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair.make(tmp_path, snapshots=3)


def collecting(path: Path, counts: list[int]) -> Listener:
    """A garbage collection at each step of the sync, as another process would run it."""

    def hear(event: object) -> None:
        if isinstance(event, Progress):
            with Store.open(path) as store:
                counts.append(collect(store, cutoff=1, from_files=len(counts) % 2 == 0).removed_chunks)

    return hear


def test_collections_of_the_target(pair: Pair, tmp_path: Path) -> None:
    counts: list[int] = []
    result = pair.sync(listener=collecting(pair.target, counts))
    assert result.errors == [] and len(counts) > 10 and sum(counts) == 0
    assert damage(pair.target) == [] and pair.lacking() == {}
    assert restored_differences(pair.target, pair.saved[-1], pair.tree, tmp_path / "out") == []


def test_unused_chunks_that_are_used_again(pair: Pair) -> None:
    """The target knows them all, but no snapshot needs them: what is not touched yet may go, and is copied then."""
    pair.sync()
    with Store.open(pair.target) as store:
        remove(store, plan_forget(store, [str(ref) for ref in pair.saved]))
    make_old(pair.target)
    counts: list[int] = []
    result = pair.sync(listener=collecting(pair.target, counts))
    assert result.errors == []
    assert damage(pair.target) == [] and pair.lacking() == {}
    assert sum(counts) <= result.copied.chunks


def test_unused_chunks_that_are_all_touched(pair: Pair) -> None:
    """Without a collection in between nothing of them is read or copied."""
    pair.sync()
    with Store.open(pair.target) as store:
        remove(store, plan_forget(store, [str(ref) for ref in pair.saved]))
    make_old(pair.target)
    result = pair.sync()
    assert result.copied.chunks == 0 and result.copied.present >= len(chunk_files(pair.target))
    with Store.open(pair.target) as store:
        assert collect(store, cutoff=1, mode="cutoff").removed_chunks == 0


def test_collections_of_the_source(pair: Pair) -> None:
    """Snapshots are forgotten and chunks removed there while the sync runs."""
    forgotten: list[str] = []

    def hear(event: object) -> None:
        if isinstance(event, Progress):
            with Store.open(pair.source) as store:
                for ref in pair.saved[1:]:
                    if str(ref) not in forgotten and remove(store, plan_forget(store, [str(ref)])).removed:
                        forgotten.append(str(ref))
                collect(store)

    result = pair.sync(listener=hear)
    assert forgotten and result.errors == []
    assert [step.source for step in result.done] == pair.copies() == pair.saved[:1]
    assert damage(pair.target) == [] and damage(pair.source) == []


def test_no_sync_while_a_collection_needs_the_store_for_itself(pair: Pair) -> None:
    with open(pair.target / ".lock", "r+b") as file:
        assert lock_range(file.fileno(), 0, 0, exclusive=True)
        with pytest.raises(Locked):
            pair.sync()
    assert pair.copies() == []
