"""Notes, protection, owners: they change what they are to change, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archiver.browse.snapshot import Snapshot
from archiver.core.locks import DirectoryLock, replaced_file_lock
from archiver.errors import ArchiverError, Locked, NotFound, Skipped, UsageError
from archiver.store import labels
from archiver.store.labels import note_of, protect, set_group_note, set_note, set_owner, update_unprotected
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.snapshots import read_manifest_json
from archiver.store.store import Store
from formats import blob
from formats.errors import FormatError
from formats.manifest import Manifest, with_unprotected
from tests.golden_store import ENCRYPTED, KEY, PLAIN, unpack
from tests.random_trees import build_plain
from tests.stores import GROUP, ROOT, command, damage, every_snapshot, listing, make_store, save

pytestmark = pytest.mark.in_memory

SIGNED = "host/signed/2023-11-14T22:13:29Z"


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return unpack(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    build_plain(tmp_path / "source", 2, files=5)
    store = make_store(tmp_path / "store")
    save(store, tmp_path / "source", time=1_700_000_000)
    return store


def text_of(store: Store, ref: SnapshotRef) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_manifest_json(store.layout, ref))
    return found


@pytest.mark.parametrize("name", [*PLAIN, *ENCRYPTED])
def test_note_leaves_everything_else(golden: Path, name: str) -> None:
    """Of snapshots that a PBS made: signed, encrypted, with notes and a verify state already."""
    files = set(os.listdir(golden / name))
    with Store.open(golden) as store:
        ref = store.find(name)
        before = text_of(store, ref)
        others = {other: text_of(store, other) for other in every_snapshot(store) if other != ref}
        for text in ("first line\nsecond line", 'ÄÖÜ \U0001f4a1 \x07 \\ "', ""):
            set_note(store, ref, text)
            assert note_of(store, ref) == text
            after = text_of(store, ref)
            expected = {key: value for key, value in before["unprotected"].items() if key != "notes"}
            assert after["unprotected"] == expected | ({"notes": text} if text else {})
            assert {**after, "unprotected": 0} == {**before, "unprotected": 0}
            Snapshot(store, ref, KEY)  # the signature still fits
            assert all(text_of(store, other) == found for other, found in others.items())
        assert store.database is not None and store.database.check() == []
        row = store.database.snapshot(ref.path)
        assert row is not None and row.manifest == read_manifest_json(store.layout, ref)
    assert damage(golden, KEY) == []
    file = golden / name / "index.json.blob"
    assert file.stat().st_mode & 0o777 == 0o644
    assert set(os.listdir(golden / name)) == files


def test_verify_state_survives(golden: Path) -> None:
    with Store.open(golden) as store:
        verified = [ref for ref in every_snapshot(store) if store.info(ref).verify_state is not None]
        assert verified
        for ref in verified:
            state = store.info(ref).verify_state
            set_note(store, ref, "new")
            set_note(store, ref, "")
            assert store.info(ref).verify_state == state


def test_what_the_program_does_not_know_is_kept() -> None:
    """Other tools may have put it there, and old signatures cover it."""
    fields = {
        "backup-type": "host",
        "backup-id": "x",
        "backup-time": 5,
        "files": [{"filename": "a.blob", "size": 1, "csum": "00" * 32, "of somebody": [1.5, 2**70]}],
        "of somebody": {"else": None},
        "unprotected": {"notes": "old", "more": {"of": ["this", 1e300]}},
    }
    after = json.loads(with_unprotected(json.dumps(fields).encode(), {"notes": "new"}))
    assert after == {**fields, "unprotected": {"notes": "new"}}
    assert "signature" not in after and "crypt-mode" not in after["files"][0]


def test_text_is_as_a_pbs_writes_it(golden: Path) -> None:
    """A manifest with the same unprotected part again is byte for byte the same."""
    with Store.open(golden) as store:
        for ref in every_snapshot(store):
            text = read_manifest_json(store.layout, ref)
            assert with_unprotected(text, Manifest.decode(text).unprotected) == text


@pytest.mark.parametrize("unprotected", [{"key-fingerprint": 5}, {"notes": "\udcff"}, {"a": [[[]]] * 300_000}])
def test_no_manifest_is_made_that_cannot_be_read(unprotected: dict[str, Any]) -> None:
    text = Manifest("host", "x", 5, ()).encode()
    with pytest.raises(FormatError):
        with_unprotected(text, unprotected)


@pytest.mark.parametrize(("text", "reason"), [("\udcff", "not UTF-8"), ("x" * (2 << 20), "too long")])
def test_notes_that_cannot_be(path: Path, text: str, reason: str) -> None:
    before = listing(path / "host")
    with Store.open(path) as store:
        with pytest.raises(UsageError, match=reason):
            set_note(store, store.find("latest"), text)
        with pytest.raises(UsageError, match=reason):
            set_group_note(store, GROUP, text)
    assert listing(path / "host") == before


def test_notes_at_once(path: Path) -> None:
    """Each process changes what it found: no change is lost."""
    with Store.open(path) as store:
        ref = store.find("latest")
        done: list[subprocess.Popen[bytes]] = []

        def change(unprotected: labels.Unprotected) -> labels.Unprotected:
            if not done:  # another one comes in between, and has to wait
                done.append(
                    subprocess.Popen(
                        command("--store", path, "note", str(ref), "from the other"), cwd=ROOT, stdout=subprocess.PIPE
                    )
                )
                with pytest.raises(subprocess.TimeoutExpired):
                    done[0].wait(1.5)
            return {**unprotected, "mine": 1}

        update_unprotected(store, ref, change)
        assert done[0].wait() == 0
        assert store.manifest(ref, from_file=True).unprotected.keys() >= {"mine", "notes", "chunk_upload_stats"}


def test_manifest_that_stays_locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_PATIENCE", 0.1)
    with Store.open(path) as store:
        ref = store.find("latest")
        with replaced_file_lock(store.layout.manifest(ref), 0), pytest.raises(Locked):
            set_note(store, ref, "x")
        set_note(store, ref, "x")


def test_snapshot_that_is_read_can_be_annotated(path: Path) -> None:
    """And one that is being removed cannot."""
    with Store.open(path) as store:
        ref = store.find("latest")
        with store.held(ref):
            set_note(store, ref, "x")
            protect(store, ref, on=True)
        with DirectoryLock(store.layout.snapshot(ref)):
            with pytest.raises(Locked):
                set_note(store, ref, "y")
            with pytest.raises(Locked):
                protect(store, ref, on=False)
        assert (note_of(store, ref), store.info(ref).protected) == ("x", True)


def test_protection(path: Path) -> None:
    with Store.open(path) as store:
        ref = store.find("latest")
        for on in (True, True, False, False, True):
            protect(store, ref, on=on)
            assert store.info(ref).protected is on
        file = path / ref.path / ".protected"
        assert file.read_bytes() == b"" and file.stat().st_mode & 0o777 == 0o644


def test_protection_that_is_no_file(path: Path) -> None:
    with Store.open(path) as store:
        ref = store.find("latest")
        (path / ref.path / ".protected").mkdir()
        protect(store, ref, on=True)
        with pytest.raises(ArchiverError, match="cannot write"):
            protect(store, ref, on=False)


def test_group_note_and_owner(path: Path) -> None:
    with Store.open(path) as store:
        assert store.group_note(GROUP) is None
        set_group_note(store, GROUP, "one\ntwo")
        assert store.group_note(GROUP) == "one\ntwo"
        assert (path / GROUP.path / "notes").read_text() == "one\ntwo"
        set_group_note(store, GROUP, "")
        assert not (path / GROUP.path / "notes").exists()
        set_owner(store, GROUP, "joe@pbs!laptop")
        assert (path / GROUP.path / "owner").read_text() == "joe@pbs!laptop\n"
        for text in ("joe", "", "a b@pam", "joe@", "x" * 70 + "@pam"):
            with pytest.raises(UsageError, match="cannot be an owner"):
                set_owner(store, GROUP, text)
        assert store.owner(GROUP) == "joe@pbs!laptop"
        with pytest.raises(NotFound):
            set_owner(store, GroupRef("", "ct", "1"), "joe@pbs")


def test_group_that_is_locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_PATIENCE", 0.1)
    with Store.open(path) as store, DirectoryLock(str(path / GROUP.path)), pytest.raises(Locked):
        set_owner(store, GROUP, "joe@pbs")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner_of_files_stays(path: Path) -> None:
    """A server that runs as somebody else must be able to go on with the store."""
    with Store.open(path) as store:
        ref = store.find("latest")
        files = [path / GROUP.path / "owner", path / ref.path / "index.json.blob"]
        for file in files:
            os.chown(file, 34, 34)
        set_owner(store, GROUP, "joe@pbs")
        set_note(store, ref, "x")
    assert [(file.stat().st_uid, file.stat().st_gid) for file in files] == [(34, 34)] * 2


@pytest.mark.parametrize("what", ["manifest", "snapshot", "group"])
def test_symlinks_are_not_followed(path: Path, tmp_path: Path, what: str) -> None:
    with Store.open(path) as store:
        ref = store.find("latest")
    place = {
        "manifest": path / ref.path / "index.json.blob",
        "snapshot": path / ref.path,
        "group": path / GROUP.path,
    }[what]
    place.rename(tmp_path / "outside")
    place.symlink_to(tmp_path / "outside")
    before = listing(tmp_path / "outside")
    works: list[Callable[[Store], None]] = [lambda store: set_note(store, ref, "x")]
    if what != "manifest":
        works.append(lambda store: protect(store, ref, on=True))
    if what == "group":
        works += [lambda store: set_owner(store, GROUP, "joe@pbs"), lambda store: set_group_note(store, GROUP, "x")]
    with Store.open(path) as store:
        for work in works:
            with pytest.raises(Skipped, match="is a symlink"):
                work(store)
    assert listing(tmp_path / "outside") == before


def test_damaged_manifest_is_left_alone(path: Path) -> None:
    with Store.open(path) as store:
        ref = store.find("latest")
        file = path / ref.path / "index.json.blob"
        foreign = Manifest("ct", "1", 1, ()).encode()
        for data in (b"", b"garbage", bytes(blob.encode(b"{}")), bytes(blob.encode(foreign))):
            file.write_bytes(data)
            with pytest.raises(ArchiverError, match=r"damaged|belongs to another"):
                set_note(store, ref, "x")
            assert file.read_bytes() == data
        file.unlink()
        with pytest.raises(NotFound, match="unfinished"):
            set_note(store, ref, "x")
