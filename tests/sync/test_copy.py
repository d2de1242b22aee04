"""Copies are the same bytes; only sound chunks arrive; what is there is not read again; what is damaged is healed."""

from __future__ import annotations

import json
import os
import shutil
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest

from archiver.browse.verify import verify
from archiver.core.events import ignore
from archiver.core.locks import DirectoryLock
from archiver.errors import Damaged, Locked, Skipped
from archiver.store.chunks import ChunkReader
from archiver.store.labels import protect, set_note
from archiver.store.layout import SnapshotRef
from archiver.store.removal import plan_forget, remove
from archiver.store.snapshots import read_manifest_json
from archiver.store.store import Store
from archiver.sync.plan import SyncOptions, make_plan, resume_text
from archiver.sync.run import carry_out
from formats import blob
from formats.manifest import with_unprotected
from tests import golden_store
from tests.mounts import read_only_view
from tests.stores import (
    KEY,
    Heard,
    bring_back,
    chunk_files,
    damage,
    every_snapshot,
    listing,
    make_store,
    restored_differences,
    save,
)
from tests.sync.pair import START, Pair, finished, snapshot_files

pytestmark = pytest.mark.in_memory


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair.make(tmp_path, snapshots=3)


def counted(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[bytes]:
    """Digests of the chunks that are read from the store at ``path`` from now on."""
    read: list[bytes] = []
    stored = ChunkReader.stored

    def note(reader: ChunkReader, digest: bytes) -> memoryview:
        if reader._layout.base == str(path):
            read.append(digest)
        return stored(reader, digest)

    monkeypatch.setattr(ChunkReader, "stored", note)
    return read


def set_state(path: Path, ref: SnapshotRef, state: str, when: int = START) -> None:
    """What a verification leaves in a manifest."""
    with Store.open(path) as store:
        text = read_manifest_json(store.layout, ref)
        upid = f"UPID:here:00000001:00000001:00000001:{when:08X}:verify:x:root@pam:"
        found = json.loads(text)["unprotected"] | {"verify_state": {"state": state, "upid": upid}}
        store.disk.put(store.layout.manifest(ref), [blob.encode(with_unprotected(text, found))], 0o644, sync=True)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_copies_are_the_same_bytes(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = counted(monkeypatch, pair.source)
    result = pair.sync()
    assert [step.source for step in result.done] == pair.saved and result.errors == []
    assert sorted(read) == sorted({bytes.fromhex(file.name) for file in chunk_files(pair.source)})
    assert result.copied.chunks == len(read) == len(chunk_files(pair.target))
    for ref in pair.saved:
        assert snapshot_files(pair.source, ref) == snapshot_files(pair.target, ref)
    for file in chunk_files(pair.source):
        assert file.read_bytes() == (pair.target / file.relative_to(pair.source)).read_bytes()
    assert damage(pair.target) == [] and pair.lacking() == {}
    assert restored_differences(pair.target, pair.saved[-1], pair.tree, tmp_path / "out") == []
    assert (pair.target / pair.saved[0].group.path / "owner").read_bytes() == b"root@pam\n"
    assert os.listdir(pair.target / ".archiver/sessions") == []
    read.clear()
    assert pair.sync().done == [] and read == []


def test_the_database_of_the_target_knows_it_all(pair: Pair) -> None:
    pair.sync()
    with Store.open(pair.source) as ours, Store.open(pair.target) as theirs:
        assert ours.database is not None and theirs.database is not None
        assert theirs.database.check() == []
        assert set(theirs.database.stamps()) == {ref.path for ref in pair.saved}
        for file in chunk_files(pair.target):
            digest = bytes.fromhex(file.name)
            here, there = ours.database.recorded_sum(digest), theirs.database.recorded_sum(digest)
            assert here is not None and there is not None and here[0] == there[0]
            found = theirs.database.lookup(digest)
            assert found is not None and found[1] == file.stat().st_size


def test_a_later_sync_reads_only_what_is_new(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.sync()
    before = {file.name for file in chunk_files(pair.source)}
    (pair.tree / "more").write_bytes(os.urandom(500_000))
    newest = save(pair.source, pair.tree, time=START + 86400 * 9).snapshot
    read = counted(monkeypatch, pair.source)
    there = counted(monkeypatch, pair.target)
    result = pair.sync()
    assert [step.source for step in result.done] == [newest]
    assert {digest.hex() for digest in read} == {file.name for file in chunk_files(pair.source)} - before
    assert there == []
    assert result.copied.present > 0


@pytest.mark.parametrize("with_database", [True, False])
def test_golden_store(tmp_path: Path, with_database: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that a PBS wrote, encrypted and signed snapshots and namespaces in it, into an empty one."""
    source = golden_store.unpack(tmp_path)
    pair = Pair(source, make_store(tmp_path / "target"), tmp_path)
    if not with_database:
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv("ARCHIVER_DB_DIR", str(tmp_path / "file/below"))
    result = pair.sync()
    assert result.errors == []
    assert {str(ref) for ref in pair.copies()} == {*golden_store.PLAIN, *golden_store.ENCRYPTED}
    for ref in pair.copies():
        files = snapshot_files(source, ref)
        files.pop(".protected", None)
        assert snapshot_files(pair.target, ref) == files
    assert damage(pair.target, golden_store.KEY) == []
    assert pair.lacking() == {}
    assert pair.sync().done == []


def test_read_only_source(pair: Pair, tmp_path: Path) -> None:
    before = listing(pair.source)
    with read_only_view(pair.source, tmp_path / "view") as view:
        result = Pair(view, pair.target, pair.tree).sync()
    assert result.errors == [] and pair.copies() == pair.saved
    assert listing(pair.source) == before


# -- what is damaged in the source -----------------------------------------------------------------------------------


def only_in(pair: Pair, number: int) -> Path:
    """A chunk file of the source that one snapshot alone needs."""
    with Store.open(pair.source) as store:
        assert store.database is not None
        needs = []
        for ref in pair.saved:
            references = store.database.references(ref.path)
            assert references is not None
            needs.append({int(each) for numbers in references for each in numbers})
        others = set().union(*(needs[each] for each in range(len(needs)) if each != number))
        row = store.database.chunk(min(needs[number] - others))
        assert row is not None
        return Path(store.layout.chunk(row.digest.hex()))


@pytest.mark.parametrize("how", ["flip", "cut", "lose"])
def test_damaged_chunk_in_the_source(pair: Pair, tmp_path: Path, how: str) -> None:
    """Its snapshot is named and not published, the others are; once healed it is brought after them."""
    file = only_in(pair, 1)
    whole = file.read_bytes()
    if how == "flip":
        flip(file)
    elif how == "cut":
        file.write_bytes(whole[:-1])
    else:
        file.unlink()
    result = pair.sync()
    (problem,) = result.problems
    assert problem.name == str(pair.saved[1]) and file.name in str(problem.error)
    assert isinstance(problem.error, Damaged)
    assert pair.copies() == [pair.saved[0], pair.saved[2]]
    assert damage(pair.target) == []
    assert not (pair.target / file.relative_to(pair.source)).exists()
    assert set(pair.lacking()) == {str(pair.saved[1])}
    again = pair.sync()
    assert [str(each.error) for each in again.problems] == [str(problem.error)]
    assert len(os.listdir(pair.target / ".archiver/sessions")) == 1, "one more session is left by every run"
    file.write_bytes(whole)
    healed = pair.sync()
    assert healed.errors == [] and [step.source for step in healed.done] == [pair.saved[1]]
    assert pair.copies() == pair.saved and pair.lacking() == {} and damage(pair.target) == []
    assert os.listdir(pair.target / ".archiver/sessions") == []
    assert restored_differences(pair.target, pair.saved[-1], pair.tree, tmp_path / "out") == []


@pytest.mark.parametrize("name", ["tree.ppxar.didx", "tree.mpxar.didx", "index.json.blob"])
def test_damaged_file_in_the_source(pair: Pair, name: str) -> None:
    """It is named and not published, the others are; once healed it is brought after them."""
    file = pair.source / pair.saved[1].path / name
    whole = file.read_bytes()
    data = bytearray(whole)
    data[-1] ^= 1
    file.write_bytes(data)
    for _ in range(2):
        result = pair.sync()
        assert [problem.name for problem in result.problems] == [str(pair.saved[1])]
        assert isinstance(result.problems[0].error, Damaged)
        assert pair.copies() == [pair.saved[0], pair.saved[2]]
        assert len(os.listdir(pair.target / ".archiver/sessions")) == 1
    file.write_bytes(whole)
    assert [step.source for step in pair.sync().done] == [pair.saved[1]]
    assert damage(pair.target) == [] and pair.lacking() == {}


def test_rot_in_an_encrypted_chunk_is_found_without_the_key(tmp_path: Path) -> None:
    """Whoever changes the stored bytes and the CRC with them is found out by the sum that the backup recorded."""
    pair = Pair.make(tmp_path)
    ref = save(pair.source, pair.tree, crypt=KEY).snapshot
    file = chunk_files(pair.source)[0]
    data, before = bytearray(file.read_bytes()), file.stat()
    data[-1] ^= 1
    data[8:12] = zlib.crc32(data[blob.ENCRYPTED_HEADER :]).to_bytes(4, "little")
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = pair.sync()
    assert [problem.name for problem in result.problems] == [str(ref)] and "BLAKE3" in str(result.problems[0].error)
    assert pair.copies() == []


def test_encrypted_chunks_hand_on_only_sums_that_are_known(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path)
    ref = save(pair.source, pair.tree, crypt=KEY).snapshot
    with Store.open(pair.source) as store:
        store.rebuild_database()  # which computes no sums
    assert pair.sync().errors == []
    files = chunk_files(pair.target)
    with Store.open(pair.target) as store:
        assert store.database is not None
        assert all(store.database.recorded_sum(bytes.fromhex(file.name)) is None for file in files)
        assert verify(store, [ref], None, Heard()).without_sum == len(files)
    assert damage(pair.target, KEY) == []
    assert bring_back(pair.target, ref, tmp_path / "out", crypt=KEY).problems == []


def test_forgotten_meanwhile(pair: Pair) -> None:
    with Store.open(pair.source) as ours, Store.open(pair.target) as theirs:
        options = SyncOptions()
        plan = make_plan(ours, theirs, options)
        remove(ours, plan_forget(ours, [str(pair.saved[1])]))
        heard = Heard()
        result = carry_out(ours, theirs, plan, options, heard)
    assert result.errors == [] and len(result.done) == 2
    assert f"{pair.saved[1]} was forgotten meanwhile" in heard.notices
    assert pair.copies() == [pair.saved[0], pair.saved[2]]


def test_a_snapshot_that_is_copied_cannot_be_forgotten(pair: Pair) -> None:
    told: list[str] = []

    def forget(event: object) -> None:
        if not told:
            with Store.open(pair.source) as store:
                told.extend(reason for _, reason in remove(store, plan_forget(store, [str(pair.saved[0])])).skipped)

    result = pair.sync(listener=forget)
    assert result.errors == [] and told == [f"{pair.saved[0]} is in use by another process"]


# -- what is damaged in the target -----------------------------------------------------------------------------------


def test_resync_corrupt_heals(pair: Pair, tmp_path: Path) -> None:
    """A failed verification flags the copy: every chunk of it is read, the bad ones come again."""
    pair.sync()
    bad = pair.target / only_in(pair, 1).relative_to(pair.source)
    flip(bad)
    set_state(pair.target, pair.saved[1], "failed")
    with Store.open(pair.target) as store:
        protect(store, pair.saved[1], on=True)
    assert pair.sync().done == [] and damage(pair.target) != []
    result = pair.sync(resync_corrupt=True)
    assert result.errors == [] and [step.action for step in result.done] == ["replace"]
    assert result.copied.chunks == 1
    assert damage(pair.target) == [] and pair.copies() == pair.saved
    files = snapshot_files(pair.target, pair.saved[1])
    assert files.pop(".protected") == b"", "a protected snapshot stays protected"
    assert files == snapshot_files(pair.source, pair.saved[1])
    assert pair.sync(resync_corrupt=True).done == []
    assert os.listdir(pair.target / ".archiver/sessions") == []


@pytest.mark.parametrize("how", ["flip and verify", "lose"])
def test_resync_corrupt_heals_what_can_be_told(pair: Pair, how: str) -> None:
    """The database was told of the damage, or a file is not there any more."""
    pair.sync()
    bad = pair.target / only_in(pair, 0).relative_to(pair.source)
    if how == "lose":
        bad.unlink()
    else:
        flip(bad)
        assert len(damage(pair.target)) > 0
    assert set(pair.lacking()) == {str(pair.saved[0])}
    result = pair.sync(resync_corrupt=True)
    assert [step.source for step in result.done] == [pair.saved[0]]
    assert damage(pair.target) == [] and bad.exists()


@pytest.mark.parametrize("name", ["tree.ppxar.didx", "index.json.blob"])
def test_resync_corrupt_brings_files_back(pair: Pair, name: str) -> None:
    pair.sync()
    place = pair.target / pair.saved[0].path / name
    place.unlink() if name != "index.json.blob" else flip(place)
    assert str(pair.saved[0]) in pair.lacking()
    assert [step.source for step in pair.sync(resync_corrupt=True).done] == [pair.saved[0]]
    assert pair.lacking() == {} and damage(pair.target) == []


def test_bad_chunk_stays_when_the_source_has_none_better(pair: Pair) -> None:
    """Both are bad: the target's file is not touched."""
    pair.sync()
    ours = only_in(pair, 1)
    theirs = pair.target / ours.relative_to(pair.source)
    flip(ours)
    flip(theirs)
    set_state(pair.target, pair.saved[1], "failed")
    before = theirs.read_bytes()
    result = pair.sync(resync_corrupt=True)
    assert [problem.name for problem in result.problems] == [str(pair.saved[1])]
    assert theirs.read_bytes() == before and list(theirs.parent.glob("*.bad")) == []
    assert pair.copies() == pair.saved


def test_replaced_while_it_is_read(pair: Pair) -> None:
    pair.sync()
    set_state(pair.target, pair.saved[1], "failed")
    with DirectoryLock(str(pair.target / pair.saved[1].path), exclusive=False):
        result = pair.sync(resync_corrupt=True)
    assert [type(problem.error) for problem in result.problems] == [Locked]
    assert pair.copies() == pair.saved
    with Store.open(pair.target) as store:
        assert store.database is not None and store.database.check() == []


def test_unknown_file_of_a_chunk_is_checked(pair: Pair) -> None:
    """What a power cut left of an interrupted sync, at the right place and of the right length."""
    for number, file in enumerate(chunk_files(pair.source)[:6]):
        place = pair.target / file.relative_to(pair.source)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
        if number < 3:
            flip(place)
    before = len(chunk_files(pair.source))
    result = pair.sync()
    assert result.errors == [] and damage(pair.target) == []
    assert result.copied.chunks == before - 3
    assert len(list((pair.target / ".chunks").glob("*/*.bad"))) == 3


# -- the newest common snapshot --------------------------------------------------------------------------------------


def test_notes_and_verify_state_of_the_newest_follow(pair: Pair) -> None:
    pair.sync()
    for ref in (pair.saved[0], pair.saved[-1]):
        with Store.open(pair.source) as store:
            set_note(store, ref, "seen")
    set_state(pair.source, pair.saved[-1], "ok")
    (pair.source / pair.saved[-1].path / "client.log.blob").write_bytes(b"told later")
    result = pair.sync()
    assert [(step.source, step.action) for step in result.done] == [(pair.saved[-1], "update")]
    assert snapshot_files(pair.target, pair.saved[-1]) == snapshot_files(pair.source, pair.saved[-1])
    assert snapshot_files(pair.target, pair.saved[0]) != snapshot_files(pair.source, pair.saved[0])
    with Store.open(pair.target) as store:
        assert store.manifest(pair.saved[-1]).unprotected["notes"] == "seen"
        assert store.database is not None and store.database.check() == []


def test_log_that_was_added_later(pair: Pair) -> None:
    pair.sync()
    (pair.source / pair.saved[-1].path / "client.log.blob").write_bytes(b"told later")
    assert [step.action for step in pair.sync().done] == ["update"]
    assert (pair.target / pair.saved[-1].path / "client.log.blob").read_bytes() == b"told later"
    assert pair.sync().done == []


def test_a_failed_state_is_not_hidden(pair: Pair) -> None:
    """The source says that its own is good; that says nothing of the copy."""
    pair.sync()
    set_state(pair.source, pair.saved[-1], "ok")
    set_state(pair.target, pair.saved[-1], "failed")
    before = snapshot_files(pair.target, pair.saved[-1])
    result = pair.sync()
    assert [type(problem.error) for problem in result.problems] == [Skipped]
    assert snapshot_files(pair.target, pair.saved[-1]) == before


@pytest.mark.parametrize("how", ["failed", "made again"])
def test_what_happens_in_the_target_after_the_plan(pair: Pair, how: str) -> None:
    """What is copied before may take hours."""
    pair.sync()
    ref = pair.saved[-1]
    set_state(pair.source, ref, "ok")
    plan = pair.plan()
    assert [step.action for step in plan.work] == ["update"]
    if how == "failed":
        set_state(pair.target, ref, "failed")
    else:
        with Store.open(pair.target) as store:
            remove(store, plan_forget(store, [str(ref)]))
        (pair.tree / "other").write_bytes(b"other")
        save(pair.target, pair.tree, time=ref.time)
    before = snapshot_files(pair.target, ref)
    with Store.open(pair.source) as ours, Store.open(pair.target) as theirs:
        result = carry_out(ours, theirs, plan, SyncOptions(), ignore)
    assert [type(problem.error) for problem in result.problems] == [Skipped]
    assert snapshot_files(pair.target, ref) == before
    assert damage(pair.target) == []


def test_another_snapshot_of_the_same_name(pair: Pair) -> None:
    ref = pair.saved[-1]
    (pair.tree / "other").write_bytes(b"other")
    save(pair.target, pair.tree, time=ref.time)
    before = snapshot_files(pair.target, ref)
    result = pair.sync()
    assert [type(problem.error) for problem in result.problems] == [Skipped]
    assert snapshot_files(pair.target, ref) == before
    assert pair.lacking()[str(ref)] == "another snapshot of the same name"


# -- at the same time ------------------------------------------------------------------------------------------------


def test_two_syncs_at_once(pair: Pair, tmp_path: Path) -> None:
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(pair.sync())
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [getattr(result, "errors", result) for result in results] == [[], []]
    assert pair.copies() == pair.saved and damage(pair.target) == [] and pair.lacking() == {}
    assert len([step for result in results for step in result.done]) >= 3
    assert restored_differences(pair.target, pair.saved[-1], pair.tree, tmp_path / "out") == []
    assert os.listdir(pair.target / ".archiver/sessions") == []


def test_unfinished_snapshot_in_the_target(pair: Pair) -> None:
    """As a PBS leaves it that was interrupted: it gives way."""
    place = pair.target / pair.saved[0].path
    place.mkdir(parents=True)
    (place / "tree.ppxar.didx").write_bytes(b"begun")
    assert pair.sync().errors == []
    assert pair.copies() == pair.saved
    assert snapshot_files(pair.target, pair.saved[0]) == snapshot_files(pair.source, pair.saved[0])


def test_unfinished_snapshot_in_the_source(pair: Pair) -> None:
    (pair.source / pair.saved[1].path / "index.json.blob").unlink()
    assert pair.sync().errors == []
    assert pair.copies() == [pair.saved[0], pair.saved[2]]
    with Store.open(pair.target) as store:
        assert every_snapshot(store) == finished(pair.target)


def test_rate(pair: Pair) -> None:
    """As many bytes a second as there are take a second."""
    total = sum(file.stat().st_size for file in chunk_files(pair.source))
    result = pair.sync(rate=total)
    assert result.copied.bytes == total and 0.9 < result.seconds < 10


def test_killed_just_after_it_had_published(pair: Pair) -> None:
    """What is left of the session says nothing: the copy may be forgotten and does not come back."""
    pair.sync()
    left = pair.target / ".archiver/sessions/2026-01-01T00:00:00Z-00000000"
    left.mkdir()
    (left / "resume.json").write_bytes(resume_text(pair.saved[0]))
    with Store.open(pair.target) as store:
        remove(store, plan_forget(store, [str(pair.saved[0])]))
    assert pair.sync().done == [] and not left.exists()
