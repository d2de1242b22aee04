"""Hostile index files, blobs, manifests and catalogs (spec blob-index-crypto.md 2, 7, 8, 10), built by hand."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY = bytes(range(32))  # the encryption key of the encrypted blobs
IV = bytes(range(16, 32))
DIGEST = bytes(range(100, 132))


class HostileFile(NamedTuple):
    """``refused``: a reader must raise FormatError; else a value is as good."""

    data: bytes
    note: str
    refused: bool


class _Files(dict[str, HostileFile]):
    def add(self, note: str, data: bytes, refused: bool = True) -> None:
        assert note not in self, note
        self[note] = HostileFile(data, note, refused)


# ------------------------------------------------------------------------------------------------------- indexes

_DIDX_MAGIC = bytes.fromhex("1c914ea519bab3cd")
_FIDX_MAGIC = bytes.fromhex("2f7f41ed91fd0fcd")


def _didx(*ends: int, magic: bytes = _DIDX_MAGIC, header: int = 4096) -> bytes:
    head = magic + bytes(16) + struct.pack("<q", 1_700_000_000) + bytes(32)
    return head.ljust(header, b"\0") + b"".join(struct.pack("<Q", end) + DIGEST for end in ends)


def _fidx(size: int, chunk_size: int, count: int, *, magic: bytes = _FIDX_MAGIC) -> bytes:
    head = magic + bytes(16) + struct.pack("<q", 1_700_000_000) + bytes(32) + struct.pack("<QQ", size, chunk_size)
    return head.ljust(4096, b"\0") + DIGEST * count


def hostile_indexes() -> dict[str, HostileFile]:
    """Dynamic and fixed indexes."""
    files = _Files()
    top = 2**64 - 1
    files.add("didx valid", _didx(10, 20), refused=False)  # proves that the others are refused for their own mistake
    files.add("fidx valid", _fidx(10 << 20, 4 << 20, 3), refused=False)
    files.add("nothing", b"")
    files.add("a magic alone", _DIDX_MAGIC)
    files.add("zeros", bytes(8192))
    files.add("unknown magic", _didx(10, magic=b"\xff" * 8))
    files.add("blob magic", _didx(10, magic=bytes.fromhex("42ab3807be8370a1")))
    files.add("fidx magic on a didx", _didx(10, 20, magic=_FIDX_MAGIC))
    files.add("didx magic on a fidx", _fidx(4 << 20, 4 << 20, 1, magic=_DIDX_MAGIC))
    files.add("didx without entries", _didx())
    files.add("didx large header without entries", _didx(header=16384))
    files.add("didx cut inside an entry", _didx(10, 20)[:-1])
    files.add("didx cut inside the header", _didx(10)[:4000])
    files.add("didx one byte too many", _didx(10, 20) + b"\0")
    files.add("didx ends falling", _didx(10, 20, 15))
    files.add("didx ends equal", _didx(10, 10))
    files.add("didx first end zero", _didx(0, 10))
    files.add("didx end wraps", _didx(10, top, 5))
    files.add("didx one chunk of 2^64-1 bytes", _didx(top), refused=False)
    files.add("didx one chunk of 2^63 bytes", _didx(2**63), refused=False)
    files.add("didx falling far inside", _didx(*range(1, 5000), 17, *range(5001, 6000)))
    files.add("fidx size 0", _fidx(0, 4 << 20, 0))
    files.add("fidx size 0 with a digest", _fidx(0, 4 << 20, 1))
    files.add("fidx chunk size 0", _fidx(10, 0, 1))
    files.add("fidx chunk size 3", _fidx(9, 3, 3))
    files.add("fidx chunk size 2^64-1", _fidx(10, top, 1))
    files.add("fidx chunk size 2^63", _fidx(10, 2**63, 1), refused=False)
    files.add("fidx chunk size 1", _fidx(100, 1, 100), refused=False)
    files.add("fidx too few digests", _fidx(10 << 20, 4 << 20, 2))
    files.add("fidx too many digests", _fidx(10 << 20, 4 << 20, 4))
    files.add("fidx size 2^64-1", _fidx(top, 4 << 20, 3))
    files.add("fidx size 2^63", _fidx(2**63, 4 << 20, 3))
    files.add("fidx size and chunk size 2^63", _fidx(2**63, 2**63, 1), refused=False)
    files.add("fidx size that wraps with the chunk size", _fidx(top, 2**63, 1))
    files.add("fidx cut inside a digest", _fidx(10 << 20, 4 << 20, 3)[:-5])
    return files


# --------------------------------------------------------------------------------------------------------- blobs

_PLAIN, _PLAIN_ZSTD = bytes.fromhex("42ab3807be8370a1"), bytes.fromhex("31b958426fb6a37f")
_SEALED, _SEALED_ZSTD = bytes.fromhex("7b6785be222d4cf0"), bytes.fromhex("e6591bbf0bbfd80b")
_BLOCK = 128 << 10  # plain bytes of one zstd block


def _blob(magic: bytes, body: bytes) -> bytes:
    return magic + struct.pack("<I", zlib.crc32(body)) + body


def _sealed(magic: bytes, plain: bytes, key: bytes = KEY) -> bytes:
    both = AESGCM(key).encrypt(IV, plain, None)
    body, tag = both[:-16], both[-16:]
    return magic + struct.pack("<I", zlib.crc32(body)) + IV + tag + body


def zstd_zeros(
    size: int, *, content_size: int | None = None, window_log: int = 17, repeats: int | None = None
) -> bytes:
    """A zstd frame of run-length blocks: 4 bytes for each 128 KiB of zeros. ``content_size`` is what its header
    claims; ``repeats`` overrides the number of blocks."""
    if content_size is None:
        head = bytes([0x00, (window_log - 10) << 3])
    else:
        head = bytes([0xC0, (window_log - 10) << 3]) + struct.pack("<Q", content_size)
    count = size // _BLOCK if repeats is None else repeats
    block = (_BLOCK << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (_BLOCK << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd" + head + block * (count - 1) + last


def hostile_blobs() -> dict[str, HostileFile]:
    """Plain and encrypted blobs, to be decoded with ``KEY``. Everything that may be a value is below 1 MiB; the bombs
    inflate to 8 GiB."""
    files = _Files()
    bomb = 8 << 30
    small = zstd_zeros(_BLOCK)
    files.add("valid", _blob(_PLAIN, b"data"), refused=False)
    files.add("valid zstd", _blob(_PLAIN_ZSTD, small), refused=False)
    files.add("valid encrypted", _sealed(_SEALED, b"data"), refused=False)
    files.add("valid encrypted zstd", _sealed(_SEALED_ZSTD, small), refused=False)
    files.add("nothing", b"")
    files.add("11 bytes", _PLAIN + b"\0\0\0")
    files.add("43 bytes, encrypted", _sealed(_SEALED, b"")[:43])
    files.add("unknown magic", _blob(b"\xff" * 8, b"data"))
    files.add("index magic", _blob(_DIDX_MAGIC, b"data"))
    files.add("retired magic", _blob(bytes.fromhex("1f87eee291ce0502"), bytes(32) + b"data"))
    files.add("retired zstd magic", _blob(bytes.fromhex("7ea60fbe911fa960"), bytes(32) + small))
    for magic, label in ((_PLAIN, "plain"), (_PLAIN_ZSTD, "zstd")):
        good = _blob(magic, b"data" if magic == _PLAIN else small)
        files.add(f"wrong crc, {label}", good[:8] + bytes([good[8] ^ 1]) + good[9:])
        files.add(f"changed byte, {label}", good[:-1] + bytes([good[-1] ^ 1]))
        files.add(f"cut, {label}", good[:-1])
        files.add(f"longer, {label}", good + b"\0")
    sealed = _sealed(_SEALED, b"data" * 100)
    files.add("encrypted, wrong tag", sealed[:30] + bytes([sealed[30] ^ 1]) + sealed[31:])
    files.add("encrypted, wrong iv", sealed[:13] + bytes([sealed[13] ^ 1]) + sealed[14:])
    files.add("encrypted with another key", _sealed(_SEALED, b"data", bytes(32)))
    changed = sealed[44:-1] + bytes([sealed[-1] ^ 1])
    files.add(
        "encrypted, changed with its crc", _SEALED + struct.pack("<I", zlib.crc32(changed)) + sealed[12:44] + changed
    )
    bombs = {
        "without content size": zstd_zeros(bomb),
        "that claims 10 bytes": zstd_zeros(bomb, content_size=10),
        "that claims its size": zstd_zeros(bomb, content_size=bomb),
        "that claims 2^63 bytes": zstd_zeros(bomb, content_size=2**63),
        "of many frames": zstd_zeros(4 << 20) * 2048,
    }
    for label, frame in bombs.items():
        files.add(f"zstd bomb {label}", _blob(_PLAIN_ZSTD, frame))
        files.add(f"encrypted zstd bomb {label}", _sealed(_SEALED_ZSTD, frame))
    frames = {
        "of nothing": b"",
        "of zeros": bytes(100),
        "of noise": bytes(range(256)),
        "cut": small[:-1],
        "cut before its last block": zstd_zeros(4 * _BLOCK)[:-4],
        "claims more than it has": zstd_zeros(_BLOCK, content_size=_BLOCK + 1),
        "claims less than it has": zstd_zeros(_BLOCK, content_size=_BLOCK - 1),
        "claims 2^62 and has little": zstd_zeros(_BLOCK, content_size=2**62),
        "window of 2^41 bytes": zstd_zeros(_BLOCK, window_log=41),
        "needs a dictionary": b"\x28\xb5\x2f\xfd\x03\x38" + struct.pack("<I", 12345) + small[6:],
        "reserved block type": small[:6] + (4 << 3 | 3 << 1 | 1).to_bytes(3, "little") + b"\0" * 4,
        "reserved header bit": small[:4] + b"\x08" + small[5:],
        "bytes behind it": small + b"rest",
        "half a frame behind it": small + small[:5],
        "checksum wrong": small[:4] + b"\x04" + small[5:] + bytes(4),
    }
    for label, frame in frames.items():
        files.add(f"zstd {label}", _blob(_PLAIN_ZSTD, frame))
    window = zstd_zeros(_BLOCK, window_log=31)
    files.add("zstd window of 2 GiB", _blob(_PLAIN_ZSTD, window), refused=False)
    skippable = b"\x50\x2a\x4d\x18" + struct.pack("<I", 100) + bytes(100)
    files.add("zstd skippable frame alone", _blob(_PLAIN_ZSTD, skippable), refused=False)
    files.add("zstd skippable frame of 4 GiB", _blob(_PLAIN_ZSTD, skippable[:4] + b"\xff" * 4 + bytes(100)))
    empty = b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00"
    files.add("zstd 100,000 empty frames", _blob(_PLAIN_ZSTD, empty * 100_000), refused=False)
    many = b"\x28\xb5\x2f\xfd\x00\x38" + b"\x00\x00\x00" * 200_000 + b"\x01\x00\x00"
    files.add("zstd 200,000 empty blocks", _blob(_PLAIN_ZSTD, many), refused=False)
    return files


# ------------------------------------------------------------------------------------------------------ manifests


def _manifest(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "backup-id": "laptop",
        "backup-time": 1_700_000_000,
        "backup-type": "host",
        "files": [_file()],
        "signature": None,
        "unprotected": {},
    }
    fields.update({key.replace("_", "-"): value for key, value in changes.items()})
    return fields


def _file(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"crypt-mode": "none", "csum": "aa" * 32, "filename": "root.pxar.didx", "size": 1234}
    fields.update({key.replace("_", "-"): value for key, value in changes.items()})
    return fields


def _dump(value: object) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode()


def _spliced(key: str, text: str) -> bytes:
    """The valid manifest with raw JSON text in place of the value of one key."""
    name = key.replace("_", "-")
    in_file = name in _file()
    value = _manifest(files=[_file(**{key: "@@@"})]) if in_file else _manifest(**{key: "@@@"})
    return _dump(value).replace(b'"@@@"', text.encode())


def hostile_manifests() -> dict[str, HostileFile]:
    """JSON texts of ``index.json.blob`` (not yet wrapped in a blob)."""
    files = _Files()
    good = _dump(_manifest())
    files.add("valid", good, refused=False)
    for label, data in {
        "nothing": b"",
        "null": b"null",
        "a list": b"[]",
        "a string": b'"manifest"',
        "an empty object": b"{}",
        "cut": good[:-1],
        "trailing bytes": good + b"x",
        "two documents": good + good,
        "byte order mark": b"\xef\xbb\xbf" + good,
        "UTF-16": good.decode().encode("utf-16"),
        "not UTF-8": good.replace(b"laptop", b"lap\xfftop"),
        "NUL inside": good.replace(b"laptop", b"lap\0top"),
        "100,000 brackets": b"[" * 100_000,
        "100,000 nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "key twice": good.replace(b'"backup-id"', b'"backup-id": "other",\n  "backup-id"'),
        "key twice, once escaped": good.replace(b'"backup-id"', b'"\\u0062ackup-id": "other",\n  "backup-id"'),
        "key of a file twice": good.replace(b'"size"', b'"size": 1,\n      "size"'),
        "10 MiB of spaces and nothing": b" " * (10 << 20),
        "a million numbers": _dump(_manifest(files=list(range(1_000_000)))),
    }.items():
        files.add(label, data)
    notes = "n" * (20 << 20)
    files.add("notes of 20 MiB", _dump(_manifest(unprotected={"notes": notes})), refused=False)
    huge = "9" * 100_000
    for key in ("backup_time", "size"):
        for label, text in {
            "of 100,000 digits": huge,
            "of -100,000 digits": "-" + huge,
            "fraction": "1.0",
            "exponent": "1e3",
            "infinite exponent": "1e999999",
            "NaN": "NaN",
            "Infinity": "Infinity",
            "negative": "-1",
            "true": "true",
            "null": "null",
            "text": '"1"',
            "list": "[1]",
            "2^64": str(2**64),
            "10^30": "1" + "0" * 30,
        }.items():
            files.add(f"{key} {label}", _spliced(key, text))
    files.add("backup_time zero", _spliced("backup_time", "0"))
    files.add("backup_time of the year 10000", _spliced("backup_time", "253402300800"))
    files.add("a number of 100,000 digits in unprotected", _spliced("unprotected", '{"x": ' + huge + "}"))
    files.add("unprotected nested deeply", _spliced("unprotected", '{"a":' * 5000 + "1" + "}" * 5000))
    files.add("unprotected text", _spliced("unprotected", '"text"'))
    files.add("unprotected NaN", _spliced("unprotected", '{"x": NaN}'), refused=False)
    files.add("lone surrogate in the notes", _spliced("unprotected", r'{"notes": "\ud800"}'), refused=False)
    files.add(
        "control characters in the notes", _spliced("unprotected", r'{"notes": "\u0000\u001b[2J"}'), refused=False
    )
    for kind in ("evil", "", "HOST", "..", 5, None):
        files.add(f"backup_type {kind!r}", _dump(_manifest(backup_type=kind)))
    for identifier in (
        "..",
        ".",
        "",
        "a/b",
        "/etc",
        "../../x",
        "a\0b",
        "a\nb",
        "-x",
        "a b",
        "\ud800",
        "ä",
        None,
        1,
        ".",
    ):
        if f"backup_id {identifier!r}" not in files:
            files.add(f"backup_id {identifier!r}", _dump(_manifest(backup_id=identifier)))
    for name in (
        *("../../x.blob", "/etc/passwd.blob", "a/b.didx", "..", ".", "", ".didx", "..didx", "x", "x.exe", "x.didx/"),
        *("x\0.blob", "x\n.blob", "-x.blob", " x.blob", "x.blob ", "ä.blob", "x.blob\n", "\u202ex.blob", "\ud800.blob"),
    ):
        files.add(f"file named {name!r}", _dump(_manifest(files=[_file(filename=name)])))
    files.add(
        "file named like the manifest", _dump(_manifest(files=[_file(filename="index.json.blob")])), refused=False
    )
    files.add(
        "file name of 100,000 bytes", _dump(_manifest(files=[_file(filename="x" * 100_000 + ".blob")])), refused=False
    )
    files.add("file name not text", _dump(_manifest(files=[_file(filename=5)])))
    files.add("file twice", _dump(_manifest(files=[_file(), _file()])))
    files.add("files not a list", _dump(_manifest(files={"a": 1})))
    files.add("files of null", _dump(_manifest(files=[None])))
    files.add(
        "40,000 files", _dump(_manifest(files=[_file(filename=f"f{n}.blob") for n in range(40_000)])), refused=False
    )
    for csum in (
        "",
        "aa" * 31,
        "aa" * 33,
        "zz" * 32,
        "a" * 63,
        " " + "aa" * 31 + "a",
        "-" + "a" * 63,
        "\uff10" * 64,
        None,
        5,
    ):
        files.add(f"csum {str(csum)[:8]!r} of {len(str(csum))}", _dump(_manifest(files=[_file(csum=csum)])))
    for mode in ("rot13", "", "Encrypt", None, 1, ["none"]):
        files.add(f"crypt_mode {mode!r}", _dump(_manifest(files=[_file(crypt_mode=mode)])))
    for signature in ("", "aa", "zz" * 32, 5, ["aa" * 32]):
        files.add(f"signature {str(signature)[:8]!r}", _dump(_manifest(signature=signature)))
    for key in ("backup-id", "backup-time", "backup-type", "files"):
        files.add(f"without {key}", _dump({name: value for name, value in _manifest().items() if name != key}))
    for key in ("filename", "csum", "size"):
        entry = {name: value for name, value in _file().items() if name != key}
        files.add(f"file without {key}", _dump(_manifest(files=[entry])))
    return files


# ------------------------------------------------------------------------------------------------------- catalogs

_CATALOG_MAGIC = bytes.fromhex("91fd60f9c46758d5")


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    data.append(value)
    return bytes(data)


def _table(*entries: bytes, count: int | None = None) -> bytes:
    table = _varint(len(entries) if count is None else count) + b"".join(entries)
    return _varint(len(table)) + table


def _entry(kind: bytes, name: bytes, rest: bytes = b"") -> bytes:
    return kind + _varint(len(name)) + name + rest


def _catalog(*blocks: bytes, root: int | None = None) -> bytes:
    """Blocks in order; the root is the last one unless its offset is given."""
    start = 8 + sum(map(len, blocks[:-1]))
    return _CATALOG_MAGIC + b"".join(blocks) + struct.pack("<Q", start if root is None else root)


def _below_archive(block: bytes) -> bytes:
    """A root block with one archive whose directory is ``block``, right before it."""
    return _catalog(block, _table(_entry(b"d", b"root.pxar.didx", _varint(len(block)))))


def hostile_catalogs() -> dict[str, HostileFile]:
    """Catalogs; everything is read by a full walk."""
    files = _Files()
    file = _entry(b"f", b"a", _varint(5) + _varint(7))
    good = _table(file, _entry(b"l", b"link"))
    files.add("valid", _below_archive(good), refused=False)
    for label, data in {
        "nothing": b"",
        "a magic alone": _CATALOG_MAGIC,
        "a magic and an offset": _CATALOG_MAGIC + bytes(8),
        "wrong magic": bytes(8) + _below_archive(good)[8:],
        "root behind the end": _catalog(good, root=2**32),
        "root at 2^64-1": _catalog(good, root=2**64 - 1),
        "root at 2^63": _catalog(good, root=2**63),
        "root in the magic": _catalog(good, root=0),
        "root in its own offset": _catalog(good, root=8 + len(good)),
    }.items():
        files.add(label, data)
    ten = b"\xff" * 9 + b"\x01"  # 2^64-1
    for label, block in {
        "table of 0 bytes": b"\0",
        "table of 2^63 bytes": _varint(2**63),
        "table of 2^64-1 bytes": ten,
        "table longer than the file": _varint(10_000) + b"\1",
        "varint without end": b"\xff" * 30,
        "varint above 64 bits": b"\xff" * 9 + b"\x7f" + bytes(20),
        "count of 2^64-1": _table(count=2**64 - 1),
        "count of 2^40": _table(file, count=2**40),
        "count too small": _table(file, file.replace(b"a", b"b"), count=1),
        "bytes behind the entries": _table(file, b"\0\0\0", count=1),
        "unknown type": _table(_entry(b"x", b"a")),
        "type NUL": _table(_entry(b"\0", b"a")),
        "name of 4096 bytes": _table(_entry(b"l", b"n" * 4096)),
        "name longer than the table": _table(b"l" + _varint(100) + b"short"),
        "name of 2^64-1 bytes": _table(b"l" + ten + b"short"),
        "entry cut behind its type": _table(b"l"),
        "file without mtime": _table(_entry(b"f", b"a", _varint(5))),
        "mtime without end": _table(_entry(b"f", b"a", _varint(5) + b"\xff" * 12)),
        "directory that is its own child": _table(_entry(b"d", b"d", _varint(0))),
        "directory before the file": _table(_entry(b"d", b"d", _varint(2**40))),
        "directory at distance 2^64-1": _table(_entry(b"d", b"d", ten)),
        "directory in the magic": _table(_entry(b"d", b"d", _varint(4))),
    }.items():
        files.add(label, _below_archive(block))
    names = {
        "dotdot": b"..",
        "dot": b".",
        "empty": b"",
        "with a slash": b"a/b",
        "absolute": b"/abs",
        "with NUL": b"a\0b",
    }
    for label, name in names.items():
        files.add(f"file named {label}", _below_archive(_table(_entry(b"f", name, _varint(5) + _varint(7)))))
        inner = _table(file)
        outer = _table(_entry(b"d", name, _varint(len(inner))))
        root = _table(_entry(b"d", b"root.pxar.didx", _varint(len(outer))))
        files.add(f"directory named {label}", _catalog(inner, outer, root))
    files.add("name twice", _below_archive(_table(file, file)), refused=False)
    files.add("file in the root", _catalog(good, _table(file)), refused=False)
    files.add("archive with a path for a name", _catalog(good, _table(_entry(b"d", b"../x", _varint(len(good))))))
    limits = _table(_entry(b"f", b"a", ten + b"\x80" * 9 + b"\x81\x00"))  # size 2^64-1, mtime -2^63
    files.add("size and mtime at their limits", _below_archive(limits), refused=False)
    files.add("two names for one directory, 40 levels", _diamonds(40), refused=False)
    files.add("nesting of 10,000 directories", _nested(10_000), refused=False)
    return files


def _diamonds(levels: int) -> bytes:
    """Each directory lists the next one under two names: 2^levels paths in a few hundred bytes."""
    blocks = [_table(_entry(b"l", b"bottom"))]
    for _ in range(levels):
        distance = _varint(len(blocks[-1]))
        blocks.append(_table(_entry(b"d", b"a", distance), _entry(b"d", b"b", distance)))
    return _catalog(*blocks, _table(_entry(b"d", b"root.pxar.didx", _varint(len(blocks[-1])))))


def _nested(levels: int) -> bytes:
    blocks = [_table(_entry(b"l", b"bottom"))]
    for _ in range(levels):
        blocks.append(_table(_entry(b"d", b"d", _varint(len(blocks[-1])))))
    return _catalog(*blocks)
