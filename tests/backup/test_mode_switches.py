"""Runs that follow each other with other modes, keys and previous snapshots: nothing is reused that must not be."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archiver.backup.run import CryptMode, Mode
from archiver.browse.snapshot import Snapshot
from archiver.core.clock import Clock
from archiver.store.indexes import is_index
from archiver.store.layout import MANIFEST, GroupRef, SnapshotRef
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig
from formats.naming import format_time
from tests.golden_store import write_key
from tests.random_trees import build_plain, mutate, noise
from tests.stores import (
    GROUP,
    KEY,
    Heard,
    Saved,
    archiver,
    chunk_files,
    damage,
    every_snapshot,
    make_store,
    new_chunks,
    restored_differences,
    save,
)

pytestmark = pytest.mark.in_memory

OTHER_KEY = CryptConfig(bytes(range(1, 33)))
START = 1_700_000_000
MODES: list[Mode] = ["legacy", "data", "metadata"]
CHAIN: list[Mode] = ["legacy", "data", "metadata", "metadata", "data"]
ENCRYPTED = (blob.ENCRYPTED_MAGIC, blob.ENCRYPTED_ZSTD_MAGIC)
PLAIN = (blob.PLAIN_MAGIC, blob.PLAIN_ZSTD_MAGIC)

Way = tuple[CryptMode, CryptConfig | None]
WAYS: dict[str, Way] = {
    "none": ("none", None),
    "encrypt": ("encrypt", KEY),
    "other-key": ("encrypt", OTHER_KEY),
    "sign-only": ("sign-only", KEY),
    "sign-other": ("sign-only", OTHER_KEY),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Small files, a file of many chunks, and names of one file in two directories."""
    root = tmp_path / "source"
    build_plain(root, 3, 80)
    (root / "large").write_bytes(noise(1, 1 << 20))
    (root / "z").mkdir()
    (root / "z" / "last").write_bytes(noise(2, 200_000))
    os.link(root / "z" / "last", root / "linked")
    return root


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store")


def reused(saved: Saved) -> int:
    return sum(archive.counters.reused_chunks for archive in saved.result.archives)


def check_kinds(store: Path, ref: SnapshotRef, crypt: CryptConfig | None) -> set[bytes]:
    """Every chunk file of a snapshot is of the kind that its manifest declares; the digests."""
    found = set()
    with Store.open(store, read_only=True) as opened:
        snapshot = Snapshot(opened, ref, crypt)
        for file in snapshot.manifest.files:
            if not is_index(file.filename):
                continue
            index = snapshot.index(file)
            for number in range(len(index)):
                digest = index.digest(number)
                name = digest.hex()
                magic = (store / ".chunks" / name[:4] / name).read_bytes()[:8]
                assert magic in (ENCRYPTED if file.crypt_mode == "encrypt" else PLAIN), (file.filename, name)
                found.add(digest)
    return found


# -- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
def test_all_modes_restore_the_same(store: Path, source: Path, tmp_path: Path, crypt: CryptConfig | None) -> None:
    for number, mode in enumerate(MODES):
        saved = save(store, source, time=START + number, group=GroupRef("", "host", mode), mode=mode, crypt=crypt)
        assert restored_differences(store, saved.snapshot, source, tmp_path / mode, crypt) == []
        assert saved.result.files.total == 83 and saved.result.files.reencoded == 82
    assert damage(store, crypt) == []


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("changing", [False, True])
def test_a_chain_of_modes(store: Path, source: Path, tmp_path: Path, crypt: CryptConfig | None, changing: bool) -> None:
    """Each snapshot is complete in itself, and restores after all the others were made, too."""
    made: list[tuple[Path, SnapshotRef]] = []
    for number, mode in enumerate(CHAIN):
        kept = tmp_path / f"kept-{number}"
        shutil.copytree(source, kept, symlinks=True)
        (kept / "linked").unlink(missing_ok=True)
        if (source / "linked").exists() and (source / "z" / "last").exists():
            os.link(kept / "z" / "last", kept / "linked")
        os.utime(kept, ns=(0, source.stat().st_mtime_ns))
        saved = save(store, source, time=START + number, mode=mode, crypt=crypt)
        made.append((kept, saved.snapshot))
        assert saved.problems == []
        if not changing and CHAIN[number - 1 : number + 1] == ["metadata", "metadata"]:
            assert saved.result.files.bytes_read == 0
        if changing:
            mutate(source / "dir-0", 100 + number, 8)
    for number, (kept, ref) in enumerate(made):
        assert restored_differences(store, ref, kept, tmp_path / f"out-{number}", crypt) == []
    assert damage(store, crypt) == []


