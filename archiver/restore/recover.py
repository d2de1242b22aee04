"""Contents from chunks alone, without a manifest: the stream behind an index file, or chunks by their digests.

For what is left of a store: an index file somebody has kept, chunks in their directories. Every chunk is checked by its
CRC and digest all the same; those that are lost can be filled with zeros, and each is named.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from archiver.core.disk import explain, explained, write_all
from archiver.core.events import Listener, Notice, Progress
from archiver.core.new_file import check_new, new_file
from archiver.errors import Damaged, KeyProblem, UsageError
from archiver.restore.sparse import write_sparse
from archiver.store.chunks import MAX_CHUNK, ChunkDamaged, ChunkReader
from archiver.store.indexes import load_index
from archiver.store.layout import Layout
from formats import blob
from formats.blob import BlobDecoder
from formats.crypt import CryptConfig, chunk_digest
from formats.errors import FormatError, KeyMissing
from formats.wire import Buffer

STDOUT = "-"
_GAPS_KEPT = 10_000


class Gap(NamedTuple):
    """Bytes ``start`` to ``end`` of the output are zeros in place of a chunk."""

    start: int
    end: int
    chunk: str
    reason: str


@dataclass(slots=True)
class Recovered:
    """``gaps`` holds the first 10,000 of ``gap_count``; sizes in bytes."""

    size: int = 0
    chunks: int = 0
    lost_bytes: int = 0
    gap_count: int = 0
    gaps: list[Gap] = field(default_factory=list)

    def add(self, gap: Gap) -> None:
        self.gap_count += 1
        self.lost_bytes += gap.end - gap.start
        if len(self.gaps) < _GAPS_KEPT:
            self.gaps.append(gap)

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "size": self.size,
            "chunks": self.chunks,
            "lost_chunks": self.gap_count,
            "lost_bytes": self.lost_bytes,
            "items": [gap._asdict() for gap in self.gaps],
        }


def recover_index(
    layout: Layout,
    index: str,
    target: str,
    crypt: CryptConfig | None,
    *,
    zero_fill: bool,
    listener: Listener,
) -> Recovered:
    """Write the stream behind the index file at ``index`` to the new file ``target`` (``-``: stdout).

    With ``zero_fill`` a chunk that is missing or damaged becomes zeros and a gap in the result; else it raises Damaged
    and nothing is left behind. KeyProblem when chunks are encrypted and ``crypt`` opens none of them.
    """
    try:
        found = load_index(index)
    except FormatError as error:
        raise Damaged(f"{index} is damaged: {error}", hint="is it a .didx or .fidx file?") from error
    except OSError as error:
        raise explain(error, "read", index) from error
    if len(found) and int(found.sizes().max()) > MAX_CHUNK:
        raise Damaged(f"{index} is damaged: its chunks are larger than chunks can be")
    chunks = _Chunks(layout, crypt)
    result = Recovered()
    with _opened(target, layout.base) as sink:
        for number in range(len(found)):
            start, end = found.start(number), found.end(number)
            digest = found.digest(number)
            try:
                sink.write(chunks.read(digest, end - start))
            except ChunkDamaged as error:
                if not zero_fill:
                    chunks.check_key()
                    hint = "--zero-fill puts zeros in its place, and names it"
                    raise Damaged(f"bytes {start} to {end}: {error}", hint=hint) from error
                sink.skip(end - start)
                result.add(Gap(start, end, digest.hex(), error.reason))
                listener(Notice(f"bytes {start} to {end} are zeros: {error}", "warning"))
            result.chunks += 1
            listener(Progress("recover", number + 1, end, found.size))
        chunks.check_key()
        result.size = found.size
        sink.complete(found.size)
    return result


def recover_chunks(layout: Layout, digests: Sequence[str], target: str, crypt: CryptConfig | None) -> Recovered:
    """Write the contents of chunks one after the other, as ``recover_index`` does; a lost one raises Damaged."""
    chunks = _Chunks(layout, crypt)
    result = Recovered()
    with _opened(target, layout.base) as sink:
        for text in digests:
            data = chunks.read(_digest(text), None)
            sink.write(data)
            result.size += len(data)
            result.chunks += 1
        sink.complete(result.size)
    return result


def _digest(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise UsageError(f"{text!r} is not the digest of a chunk", hint="it has 64 hexadecimal digits")
    return digest


class _Chunks:
    """Reads chunks of either kind; what they must be is known from their digest alone."""

    def __init__(self, layout: Layout, crypt: CryptConfig | None) -> None:
        self._reader = ChunkReader(layout, crypt)
        self._decoder = BlobDecoder(crypt)
        self._crypt = crypt
        self._opened = self._locked = 0  # encrypted chunks; those that only the key speaks against

    def check_key(self) -> None:
        """Raises KeyProblem when all that was read says that it is another one."""
        if self._locked and not self._opened:
            raise KeyProblem("the key opens none of the chunks", hint="give the right one with --keyfile")

    def read(self, digest: bytes, size: int | None) -> Buffer:
        """Valid until the next call. Raises ChunkDamaged, KeyProblem."""
        stored = self._reader.stored(digest)
        try:
            encrypted = blob.inspect(stored).encrypted
            data = self._decoder.decode(stored, max_size=MAX_CHUNK if size is None else size)
            self._opened += encrypted
            if len(data) != (size or len(data)) or chunk_digest(data, self._crypt if encrypted else None) != digest:
                raise ChunkDamaged(digest, "is damaged: it has another digest")
            return data
        except KeyMissing as error:
            raise KeyProblem(f"chunk {digest.hex()} is encrypted", hint="give the key with --keyfile") from error
        except FormatError as error:
            with suppress(FormatError):
                self._locked += self._decoder.check_stored(stored).encrypted
            raise ChunkDamaged(digest, f"is damaged: {error}") from error


class _Sink:
    """A new file, sparse where there are zeros."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offset = 0

    def write(self, data: Buffer) -> None:
        write_sparse(self._fd, memoryview(data), self._offset)
        self._offset += len(data)

    def skip(self, length: int) -> None:
        self._offset += length

    def complete(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)


class _Stdout(_Sink):
    def write(self, data: Buffer) -> None:
        with explained("write", "stdout"):
            write_all(self._fd, [data])

    def skip(self, length: int) -> None:
        while length:
            piece = min(length, MAX_CHUNK)
            self.write(bytes(piece))
            length -= piece

    def complete(self, size: int) -> None:
        """Nothing is left to be done."""


@contextmanager
def _opened(target: str, store: str) -> Iterator[_Sink]:
    if target == STDOUT:
        sys.stdout.flush()
        yield _Stdout(sys.stdout.fileno())
        return
    check_new(target, store)
    with new_file(target) as fd:
        yield _Sink(fd)
