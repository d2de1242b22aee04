"""What a medium holds behind what its catalog knows (spec tape.md 9, 13): an interrupted run has written it, or another
machine. What is whole is catalogued, all else passed over; a medium that holds less than its catalog says is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from archiver.core.events import Listener, Notice
from archiver.errors import Damaged
from archiver.store.digests import distinct_digests
from archiver.tape.checking import ChunkChecker
from archiver.tape.digests import without
from archiver.tape.drive.interface import Drive, EndOfData
from archiver.tape.reading import FileDamaged, MediumFile, opened, visit_files
from archiver.tape.restore.arrival import looked_at
from archiver.tape.restore.routes import snapshot_on_medium
from archiver.tape.state.catalog_log import LogWriter
from formats.errors import FormatError
from formats.index import Index
from formats.tape.catalog import ChunkFile, Digests, Entry, MediaCatalog, SnapshotEntry
from formats.tape.chunk_archive import read_chunks
from formats.tape.snapshot_archive import read_files

_HINT = "make its catalog anew: archiver tape catalog --force; or write no more on it: archiver tape media set-status"


def check_end(drive: Drive, label: str, log: MediaCatalog) -> int:
    """How many files the medium has. Raises Damaged when it is not what the catalog describes: less, or another last
    file. The position is behind the data then."""
    entries: list[Entry] = [*log.archives, *log.snapshots]
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


def adopt(
    drive: Drive,
    label: str,
    first: int,
    log: LogWriter,
    absent: Callable[[str, Digests], Digests],
    listener: Listener,
) -> int:
    """Read everything from file ``first`` to the end of the data, and add to the catalog what is whole: not committed
    yet; how many files that are. Chunks are checked as a restore would do it without a key. A snapshot counts only when
    the set has all of its chunks: of files that a power cut met the earlier ones may be the worse. ``absent``: those of
    sorted digests that the set does not hold."""
    adopted: list[Entry] = []
    passed_over: list[int] = []

    def holds(source: str, index: Index) -> bool:
        missing = absent(source, distinct_digests(index.digests))
        for each in adopted:
            if isinstance(each, ChunkFile) and each.store == source:
                missing = without(missing, each.digests)
        return not len(missing)

    def is_complete(file: MediumFile) -> bool:
        try:
            with looked_at(file, None) as arrival:
                return all(holds(file.content.store, index) for _, index in arrival.indexes())
        except FileDamaged:
            raise
        except Damaged:
            return False

    def visit(file: MediumFile) -> None:
        kind = None if file.is_empty else file.content.kind
        if kind == "catalog archive":
            return
        if kind == "chunk archive":
            entry: Entry | None = entry_of(file)
        else:
            entry = snapshot_entry(file) if kind == "snapshot archive" and is_complete(file) else None
        if entry is None:
            passed_over.append(file.number)
        else:
            adopted.append(entry)

    def damaged(error: FileDamaged) -> None:
        passed_over.append(error.file)

    visit_files(drive, label, first, visit, damaged)
    for entry in adopted:
        log.add(entry)
    if adopted or passed_over:
        text = (
            f"medium {label} holds more than its catalog knew: {len(adopted)} files are catalogued now,"
            f" {len(passed_over)} are not whole"
        )
        listener(Notice(text, "warning"))
    return len(adopted)


def entry_of(file: MediumFile) -> Entry | None:
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
            entry = snapshot_entry(file)
            for each in read_files(file.stream):
                for _ in each.contents:
                    pass
            if file.is_whole():
                return entry
        case _:
            pass
    return None


def snapshot_entry(file: MediumFile) -> SnapshotEntry:
    """Of a snapshot archive. Raises FormatError for one that names what cannot be a snapshot."""
    source, path = file.content.store, file.content.text("snapshot")
    try:
        snapshot_on_medium(path)
    except Damaged as error:
        raise FormatError(str(error)) from error
    return SnapshotEntry(file.number, file.content.uuid, source, path)
