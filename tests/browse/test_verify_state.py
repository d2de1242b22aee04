"""What a verification writes into the store: states in manifests, damaged chunks out of the way."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archiver.backup.reference import NoReference, find_previous
from archiver.browse import verify as verify_module
from archiver.browse.snapshot import Snapshot
from archiver.browse.verify import VerifyOptions, VerifyResult, verify
from archiver.core.locks import DirectoryLock, lock_range, replaced_file_lock
from archiver.errors import ArchiverError
from archiver.store import labels
from archiver.store.chunks import ChunkReader
from archiver.store.layout import MANIFEST, SnapshotRef
from archiver.store.removal import Item, RemovalPlan, remove
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig
from formats.manifest import Manifest
from formats.upid import Upid
from tests.random_trees import build_plain, mutate
from tests.stores import (
    GROUP,
    KEY,
    Heard,
    SetClock,
    chunk_files,
    damage,
    every_snapshot,
    new_chunks,
    restored_differences,
    save,
)

pytestmark = pytest.mark.in_memory

NOW = 1_700_000_000
WRITE = VerifyOptions(set_aside=True, write_state=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """``store`` with one encrypted snapshot of ``source``."""
    Store.create(tmp_path / "store", name="test")
    build_plain(tmp_path / "source", 1, files=20, max_size=60_000)
    save(tmp_path / "store", tmp_path / "source", crypt=KEY, mode="metadata")
    return tmp_path


def run(
    path: Path,
    options: VerifyOptions = WRITE,
    crypt: CryptConfig | None = KEY,
    *,
    now: int = NOW,
    heard: Heard | None = None,
) -> VerifyResult:
    with Store.open(path, clock=SetClock(now)) as store:
        return verify(store, every_snapshot(store), crypt, heard or Heard(), options)


def manifest_file(path: Path) -> Path:
    (found,) = path.glob(f"host/test/*/{MANIFEST}")
    return found


def states(path: Path) -> list[Any]:
    with Store.open(path) as store:
        return [store.info(ref).verify_state for ref in every_snapshot(store)]


def spoil(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def bad_files(path: Path) -> list[str]:
    return sorted(file.name for file in (path / ".chunks").glob("*/*.bad"))


# -- states ------------------------------------------------------------------------------------------------------------


def test_state_is_what_a_pbs_writes(place: Path) -> None:
    path = place / "store"
    with Store.open(path) as store:
        (ref,) = every_snapshot(store)
        labels.set_note(store, ref, "kept")
        before = store.manifest(ref)
    assert states(path) == [None]
    run(path)
    after = Manifest.decode(bytes(blob.decode(manifest_file(path).read_bytes(), encrypted=False)))
    state = after.unprotected["verify_state"]
    upid = Upid.decode(state["upid"])
    assert state.keys() == {"state", "upid"} and state["state"] == "ok"
    assert (upid.pid, upid.start, upid.type, upid.id) == (os.getpid(), NOW, "verify", "test")
    assert replace(after, unprotected={}) == replace(before, unprotected={})
    assert after.unprotected == {**before.unprotected, "verify_state": state}
    after.check_signature(KEY)
    assert states(path) == [{"state": "ok", "time": NOW}]
    assert manifest_file(path).stat().st_mode & 0o7777 == 0o644
    assert [name for name in os.listdir(manifest_file(path).parent) if "tmp" in name] == []


def test_database_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and without reading the indexes again."""
    path = place / "store"
    run(path)
    with monkeypatch.context() as patch:
        patch.setattr("archiver.store.database.refresh.record_snapshot", None)
        run(path, now=NOW + 5)
    with Store.open(path) as store:
        (ref,) = every_snapshot(store)
        database = store.database
        assert database is not None
        row = database.snapshot(ref.path)
        assert row is not None and f"{NOW + 5:08X}".encode() in row.manifest
        assert database.check() == []


def test_failed_and_good_again(place: Path) -> None:
    path = place / "store"
    bad = chunk_files(path)[0]
    good = bad.read_bytes()
    spoil(bad)
    assert run(path).error_count == 1
    assert states(path) == [{"state": "failed", "time": NOW}]
    with Store.open(path) as store, pytest.raises(NoReference, match="failed its verification"):
        find_previous(store, GROUP, "tree.pxar", "encrypt", KEY)
    bad.write_bytes(good)
    assert run(path, now=NOW + 1).error_count == 0
    assert states(path) == [{"state": "ok", "time": NOW + 1}]


