"""Small files as blobs: ``x.conf``, ``x.log`` (spec blob-index-crypto.md 2, 9)."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import NamedTuple

from archiver.backup.specification import ArchiveSpec
from archiver.backup.tally import Tally
from archiver.core.events import FileProblem, Listener
from archiver.errors import UsageError
from archiver.source.content import read_into
from archiver.source.image import Source, open_source
from archiver.store.counters import Counters
from formats import blob
from formats.crypt import CryptConfig

LARGEST_BLOB = 16 << 20  # bytes: the format has room for 128 MiB, but the protocol of a PBS not for more than this
_ATTEMPTS = 3


class Blob(NamedTuple):
    """``stored``: the bytes of the file in the snapshot; ``csum`` as in the manifest."""

    filename: str
    stored: bytes
    csum: bytes
    counters: Counters


def encode_blob(
    spec: ArchiveSpec, crypt: CryptConfig | None, iv: bytes | None, tally: Tally, listener: Listener
) -> Blob:
    """Read the file of a blob; it is encrypted with ``crypt`` and ``iv``. Raises ArchiverError: then there is no
    snapshot."""
    with open_source(spec.path) as source:
        data = _read(source, spec)
        for _ in range(1, _ATTEMPTS):
            if not source.changed():
                break
            source.stat = os.fstat(source.fd)
            data = _read(source, spec)
        if source.changed():
            tally.counters.torn += 1
            listener(FileProblem(spec.archive.encode(), "changed while it was read", "torn"))
    tally.has_read(len(data))
    tally.encoded(1)
    stored = bytes(blob.encode(data, crypt, iv))
    counters = Counters(size=len(data), new_bytes=len(data), stored_bytes=len(stored))
    return Blob(f"{spec.archive}.blob", stored, sha256(stored).digest(), counters)


def _read(source: Source, spec: ArchiveSpec) -> bytes:
    if not source.is_file:
        raise UsageError(f"the source {spec.path} is not a regular file any more")
    buffer = memoryview(bytearray(min(source.stat.st_size, LARGEST_BLOB) + 1))
    try:
        length = read_into(source.fd, buffer, 0)
    except OSError as error:
        raise source.failed(error) from error
    if length > LARGEST_BLOB:
        raise UsageError(
            f"{spec.path} is larger than {LARGEST_BLOB >> 20} MiB, too large for {spec.archive}",
            hint=f"save it as {spec.name}.img:{spec.path}",
        )
    return bytes(buffer[:length])
