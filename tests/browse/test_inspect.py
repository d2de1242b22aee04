from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archiver.browse import inspect as module
from archiver.browse.inspect import decode_blob, inspect_file
from archiver.errors import ArchiverError, Damaged, KeyProblem, UsageError
from formats import blob
from formats.crypt import CryptConfig
from tests.formats.pxar.listings import entries_only, golden_names, load, prelude_of
from tests.golden_data import GOLDEN, content
from tests.hostile.build import KEY as HOSTILE_KEY
from tests.hostile.build import corpus, hostile_blobs, hostile_catalogs, hostile_indexes, hostile_manifests
from tests.hostile.limits import bounded
from tests.hostile.writer import Writer

BLOBS: dict[str, Any] = json.loads((GOLDEN / "blobs/blobs.json").read_bytes())
KEYS: dict[str, Any] = json.loads((GOLDEN / "keys/keys.json").read_bytes())
CATALOGS: dict[str, Any] = json.loads((GOLDEN / "catalog/catalog.json").read_bytes())
KEY = CryptConfig(bytes.fromhex(BLOBS["key"]))
MOST_SHOWN = 96 << 20  # bytes of JSON


def shown(path: Path, payload: Path | None = None, crypt: CryptConfig | None = None) -> dict[str, Any]:
    """What a user sees as JSON."""
    fields = inspect_file(str(path), None if payload is None else str(payload), crypt)
    text = json.dumps(fields)
    assert len(text) < MOST_SHOWN
    document: dict[str, Any] = json.loads(text)
    return document


def written(directory: Path, data: bytes) -> Path:
    path = directory / "file"
    path.write_bytes(data)
    return path


# Golden files.


@pytest.mark.parametrize("name", sorted(path.name for path in (GOLDEN / "blobs").glob("*.blob")))
def test_blobs(name: str) -> None:
    facts = next(facts for facts in BLOBS["blobs"] if facts["file"] == name)
    fields = shown(GOLDEN / "blobs" / name, crypt=KEY)
    assert fields["kind"] == "blob"
    assert (fields["encrypted"], fields["compressed"], fields["crc"]) == (
        facts["encrypted"],
        facts["compressed"],
        facts["crc"],
    )
    assert (fields["size"], fields["digest"]) == (facts["size"], facts["chunk_digest"])
    assert (fields["file_size"], fields["file_sha256"]) == (facts["raw_size"], facts["raw_sha256"])
    without = shown(GOLDEN / "blobs" / name)
    assert ("digest" in without) != facts["encrypted"]
    assert ("contents" in without) == facts["encrypted"]
    assert without["file_sha256"] == facts["raw_sha256"]


@pytest.mark.parametrize("name", sorted(KEYS["files"]))
def test_key_files(name: str) -> None:
    fields = shown(GOLDEN / "keys" / name)
    kdf = name.removeprefix("key-").removesuffix(".json")
    assert fields == {
        "kind": "key file",
        "kdf": kdf,
        "fingerprint": KEYS["files"][name]["fingerprint"],
        "hint": "the hint" if kdf == "scrypt" else None,
    }


def test_key_files_keep_their_secret() -> None:
    text = json.dumps(shown(GOLDEN / "keys/key-none.json"))
    assert KEYS["key"] not in text
    assert base64.b64encode(bytes.fromhex(KEYS["key"])).decode()[:20] not in text


def test_wrapped_key() -> None:
    assert shown(GOLDEN / "keys/rsa-encrypted.key.blob")["kind"] == "blob"


@pytest.mark.parametrize("name", ["aligned.fidx", "sample.didx", "sample.fidx"])
def test_indexes(name: str) -> None:
    fields = shown(GOLDEN / "index" / name)
    assert fields["kind"] == ("dynamic index" if name.endswith("didx") else "fixed index")
    assert fields["count"] == len(fields["chunks"]) > 0
    assert fields["complete"] is True
    assert fields["csum"] == fields["stored_csum"]
    ends = [chunk["end"] for chunk in fields["chunks"]]
    assert ends == sorted(set(ends)) and ends[-1] == fields["size"]
    assert ("chunk_size" in fields) == name.endswith("fidx")


@pytest.mark.parametrize("name", ["manifest-signed.index.json.blob", "manifest-signed.json", "manifest-unsigned.json"])
def test_manifests(name: str) -> None:
    fields = shown(GOLDEN / "index" / name)
    assert fields["kind"] == "manifest"
    assert fields["manifest"]["files"]
    assert (fields["manifest"]["signature"] is None) == ("unsigned" in name)


