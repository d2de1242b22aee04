"""What a single file of the formats is and says, recognised by its contents."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from typing import Any, BinaryIO

from archiver.core.disk import explain, read_at
from archiver.errors import Damaged, KeyProblem, UsageError
from archiver.store.indexes import load_index
from formats import blob
from formats.catalog import MAGIC as CATALOG_MAGIC
from formats.catalog import CatalogReader
from formats.crypt import CryptConfig, format_fingerprint
from formats.errors import FormatError, KeyMissing
from formats.index import DYNAMIC_MAGIC, FIXED_MAGIC, DynamicIndex
from formats.keyfile import KeyFile
from formats.manifest import Manifest
from formats.pxar import constants
from formats.pxar.decoder import LEAVE, Decoder

_LARGEST = blob.MAX_BLOB_SIZE + blob.ENCRYPTED_HEADER
_LISTED = 64 << 20  # bytes that a listing may take, about
_LISTED_ITEM = 400  # of these for each item, its path apart
_PAYLOAD_START = constants.HEADER.pack(constants.PAYLOAD_START_MARKER, constants.HEADER_SIZE)
_ARCHIVE_STARTS = {
    constants.HEADER.pack(kind, size)
    for kind, size in ((constants.FORMAT_VERSION, 24), (constants.ENTRY, 56), (constants.ENTRY_V1, 48))
}


def inspect_file(path: str, payload: str | None, crypt: CryptConfig | None) -> dict[str, Any]:
    """Fields of the file at ``path``; ``payload`` belongs to an ``.mpxar``. Raises Damaged, UsageError.

    ``complete`` is False where a list of chunks or entries was too long to show all of it.
    """
    try:
        with _open(path) as file:
            start = file.read(16)
        if start[:8] in (DYNAMIC_MAGIC, FIXED_MAGIC):
            return _index(path)
        if start[:8] == CATALOG_MAGIC:
            return _catalog(path)
        if start in _ARCHIVE_STARTS:
            return _archive(path, payload)
        if start == _PAYLOAD_START:
            return {"kind": "pxar payload stream", "file_size": os.path.getsize(path)}
        if start[:1] == b"{" and start[:8] != blob.ENCRYPTED_MAGIC:  # which starts with the same byte
            return _json(path)
        return _blob(path, crypt)
    except FormatError as error:
        raise Damaged(f"{path} is damaged or of no known kind: {error}") from error
    except OSError as error:
        raise explain(error, "read", path) from error


def _open(path: str) -> BinaryIO:
    """A regular file: anything else may block, or never end."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path} is not a regular file")
    return os.fdopen(fd, "rb")


def _read(path: str) -> bytes:
    with _open(path) as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise UsageError(f"{path} is too large for a file of its kind")
    return data


