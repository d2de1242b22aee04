"""The encrypted and signed snapshots of the golden datastore: read exactly, and written again byte for byte."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard

from archiver.browse.snapshot import Snapshot
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig, chunk_digest
from formats.manifest import Manifest
from tests.golden_data import content
from tests.golden_store import DATASTORE, ENCRYPTED, FINGERPRINT, KEY

SIGNED = "host/signed/2023-11-14T22:13:29Z"
SAME_ZSTD = zstandard.ZSTD_VERSION == (1, 5, 7)  # the golden data's


@pytest.mark.parametrize("name", [*ENCRYPTED, SIGNED])
def test_manifest(store: Path, name: str) -> None:
    """Its signature verifies, it names our fingerprint, and signing it anew gives the same file."""
    raw = (store / name / "index.json.blob").read_bytes()
    text = blob.decode(raw, encrypted=False)
    manifest = Manifest.decode(text)
    assert manifest.check_signature(KEY) and manifest.fingerprint == KEY.fingerprint
    assert json.loads(text)["unprotected"]["key-fingerprint"] == FINGERPRINT
    unsigned = Manifest(
        manifest.backup_type, manifest.backup_id, manifest.backup_time, manifest.files, manifest.unprotected
    )
    again = unsigned.sign(KEY)
    assert again.signature == manifest.signature and again.encode() == text
    if SAME_ZSTD:
        assert blob.encode(again.encode()) == raw
    with Store.open(store, read_only=True) as opened:
        assert Snapshot(opened, opened.find(name), KEY).made_with_key


@pytest.mark.parametrize("name", [name for name in DATASTORE["indexes"] if name.startswith("ns/") or "signed" in name])
def test_chunks(store: Path, name: str) -> None:
    """Given the IVs that are in them, ours are the same."""
    mode = next(
        file["crypt-mode"]
        for file in json.loads(blob.decode((store / name).with_name("index.json.blob").read_bytes()))["files"]
        if file["filename"] == name.rsplit("/", 1)[1]
    )
    crypt = KEY if mode == "encrypt" else None
    assert mode == ("sign-only" if "signed" in name else "encrypt")
    start = 0
    for end, digest in DATASTORE["indexes"][name]["chunks"]:
        raw = (store / ".chunks" / digest[:4] / digest).read_bytes()
        info = blob.inspect(raw)
        assert info.encrypted == (crypt is not None)
        data = blob.decode(raw, crypt, encrypted=info.encrypted)
        assert len(data) == end - start and chunk_digest(data, crypt).hex() == digest
        made = blob.encode(data, crypt, info.iv)
        if SAME_ZSTD or not info.compressed:
            assert made == raw
        if crypt is not None:  # of the same contents, but nobody without the key can tell
            assert sha256(data).hexdigest() != digest
            assert chunk_digest(data, CryptConfig(bytes(32))).hex() != digest
        start = end


def test_blob(store: Path) -> None:
    raw = (store / ENCRYPTED[0] / "pct.conf.blob").read_bytes()
    info = blob.inspect(raw)
    data = blob.decode(raw, KEY, encrypted=True)
    assert data == content(DATASTORE["conf"])
    if SAME_ZSTD or not info.compressed:
        assert blob.encode(data, KEY, info.iv) == raw


@pytest.mark.parametrize("name", ENCRYPTED)
def test_ivs_are_all_different(store: Path, name: str) -> None:
    with Store.open(store, read_only=True) as opened:
        snapshot = Snapshot(opened, opened.find(name), KEY)
        digests = {
            snapshot.index(file).digest(number)
            for file in snapshot.manifest.files
            if file.filename.endswith("idx")
            for number in range(len(snapshot.index(file)))
        }
        files = [Path(opened.layout.chunk(digest.hex())).read_bytes() for digest in digests]
    ivs = [blob.inspect(data).iv for data in files]
    assert len(set(ivs)) == len(ivs) > 1