@pytest.mark.parametrize("what", ["index", "blob", "signature"])
def test_damage_that_is_not_of_a_chunk(place: Path, what: str) -> None:
    path = place / "store"
    if what == "signature":
        with Store.open(path) as store:
            manifest = store.manifest(*every_snapshot(store))
        manifest_file(path).write_bytes(blob.encode(replace(manifest, signature=bytes(32)).encode()))
    else:
        spoil(next(manifest_file(path).parent.glob("*.didx" if what == "index" else "*.ppxar.didx")))
    assert run(path).error_count == 1
    assert states(path) == [{"state": "failed", "time": NOW}]


@pytest.mark.parametrize("crypt", [KEY, None])
def test_nothing_is_written_unless_asked(place: Path, crypt: CryptConfig | None) -> None:
    path = place / "store"
    spoil(chunk_files(path)[0])
    before = manifest_file(path).read_bytes()
    run(path, VerifyOptions(), crypt)
    with Store.open(path, read_only=True) as store:
        assert verify(store, every_snapshot(store), crypt, Heard(), WRITE).error_count == 1
    assert manifest_file(path).read_bytes() == before and bad_files(path) == []


def test_manifest_that_is_locked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_PATIENCE", 0.1)
    path, heard = place / "store", Heard()
    with replaced_file_lock(str(manifest_file(path)), 0):
        result = run(path, heard=heard)
    assert result.error_count == 0 and len(result.unwritten) == 1
    assert any("could not be written" in notice and "locked" in notice for notice in heard.notices)
    assert states(path) == [None]


def test_snapshot_that_is_being_removed(place: Path) -> None:
    path = place / "store"
    with DirectoryLock(str(manifest_file(path).parent)):
        result = run(path)
    assert (result.snapshots, result.error_count, len(result.busy)) == (0, 0, 1)


@pytest.mark.parametrize("budget", [None, verify_module.Budget(bytes=1 << 40)])
@pytest.mark.parametrize("how", ["forgotten", "by a program that locks otherwise"])
def test_snapshot_that_is_removed_meanwhile(
    place: Path, monkeypatch: pytest.MonkeyPatch, how: str, budget: verify_module.Budget | None
) -> None:
    """Chunks and all, while others of the same run are read."""
    path = place / "store"
    mutate(place / "source", 1, 5)
    save(path, place / "source", crypt=KEY)
    read, reads = ChunkReader.verify, 0

    def removing(self: ChunkReader, digest: bytes, size: int, *, encrypted: bool) -> tuple[bytes, int]:
        nonlocal reads
        reads += 1
        if reads == 1:
            old = min(path.glob("host/test/*Z"))
            if how == "forgotten":
                with Store.open(path) as other:
                    refs = every_snapshot(other)
                    plan = RemovalPlan((Item(refs[0], "remove", "", True),), ())
                    done = remove(other, plan)
                    assert done
            else:
                shutil.rmtree(old)
                for chunk in chunk_files(path):
                    chunk.unlink()
        return read(self, digest, size, encrypted=encrypted)

    with Store.open(path) as store:
        newest_first = every_snapshot(store)[::-1]
        chosen = newest_first if how == "forgotten" else newest_first[1:]
        monkeypatch.setattr(ChunkReader, "verify", removing)
        result = verify(store, chosen, KEY, Heard(), replace(WRITE, budget=budget))
    assert result.error_count == 0
    assert result.snapshots == (1 if how == "forgotten" else 0)