@pytest.mark.parametrize("name", sorted(name for name in CATALOGS if name.endswith(".pcat1")))
def test_catalogs(name: str) -> None:
    fields = shown(GOLDEN / "catalog" / name)
    assert (fields["kind"], fields["complete"]) == ("catalog", True)
    expected = [(entry["type"], entry.get("path"), entry.get("size")) for entry in CATALOGS[name]]
    found = [(entry["type"], entry["path"], entry["size"]) for entry in fields["entries"]]
    assert [entry[0::2] for entry in found] == [entry[0::2] for entry in expected]
    assert all(path == wanted for (_, path, _), (_, wanted, _) in zip(found, expected, strict=True) if wanted)


@pytest.mark.parametrize("name", golden_names(legacy=True))
@pytest.mark.parametrize("with_payload", [False, True])
def test_archives(name: str, with_payload: bool) -> None:
    tree, version = name.rsplit(".", 1)
    _, payload, listing = load(name)
    path = GOLDEN / "pxar" / (f"{tree}.pxar" if version == "v1" else f"{tree}.mpxar")
    if with_payload and payload is None:
        with pytest.raises(Damaged, match="version"):
            shown(path, GOLDEN / "pxar/plain.ppxar")
        return
    fields = shown(path, GOLDEN / "pxar" / f"{tree}.ppxar" if with_payload else None)
    assert (fields["kind"], fields["version"], fields["complete"]) == ("pxar archive", int(version[1:]), True)
    prelude = prelude_of(listing)
    assert fields["prelude"] == (None if prelude is None else prelude.decode())
    expected = entries_only(listing)
    assert [entry["kind"] for entry in fields["entries"]] == [entry["kind"] for entry in expected]
    for entry, wanted in zip(fields["entries"], expected, strict=True):
        assert entry["size"] == wanted.get("size", 0)
        assert entry["mode"] == ("" if wanted["kind"] == "hardlink" else f"{wanted['mode']:o}")
        if "path" in wanted:
            assert "/" + entry["path"].lstrip("/") == wanted["path"]


def test_payload_streams() -> None:
    path = GOLDEN / "pxar/features.ppxar"
    assert shown(path) == {"kind": "pxar payload stream", "file_size": path.stat().st_size}


# Damage.

SMALL = {
    "blob": GOLDEN / "blobs/one-byte-zstd.blob",
    "encrypted blob": GOLDEN / "blobs/empty-encr.blob",
    "manifest blob": GOLDEN / "index/manifest-signed.index.json.blob",
    "manifest": GOLDEN / "index/manifest-unsigned.json",
    "key": GOLDEN / "keys/key-scrypt.json",
    "catalog": GOLDEN / "catalog/synthetic.pcat1",
    "archive": GOLDEN / "pxar/empty-root.pxar",
    "split archive": GOLDEN / "pxar/exclude.mpxar",
    "old archive": GOLDEN / "pxar/legacy-entry-v1.pxar",
}


def test_cut_files(tmp_path: Path) -> None:
    """Every length of the small ones."""
    path = tmp_path / "file"
    for name, original in SMALL.items():
        whole = original.read_bytes()
        lengths = range(0, len(whole), 1 + len(whole) // 1500)
        for length in lengths:
            path.write_bytes(whole[:length])
            with pytest.raises(Damaged) as caught:
                pytest.fail(f"{name} cut to {length}: {shown(path, crypt=KEY)}")
            assert str(caught.value).startswith(f"{path} is damaged or of no known kind: ")


def test_cut_indexes(tmp_path: Path) -> None:
    for name in ("sample.didx", "sample.fidx"):
        whole = (GOLDEN / "index" / name).read_bytes()
        for length in [*range(0, 4096, 97), *range(4090, len(whole), 7)]:
            try:
                fields = shown(written(tmp_path, whole[:length]))
            except Damaged:
                continue
            assert fields["csum"] != fields["stored_csum"], length  # whole entries are left, and it shows


@pytest.mark.parametrize("name", SMALL)
def test_flipped_bytes(name: str, tmp_path: Path) -> None:
    """A value or an error that says what is wrong."""
    whole = SMALL[name].read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 300)):
        changed = bytearray(whole)
        changed[at] ^= 0x81
        try:
            shown(written(tmp_path, bytes(changed)), crypt=KEY)
        except ArchiverError as error:
            assert isinstance(error, Damaged) and str(error)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"{}", b"\0" * 100, b"[]", b"\x7fELF" + bytes(100), b"%PDF-1.4", b"\xff" * 16]
)
def test_garbage(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="of no known kind"):
        shown(written(tmp_path, data))


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a regular file"):
            shown(path)
        with pytest.raises(UsageError, match="not a regular file"):
            shown(GOLDEN / "pxar/plain.mpxar", path)
    with pytest.raises(ArchiverError, match="no such file"):
        shown(tmp_path / "absent")


