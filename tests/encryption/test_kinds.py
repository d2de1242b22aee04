"""What each encryption mode makes of the files of a snapshot, in every archive mode."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from archiver.backup.run import BackupOptions, CryptMode, Mode, backup
from archiver.backup.specification import ArchiveSpec
from archiver.browse.snapshot import Snapshot
from archiver.core.events import ignore
from archiver.store.store import Store
from formats import blob
from formats.crypt import chunk_digest
from formats.manifest import Manifest
from tests.random_trees import build_plain, noise
from tests.stores import CHUNK_SIZE, GROUP, KEY, chunk_files, make_store, save

pytestmark = pytest.mark.in_memory

MODES: list[Mode] = ["metadata", "data", "legacy"]
CRYPT_MODES: list[CryptMode] = ["none", "sign-only", "encrypt"]


def refuse_one(monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    opened = os.open

    def open_some(path: Any, *arguments: Any, **options: Any) -> int:
        if path == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_some)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("crypt_mode", CRYPT_MODES)
def test_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, crypt_mode: CryptMode) -> None:
    """Two runs, of which the second finds chunks of the first, and one that has a log."""
    store, source = make_store(tmp_path / "store"), tmp_path / "source"
    build_plain(source, 1, files=40, max_size=60_000)
    (source / "unreadable").write_bytes(b"secret")
    crypt = KEY if crypt_mode != "none" else None
    save(store, source, mode=mode, crypt=crypt, crypt_mode=crypt_mode)
    (source / "new").write_bytes(noise(1, 1000))
    (source / "unreadable").write_bytes(b"other secret")
    refuse_one(monkeypatch, b"unreadable")
    saved = save(store, source, mode=mode, crypt=crypt, crypt_mode=crypt_mode)
    encrypted = crypt_mode == "encrypt"
    seen = set()
    with Store.open(store) as opened:
        for when in opened.times(GROUP):
            snapshot = Snapshot(opened, type(saved.snapshot)(GROUP, when), crypt)
            names = {file.filename for file in snapshot.manifest.files}
            split = {"tree.mpxar.didx", "tree.ppxar.didx"}
            assert names == ({"tree.pxar.didx", "catalog.pcat1.didx"} if mode == "legacy" else split)
            assert {file.crypt_mode for file in snapshot.manifest.files} == {crypt_mode}
            assert snapshot.manifest.fingerprint == (None if crypt is None else KEY.fingerprint)
            assert (snapshot.manifest.signature is not None) == (crypt is not None)
            for file in snapshot.manifest.files:
                index = snapshot.index(file)
                for number in range(len(index)):
                    raw = Path(opened.layout.chunk(index.digest(number).hex())).read_bytes()
                    data = blob.decode(raw, crypt, encrypted=encrypted)
                    assert index.digest(number) == chunk_digest(data, KEY if encrypted else None)
                    assert (index.digest(number) == sha256(data).digest()) == (not encrypted)
                    seen.add(index.digest(number).hex())
    assert {path.name for path in chunk_files(store)} == seen
    raw = (store / saved.snapshot.path / "client.log.blob").read_bytes()
    log = blob.decode(raw, KEY if encrypted else None, encrypted=encrypted)
    assert b"unreadable: /unreadable" in log


def counting() -> Callable[[int], bytes]:
    """Random bytes for a test: never the same, but the same in each run."""
    state = [0]

    def take(length: int) -> bytes:
        state[0] += 1
        return sha256(state[0].to_bytes(8, "big")).digest()[:length]

    return take


@pytest.mark.parametrize("mode", MODES)
def test_same_randomness_same_files(tmp_path: Path, mode: Mode) -> None:
    """What is written depends on the tree, the key, the time and the random bytes, and on nothing else."""
    source = tmp_path / "source"
    build_plain(source, 1, files=20, max_size=5000)  # a chunk for each stream: who is first does not matter
    made: list[dict[str, bytes]] = []
    for number in range(2):
        path = make_store(tmp_path / f"store-{number}")
        with Store.open(path, random=counting()) as store:
            _ = store.database
            options = BackupOptions(
                GROUP, mode=mode, time=10**9, crypt_mode="encrypt", crypt=KEY, chunk_size=CHUNK_SIZE
            )
            ref = backup(store, [ArchiveSpec("tree", str(source))], options, ignore).snapshot
        found = [*(path / ref.path).iterdir(), *chunk_files(path)]
        made.append({str(file.relative_to(path)): file.read_bytes() for file in found})
    assert made[0].keys() == made[1].keys()
    assert {name for name in made[0] if made[0][name] != made[1][name]} == set()


def test_manifest_alone_is_never_encrypted(tmp_path: Path) -> None:
    store, source = make_store(tmp_path / "store"), tmp_path / "source"
    source.mkdir()
    saved = save(store, source, crypt=KEY)
    raw = (store / saved.snapshot.path / "index.json.blob").read_bytes()
    assert Manifest.decode(blob.decode(raw, encrypted=False)).check_signature(KEY)
