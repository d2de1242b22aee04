"""Reading media end to end without restoring anything: blocks, CRCs, digests, manifests and indexes, and whether all of
that is what the catalogs say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from archiver.core.clock import Clock
from archiver.core.events import Listener, Notice, Progress
from archiver.errors import ArchiverError, Damaged, TargetAbsent
from archiver.store.digests import distinct_digests
from archiver.tape.checking import ChunkChecker
from archiver.tape.members import Loader, Member, SetCatalog
from archiver.tape.reading import FIRST_ARCHIVE, FileDamaged, MediumFile, read_catalog, visit_files
from archiver.tape.restore.arrival import Arrival, CutArchive, looked_at
from formats.crypt import CryptConfig
from formats.errors import FormatError
from formats.tape.catalog import ChunkFile, Digests, Entry, SnapshotEntry
from formats.tape.chunk_archive import read_chunks


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong; ``file`` None: with the medium as a whole."""

    label: str
    file: int | None
    reason: str

    def as_json(self) -> dict[str, Any]:
        return {"label": self.label, "file": self.file, "reason": self.reason}


@dataclass(slots=True)
class VerifyResult:
    """``unchecked``: encrypted chunks of which only the CRC could be checked. ``cut``: files that were not written to
    their end, which no catalog knows: no damage. ``absent``: media that could not be had."""

    media: list[str] = field(default_factory=list)
    files: int = 0
    chunks: int = 0
    unchecked: int = 0
    snapshots: int = 0
    bytes: int = 0
    cut: int = 0
    errors: list[Finding] = field(default_factory=list)
    absent: list[TargetAbsent] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "media": self.media,
            "files": self.files,
            "chunks": self.chunks,
            "unchecked": self.unchecked,
            "snapshots": self.snapshots,
            "bytes": self.bytes,
            "cut_files": self.cut,
            "items": [error.as_json() for error in self.errors],
            "absent": [str(error) for error in self.absent],
            "duration_s": round(self.seconds, 3),
        }


def verify(
    catalog: SetCatalog,
    members: Iterable[Member],
    media: Loader,
    crypt: CryptConfig | None,
    listener: Listener,
    clock: Clock,
) -> VerifyResult:
    """Read these media of the set. Media that cannot be had are told, the others are read."""
    began = clock.steady()
    result = VerifyResult()
    unopened: set[bytes] = set()
    for member in members:
        try:
            drive = media.load(member)
        except TargetAbsent as error:
            result.absent.append(error)
            continue
        result.media.append(member.label)
        check = _Check(catalog, member, crypt, listener, result, unopened)
        try:
            visit_files(drive, member.label, FIRST_ARCHIVE, check.visit, check.damaged)
        except TargetAbsent as error:  # taken away meanwhile: of the rest nothing is known
            result.absent.append(error)
            continue
        except ArchiverError as error:
            result.errors.append(Finding(member.label, None, str(error)))
        check.finish()
    result.seconds = clock.steady() - began
    return result