def _listing(name: str, items: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The ``items`` in bounded memory: a few bytes can be a catalog of 2^40 entries."""
    listed: list[dict[str, Any]] = []
    room = _LISTED
    for item in items:
        room -= _LISTED_ITEM + len(item.get("path", ""))
        if room < 0:
            return {name: listed, "complete": False}
        listed.append(item)
    return {name: listed, "complete": True}


def _index(path: str) -> dict[str, Any]:
    index = load_index(path)
    fields: dict[str, Any] = {
        "kind": "dynamic index" if isinstance(index, DynamicIndex) else "fixed index",
        "uuid": index.uuid.hex(),
        "ctime": index.ctime,
        "size": index.size,
        "csum": index.csum().hex(),
        "stored_csum": index.stored_csum.hex(),
    }
    if not isinstance(index, DynamicIndex):
        fields["chunk_size"] = index.chunk_size
    chunks = ({"end": index.end(at), "digest": index.digest(at).hex()} for at in range(len(index)))
    return fields | {"count": len(index)} | _listing("chunks", chunks)


def _blob(path: str, crypt: CryptConfig | None) -> dict[str, Any]:
    data = _read(path)
    info = blob.inspect(data)
    fields: dict[str, Any] = {
        "kind": "blob",
        "encrypted": info.encrypted,
        "compressed": info.compressed,
        "crc": f"{info.crc:08x}",
        "file_size": len(data),
        "file_sha256": sha256(data).hexdigest(),
    }
    blob.BlobDecoder(None).check_stored(data)
    if info.encrypted and crypt is None:
        fields["contents"] = "encrypted, no key given"
        return fields
    plain = bytes(blob.decode(data, crypt))
    fields["size"] = len(plain)
    fields["digest"] = (crypt.digest(plain) if info.encrypted and crypt is not None else sha256(plain).digest()).hex()
    if plain[:1] == b"{":
        try:
            manifest = Manifest.decode(plain)
        except FormatError:
            return fields
        fields["kind"] = "manifest"
        fields["manifest"] = json.loads(plain)
        fingerprint = manifest.fingerprint
        fields["key_fingerprint"] = None if fingerprint is None else format_fingerprint(fingerprint)
    return fields


def _json(path: str) -> dict[str, Any]:
    data = _read(path)
    try:
        key = KeyFile.decode(data)
    except FormatError:
        manifest = Manifest.decode(data)
        return {"kind": "manifest", "manifest": json.loads(manifest.encode())}
    kdf = "none" if key.kdf is None else type(key.kdf).__name__.lower()
    fingerprint = None if key.fingerprint is None else format_fingerprint(key.fingerprint)
    return {"kind": "key file", "kdf": kdf, "fingerprint": fingerprint, "hint": key.hint}


def _catalog(path: str) -> dict[str, Any]:
    with _open(path) as file:

        def read(offset: int, length: int) -> bytes:
            return read_at(file.fileno(), length, offset)

        reader = CatalogReader(read, os.fstat(file.fileno()).st_size)
        entries = (
            {"type": entry.kind.decode(), "path": where.decode("utf-8", "surrogateescape"), "size": entry.size}
            for where, entry in reader.walk()
        )
        return {"kind": "catalog"} | _listing("entries", entries)


class _Input:
    """A file as input of the decoder."""

    def __init__(self, file: BinaryIO) -> None:
        self._fd = file.fileno()
        self._offset = 0

    def read(self, length: int) -> bytes:
        data = read_at(self._fd, length, self._offset)
        self._offset += len(data)
        return data

    def skip(self, length: int) -> None:
        self._offset = min(self._offset + length, os.fstat(self._fd).st_size)


def _archive(path: str, payload: str | None) -> dict[str, Any]:
    with ExitStack() as files:
        archive = _Input(files.enter_context(_open(path)))
        contents = None if payload is None else _Input(files.enter_context(_open(payload)))
        decoder = Decoder(archive, contents)
        prelude = None if decoder.prelude is None else decoder.prelude.decode("utf-8", "replace")
        fields = {"kind": "pxar archive", "version": decoder.version, "prelude": prelude}
        return fields | _listing("entries", _entries(decoder))


def _entries(decoder: Decoder) -> Iterator[dict[str, Any]]:
    names: list[bytes] = []
    for event in decoder:
        if event is LEAVE:
            continue
        del names[max(event.depth - 1, 0) :]
        names.append(event.name)
        path = (b"/".join(names) or b"/").decode("utf-8", "surrogateescape")
        mode = "" if event.metadata is None else f"{event.metadata.stat.mode:o}"
        yield {"kind": event.kind, "mode": mode, "size": event.size, "path": path}


def decode_blob(path: str, crypt: CryptConfig | None, target: str) -> None:
    """Write the contents of a blob or chunk file to the new file ``target``, or to stdout for ``-``."""
    try:
        plain = blob.decode(_read(path), crypt)
        if target == "-":
            sys.stdout.buffer.write(plain)
            return
        with open(target, "xb") as file:
            file.write(plain)
    except KeyMissing as error:
        raise KeyProblem(f"{path} cannot be decoded: {error}", hint="give its key with --keyfile") from error
    except FormatError as error:
        raise Damaged(f"{path} cannot be decoded: {error}") from error
    except FileExistsError as error:
        raise UsageError(f"{target} exists already") from error
    except OSError as error:
        raise explain(error, "decode", path) from error
