"""Where lost bytes may be found again. Each kind of place is a class of :class:`Candidates`; what one hands out has
passed every check that can be made: the manifest's checksum, or a chunk's digest; without the key of an encrypted chunk
its kind and CRC, and the BLAKE3 that the database of its store has of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from io import BytesIO
from typing import BinaryIO, NamedTuple

from archiver.errors import ArchiverError, UsageError
from archiver.heal.damage import LostChunk
from archiver.store import snapshots
from archiver.store.chunks import ChunkDamaged, ChunkReader
from archiver.store.indexes import Index, is_index, open_index_file
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.recorded_sums import is_recorded
from archiver.store.snapshots import open_regular, read_small
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig
from formats.manifest import FileInfo
from formats.wire import Buffer

_LARGEST_BLOB_FILE = blob.MAX_BLOB_SIZE + blob.ENCRYPTED_HEADER


class FoundChunk(NamedTuple):
    """An encoded chunk, valid until the next one is asked for. ``total``: BLAKE3 of header and body; ``is_proven``: it
    was checked completely, or by such a sum."""

    lost: LostChunk
    header: Buffer
    body: Buffer
    total: bytes
    is_proven: bool


class Candidates:
    """One place to look in. A kind of place that has not all of these leaves out what it cannot have."""

    name = ""  # as a person is told: "the store /mnt/copy"

    def manifests(self, ref: SnapshotRef) -> Iterator[bytes]:
        """Files that may be the manifest of a snapshot; nothing is known of them."""
        return iter(())

    def index(self, ref: SnapshotRef, info: FileInfo) -> Index | None:
        """An index, by its checksum."""
        return None

    def file(self, ref: SnapshotRef, info: FileInfo) -> BinaryIO | None:
        """A file of a snapshot, by its checksum, to be read and closed."""
        return None

    def chunks(self, lost: Sequence[LostChunk]) -> Iterator[FoundChunk]:
        """Those of ``lost`` that are to be had, in any order."""
        return iter(())


class Readers:
    """Chunk files of one store, read and checked as far as the keys go. For one thread."""

    def __init__(self, store: Store, crypt: CryptConfig | None, *, with_database: bool = True) -> None:
        self._store = store
        self._with_database = with_database
        self._readers: dict[bool, ChunkReader] = {False: store.reader(), True: store.reader(crypt)}

    def read(self, lost: LostChunk, path: str | None = None) -> FoundChunk:
        """The chunk, from its own file or that at ``path``. Raises ChunkDamaged."""
        digest, size, encrypted, with_key, _ = lost
        data, total = self._readers[with_key].checked(digest, size, encrypted=encrypted, path=path)
        is_proven = not encrypted or with_key
        if not is_proven and path is None:
            database = self._store.database if self._with_database else None
            is_proven = is_recorded(self._store.chunks, database, digest, total)
        return FoundChunk(lost, data[: blob.PLAIN_HEADER], data[blob.PLAIN_HEADER :], total, is_proven)


class SetAside(Candidates):
    """What was renamed to ``.N.bad`` in the store itself: it may have been the cable, and the disk is good."""

    name = "a copy that was set aside"

    def __init__(self, store: Store, crypt: CryptConfig | None) -> None:
        self._store = store
        self._readers = Readers(store, crypt)

    def chunks(self, lost: Sequence[LostChunk]) -> Iterator[FoundChunk]:
        for chunk in lost:
            if chunk.encrypted and not chunk.with_key:
                continue  # it was set aside for something that cannot be seen without the key
            for path in self._store.chunks.those_set_aside(chunk.digest):
                with suppress(ChunkDamaged):
                    yield self._readers.read(chunk, path)
                    break


class OtherStore(Candidates):
    """A copy. It is read only; snapshots are looked for in all of its namespaces."""

    def __init__(self, ours: Store, store: Store, crypt: CryptConfig | None) -> None:
        """Raises UsageError for the same store."""
        if os.path.samefile(ours.layout.chunks, store.layout.chunks):
            raise UsageError(f"{store.layout.base} is the store that is to be healed", hint="name another one")
        self.name = f"the store {store.layout.base}"
        self._store = store
        # Two directories that say that they are the same store would share one database.
        self._readers = Readers(store, crypt, with_database=ours.uuid != store.uuid)

    def _places(self, ref: SnapshotRef) -> Iterator[SnapshotRef]:
        """Where the snapshot may be, first where it is here."""
        yield ref
        for namespace in self._store.namespaces():
            if namespace != ref.group.namespace:
                yield SnapshotRef(GroupRef(namespace, ref.group.type, ref.group.id), ref.time)

    def manifests(self, ref: SnapshotRef) -> Iterator[bytes]:
        for place in self._places(ref):
            with suppress(ArchiverError):
                yield snapshots.read_manifest_blob(self._store.layout, place)

    def _paths(self, ref: SnapshotRef, info: FileInfo) -> Iterator[str]:
        for place in self._places(ref):
            path = os.path.join(self._store.layout.snapshot(place), info.filename)
            if os.path.lexists(path):
                yield path

    def index(self, ref: SnapshotRef, info: FileInfo) -> Index | None:
        for path in self._paths(ref, info):
            with suppress(ArchiverError):
                return open_index_file(path, str(ref), info)
        return None

    def file(self, ref: SnapshotRef, info: FileInfo) -> BinaryIO | None:
        for path in self._paths(ref, info):
            with suppress(ArchiverError, OSError):
                if is_index(info.filename):
                    open_index_file(path, str(ref), info)
                    return open_regular(path)
                data = read_small(path, _LARGEST_BLOB_FILE)
                if fits(data, info):
                    return BytesIO(data)
        return None

    def chunks(self, lost: Sequence[LostChunk]) -> Iterator[FoundChunk]:
        for chunk in lost:
            with suppress(ChunkDamaged):
                yield self._readers.read(chunk)


def fits(data: Buffer, info: FileInfo) -> bool:
    """Whether a ``.blob`` file is the one that a manifest describes."""
    return len(data) == info.size and sha256(data).digest() == info.csum


def first_file(
    candidates: Iterable[Candidates], ref: SnapshotRef, info: FileInfo
) -> tuple[Candidates, BinaryIO] | None:
    """The first candidate that has a file of a snapshot."""
    for each in candidates:
        file = each.file(ref, info)
        if file is not None:
            return each, file
    return None
