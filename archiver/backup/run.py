"""One backup from the sources to the published snapshot."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from archiver.backup.archive import Compare, TreeArchiver
from archiver.backup.audit import Audit, next_turn
from archiver.backup.blobs import encode_blob
from archiver.backup.deduplicator import Deduplicator
from archiver.backup.directory import PreviousRun
from archiver.backup.images import ImageArchiver, ImageOptions
from archiver.backup.journal import Interrupted, Journal, about, read_interrupted
from archiver.backup.outlook import look_out
from archiver.backup.pxar_files import save_pxar_file
from archiver.backup.reference import NoReference, PreviousArchive, Reference, find_previous
from archiver.backup.slabs import SlabPool
from archiver.backup.specification import ArchiveSpec
from archiver.backup.streams import Machinery, Stream, StreamResult
from archiver.backup.tally import FileCounters, Tally
from archiver.backup.unchanged import Unchanged
from archiver.browse.catalog import ensure, open_catalog
from archiver.core.disk import explained, is_full
from archiver.core.events import Event, FileProblem, Listener, Notice
from archiver.core.pipeline import Pipeline
from archiver.errors import ArchiverError, Locked, NoSpace, NotFound, UsageError
from archiver.source.metadata import viewer
from archiver.source.walk import WalkOptions
from archiver.store import layout as names
from archiver.store.catalog.seal import Seal
from archiver.store.catalog.writer import RunWriter
from archiver.store.counters import Counters
from archiver.store.layout import DEFAULT_OWNER, GroupRef, SnapshotRef
from archiver.store.sessions import Session
from archiver.store.store import Store
from formats import blob
from formats.catalog import CatalogWriter
from formats.chunker import Chunker, PayloadChunker
from formats.crypt import CryptConfig
from formats.errors import FormatError
from formats.manifest import FileInfo, Manifest
from formats.naming import check_backup_id, check_namespace, check_owner

Mode = Literal["metadata", "data", "legacy"]
CryptMode = Literal["none", "encrypt", "sign-only"]

DEFAULT_CHUNK_SIZE = 4 << 20
CATALOG_CHUNK_SIZE = 512 << 10
CATALOG_NAME = "catalog.pcat1.didx"

_LARGEST_CHUNK = 4  # times the average
_CONTENT_BODY = 8 << 20
_CONTENT_SLABS = 4
_SMALL_BODY = 1 << 20
_SMALL_SLABS = 3
_IV_SIZE = 16
_WHEN_FULL = "make room (forget or prune, then gc) and run it again; all that is stored is unharmed"
_ERRORS_KEPT = 16 << 20  # bytes that the list of problems may take, about
_ERROR_ITSELF = 200  # of these for each, its path and reason apart


def default_backup_id() -> str:
    """This machine's name without its domain."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", os.uname().nodename.split(".")[0]).lstrip(".-") or "localhost"


class BackupOptions(NamedTuple):
    """How a run is to be done. ``time`` in Unix seconds, None for now; ``chunk_size`` is the average in bytes."""

    group: GroupRef
    mode: Mode = "metadata"
    compare: Compare = "auto"
    audit: float = 0.0  # percent of the unchanged files
    time: int | None = None
    crypt_mode: CryptMode = "none"
    crypt: CryptConfig | None = None
    wrapped_key: bytes | None = None  # the key for the owner of a master key, to be kept with the snapshot
    chunk_size: int = DEFAULT_CHUNK_SIZE
    walk: WalkOptions = WalkOptions()
    owner: str = DEFAULT_OWNER
    note: str | None = None


class ArchiveResult(NamedTuple):
    name: str
    counters: Counters