class _Check:
    def __init__(
        self,
        catalog: SetCatalog,
        member: Member,
        crypt: CryptConfig | None,
        listener: Listener,
        result: VerifyResult,
        unopened: set[bytes],
    ) -> None:
        """``unopened``: encrypted chunks that the key at hand does not open: a snapshot tells whether it should."""
        self._unopened = unopened
        self._catalog, self._member = catalog, member
        self._crypt, self._checker = crypt, ChunkChecker(crypt)
        self._listener, self._result = listener, result
        log = catalog.log(member)
        entries: list[Entry] = [] if log is None else [*log.archives, *log.snapshots]
        self._expected = {entry.file: entry for entry in entries}
        self._has_log = log is not None

    def damaged(self, error: FileDamaged) -> None:
        self._expected.pop(error.file, None)
        self._found(error.file, error.reason)

    def _found(self, file: int | None, reason: str) -> None:
        self._result.errors.append(Finding(self._member.label, file, reason))
        where = f"medium {self._member.label}" if file is None else f"file {file} of medium {self._member.label}"
        self._listener(Notice(f"{where}: {reason}", "warning"))

    def visit(self, file: MediumFile) -> None:
        result, expected = self._result, self._expected.get(file.number)
        result.files += 1
        try:
            if file.is_empty:
                if expected is not None:
                    raise FormatError("it is empty, its catalog knows it")
                result.cut += 1
            elif file.content.kind == "chunk archive":
                self._chunks(file, expected)
            elif file.content.kind == "snapshot archive":
                self._snapshot(file, expected)
            elif file.content.kind == "catalog archive":
                self._other_catalog(file)
            else:
                raise FormatError(f"a {file.content.kind} among the archives")
        finally:
            result.bytes += file.bytes_read
            self._listener(Progress("tape verify", result.files, result.bytes))
        self._expected.pop(file.number, None)

    def _chunks(self, file: MediumFile, expected: Entry | None) -> None:
        digests: list[bytes] = []
        bad: list[str] = []
        for digest, data in read_chunks(file.stream):
            digests.append(digest)
            self._result.chunks += 1
            try:
                found = self._checker.check(digest, data)
                self._result.unchecked += found.size is None
                if found.size is None and self._crypt is not None:
                    self._unopened.add(digest)
            except FormatError as error:
                bad.append(f"chunk {digest.hex()}: {error}")
        for reason in bad:
            self._found(file.number, reason)
        if not self._is_whole(file, expected):
            return
        if expected is not None:
            rows = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
            if not isinstance(expected, ChunkFile) or expected[1:3] != (file.content.uuid, file.content.store):
                raise FormatError("its catalog has another file in its place")
            if not np.array_equal(np.asarray(expected.digests), rows):
                raise FormatError("its catalog has other chunks in it")
        elif self._has_log:
            self._found(file.number, "its catalog does not know it; adopt it: archiver tape catalog --scan --force")

    def _is_whole(self, file: MediumFile, expected: Entry | None) -> bool:
        if file.is_whole():
            return True
        if expected is not None:
            raise FormatError("it was not written to its end, its catalog knows it")
        self._result.cut += 1
        return False

    def _snapshot(self, file: MediumFile, expected: Entry | None) -> None:
        source, path = file.content.store, file.content.text("snapshot")
        try:
            with looked_at(file, self._crypt) as arrival:
                nowhere = sum(self._nowhere(source, index.digests) for _, index in arrival.indexes())
                closed = self._closed(arrival)
        except CutArchive:
            self._is_whole(file, expected)
            return
        except FileDamaged:
            raise
        except Damaged as error:
            raise FormatError(str(error)) from error
        self._result.snapshots += 1
        for digest in closed:
            self._found(file.number, f"chunk {digest.hex()} of {source}:{path} is damaged: its key does not open it")
        if expected is not None:
            found = SnapshotEntry(file.number, file.content.uuid, source, path)
            if expected != found:
                raise FormatError("its catalog has another file in its place")
        elif self._has_log:
            self._found(file.number, "its catalog does not know it; adopt it: archiver tape catalog --scan --force")
        if nowhere and expected is not None:
            self._found(file.number, f"{nowhere} chunks of {source}:{path} are in no catalog of the set")

    def _closed(self, arrival: Arrival) -> list[bytes]:
        """Chunks of a snapshot that its key, which is at hand, does not open."""
        if not arrival.with_key or not self._unopened:
            return []
        encrypted = (index for info, index in arrival.indexes() if info.crypt_mode == "encrypt")
        return sorted({digest for index in encrypted for digest in map(bytes, index.digests)} & self._unopened)

    def _nowhere(self, source: str, digests: Digests) -> int:
        unique = distinct_digests(digests)
        return int((self._catalog.find_chunks(source, unique)[0] < 0).sum())

    def _other_catalog(self, file: MediumFile) -> None:
        if read_catalog(file) is None:
            self._result.cut += 1

    def finish(self) -> None:
        for number in sorted(self._expected):
            self._found(number, "its catalog knows it, the medium does not have it")
