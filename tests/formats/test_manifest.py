from __future__ import annotations

import functools
import hashlib
import json
import random
import tarfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.crypt import CryptConfig, parse_fingerprint
from formats.errors import FormatError, IntegrityError, KeyMissing, LimitExceeded, WrongKey
from formats.index import decode_index
from formats.manifest import MAX_DEPTH, MAX_TEXT, MAX_TOKENS, FileInfo, Manifest
from formats.naming import parse_time
from tests.golden_data import GOLDEN

CHECK: dict[str, Any] = json.loads((GOLDEN / "index/manifest-check.json").read_text())
CRYPT = CryptConfig(bytes.fromhex(CHECK["key"]))
OTHER = CryptConfig(bytes(32))
SIGNED = (GOLDEN / "index/manifest-signed.json").read_bytes()
UNSIGNED = (GOLDEN / "index/manifest-unsigned.json").read_bytes()
CSUM = bytes(range(32))


def blob_text(blob: bytes) -> bytes:
    """The plain text of an unencrypted blob, without formats.blob."""
    magic, body = blob[:8].hex(), blob[12:]
    if magic == "42ab3807be8370a1":
        return body
    assert magic == "31b958426fb6a37f"
    return zstandard.ZstdDecompressor().decompressobj().decompress(body)