@dataclass(slots=True)
class BackupResult:
    """``errors`` are the files that are missing from the snapshot or torn in it, the first ones of very many: ``files``
    counts all of them."""

    snapshot: SnapshotRef
    archives: list[ArchiveResult]
    files: FileCounters
    duration: float
    errors: list[FileProblem]

    def as_json(self) -> dict[str, Any]:
        """The document of DESIGN.md 5."""
        return {
            "schema": 1,
            "snapshot": str(self.snapshot),
            "archives": [{"name": archive.name, **archive.counters.as_dict()} for archive in self.archives],
            "files": {
                "total": self.files.total,
                "unchanged": self.files.unchanged,
                "reencoded": self.files.reencoded,
                "read_errors": self.files.read_errors,
                "torn": self.files.torn,
                "vanished": self.files.vanished,
                "audited": self.files.audited,
            },
            "duration_s": round(self.duration, 3),
            "bytes_read": self.files.bytes_read,
            "errors": [{"path": os.fsdecode(error.path), "reason": error.reason} for error in self.errors],
        }


def backup(store: Store, specs: Sequence[ArchiveSpec], options: BackupOptions, listener: Listener) -> BackupResult:
    """Save ``specs`` as one snapshot. Raises ArchiverError; the store is then as it was, but for unused chunks."""
    check_options(options)
    return _Run(store, specs, options, listener).run()


def check_options(options: BackupOptions) -> None:
    try:
        check_backup_id(options.group.id)
        check_namespace(options.group.namespace)
        check_owner(options.owner)
        (options.note or "").encode()
    except FormatError as error:
        raise UsageError(f"the snapshot cannot be named so: {error}") from error
    except UnicodeEncodeError as error:
        raise UsageError("the note is not UTF-8 text") from error
    if (options.crypt_mode == "none") != (options.crypt is None):
        raise UsageError(f"crypt mode {options.crypt_mode} {'with' if options.crypt else 'without'} a key")


class _Record(NamedTuple):
    """The record of an archive: the file that holds its entries, and the key of the root."""

    filename: str
    writer: RunWriter
    root: int


