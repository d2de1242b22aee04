"""What a medium holds behind what its catalog knows (spec tape.md 9, 13): an interrupted run has written it, or another
machine. What is whole is catalogued, all else passed over; a medium that holds less than its catalog says is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError, Damaged
from archiver.tape.checking import ChunkChecker
from archiver.tape.drive.interface import Drive, EndOfData
from archiver.tape.reading import FileDamaged, MediumFile, opened, visit_files
from archiver.tape.restore.routes import snapshot_on_medium
from archiver.tape.state.catalog_log import LogWriter
from formats.errors import FormatError
from formats.tape.catalog import ChunkFile, MediaCatalog, SnapshotEntry
from formats.tape.chunk_archive import read_chunks
from formats.tape.snapshot_archive import read_files

_HINT = "make its catalog anew: archiver tape catalog --force; or write no more on it: archiver tape media set-status"


@dataclass(slots=True)
class Tail:
    """``adopted``: whole files; ``passed_over``: numbers of those that are of no use."""

    adopted: list[ChunkFile | SnapshotEntry] = field(default_factory=list)
    passed_over: list[int] = field(default_factory=list)


def check_end(drive: Drive, label: str, log: MediaCatalog) -> int:
    """How many files the medium has. Raises Damaged when it is not what the catalog describes: less, or another last
    file. The position is behind the data then."""
    entries: list[ChunkFile | SnapshotEntry] = [*log.archives, *log.snapshots]
    known = max(entries, key=lambda entry: entry.file, default=None)
    count = drive.locate_end()
    if count <= log.last_file:
        raise Damaged(
            f"medium {label} has {count} files, its catalog knows of {log.last_file + 1}: it was overwritten or cut",
            hint=_HINT,
        )
    if known is not None:
        try:
            with opened(drive, label, known.file) as file:
                is_same = not file.is_empty and file.content.uuid == known.uuid
        except (FileDamaged, EndOfData):
            is_same = False
        if not is_same:
            raise Damaged(
                f"file {known.file} of medium {label} is not the one that its catalog knows: it was written elsewhere",
                hint=_HINT,
            )
    drive.locate_end()
    return count


def adopt(drive: Drive, label: str, first: int, log: LogWriter, listener: Listener) -> Tail:
    """Read everything from file ``first`` to the end of the data, and add to the catalog what is whole: not committed
    yet. Its chunks are checked as a restore would do it without a key."""
    tail = Tail()

    def visit(file: MediumFile) -> None:
        entry = None if file.is_empty else entry_of(file)
        if entry is not None:
            tail.adopted.append(entry)
        elif file.is_empty or file.content.kind != "catalog archive":
            tail.passed_over.append(file.number)

    def damaged(error: FileDamaged) -> None:
        tail.passed_over.append(error.file)

    visit_files(drive, label, first, visit, damaged)
    for entry in tail.adopted:
        if isinstance(entry, ChunkFile):
            log.add_archive(entry)
        else:
            log.add_snapshot(entry)
    if tail.adopted or tail.passed_over:
        text = (
            f"medium {label} holds more than its catalog knew: {len(tail.adopted)} files are catalogued now,"
            f" {len(tail.passed_over)} were not written to their end"
        )
        listener(Notice(text, "warning"))
    return tail


def entry_of(file: MediumFile) -> ChunkFile | SnapshotEntry | None:
    """What the catalog says of a file; None for one that is not whole, or is no archive. Raises FormatError."""
    match file.content.kind:
        case "chunk archive":
            source, digests = file.content.store, []
            checker = ChunkChecker(None)
            for digest, data in read_chunks(file.stream):
                checker.check(digest, data)
                digests.append(digest)
            if file.is_whole():
                rows = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
                return ChunkFile(file.number, file.content.uuid, source, rows)
        case "snapshot archive":
            source, path = file.content.store, file.content.text("snapshot")
            try:
                snapshot_on_medium(path)
            except ArchiverError as error:
                raise FormatError(str(error)) from error
            for each in read_files(file.stream):
                for _ in each.contents:
                    pass
            if file.is_whole():
                return SnapshotEntry(file.number, file.content.uuid, source, path)
        case _:
            pass
    return None