def test_wrong_key() -> None:
    with pytest.raises(Damaged, match="another one"):
        shown(GOLDEN / "blobs/text-encr.blob", crypt=CryptConfig(bytes(32)))


# Hostile files: bounded time, memory and output.

HOSTILE: dict[str, Callable[[], dict[str, Any]]] = {
    "index": hostile_indexes,
    "blob": hostile_blobs,
    "manifest": hostile_manifests,
    "catalog": hostile_catalogs,
}
FILES = [(kind, name) for kind, make in HOSTILE.items() for name in make()]


@pytest.fixture(scope="module")
def hostile() -> dict[tuple[str, str], Any]:
    return {(kind, name): file for kind, make in HOSTILE.items() for name, file in make().items()}


@pytest.mark.parametrize("which", FILES, ids=" ".join)
def test_hostile_files(which: tuple[str, str], hostile: dict[tuple[str, str], Any], tmp_path: Path) -> None:
    file = hostile[which]
    path = written(tmp_path, file.data)
    with bounded(120, memory=700 << 20):  # a blob has up to 128 MiB, encrypted and compressed it is there three times
        try:
            fields = shown(path, crypt=CryptConfig(HOSTILE_KEY))
        except ArchiverError as error:
            assert isinstance(error, Damaged | UsageError)
            assert len(str(error)) < 3000
        else:
            assert not file.refused or not fields.get("complete", True) or which[0] in ("blob", "manifest"), fields


def test_hostile_archives(tmp_path: Path) -> None:
    for number, archive in enumerate(corpus().values()):
        path, payload = tmp_path / f"{number}", tmp_path / f"{number}.payload"
        path.write_bytes(archive.archive)
        if archive.payload is not None:
            payload.write_bytes(archive.payload)
        with bounded(120, memory=512 << 20):
            try:
                shown(path, payload if archive.payload is not None else None)
            except ArchiverError as error:
                assert isinstance(error, Damaged)
        path.unlink()
        payload.unlink(missing_ok=True)


def test_long_listings_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shown(GOLDEN / "pxar/features.pxar")
    count = len(whole["entries"])
    for room, complete in [(10 * count, False), (1 << 20, True)]:
        monkeypatch.setattr(module, "_LISTED", room)
        for path, listed in [
            (GOLDEN / "pxar/features.pxar", "entries"),
            (GOLDEN / "catalog/features.pcat1", "entries"),
            (GOLDEN / "index/sample.didx", "chunks"),
        ]:
            monkeypatch.setattr(module, "_LISTED_ITEM", room // 3 if not complete else 1)
            fields = shown(path)
            assert fields["complete"] is complete
            assert (len(fields[listed]) <= 3) != complete
            assert path.suffix != ".didx" or fields["count"] > 3


def test_deep_archive_costs_no_square_of_its_depth(tmp_path: Path) -> None:
    writer = Writer(1)
    writer.root()
    for _ in range(30_000):
        writer.directory(b"d" * 20)
    writer.finish()
    path = written(tmp_path, bytes(writer.archive))
    with bounded(120, memory=400 << 20):
        fields = shown(path)
    assert fields["complete"] is False
    assert fields["entries"][100]["path"] == "/".join(["d" * 20] * 100)


# Decoding.


def test_decode(tmp_path: Path) -> None:
    facts = next(facts for facts in BLOBS["blobs"] if facts["file"] == "text-encr-zstd.blob")
    path = str(GOLDEN / "blobs/text-encr-zstd.blob")
    decode_blob(path, KEY, str(tmp_path / "plain"))
    assert (tmp_path / "plain").read_bytes() == content(facts["content"])
    with pytest.raises(UsageError, match="exists already"):
        decode_blob(path, KEY, str(tmp_path / "plain"))
    with pytest.raises(KeyProblem, match="no key"):
        decode_blob(path, None, str(tmp_path / "other"))
    with pytest.raises(Damaged, match="cannot be decoded"):
        decode_blob(path, CryptConfig(bytes(32)), str(tmp_path / "other"))
    with pytest.raises(ArchiverError, match="no such file"):
        decode_blob(path, KEY, str(tmp_path / "absent/plain"))
    assert os.listdir(tmp_path) == ["plain"]


def test_what_is_inspected_can_be_decoded(tmp_path: Path) -> None:
    data = os.urandom(1000)
    path = written(tmp_path, blob.encode(data, compress=True))
    assert shown(path)["size"] == 1000
    decode_blob(str(path), None, str(tmp_path / "plain"))
    assert (tmp_path / "plain").read_bytes() == data