class _Run:
    """The state of one backup."""

    def __init__(self, store: Store, specs: Sequence[ArchiveSpec], options: BackupOptions, listener: Listener) -> None:
        self._store = store
        self._specs = specs
        self._options = options
        self._listener = listener
        self._files = FileCounters()
        self._errors: list[FileProblem] = []
        self._errors_room = _ERRORS_KEPT
        self._errors_left_out = 0
        self._archives: list[ArchiveResult] = []
        self._manifest_files: list[FileInfo] = []
        self._records: list[_Record] = []
        self._about = about(options.group, options.crypt_mode, options.crypt)
        # What records depend on besides the files.
        self._fields = f"{viewer()}, skip-e2big-xattr {options.walk.skip_e2big_xattr}"
        self._chunk_crypt = options.crypt if options.crypt_mode == "encrypt" else None
        self._walk = options.walk

    def run(self) -> BackupResult:
        store, options = self._store, self._options
        began = store.clock.steady()
        wanted = options.time if options.time is not None else store.clock.now()
        with (
            store.session() as session,
            closing(Deduplicator(store, session, self._chunk_crypt)) as deduplicator,
            ExitStack() as self._opened,
            self._ended_well(deduplicator),
        ):
            self._deduplicator = deduplicator
            self._interrupted = session.interrupted(self._about)
            if self._interrupted and options.mode == "metadata":
                self._listener(Notice("going on where an interrupted backup ended"))
            never = options.walk.never_enter | store.own_directories()
            self._walk = options.walk._replace(never_enter=never)
            if not self._interrupted and (short := look_out(store, options.group, self._specs, self._walk)):
                self._listener(short)
            with Pipeline() as pipeline:
                machinery = Machinery(pipeline, deduplicator, session, self._chunk_crypt, self._new_uuid, wanted)
                self._write_archives(machinery)
                machinery.close()
                pipeline.join()
            self._write_log(session)
            self._write_wrapped_key(session)
            ref = session.publish(options.group, wanted, options.owner, self._manifest)
            deduplicator.record()
            store.record(ref)
            self._record(ref.time)
            self._images.record(ref.time)
        return BackupResult(ref, self._archives, self._files, store.clock.steady() - began, self._errors)

    @contextmanager
    def _ended_well(self, deduplicator: Deduplicator) -> Iterator[None]:
        """When the disk is full there is room for the journal, and the database is told of what was stored: the next
        run goes on from there, and need not read it again."""
        try:
            yield
        except (NoSpace, OSError) as error:
            if is_full(error):
                self._store.give_up_reserve()
                with suppress(ArchiverError):
                    deduplicator.flush()
            if isinstance(error, NoSpace):
                error.hint = _WHEN_FULL
            raise

    def _new_uuid(self) -> bytes:
        return uuid.UUID(bytes=self._store.random(16), version=4).bytes

    def _write_archives(self, machinery: Machinery) -> None:
        save_tree, finish = self._tree_writers(machinery)
        options, tally = self._options, Tally(self._files, self._hear)
        reads_all = options.mode != "metadata" or options.audit > 0
        how = ImageOptions(
            options.group, options.crypt_mode, options.crypt, options.chunk_size, options.compare, not reads_all
        )
        self._images = ImageArchiver(self._store, how, machinery, self._deduplicator, tally, self._hear, self._about)
        for spec in self._specs:
            if spec.kind == "tree":
                save_tree(spec)
            elif spec.kind == "image":
                self._add(spec.archive, [self._images.save(spec, self._opened)], 0)
            elif spec.kind == "pxar file":
                self._import(spec, machinery)
            else:
                self._write_blob(spec, machinery.session, tally)
        finish()

    def _tree_writers(self, machinery: Machinery) -> tuple[Callable[[ArchiveSpec], None], Callable[[], None]]:
        """What saves a tree, and what is to be called behind the last archive."""
        if not any(spec.kind == "tree" for spec in self._specs):
            return lambda spec: None, lambda: None
        average = self._options.chunk_size
        pipeline = machinery.pipeline
        large = SlabPool(pipeline, headroom=_LARGEST_CHUNK * average, body=_CONTENT_BODY, count=_CONTENT_SLABS)
        headroom = _LARGEST_CHUNK * max(average, CATALOG_CHUNK_SIZE)  # a catalog's chunks have their own size
        small = SlabPool(pipeline, headroom=headroom, body=_SMALL_BODY, count=_SMALL_SLABS)

        def save_split(spec: ArchiveSpec) -> None:
            payload = Stream(machinery, f"{spec.name}.ppxar.didx", PayloadChunker(average), large)
            archive = Stream(machinery, f"{spec.name}.mpxar.didx", Chunker(average), small)
            padding = self._archive(spec, machinery, archive, payload, None)
            self._add(spec.archive, [payload.finish(), archive.finish()], padding)

        if self._options.mode != "legacy":
            return save_split, lambda: None
        listing = Stream(machinery, CATALOG_NAME, Chunker(CATALOG_CHUNK_SIZE), small)
        catalog = CatalogWriter(listing.write)

        def save_whole(spec: ArchiveSpec) -> None:
            archive = Stream(machinery, f"{spec.name}.pxar.didx", Chunker(average), large)
            catalog.start_archive(f"{spec.name}.pxar.didx")
            self._archive(spec, machinery, archive, None, catalog)
            catalog.end_archive()
            self._add(spec.archive, [archive.finish()], 0)

        def finish() -> None:
            catalog.finish()
            self._add("catalog.pcat1", [listing.finish()], 0)

        return save_whole, finish

    def _import(self, spec: ArchiveSpec, machinery: Machinery) -> None:
        def catalog_stream(slabs: SlabPool) -> Stream:
            return Stream(machinery, CATALOG_NAME, Chunker(CATALOG_CHUNK_SIZE), slabs)

        average = self._options.chunk_size
        saved = save_pxar_file(spec, machinery, average, catalog_stream, self._files, self._listener)
        self._add(spec.archive, saved.results, saved.padding)
        if saved.listing is not None:
            self._add("catalog.pcat1", [saved.listing], 0)

    def _write_blob(self, spec: ArchiveSpec, session: Session, tally: Tally) -> None:
        iv = self._store.random(_IV_SIZE) if self._chunk_crypt is not None else None
        made = encode_blob(spec, self._chunk_crypt, iv, tally, self._hear)
        self._put(session, made.filename, made.stored)
        self._manifest_files.append(FileInfo(made.filename, self._options.crypt_mode, len(made.stored), made.csum))
        self._archives.append(ArchiveResult(spec.archive, made.counters))

    def _previous_archive(self, name: str) -> PreviousArchive | None:
        options = self._options
        try:
            found = find_previous(self._store, options.group, name, options.crypt_mode, options.crypt)
            if found is not None:
                self._opened.enter_context(self._store.held(found.snapshot.ref))
            return found
        except (NoReference, NotFound, Locked) as reason:
            self._listener(Notice(f"{name} is saved completely: {reason}", "warning"))
            return None

    def _archive(
        self,
        spec: ArchiveSpec,
        machinery: Machinery,
        archive: Stream,
        payload: Stream | None,
        listing: CatalogWriter | None,
    ) -> int:
        """Archive one source; returns the padding in its payload stream, bytes."""
        name, options, session = f"{spec.name}.pxar", self._options, machinery.session
        compares = options.mode == "metadata"
        archived = self._previous_archive(name) if compares else None
        if archived is not None:
            ensure(archived.snapshot, name)
        previous, writer = self._open_catalog(name, session)
        if archived is not None and (previous is None or not previous.is_of(archived.snapshot.ref.time, archived.csum)):
            self._listener(Notice(f"{name} is saved completely: the database has no record of its files", "warning"))
            archived = None
        seal = Seal(self._chunk_crypt, self._store.random)
        resumed = self._left_by_interrupted_runs(spec.name, seal, session) if compares else []
        streams = [(archived.payload, self._deduplicator.reuse)] if archived is not None else []
        streams += [(each.index, self._deduplicator.recover) for each in resumed]
        unchanged = None
        if streams:
            reference = Reference(streams)
            audit = self._audit(name, archived, reference)
            unchanged = Unchanged(reference, options.chunk_size, archived is not None, resumed, audit)
        journal = None
        if payload is not None:
            journal = Journal(session, spec.name, payload.uuid, seal, self._about, options.crypt)
            payload.written = journal.index_written
            self._opened.enter_context(closing(journal))
        archiver = TreeArchiver(
            spec.path,
            self._walk,
            archive,
            payload,
            listing=listing,
            counters=self._files,
            listener=self._hear,
            spill_directory=session.path,
            now_ns=self._store.clock.now_ns,
            compare=options.compare,
            writer=writer,
            journal=journal,
            previous=previous,
            unchanged=unchanged,
        )
        archiver.run()
        if writer is not None:
            self._records.append(_Record(archive.filename, writer, archiver.root))
        return archiver.padding

    def _left_by_interrupted_runs(self, name: str, seal: Seal, session: Session) -> list[Interrupted]:
        crypt = self._options.crypt
        found = (read_interrupted(path, name, seal, session.path, crypt) for path in self._interrupted)
        return [self._opened.enter_context(closing(left)) for left in found if left is not None]

    def _audit(self, name: str, archived: PreviousArchive | None, reference: Reference) -> Audit | None:
        if archived is None or not self._options.audit:
            return None
        catalog = open_catalog(self._store, self._options.group, name, self._options.crypt)
        contents = archived.snapshot.stream(archived.payload_file)
        turn = next_turn(catalog, self._store.clock.now())
        return Audit(self._options.audit, turn, contents, reference, self._deduplicator.distrust)

    def _open_catalog(self, name: str, session: Session) -> tuple[PreviousRun | None, RunWriter | None]:
        """The newest run that is recorded of an archive, and what records this one."""
        catalog = open_catalog(self._store, self._options.group, name, self._options.crypt)
        if catalog is None:
            return None, None
        newest = catalog.newest()
        writer = self._opened.enter_context(closing(RunWriter(catalog, newest, session.path)))
        run = catalog.run(newest.time) if newest is not None else None
        if newest is None or run is None:
            return None, writer
        return PreviousRun(catalog, newest, run.csum, trusted=run.fields == self._fields), writer

    def _record(self, time: int) -> None:
        """Tell the catalogs of the snapshot that was published; a failure here costs time later, no data."""
        csums = {file.filename: file.csum for file in self._manifest_files}
        for record in self._records:
            try:
                record.writer.record(time, csum=csums[record.filename], fields=self._fields, root=record.root)
            except (ArchiverError, OSError) as error:
                text = f"the files of {record.filename} are not in the database, the next run reads them all: {error}"
                self._listener(Notice(text, "warning"))

    def _hear(self, event: Event) -> None:
        if isinstance(event, FileProblem) and event.kind in ("unreadable", "torn", "audit"):
            self._errors_room -= len(event.path) + len(event.reason) + _ERROR_ITSELF
            if self._errors_room >= 0 or not self._errors:
                self._errors.append(event)
            else:
                self._errors_left_out += 1
        self._listener(event)

    def _add(self, name: str, results: Sequence[StreamResult], padding: int) -> None:
        counters = Counters(padding_bytes=padding)
        for result in results:
            counters.add(result.counters)
            self._manifest_files.append(FileInfo(result.filename, self._options.crypt_mode, result.size, result.csum))
        self._archives.append(ArchiveResult(name, counters))

    def _write_log(self, session: Session) -> None:
        """The snapshot's own account of what is missing or torn in it."""
        if not self._errors:
            return
        lines = [f"{error.kind}: {os.fsdecode(error.path)}: {error.reason}\n" for error in self._errors]
        if self._errors_left_out:
            lines.append(f"... and {self._errors_left_out} more\n")
        data = "".join(lines).encode("utf-8", "surrogateescape")
        iv = self._store.random(_IV_SIZE) if self._chunk_crypt is not None else None
        self._put(session, names.CLIENT_LOG, blob.encode(data, self._chunk_crypt, iv))

    def _write_wrapped_key(self, session: Session) -> None:
        """A plain blob, also where all else is encrypted: the master key is what opens it."""
        if self._options.wrapped_key is None:
            return
        stored = blob.encode(self._options.wrapped_key, compress=False)
        self._put(session, names.WRAPPED_KEY, stored)
        csum = sha256(stored).digest()
        self._manifest_files.append(FileInfo(names.WRAPPED_KEY, self._options.crypt_mode, len(stored), csum))

    def _put(self, session: Session, name: str, data: bytes) -> None:
        path = session.file(name)
        with explained("write", path):
            self._store.disk.put(path, [data], names.FILE_MODE, sync=False)
        session.barrier.note(path)

    def _manifest(self, when: int) -> bytes:
        total = Counters()
        for archive in self._archives:
            total.add(archive.counters)
        unprotected: dict[str, Any] = {
            "chunk_upload_stats": {
                "count": total.chunks,
                "size": total.size,
                "compressed_size": total.stored_bytes,
                "duplicates": total.chunks - total.new_chunks,
            }
        }
        if self._options.note:
            unprotected["notes"] = self._options.note
        group = self._options.group
        manifest = Manifest(group.type, group.id, when, tuple(self._manifest_files), unprotected, None)
        if self._options.crypt is not None:
            manifest = manifest.sign(self._options.crypt)
        return bytes(blob.encode(manifest.encode()))