@functools.cache
def datastore_snapshots() -> dict[str, dict[str, bytes]]:
    """Snapshot directory -> file name -> bytes."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(GOLDEN / "datastore.tar") as tar:
        for member in tar:
            directory, _, name = member.name.removeprefix("datastore/").rpartition("/")
            if name.endswith((".blob", ".didx", ".fidx")):
                found.setdefault(directory, {})[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def fields(**changes: Any) -> dict[str, Any]:
    """The signed golden manifest as JSON data, with changes; None removes a key."""
    merged = {**json.loads(SIGNED), **changes}
    return {key: value for key, value in merged.items() if value is not None}


def decode(data: Any) -> Manifest:
    return Manifest.decode(json.dumps(data).encode())


def manifest_of(*names: str) -> Manifest:
    return Manifest("host", "x", 1, tuple(FileInfo(name, "none", 1, CSUM) for name in names))


@contextmanager
def bounded(seconds: float = 60.0, mebibytes: int = 200) -> Iterator[None]:
    tracemalloc.start()
    started = time.process_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes << 20
        assert time.process_time() - started < seconds
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", CHECK["checks"])
def test_golden_reading(name: str) -> None:
    check = CHECK["checks"][name]
    data = (GOLDEN / "index" / name).read_bytes()
    manifest = Manifest.decode(blob_text(data) if name.endswith(".blob") else data)
    assert (manifest.backup_type, manifest.backup_id, manifest.backup_time) == ("host", "elsa", 1593179765)
    assert [file.filename for file in manifest.files] == check["files"]
    assert [file.crypt_mode for file in manifest.files] == ["encrypt", "none", "sign-only"]
    assert [file.size for file in manifest.files] == [200, 1 << 40, 0]
    assert [file.csum.hex() for file in manifest.files] == [file["csum"] for file in CHECK["input"]["files"]]
    assert manifest.canonical().decode() == check["canonical"]
    assert CRYPT.auth_tag(manifest.canonical()).hex() == check["computed_signature"]
    assert manifest.fingerprint == (check["fingerprint"] and parse_fingerprint(check["fingerprint"]))
    assert manifest.check_signature(CRYPT) is check["signed"]
    assert not manifest.has_unknown


def test_golden_writing() -> None:
    given_ = CHECK["input"]
    manifest = Manifest(
        given_["backup-type"],
        given_["backup-id"],
        given_["backup-time"],
        tuple(
            FileInfo(file["filename"], file["crypt-mode"], file["size"], bytes.fromhex(file["csum"]))
            for file in given_["files"]
        ),
        given_["unprotected"],
    )
    assert manifest.encode() == UNSIGNED
    assert manifest.sign(CRYPT).encode() == SIGNED
    assert manifest.signature is None
    assert "key-fingerprint" not in manifest.unprotected


def test_golden_datastore() -> None:
    described = json.loads((GOLDEN / "datastore.json").read_text())
    crypt = CryptConfig(bytes.fromhex(described["key"]))
    checks = {check["snapshot"]: check for check in described["check"] if "snapshot" in check}
    snapshots = datastore_snapshots()
    assert snapshots.keys() == checks.keys()
    for path, files in snapshots.items():
        text = blob_text(files["index.json.blob"])
        manifest = Manifest.decode(text)
        assert manifest.encode() == text
        *_, kind, name, when = path.split("/")
        assert (manifest.backup_type, manifest.backup_id, manifest.backup_time) == (kind, name, parse_time(when))
        assert {file.filename for file in manifest.files} == files.keys() - {"index.json.blob", "client.log.blob"}
        for file in manifest.files:
            stored = files[file.filename]
            if file.filename.endswith(".blob"):
                assert (len(stored), hashlib.sha256(stored).digest()) == (file.size, file.csum)
            else:
                index = decode_index(stored)
                assert (index.size, index.csum()) == (file.size, file.csum)
        assert manifest.check_signature(crypt) is (checks[path]["files"]["signature"] == "ok")
        assert manifest.sign(crypt).check_signature(crypt)


def test_vectors() -> None:
    crypt = CryptConfig(bytes(range(32)))
    manifest = Manifest(
        "host", "laptop", 1700000000, (FileInfo("root.pxar.didx", "encrypt", 1234, bytes.fromhex("aa" * 32)),)
    )
    assert manifest.canonical() == (
        b'{"backup-id":"laptop","backup-time":1700000000,"backup-type":"host","files":[{"crypt-mode":"encrypt","csum":"'
        + b"aa" * 32
        + b'","filename":"root.pxar.didx","size":1234}]}'
    )
    signed = manifest.sign(crypt)
    assert signed.signature is not None
    assert signed.signature.hex() == "17bb9a757d5ae2238a4e77c8e53acb47f6fd733a85b2980c27e0c7020efcfe1c"
    assert signed.fingerprint == crypt.fingerprint
    assert signed.unprotected["key-fingerprint"].startswith("0e:ab:d4:46:0b:6e:b9:ca:")


def test_vector_of_the_reference() -> None:
    key = hashlib.scrypt(b"test", salt=b"", n=65536, r=8, p=1, maxmem=1 << 27, dklen=32)
    files = FileInfo("test1.img.fidx", "encrypt", 200, b"\1" * 32), FileInfo("abc.blob", "none", 200, b"\2" * 32)
    signed = Manifest("host", "elsa", 1593179765, files).sign(CryptConfig(key))
    assert signed.signature is not None
    assert signed.signature.hex() == "d7b446fb7db081662081d4b40fedd858a1d6307a5aff4ecff7d5bf4fd35679e9"


def test_signature_covers_what_it_should() -> None:
    signed = Manifest.decode(SIGNED)
    first = signed.files[0]
    altered = [
        replace(signed, backup_id="other"),
        replace(signed, backup_type="vm"),
        replace(signed, backup_time=1),
        replace(signed, files=signed.files[:-1]),
        replace(signed, files=signed.files[::-1]),
        replace(signed, files=(replace(first, crypt_mode="none"), *signed.files[1:])),
        replace(signed, files=(replace(first, size=201), *signed.files[1:])),
        replace(signed, files=(replace(first, csum=CSUM), *signed.files[1:])),
        replace(signed, files=(replace(first, filename="test2.img.fidx"), *signed.files[1:])),
        replace(signed, signature=CSUM),
    ]
    for manifest in altered:
        with pytest.raises(IntegrityError, match="signature"):
            manifest.check_signature(CRYPT)
    assert replace(signed, unprotected={**signed.unprotected, "notes": "new"}).check_signature(CRYPT)
    assert replace(signed, unprotected={}).check_signature(CRYPT)


def test_keys() -> None:
    signed, unsigned = Manifest.decode(SIGNED), Manifest.decode(UNSIGNED)
    signed.check_fingerprint(CRYPT)
    with pytest.raises(KeyMissing, match="c5:b4:ae"):
        signed.check_fingerprint(None)
    for check in (signed.check_fingerprint, signed.check_signature, replace(signed, signature=None).check_signature):
        with pytest.raises(WrongKey, match="c5:b4:ae"):
            check(OTHER)
    with pytest.raises(IntegrityError):
        replace(signed, unprotected={}).check_signature(OTHER)
    unsigned.check_fingerprint(None)
    unsigned.check_fingerprint(CRYPT)
    assert unsigned.check_signature(CRYPT) is False
    assert replace(signed, signature=None).check_signature(CRYPT) is False


def test_unknown_keys() -> None:
    original = json.loads(SIGNED)
    in_file = [{**original["files"][0], "encrypted": True}, *original["files"][1:]]
    for data in (fields(extra=1), fields(files=in_file)):
        manifest = decode(data)
        assert manifest.has_unknown
        assert manifest.encode() == SIGNED
        with pytest.raises(FormatError, match="does not cover"):
            manifest.check_signature(CRYPT)
        assert replace(manifest, signature=None).check_signature(CRYPT) is False
        assert manifest.sign(CRYPT).check_signature(CRYPT)
    inside = decode(fields(unprotected={**original["unprotected"], "strange": [None, 1.5, {"a": True}]}))
    assert not inside.has_unknown
    assert inside.check_signature(CRYPT)
    assert Manifest.decode(inside.encode()) == inside


def test_old_manifests() -> None:
    entry = {"filename": "a.blob", "size": 1, "csum": CSUM.hex(), "encrypted": False}
    manifest = decode({"backup-type": "vm", "backup-id": "1", "backup-time": 5, "files": [entry]})
    assert manifest.files == (FileInfo("a.blob", "none", 1, CSUM),)
    assert (manifest.unprotected, manifest.signature, manifest.fingerprint) == ({}, None, None)
    assert decode(fields(unprotected={"key-fingerprint": None})).fingerprint is None


def test_written_form() -> None:
    manifest = Manifest("host", "x", 1, (), {"b": {}, "a": [], "é": 'é\x7f\x00"\\/\b\f\n\r\t\u2028'})
    assert manifest.encode().decode().splitlines(keepends=True)[4:] == [
        '  "files": [],\n',
        '  "signature": null,\n',
        '  "unprotected": {\n',
        '    "a": [],\n',
        '    "b": {},\n',
        '    "é": "é\x7f\\u0000\\"\\\\/\\b\\f\\n\\r\\t\u2028',
        '"\n',
        "  }\n",
        "}",
    ]
    with pytest.raises(FormatError, match="Unicode"):
        replace(manifest, unprotected={"notes": "\udc80"}).encode()


FILE = {"filename": "a.blob", "crypt-mode": "none", "size": 1, "csum": CSUM.hex()}


@pytest.mark.parametrize(
    "change",
    [
        {"backup-type": "lxc"},
        {"backup-type": 1},
        {"backup-id": ".."},
        {"backup-id": "a/b"},
        {"backup-id": ["a"]},
        {"backup-time": 0},
        {"backup-time": -5},
        {"backup-time": True},
        {"backup-time": 1.0},
        {"backup-time": "1"},
        {"backup-time": 2**63},
        {"files": {}},
        {"files": [1]},
        {"files": [FILE, FILE]},
        {"files": [{**FILE, "filename": "../../x.blob"}]},
        {"files": [{**FILE, "filename": "/etc/x.blob"}]},
        {"files": [{**FILE, "filename": "x"}]},
        {"files": [{**FILE, "filename": "x.pxar"}]},
        {"files": [{**FILE, "filename": "x.blob\n"}]},
        {"files": [{**FILE, "filename": "index.json.blob"}]},
        {"files": [{**FILE, "filename": None}]},
        {"files": [{**FILE, "size": -1}]},
        {"files": [{**FILE, "size": 2**64}]},
        {"files": [{**FILE, "size": 1.0}]},
        {"files": [{**FILE, "size": False}]},
        {"files": [{**FILE, "csum": "00" * 31}]},
        {"files": [{**FILE, "csum": "00" * 33}]},
        {"files": [{**FILE, "csum": "AB" * 32}]},
        {"files": [{**FILE, "csum": "0 " * 32}]},
        {"files": [{**FILE, "crypt-mode": "Encrypt"}]},
        {"files": [{**FILE, "crypt-mode": None}]},
        {"files": [{**FILE, "crypt-mode": ["none"]}]},
        {"files": [{k: v for k, v in FILE.items() if k != "csum"}]},
        {"signature": ""},
        {"signature": "00" * 31},
        {"signature": 5},
        {"unprotected": []},
        {"unprotected": "x"},
        {"unprotected": {"key-fingerprint": "00"}},
        {"unprotected": {"key-fingerprint": 1}},
    ],
    ids=str,
)
def test_bad_values(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        decode({**json.loads(SIGNED), **change})


@pytest.mark.parametrize("key", ["backup-type", "backup-id", "backup-time", "files"])
def test_missing_keys(key: str) -> None:
    with pytest.raises(FormatError, match=key):
        decode(fields(**{key: None}))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"{}x",
        SIGNED[:-1],
        SIGNED + b"{}",
        b"\xef\xbb\xbf" + SIGNED,
        b"\xff" + SIGNED,
        SIGNED.decode().encode("utf-16"),
        SIGNED.replace(b'"elsa"', b'"elsa", "backup-id": "elsa"'),
        SIGNED.replace(b'"size": 200', b'"size": 200, "size": 200'),
        SIGNED.replace(b'"count": 2', b'"count": 2, "count": 3'),
        SIGNED.replace(b'"count": 2', b'"count": NaN'),
        SIGNED.replace(b'"count": 2', b'"count": -Infinity'),
        SIGNED.replace(b'"count": 2', b'"count": 1e999'),
        SIGNED.replace(b'"count": 2', b'"count": ' + b"1" * 5000),
        SIGNED.replace(b"Zeile", b"\\ud800"),
        SIGNED.replace(b"Zeile", b"\0"),
        SIGNED.replace(b"200", b"2e2"),
        SIGNED.replace(b"200", b"0200"),
    ],
    ids=range(21),
)
def test_bad_text(text: bytes) -> None:
    with pytest.raises(FormatError):
        Manifest.decode(text)


BIG = MAX_TEXT - 1000


@pytest.mark.parametrize(
    "text",
    [
        b"[" * BIG,
        b'{"":' * (BIG // 4),
        b'{"a":[' * (MAX_DEPTH // 2 + 1),
        b"[" + b"[]," * (BIG // 3),
        b"[" + b"{}," * (BIG // 3),
        b"[" + b"7777," * (BIG // 5),
        b'"' * BIG,
        b'"' + b'\\"' * (BIG // 2),
        b'["' + "\U0001f600".encode() * (BIG // 4) + b'"]',
        b"{" + b",".join(b'"%d":0' % i for i in range(MAX_TOKENS // 3)) + b"}",
        b"[" + b"1" * BIG + b"]",
        b"[" + b"1" * BIG + b".5]",
        b" " * (MAX_TEXT + 1),
    ],
    ids=range(13),
)
def test_hostile_text(text: bytes) -> None:
    with bounded(), pytest.raises(FormatError):
        Manifest.decode(text)


def test_limits() -> None:
    for text in (b" " * (MAX_TEXT + 1), b"[" * (MAX_DEPTH + 1), b"," * (MAX_TOKENS + 2)):
        with pytest.raises(LimitExceeded):
            Manifest.decode(text)
    nested: Any = 1
    for _ in range(MAX_DEPTH - 2):
        nested = [nested]
    manifest = Manifest("host", "x", 1, (), {"nested": nested, "notes": "[{" * 1000, "more": '\\"[' * 1000})
    assert Manifest.decode(manifest.encode()) == manifest
    many = manifest_of(*(f"{i}.blob" for i in range(38_000)))
    assert Manifest.decode(many.encode()) == many
    with pytest.raises(LimitExceeded):
        Manifest.decode(manifest_of(*(f"{i}.blob" for i in range(39_000))).encode())


def test_files() -> None:
    manifest = Manifest.decode(SIGNED)
    assert manifest.file("abc.blob") == manifest.files[1]
    assert manifest.file("abc") is None
    with pytest.raises(FormatError, match=r"twice.*a\.blob"):
        manifest_of("a.blob", "b.blob", "a.blob")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FILES = st.lists(
    st.builds(
        FileInfo,
        st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,10}\.(didx|fidx|blob)\Z").filter(
            lambda n: n != "index.json.blob"
        ),
        st.sampled_from(["none", "encrypt", "sign-only"]),
        st.integers(0, 2**64 - 1),
        st.binary(min_size=32, max_size=32),
    ),
    max_size=4,
    unique_by=lambda file: file.filename,
).map(tuple)


@given(FILES, st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.integers(1, 2**37))
@settings(max_examples=100, deadline=None)
def test_round_trip(files: tuple[FileInfo, ...], unprotected: dict[str, Any], when: int) -> None:
    unprotected.pop("key-fingerprint", None)
    manifest = Manifest("ct", "100", when, files, unprotected)
    assert Manifest.decode(manifest.encode()) == manifest
    signed = Manifest.decode(manifest.sign(CRYPT).encode())
    assert signed == manifest.sign(CRYPT)
    assert signed.check_signature(CRYPT)
    assert json.loads(manifest.canonical()).keys() == {"backup-type", "backup-id", "backup-time", "files"}


def test_mutations() -> None:
    """Damaged text is refused, or it says the same, or something unsigned changed, or the signature tells."""
    rng = random.Random(1)
    original = Manifest.decode(SIGNED)
    outcomes = {"refused": 0, "told": 0, "same": 0}
    for _ in range(3000):
        data = bytearray(SIGNED)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    data[at] = rng.choice(b'{}[],:"\\0123e-. ntf\x00\xff')
                case 2:
                    del data[at : at + rng.randint(1, 20)]
                case 3:
                    data[at:at] = data[(start := rng.randrange(len(data))) : start + rng.randint(1, 40)]
        try:
            manifest = Manifest.decode(bytes(data))
        except FormatError:
            outcomes["refused"] += 1
            continue
        assert Manifest.decode(manifest.encode()) == replace(manifest, has_unknown=False)
        try:
            signed = manifest.check_signature(CRYPT)
        except FormatError:
            outcomes["told"] += 1
            continue
        assert not signed or replace(manifest, unprotected={}) == replace(original, unprotected={})
        outcomes["same"] += 1
    assert min(outcomes.values()) > 20, outcomes