# -- keys ------------------------------------------------------------------------------------------------------------


SWITCHES: list[tuple[str, str, Mode]] = [
    *((first, second, "metadata") for first, second in itertools.permutations(WAYS, 2)),
    *((first, second, "data") for first, second in itertools.permutations(["none", "encrypt", "other-key"], 2)),
]


@pytest.mark.parametrize(("first", "second", "mode"), SWITCHES)
def test_a_key_switch(store: Path, source: Path, tmp_path: Path, first: str, second: str, mode: Mode) -> None:
    """Declared encrypted means encrypted, chunk by chunk, with the snapshot's own key; and back again."""
    made: list[tuple[str, SnapshotRef]] = []
    for number, name in enumerate((first, second, first)):
        crypt_mode, crypt = WAYS[name]
        heard = Heard()
        saved = save(store, source, time=START + number, mode=mode, crypt=crypt, crypt_mode=crypt_mode, heard=heard)
        made.append((name, saved.snapshot))
        if number:
            assert reused(saved) == 0 and saved.result.files.unchanged == 0
        if number and mode == "metadata":
            assert len([text for text in heard.notices if "is saved completely" in text]) == 1
    digests: dict[int, set[bytes]] = {}
    for number, (name, ref) in enumerate(made):
        crypt_mode, crypt = WAYS[name]
        digests[number] = check_kinds(store, ref, crypt)
        assert restored_differences(store, ref, source, tmp_path / f"out-{number}", crypt) == []
        with Store.open(store) as opened:
            manifest = opened.manifest(ref)
        assert {file.crypt_mode for file in manifest.files} == {crypt_mode}
        assert manifest.fingerprint == (None if crypt is None else crypt.fingerprint)
    encrypted = [WAYS[name][1] if WAYS[name][0] == "encrypt" else None for name in (first, second)]
    assert digests[0].isdisjoint(digests[1]) or encrypted[0] is encrypted[1] is None
    for crypt in (None, KEY, OTHER_KEY):
        assert damage(store, crypt) == []