@pytest.mark.parametrize("budget", [None, verify_module.Budget(bytes=1 << 40)])
def test_good_is_only_what_was_proven(place: Path, budget: verify_module.Budget | None) -> None:
    """A CRC alone proves nothing: the state stays as it was, until somebody comes with the key."""
    path, options = place / "store", replace(WRITE, budget=budget)
    save(path, {"plain": place / "source"}, time=NOW)
    mutate(place / "source", 1, 5)
    save(path, place / "source", crypt=KEY, mode="metadata")
    assert run(path, options, None).unproven == []  # there are sums
    assert states(path) == [{"state": "ok", "time": NOW}] * 3
    with Store.open(path) as store:
        names = [str(ref) for ref in every_snapshot(store)]
        store.rebuild_database()
    result = run(path, options, None, now=NOW + 1)
    assert result.error_count == 0 and result.without_sum and result.unproven == names[::2]
    good = {number: {"state": "ok", "time": NOW + number} for number in range(4)}
    assert states(path) == [good[0], good[1], good[0]]
    assert run(path, options, KEY, now=NOW + 2).unproven == []
    assert run(path, options, None, now=NOW + 3).unproven == []  # the sums are back
    assert states(path) == [good[3]] * 3


# -- snapshots that were verified before -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "later", "skipped"),
    [
        (VerifyOptions(), 0, 0),
        (VerifyOptions(skip_verified=True), 10**8, 1),
        (VerifyOptions(outdated_after=2), 3 * 86400 - 1, 1),
        (VerifyOptions(outdated_after=2), 3 * 86400, 0),
        (VerifyOptions(skip_verified=True, outdated_after=2), 3 * 86400, 0),
        (VerifyOptions(outdated_after=0), 86400, 0),
    ],
)
@pytest.mark.parametrize("failed", [False, True])
def test_verified_before(place: Path, options: VerifyOptions, later: int, skipped: int, failed: bool) -> None:
    path = place / "store"
    if failed:
        spoil(chunk_files(path)[0])
    run(path)
    result = run(path, options, now=NOW + later)
    assert (result.skipped, result.snapshots) == (skipped, 1 - skipped)
    assert result.skipped_failed == (skipped if failed else 0)
    assert result.error_count == (0 if skipped else int(failed))


@pytest.mark.parametrize("state", [{"state": "ok", "upid": "x"}, {"state": "good", "upid": ""}, "ok", None])
def test_state_that_nobody_can_read_counts_for_none(place: Path, state: object) -> None:
    path = place / "store"
    with Store.open(path) as store:
        (ref,) = every_snapshot(store)
        labels.update_unprotected(store, ref, lambda known: {**known, "verify_state": state})
    assert states(path) == [None]
    assert run(path, VerifyOptions(skip_verified=True)).skipped == 0


# -- damaged chunks ----------------------------------------------------------------------------------------------------

Change = Callable[[Path, Path], object]


def symlink(chunk: Path, _: Path) -> None:
    chunk.unlink()
    chunk.symlink_to("/dev/null")


CERTAIN: dict[str, Change] = {
    "contents": lambda chunk, _: spoil(chunk),
    "iv": lambda chunk, _: spoil(chunk, 20),
    "magic": lambda chunk, _: spoil(chunk, 0),
    "short": lambda chunk, _: os.truncate(chunk, 30),
    "empty": lambda chunk, _: os.truncate(chunk, 0),
    "another": lambda chunk, other: chunk.write_bytes(other.read_bytes()),
    "plain": lambda chunk, _: chunk.write_bytes(blob.encode(b"x")),
    "link": symlink,
}


@pytest.mark.parametrize("what", CERTAIN)
def test_damaged_chunk_is_set_aside(place: Path, what: str) -> None:
    """And stored again by the next backup."""
    path = place / "store"
    chunk, other = chunk_files(path)[:2]
    CERTAIN[what](chunk, other)
    result = run(path)
    assert [error.chunk for error in result.errors] == [chunk.name]
    assert result.set_aside == 1 and bad_files(path) == [f"{chunk.name}.0.bad"]
    assert not os.path.lexists(chunk)
    again = run(path)
    assert again.set_aside == 0 and "missing" in again.errors[0].reason
    assert new_chunks(save(path, place / "source", crypt=KEY)) == 1
    assert damage(path, KEY) == []
    with Store.open(path) as store:
        first = every_snapshot(store)[0]
    assert restored_differences(path, first, place / "source", place / "out", KEY) == []


