"""Changes that end anywhere: everything is as before or as after, and the same command goes on from there (P1)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from archiver.store.labels import note_of, protect, set_note, set_owner
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.namespaces import create, delete_levels, move, plan_delete, plan_move
from archiver.store.removal import remove
from archiver.store.store import Store
from tests.crash.recording import Killed, Recorder
from tests.random_trees import build_plain
from tests.stores import damage, every_snapshot, make_store, restored_differences, save

START = 1_700_000_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build_plain(tmp_path / "source", 7, files=5)
    return tmp_path / "source"


@pytest.fixture
def path(tmp_path: Path, source: Path) -> Path:
    """Two groups in a namespace, one of them in another one too."""
    store = make_store(tmp_path / "store")
    for namespace, id, number in (("b", "x", 0), ("a", "x", 1), ("a", "x", 2), ("a/in", "y", 1)):
        save(store, source, group=GroupRef(namespace, "host", id), time=START + number)
    return store


def ended_everywhere(path: Path, work: Callable[[Store], None]) -> Iterator[int]:
    """The store after each beginning of ``work``, the whole of it last; yields the number of steps that were done."""
    kept = path.with_name("kept")
    shutil.copytree(path, kept)
    steps = 0
    while True:
        shutil.rmtree(path)
        shutil.copytree(kept, path)
        with pytest.MonkeyPatch.context() as patched, Store.open(path) as store:
            recorder = Recorder(patched, steps)
            try:
                work(store)
            except Killed:
                pass
        yield steps
        if len(recorder.steps) < steps:
            return
        steps += 1


def found(path: Path) -> list[SnapshotRef]:
    """All snapshots; they are finished and sound, and the database knows them and no others."""
    assert damage(path) == []
    with Store.open(path) as store:
        refs = every_snapshot(store)
        assert all(store.is_finished(ref) for ref in refs)
        assert store.database is not None and store.database.check() == []
        assert set(store.database.stamps()) == {ref.path for ref in refs}
    return refs


def test_move(path: Path, source: Path, tmp_path: Path) -> None:
    """At any moment each snapshot is at exactly one of its two places, and the group there has its owner."""

    def work(store: Store) -> None:
        assert all(each.problem is None for each in move(store, plan_move(store, "a", "b")))

    places = {"ns/a/host/x": "ns/b/host/x", "ns/a/ns/in/host/y": "ns/b/ns/in/host/y"}
    expected = sorted(places.get(ref.group.path, ref.group.path) + str(ref.time) for ref in found(path))
    count = 0
    for count in ended_everywhere(path, work):  # noqa: B007
        refs = found(path)
        assert sorted(places.get(ref.group.path, ref.group.path) + str(ref.time) for ref in refs) == expected
        with Store.open(path) as store:
            assert {store.owner(ref.group) for ref in refs} == {"root@pam"}
            if "a" in store.namespaces():
                work(store)
            assert list(store.namespaces()) == ["", "b", "b/in"]
    assert count > 20
    for ref in found(path):
        assert restored_differences(path, ref, source, tmp_path / "out") == []
        shutil.rmtree(tmp_path / "out")


def test_delete(path: Path) -> None:
    def work(store: Store) -> None:
        outcome = remove(store, plan_delete(store, "a", with_groups=True))
        assert not outcome.skipped and not outcome.failed
        assert "a" in delete_levels(store, "a")

    before = set(found(path))
    count = 0
    for count in ended_everywhere(path, work):  # noqa: B007
        assert set(found(path)) <= before
        with Store.open(path) as store:
            if "a" in store.namespaces():
                work(store)
            assert [str(ref.group) for ref in every_snapshot(store)] == ["ns/b/host/x"]
    assert count > 20


def test_note_protection_owner_namespace(path: Path) -> None:
    """One after the other; each is done or not, and never half."""

    def work(store: Store) -> None:
        ref = SnapshotRef(GroupRef("b", "host", "x"), START)
        set_note(store, ref, "new")
        protect(store, ref, on=True)
        set_owner(store, ref.group, "joe@pbs")
        if "c" not in store.namespaces():
            create(store, "c")

    seen = []
    for _ in ended_everywhere(path, work):
        assert len(found(path)) == 4
        with Store.open(path) as store:
            ref = SnapshotRef(GroupRef("b", "host", "x"), START)
            state = (note_of(store, ref), store.info(ref).protected, store.owner(ref.group), "c" in store.namespaces())
            seen.append(state)
            work(store)
            assert (note_of(store, ref), store.owner(ref.group)) == ("new", "joe@pbs")
    assert list(dict.fromkeys(seen)) == [
        ("", False, "root@pam", False),
        ("new", False, "root@pam", False),
        ("new", True, "root@pam", False),
        ("new", True, "joe@pbs", False),
        ("new", True, "joe@pbs", True),
    ]
