"""Chunks that are stored once more: beside another process that does the same, and before a power cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from archiver.backup.deduplicator import Deduplicator
from archiver.store.chunk_lock import ChunkLock
from archiver.store.removal import plan_forget, remove
from archiver.store.sessions import Session
from archiver.store.store import Store
from formats.crypt import CryptConfig
from tests.random_trees import build_plain, noise
from tests.stores import KEY, Ahead, Saved, chunk_files, damage, make_store, restored_differences, save
from tests.sync.pair import Pair


class MuchLater(Ahead):
    """When chunks are read again before they are used."""

    def now(self) -> int:
        return super().now() + 400 * 86400

    def now_ns(self) -> int:
        return super().now_ns() + 400 * 86400 * 10**9


def spoil(path: Path) -> dict[Path, bytes]:
    """Damage every chunk; what they were."""
    good = {file: file.read_bytes() for file in chunk_files(path)}
    for file, data in good.items():
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return good


def mended_just_then(good: dict[Path, bytes], patch: pytest.MonkeyPatch) -> None:
    """Another process stores each chunk again before a run that found it damaged gets the lock of its shard."""
    real = ChunkLock.cleared

    @contextmanager
    def cleared(self: ChunkLock, shard: int) -> Iterator[None]:
        for file, data in good.items():
            if int(file.name[:4], 16) == shard:
                file.write_bytes(data)
        with real(self, shard):
            yield

    patch.setattr(ChunkLock, "cleared", cleared)


def bad_files(path: Path) -> list[Path]:
    return list((path / ".chunks").glob("*/*.bad"))


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("audit", [0, 100])
def test_a_backup_sets_nothing_good_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crypt: CryptConfig | None, audit: int
) -> None:
    """The other process may be the only one that has the contents, and refer to the chunk."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    build_plain(source, 3, files=20, max_size=200_000)
    first = save(store, source, mode="metadata", crypt=crypt)
    good = spoil(store)
    mended_just_then(good, monkeypatch)
    clock = Ahead() if audit else MuchLater()
    save(store, source, mode="metadata", crypt=crypt, audit=audit, clock=clock)
    assert bad_files(store) == []
    mended = [file for file, data in good.items() if file.read_bytes() == data]
    assert mended
    for file, data in good.items():  # those that the run did not come to
        file.write_bytes(data)
    assert damage(store, crypt) == []
    assert restored_differences(store, first.snapshot, source, tmp_path / "out", crypt) == []


def test_a_sync_sets_nothing_good_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair.make(tmp_path, snapshots=1)
    pair.sync()
    with Store.open(pair.target) as store:
        remove(store, plan_forget(store, [str(pair.saved[0])]))
    for file in (pair.target / ".archiver/db").glob("*"):
        file.unlink()
    good = spoil(pair.target)
    mended_just_then(good, monkeypatch)
    assert pair.sync().errors == []
    assert bad_files(pair.target) == []
    assert all(file.read_bytes() == data for file, data in good.items())


class Cut(Exception):
    """The end of a run."""


def cut_before_durable(store: Path, source: Path, crypt: CryptConfig | None) -> None:
    """A run that has stored everything, when the power fails: what is not durable has its length, but no contents."""
    before = set(chunk_files(store))

    def fail(*_: object, **__: object) -> None:
        raise Cut

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(Session, "publish", fail)
        patch.setattr(Deduplicator, "flush", fail)
        save(store, source, crypt=crypt)
    for file in set(chunk_files(store)) - before:
        file.write_bytes(bytes(file.stat().st_size))


def test_a_power_cut_after_a_killed_collection(tmp_path: Path) -> None:
    """The collection has removed files of which the database still tells. A later run stores them again, but what the
    database tells is of the earlier ones: it must not vouch for what the cut has left."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    source.mkdir()
    for number in range(5):
        (source / f"{number}").write_bytes(noise(number, 200_000))
    first: Saved = save(store, source)
    with Store.open(store) as opened:
        remove(opened, plan_forget(opened, [str(first.snapshot)]))
    for file in chunk_files(store):
        file.unlink()
    cut_before_durable(store, source, None)
    assert chunk_files(store)
    second = save(store, source)
    assert damage(store) == []
    assert restored_differences(store, second.snapshot, source, tmp_path / "out") == []


def test_a_power_cut_of_a_sync_after_a_killed_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair.make(tmp_path, snapshots=1)
    pair.sync()
    with Store.open(pair.target) as store:
        remove(store, plan_forget(store, [str(pair.saved[0])]))
    for file in chunk_files(pair.target):
        file.unlink()

    def fail(*_: object, **__: object) -> None:
        raise Cut

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(Session, "publish_copy", fail)
        pair.sync()
    assert chunk_files(pair.target)
    for file in chunk_files(pair.target):
        file.write_bytes(bytes(file.stat().st_size))
    assert pair.sync().errors == []
    assert damage(pair.target) == [] and pair.lacking() == {}