@pytest.mark.parametrize(
    "what", ["missing", "device", "another key", "no key", "index", "sound of its kind", "asked not to"]
)
def test_chunk_that_may_be_sound_stays(place: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    path, options, crypt = place / "store", WRITE, KEY
    chunk = chunk_files(path)[0]
    if what == "missing":
        chunk.unlink()
    elif what == "device":
        opened = os.open

        def failing(name: Any, *arguments: Any, **named: Any) -> int:
            if name == str(chunk):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return opened(name, *arguments, **named)

        monkeypatch.setattr("archiver.store.chunks.os.open", failing)
    elif what in ("no key", "another key"):
        spoil(chunk, 20)  # the IV, which no CRC covers
        crypt = None if what == "no key" else CryptConfig(bytes(32))  # type: ignore[assignment]
    elif what == "index":
        forge(path, chunk, size=7, encrypted=True, crypt=KEY)
    elif what == "sound of its kind":
        forge(path, chunk, size=7, encrypted=False, crypt=None)  # anybody can write that a chunk should be plain
    else:
        spoil(chunk)
        options = replace(WRITE, set_aside=False)
    result = run(path, options, crypt)
    assert result.error_count and result.set_aside == 0 and bad_files(path) == []


def forge(path: Path, chunk: Path, *, size: int, encrypted: bool, crypt: CryptConfig | None) -> None:
    """A snapshot whose index says something else of a chunk."""
    from formats.index import DynamicIndexWriter
    from formats.manifest import FileInfo

    with Store.open(path) as store:
        ref = SnapshotRef(GROUP._replace(id="forged"), 1)
        directory = Path(store.layout.snapshot(ref))
    directory.mkdir(parents=True)
    index = DynamicIndexWriter(bytes(16), 1)
    index.add(size, bytes.fromhex(chunk.name))
    entries = index.take()
    (directory / "x.pxar.didx").write_bytes(index.finish() + entries)
    file = FileInfo("x.pxar.didx", "encrypt" if encrypted else "none", index.size, index.csum)
    manifest = Manifest("host", "forged", 1, (file,), {}, None)
    (directory / MANIFEST).write_bytes(blob.encode((manifest.sign(crypt) if crypt else manifest).encode()))


def test_chunk_that_a_backup_has_just_stored_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the rename: the good file is not renamed, and is no damage."""
    path = place / "store"
    chunk = chunk_files(path)[0]
    good = chunk.read_bytes()
    spoil(chunk)
    read = ChunkReader.verify

    def mended(self: ChunkReader, digest: bytes, size: int, *, encrypted: bool) -> tuple[bytes, int]:
        try:
            return read(self, digest, size, encrypted=encrypted)
        except ArchiverError:
            chunk.with_suffix(".new").write_bytes(good)
            chunk.with_suffix(".new").rename(chunk)
            raise

    monkeypatch.setattr(ChunkReader, "verify", mended)
    result = run(path)
    assert (result.error_count, result.set_aside, bad_files(path)) == (0, 0, [])
    assert chunk.read_bytes() == good


def test_nobody_stores_a_chunk_while_it_is_set_aside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of its shard is held then: writers and garbage collections wait."""
    path = place / "store"
    chunk = chunk_files(path)[0]
    spoil(chunk)
    looked, held = ChunkReader.is_bad, []

    def asked(self: ChunkReader, digest: bytes) -> bool:
        with open(path / ".archiver" / "chunks.lock", "r+b") as file:
            for shard in (int(chunk.name[:4], 16), (int(chunk.name[:4], 16) + 1) % 65536):
                held.append(not lock_range(file.fileno(), shard, 1, exclusive=False))
        return looked(self, digest)

    monkeypatch.setattr(ChunkReader, "is_bad", asked)
    assert run(path).set_aside == 1
    assert held == [True, False]


def test_rename_that_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    path, heard = place / "store", Heard()
    spoil(chunk_files(path)[0])
    with monkeypatch.context() as patch:
        patch.setattr("archiver.store.chunks.os.rename", failing)
        result = run(path, replace(WRITE, write_state=False), heard=heard)
    assert (result.error_count, result.set_aside) == (1, 0)
    assert any("left where they are" in notice for notice in heard.notices)


def test_signature_survives_in_a_snapshot(place: Path) -> None:
    run(place / "store")
    with Store.open(place / "store") as store:
        (ref,) = every_snapshot(store)
        assert Snapshot(store, ref, KEY).crypt is KEY
