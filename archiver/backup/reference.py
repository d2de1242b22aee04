"""The previous archive that a metadata run compares with and takes chunks from (spec change-detection.md 5.1, 5.2).

Any doubt about it means "no reference": the run is then a complete backup, never a failed one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from archiver.backup.reuse import Previous
from archiver.browse.snapshot import Snapshot
from archiver.errors import ArchiverError
from archiver.store.chunks import MAX_CHUNK
from archiver.store.digests import DistinctDigests
from archiver.store.indexes import Index
from archiver.store.layout import GroupRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.errors import FormatError
from formats.index import FixedIndex
from formats.manifest import FileInfo


class NoReference(Exception):
    """Why there is none, as a clause."""


class PreviousArchive(NamedTuple):
    """A tree of the newest finished snapshot of a group, in two halves, both consistent.

    ``payload``: the index of its contents, in ``payload_file``. ``csum``: of that of its entries, as in the manifest.
    """

    snapshot: Snapshot
    payload: Index
    payload_file: FileInfo
    csum: bytes


_ASKED_AT_ONCE = 4096  # chunks

Usable = Callable[[Sequence[bytes], Sequence[int]], list[bool]]


class Reference:
    """Streams that contents can be taken from, one behind the other: offsets in the second one begin at ``origins[1]``.

    ``usable`` says of digests and sizes which of the chunks may be put into a new index (they are seen and touched).
    """

    def __init__(self, streams: Sequence[tuple[Index, Usable]]) -> None:
        self._indexes = [index for index, _ in streams]
        self._firsts = np.cumsum([0, *(len(index) for index in self._indexes)]).tolist()
        starts = np.zeros(self._firsts[-1] + 1, np.int64)
        for index, start, stop in zip(self._indexes, self._firsts[:-1], self._firsts[1:], strict=True):
            np.cumsum(index.sizes(), out=starts[start + 1 : stop + 1])
            starts[start + 1 : stop + 1] += starts[start]
        self.origins = [int(starts[entry]) for entry in self._firsts[:-1]]
        numbers = self._numbers()
        # A chunk is asked for with the size that its first entry gives: one that says otherwise is wrong, or that is.
        first = self._first_entries(numbers)
        usable = self._found(streams, first)[numbers]
        sizes = np.diff(starts)
        usable &= sizes == sizes[first][numbers]
        self.payload = Previous(starts, numbers, usable)

    def _numbers(self) -> NDArray[np.uint32]:
        """Of the chunk of each entry, in the order of their digests."""
        digests = [index.digests for index in self._indexes]
        return DistinctDigests(digests[0] if len(digests) == 1 else np.concatenate(digests)).positions

    @staticmethod
    def _first_entries(numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """By number."""
        entries = np.arange(len(numbers), dtype=np.uint32)
        first = np.empty(int(numbers.max()) + 1 if len(numbers) else 0, np.uint32)
        first[numbers[::-1]] = entries[::-1]  # of several assignments the last one stays
        return first

    def _found(self, streams: Sequence[tuple[Index, Usable]], first: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Of each chunk whether it is usable in the stream that its ``first`` entry is in."""
        found = np.zeros(len(first), np.bool_)
        for (index, usable), start, stop in zip(streams, self._firsts[:-1], self._firsts[1:], strict=True):
            sizes, digests = index.sizes(), index.digests
            here = np.flatnonzero((first >= start) & (first < stop))
            for part in np.split(here, range(_ASKED_AT_ONCE, len(here), _ASKED_AT_ONCE)):
                at = first[part] - start
                found[part] = usable([digest.tobytes() for digest in digests[at]], sizes[at].tolist())
        return found

    def give_up(self, start: int, end: int) -> None:
        """No chunk with bytes of [start, end) is taken over any more."""
        first, last = self.payload.span(np.array([start], np.int64), np.array([end], np.int64))
        numbers = self.payload.numbers[int(first[0]) : int(last[0]) + 1]
        self.payload.usable[np.isin(self.payload.numbers, numbers)] = False

    def chunk(self, entry: int) -> tuple[bytes, int]:
        """Digest and size of an entry."""
        number = bisect_right(self._firsts, entry) - 1
        index, entry = self._indexes[number], entry - self._firsts[number]
        return index.digest(entry), index.end(entry) - index.start(entry)


@dataclass(frozen=True, slots=True)
class PreviousImage:
    """An image of the newest finished snapshot of a group. ``csum``: of its index, as in the manifest."""

    snapshot: Snapshot
    index: FixedIndex
    csum: bytes


def find_previous(
    store: Store, group: GroupRef, name: str, crypt_mode: str, crypt: CryptConfig | None
) -> PreviousArchive | None:
    """The archive ``name`` (``x.pxar``) of the group's newest finished snapshot.

    None when it is the first of its name in the group; raises NoReference when there is one that cannot be used.
    """
    with _doubtful():
        found = _find(store, group, name, crypt_mode, crypt)
        if found is None:
            return None
        snapshot, files = found
        if len(files) != 2:
            raise NoReference(f"{name} of {snapshot.ref} is not in two halves")
        snapshot.index(files[0])
        payload = snapshot.index(files[1])
        largest = int(payload.sizes().max(initial=0))
        if largest > MAX_CHUNK:
            of = f"{files[1].filename} of {snapshot.ref}"
            raise NoReference(f"a chunk of {of} is said to hold {largest} bytes, more than one can")
        return PreviousArchive(snapshot, payload, files[1], files[0].csum)


def find_previous_image(
    store: Store, group: GroupRef, name: str, crypt_mode: str, crypt: CryptConfig | None
) -> PreviousImage | None:
    """The same for an image, ``x.img``."""
    with _doubtful():
        found = _find(store, group, name, crypt_mode, crypt)
        if found is None:
            return None
        snapshot, files = found
        index = snapshot.index(files[0])
        if not isinstance(index, FixedIndex):
            raise NoReference(f"{name} of {snapshot.ref} is not an image")
        return PreviousImage(snapshot, index, files[0].csum)


@contextmanager
def _doubtful() -> Iterator[None]:
    """Whatever is wrong with a snapshot, it is no reference then."""
    try:
        yield
    except (ArchiverError, FormatError) as error:
        raise NoReference(str(error)) from error


def _find(
    store: Store, group: GroupRef, name: str, crypt_mode: str, crypt: CryptConfig | None
) -> tuple[Snapshot, tuple[FileInfo, ...]] | None:
    """The newest finished snapshot and the files of its archive ``name``."""
    ref = store.newest(group)
    if ref is None:
        return None
    snapshot = Snapshot(store, ref, crypt)
    state = store.info(ref).verify_state
    if state is not None and state.get("state") == "failed":
        raise NoReference(f"{ref} failed its verification")
    if crypt is not None and not snapshot.made_with_key:
        raise NoReference(f"{ref} is not signed")
    found = [archive for archive in snapshot.archives() if archive.name == name]
    if not found:
        return None
    modes = {file.crypt_mode for file in found[0].files}
    if modes != {crypt_mode}:
        raise NoReference(f"{name} of {ref} was saved with encryption mode {', '.join(sorted(modes))}")
    return snapshot, found[0].files