def test_a_key_switch_on_the_command_line(store: Path, source: Path, tmp_path: Path) -> None:
    key, other = write_key(tmp_path / "key.json"), write_key(tmp_path / "other.json", bytes(range(32)))
    runs: list[tuple[list[str | Path], bool]] = [
        (["--keyfile", key], False),
        (["--keyfile", other], True),
        ([], True),
        (["--keyfile", key, "--crypt", "sign-only"], True),
        (["--keyfile", key], True),
    ]
    for arguments, told in runs:
        options = ["--id", "test", "--mode", "metadata", "--chunk-size", "64", "--json"]
        done = archiver("--store", store, "backup", f"tree.pxar:{source}", *options, *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("is saved completely") == told, done.stderr
        assert json.loads(done.stdout)["archives"][0]["reused_chunks"] == 0


# -- previous snapshots that are no good -------------------------------------------------------------------------------


def rewrite_manifest(store: Path, ref: SnapshotRef, change: Callable[[dict[str, Any]], None]) -> None:
    """As another program does it: a new file in the place of the old one."""
    path = store / ref.path / MANIFEST
    document = json.loads(bytes(blob.decode(path.read_bytes())))
    change(document)
    spare = path.with_name("spare")
    spare.write_bytes(bytes(blob.encode(json.dumps(document).encode())))
    spare.rename(path)


def fail_verification(store: Path, ref: SnapshotRef) -> None:
    state = {"state": "failed", "upid": "UPID:pbs:00000001:00000001:00000001:65000000:verify:x:root@pam:"}
    rewrite_manifest(store, ref, lambda document: document["unprotected"].update(verify_state=state))


def drop_signature(store: Path, ref: SnapshotRef) -> None:
    def change(document: dict[str, Any]) -> None:
        document["signature"] = None

    rewrite_manifest(store, ref, change)


def drop_payload(store: Path, ref: SnapshotRef) -> None:
    def change(document: dict[str, Any]) -> None:
        document["files"] = [file for file in document["files"] if ".ppxar" not in file["filename"]]
        document["signature"] = None

    rewrite_manifest(store, ref, change)


def damage_payload_index(store: Path, ref: SnapshotRef) -> None:
    path = store / ref.path / "tree.ppxar.didx"
    data = bytearray(path.read_bytes())
    data[4096 + 45] ^= 1
    path.write_bytes(data)


def truncate_payload_index(store: Path, ref: SnapshotRef) -> None:
    path = store / ref.path / "tree.ppxar.didx"
    os.truncate(path, path.stat().st_size - 40)


def truncate_metadata_index(store: Path, ref: SnapshotRef) -> None:
    path = store / ref.path / "tree.mpxar.didx"
    os.truncate(path, path.stat().st_size - 1)


def lose_payload_index(store: Path, ref: SnapshotRef) -> None:
    (store / ref.path / "tree.ppxar.didx").unlink()


def damage_manifest(store: Path, ref: SnapshotRef) -> None:
    path = store / ref.path / MANIFEST
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


UNUSABLE = (
    fail_verification,
    drop_payload,
    damage_payload_index,
    truncate_payload_index,
    lose_payload_index,
    damage_manifest,
)


def saved_completely(store: Path, source: Path, out: Path, **options: Any) -> None:
    """The next run takes nothing over, is complete, and says why in one line."""
    heard = Heard()
    saved = save(store, source, time=START + 100, mode="metadata", heard=heard, **options)
    assert reused(saved) == 0 and saved.result.files.unchanged == 0
    told = [text for text in heard.notices if "is saved completely" in text]
    assert len(told) == 1 and told[0].startswith("tree.pxar is saved completely: ") and "\n" not in told[0]
    assert restored_differences(store, saved.snapshot, source, out, options.get("crypt")) == []


@pytest.mark.parametrize("harm", UNUSABLE)
@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
def test_a_previous_snapshot_that_cannot_be_used(
    store: Path,
    source: Path,
    tmp_path: Path,
    harm: Callable[[Path, SnapshotRef], None],
    crypt: CryptConfig | None,
) -> None:
    """An older one that is sound is not taken instead, and the harm is seen whatever the database remembers."""
    save(store, source, time=START, mode="metadata", crypt=crypt)
    harm(store, save(store, source, time=START + 1, mode="metadata", crypt=crypt).snapshot)
    saved_completely(store, source, tmp_path / "out", crypt=crypt)


@pytest.mark.parametrize("crypt_mode", ["encrypt", "sign-only"])
def test_a_manifest_that_lost_its_signature(store: Path, source: Path, tmp_path: Path, crypt_mode: CryptMode) -> None:
    drop_signature(store, save(store, source, time=START, mode="metadata", crypt=KEY, crypt_mode=crypt_mode).snapshot)
    saved_completely(store, source, tmp_path / "out", crypt=KEY, crypt_mode=crypt_mode)


def test_a_damaged_metadata_index(store: Path, source: Path, tmp_path: Path) -> None:
    """Whether it is needed at all is the program's business; the next snapshot is right in any case."""
    first = save(store, source, time=START, mode="metadata").snapshot
    truncate_metadata_index(store, first)
    mutate(source / "dir-0", 5, 8)
    saved = save(store, source, time=START + 1, mode="metadata")
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []
    assert {(error.snapshot, error.archive) for error in damage(store)} == {(str(first), "tree.mpxar.didx")}


def test_another_archive_name(store: Path, source: Path, tmp_path: Path) -> None:
    """The first of its name: nothing to compare with, which needs no word."""
    save(store, {"other": source}, time=START, mode="metadata")
    heard = Heard()
    saved = save(store, source, time=START + 1, mode="metadata", heard=heard)
    assert heard.notices == [] and saved.result.files.unchanged == 0
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []


def test_another_source_by_the_same_name(store: Path, source: Path, tmp_path: Path) -> None:
    """A copy with all times and sizes, but with other bytes in it."""
    save(store, source, time=START, mode="metadata")
    copy = tmp_path / "copy"
    shutil.copytree(source, copy, symlinks=True)
    for number, path in enumerate(sorted(copy.rglob("file-*"))):
        before = path.stat()
        path.write_bytes(noise(500 + number, before.st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    saved = save(store, copy, time=START + 1, mode="metadata")
    assert restored_differences(store, saved.snapshot, copy, tmp_path / "out") == []
    back = save(store, source, time=START + 2, mode="metadata")
    assert restored_differences(store, back.snapshot, source, tmp_path / "back") == []


def test_another_backup_id(store: Path, source: Path, tmp_path: Path) -> None:
    """Its first run: nothing to compare with, which needs no word."""
    save(store, source, time=START, mode="metadata")
    heard = Heard()
    other = GroupRef("", "host", "another")
    saved = save(store, source, time=START, mode="metadata", group=other, heard=heard)
    assert reused(saved) == 0 and heard.notices == []
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []


def test_two_groups_take_turns(store: Path, source: Path, tmp_path: Path) -> None:
    """Each compares with its own last run: what the other one has seen in between is news to it."""
    groups = [GroupRef("", "host", name) for name in ("one", "two")]
    for number in range(6):
        group = groups[number % 2]
        saved = save(store, source, time=START + number, mode="metadata", group=group)
        assert restored_differences(store, saved.snapshot, source, tmp_path / f"out-{number}") == []
        if number > 1:
            assert saved.result.files.unchanged > 0
        mutate(source / "dir-0", 200 + number, 5)
    assert damage(store) == []


def test_a_newer_unfinished_snapshot(store: Path, source: Path, tmp_path: Path) -> None:
    """Its directory is there and has an index, but no manifest: the last finished one is what counts."""
    first = save(store, source, time=START, mode="metadata").snapshot
    unfinished = store / GROUP.path / format_time(START + 50)
    shutil.copytree(store / first.path, unfinished)
    (unfinished / MANIFEST).unlink()
    saved = save(store, source, time=START + 100, mode="metadata")
    assert (saved.result.files.bytes_read, saved.result.files.reencoded) == (0, 0)
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []
    with Store.open(store) as opened:
        assert len(every_snapshot(opened)) == 3


# -- chunks that are no good -------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("harm", [remove, shorten, empty])
@pytest.mark.parametrize("every", [1, 2, 7])
@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
def test_bad_chunks_are_stored_again(
    store: Path,
    source: Path,
    tmp_path: Path,
    harm: Callable[[Path], None],
    every: int,
    crypt: CryptConfig | None,
) -> None:
    """Of contents and of names alike."""
    save(store, source, time=START, mode="metadata", crypt=crypt)
    bad = chunk_files(store)[::every]
    for path in bad:
        harm(path)
    assert damage(store, crypt) != []
    saved = save(store, source, time=START + 1, mode="metadata", crypt=crypt)
    assert new_chunks(saved) > 0
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out", crypt) == []
    left = {error.snapshot for error in damage(store, crypt)}
    assert str(saved.snapshot) not in left


def test_a_clock_that_stands_still(store: Path, source: Path, tmp_path: Path) -> None:
    """Files that are younger than the moment of the run, as after a clock was put back: their times prove nothing."""

    class Behind(Clock):
        def now(self) -> int:
            return START

        def now_ns(self) -> int:
            return START * 10**9

    victim = source / "large"
    for number in range(3):
        saved = save(store, source, time=START + number, mode="metadata", clock=Behind())
        assert restored_differences(store, saved.snapshot, source, tmp_path / f"out-{number}") == []
        victim.write_bytes(noise(900 + number, 1 << 20))
