"""The previous archive that a metadata run compares with and takes chunks from (spec change-detection.md 5.1, 5.2).

Any doubt about it means "no reference": the run is then a complete backup, never a failed one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from archiver.backup.reuse import Previous
from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.errors import ArchiverError, NotFound
from archiver.store.indexes import Index
from archiver.store.layout import GroupRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.errors import FormatError


class NoReference(Exception):
    """Why there is none, as a clause."""


class Reference:
    """A tree of the newest finished snapshot of a group, in two halves, both consistent.

    ``csum``: of the index of its entries, as in the manifest.
    """

    def __init__(self, snapshot: Snapshot, archive: ArchiveFiles, payload: Previous, digests: Index) -> None:
        self.snapshot = snapshot
        self.archive = archive
        self.csum = archive.files[0].csum
        self.payload = payload
        self._index = digests

    def chunk(self, entry: int) -> tuple[bytes, int]:
        """Digest and size of an entry of the payload index."""
        return self._index.digest(entry), self._index.end(entry) - self._index.start(entry)


def find_reference(
    store: Store,
    group: GroupRef,
    name: str,
    crypt_mode: str,
    crypt: CryptConfig | None,
    usable: Callable[[bytes, int], bool],
) -> Reference | None:
    """The archive ``name`` (``x.pxar``) of the group's newest finished snapshot.

    ``usable`` says of a digest and size whether that chunk may be put into a new index (it is seen and touched).
    None in a group without snapshots; raises NoReference when there is one that cannot be used.
    """
    try:
        ref = store.newest(group)
        if ref is None:
            return None
        snapshot = Snapshot(store, ref, crypt)
        state = store.info(ref).verify_state
        if state is not None and state.get("state") == "failed":
            raise NoReference(f"{ref} failed its verification")
        if crypt is not None and not snapshot.protected:
            raise NoReference(f"{ref} is not signed")
        archive = _split(snapshot, name)
        modes = {file.crypt_mode for file in archive.files}
        if modes != {crypt_mode}:
            raise NoReference(f"{name} of {ref} was saved with encryption mode {', '.join(sorted(modes))}")
        index = snapshot.index(archive.files[1])
        return Reference(snapshot, archive, _payload(index, usable), index)
    except NotFound as error:
        raise NoReference(str(error)) from error
    except (ArchiverError, FormatError) as error:
        raise NoReference(str(error)) from error


def _split(snapshot: Snapshot, name: str) -> ArchiveFiles:
    for archive in snapshot.archives():
        if archive.name == name and len(archive.files) == 2:
            return archive
    raise NoReference(f"{snapshot.ref} has no {name} in two halves")


def _payload(index: Index, usable: Callable[[bytes, int], bool]) -> Previous:
    sizes = index.sizes()
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    digests = np.ascontiguousarray(index.digests).view("V32").ravel()
    first, numbers = np.unique(digests, return_index=True, return_inverse=True)[1:]
    found = [usable(index.digest(at), int(sizes[at])) for at in first.tolist()]
    return Previous(starts, numbers.astype(np.uint32), np.array(found, np.bool_)[numbers])
