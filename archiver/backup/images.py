"""Disk images: files, devices and streams as fixed indexes (spec blob-index-crypto.md 7.2).

Everything is read but holes, and a file that is known not to have changed since the group's last snapshot: then the
chunks of its index are referred to, and only those are read that the store does not have any more.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from archiver.backup.archive import Compare
from archiver.backup.deduplicator import Deduplicator
from archiver.backup.directory import RACY
from archiver.backup.image_stream import ImageStream, image_slabs
from archiver.backup.reference import NoReference, find_previous_image
from archiver.backup.slabs import SlabPool
from archiver.backup.specification import ArchiveSpec
from archiver.backup.streams import Machinery, StreamResult
from archiver.backup.tally import Tally
from archiver.core.events import FileProblem, Listener, Notice
from archiver.core.row import file_row
from archiver.errors import ArchiverError, Locked, NotFound
from archiver.source.image import Source, open_source
from archiver.source.metadata import Features
from archiver.store.catalog.seal import Seal
from archiver.store.database.images import ImageRow, load_image, save_image
from archiver.store.layout import GroupRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.index import FixedIndex

_SLABS = 6
_LOOKED_UP_AT_ONCE = 4096  # chunks
_KEPT_FROM = 256 << 20  # bytes read after which what an interrupted run has stored is kept for the next one
_RANGES_TOLD = 10


class ImageOptions(NamedTuple):
    """How images are saved. ``takes_over``: a file that has not changed need not be read."""

    group: GroupRef
    crypt_mode: str
    crypt: CryptConfig | None
    chunk_size: int
    compare: Compare
    takes_over: bool


class ImageArchiver:
    """Saves the images of one run. ``about``: what an interrupted run must have in common with the one that goes on."""

    def __init__(
        self,
        store: Store,
        options: ImageOptions,
        machinery: Machinery,
        deduplicator: Deduplicator,
        tally: Tally,
        listener: Listener,
        about: bytes,
    ) -> None:
        self._store = store
        self._options = options
        self._machinery = machinery
        self._deduplicator = deduplicator
        self._tally = tally
        self._listener = listener
        self._about = about
        self._seal = Seal(options.crypt, store.random)
        self._slabs: SlabPool | None = None
        self._keep_at = _KEPT_FROM
        self._rows: list[tuple[str, ImageRow | None]] = []

    def save(self, spec: ArchiveSpec, held: ExitStack) -> StreamResult:
        """Save one image; what is taken over is held until the end of the run. Raises ArchiverError: then there is no
        snapshot."""
        if self._slabs is None:
            self._slabs = image_slabs(self._machinery, self._options.chunk_size, _SLABS)
        with open_source(spec.path, spec.command) as source:
            if source.size == 0:
                raise _empty(spec, source)
            for place in source.mounted():
                text = (
                    f"{spec.path} is mounted at {place}: what is written there meanwhile may be half in {spec.archive}"
                )
                self._listener(Notice(text, "warning"))
            file = self._known_by(source)
            index = self._unchanged(spec, source, file, held)
            stream = ImageStream(
                self._machinery, f"{spec.archive}.fidx", source.size, self._options.chunk_size, self._slabs
            )
            complete = self._copy(source, stream) if index is None else self._take_over(source, stream, index)
            source.finish()
            if not stream.position:
                raise _empty(spec, source)
            taken_over = index is not None and stream.counters.reused_chunks == len(index)
            torn = self._tell_torn(spec, source, complete)
            result = stream.finish()
            if taken_over:
                self._tally.took_over(1)
            else:
                self._tally.encoded(1)
        known = None if torn or file is None else ImageRow(0, result.csum, *file)
        self._rows.append((spec.archive, known))
        return result

    def record(self, time: int) -> None:
        """The snapshot was published: tell the database which files its images are."""
        database = self._store.database
        if database is None:
            return
        for name, row in self._rows:
            save_image(database, self._options.group, name, self._seal, row and row._replace(time=time))

    # -- what is known -----------------------------------------------------------------------------------------------

    def _known_by(self, source: Source) -> tuple[bytes, bytes] | None:
        """File system and row of a file that can be known again by them."""
        if not source.is_file or self._options.compare == "metadata":
            return None
        try:
            features = Features.of(source.fd, source.stat.st_dev)
        except OSError:
            return None
        settled = source.stat.st_ctime_ns <= self._store.clock.now_ns() - RACY
        if not settled or not (features.stable or self._options.compare == "inode"):
            return None
        return features.identity, file_row(source.stat)

    def _unchanged(
        self, spec: ArchiveSpec, source: Source, file: tuple[bytes, bytes] | None, held: ExitStack
    ) -> FixedIndex | None:
        """The index of the group's last image when it was read from this file, which has not changed since."""
        options, database = self._options, self._store.database
        if file is None or database is None or not options.takes_over:
            return None
        known = load_image(database, options.group, spec.archive, self._seal)
        if known is None or (known.file_system, known.row) != file:
            return None
        try:
            found = find_previous_image(self._store, options.group, spec.archive, options.crypt_mode, options.crypt)
            if found is None or (found.snapshot.ref.time, found.csum) != (known.time, known.csum):
                return None
            held.enter_context(self._store.held(found.snapshot.ref))
        except (NoReference, NotFound, Locked) as reason:
            self._listener(Notice(f"{spec.archive} is saved completely: {reason}", "warning"))
            return None
        fits = found.index.size == source.size and found.index.chunk_size == options.chunk_size
        return found.index if fits else None

    # -- reading -----------------------------------------------------------------------------------------------------

    def _copy(self, source: Source, stream: ImageStream) -> bool:
        """All of a source; False when it ended before its size."""
        if source.size is None:
            while got := source.read_into(stream.reserve(), stream.position):
                self._has_read(stream, got)
            return True
        try:
            for _, length, is_data in source.extents():
                if not is_data:
                    stream.write_zeros(length)
                elif not self._read(source, stream, stream.position + length):
                    break
        except OSError as error:
            raise source.failed(error) from error
        return self._fill(source, stream)

    def _take_over(self, source: Source, stream: ImageStream, index: FixedIndex) -> bool:
        """The chunks of an index; those that cannot be used are read from the file."""
        for first in range(0, len(index), _LOOKED_UP_AT_ONCE):
            digests = np.ascontiguousarray(index.digests[first : first + _LOOKED_UP_AT_ONCE]).view("V32").ravel()
            unique, places, numbers = np.unique(digests, return_index=True, return_inverse=True)
            sizes = [index.end(first + place) - index.start(first + place) for place in places.tolist()]
            usable = self._deduplicator.reuse([digest.tobytes() for digest in unique], sizes)
            for place, number in enumerate(numbers.tolist(), first):
                if usable[number]:
                    stream.refer(unique[number].tobytes(), index.end(place) - index.start(place))
                elif not self._read(source, stream, index.end(place)):
                    return self._fill(source, stream)
        return True

    def _read(self, source: Source, stream: ImageStream, end: int) -> bool:
        """Read up to ``end``; False when the source ends before."""
        while stream.position < end:
            room = stream.reserve()[: end - stream.position]
            got = source.read_into(room, stream.position)
            if not got:
                return False
            self._has_read(stream, got)
        return True

    def _has_read(self, stream: ImageStream, length: int) -> None:
        stream.commit(length)
        self._tally.has_read(length)
        if self._tally.counters.bytes_read >= self._keep_at:
            self._machinery.session.resumable(self._about)
            self._keep_at = 1 << 63

    def _fill(self, source: Source, stream: ImageStream) -> bool:
        """A file that shrank is filled to its size with zeros; False then."""
        assert source.size is not None
        missing = source.size - stream.position
        if missing and source.is_device:
            raise ArchiverError(
                f"{source.name} ended after {stream.position} of {source.size} bytes", hint="is the device still there?"
            )
        stream.write_zeros(missing)
        return not missing

    def _tell_torn(self, spec: ArchiveSpec, source: Source, complete: bool) -> bool:
        """Whether the image is not what the source was at any one moment, or not all of it."""
        reasons = []
        if source.unreadable:
            count = sum(length for _, length in source.unreadable)
            ranges = [f"{offset}-{offset + length - 1}" for offset, length in source.unreadable[:_RANGES_TOLD]]
            more = ", ..." if len(source.unreadable) > _RANGES_TOLD else ""
            reasons.append(
                f"{count} bytes could not be read and are zeros in the snapshot: bytes {', '.join(ranges)}{more}"
            )
        if not complete or source.changed():
            reasons.append("changed while it was read")
        for reason in reasons:
            self._listener(FileProblem(spec.archive.encode(), reason, "torn"))
        self._tally.counters.torn += bool(reasons)
        return bool(reasons)


def _empty(spec: ArchiveSpec, source: Source) -> ArchiverError:
    what = "the command gave no output" if spec.command is not None else f"{source.name} is empty"
    return ArchiverError(f"{what}: the format has no empty images, so nothing is saved")
