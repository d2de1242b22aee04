"""A media set as this machine knows it: the inventory, the catalog logs, and the database over them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from archiver.errors import NotFound
from archiver.tape.media_sets.media_sets import MediaSets, SnapshotPlace
from archiver.tape.media_sets.records import NOWHERE
from archiver.tape.members import Member, Numbers
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import Inventory, MediaSet
from archiver.tape.state.place import TapePlace
from archiver.tape.state.pools import Pool
from formats.errors import FormatError
from formats.tape.catalog import Digests, MediaCatalog
from formats.tape.content import decode_uuid, encode_uuid


class KnownSet:
    """What restores and backups ask of one media set. ``refresh`` after each change of its logs."""

    def __init__(self, place: TapePlace, sets: MediaSets, media_set: MediaSet) -> None:
        """Raises Damaged for a catalog that cannot be read."""
        self._logs = CatalogLogs(place)
        self._sets = sets
        self._decoded: dict[bytes, MediaCatalog | None] = {}
        self.media_set = media_set
        self.refresh(media_set)

    def refresh(self, media_set: MediaSet) -> None:
        self.media_set = media_set
        self._decoded.clear()
        self._sets.refresh(media_set)

    @property
    def uuid(self) -> bytes:
        return self.media_set.uuid

    @property
    def members(self) -> list[Member]:
        return [Member(number, medium.uuid, medium.name) for number, medium in sorted(self.media_set.members.items())]

    @property
    def holes(self) -> list[int]:
        return self.media_set.missing

    def log(self, member: Member) -> MediaCatalog | None:
        if member.uuid not in self._decoded:
            found = self._logs.load(member.uuid)
            is_of_set = found is not None and (found.media_set, found.seq_nr) == (self.uuid, member.seq_nr)
            self._decoded[member.uuid] = found if is_of_set else None
        return self._decoded[member.uuid]

    def snapshots(self) -> Iterable[SnapshotPlace]:
        return self._sets.snapshots(self.uuid)

    def find_chunks(self, store: str, digests: Digests) -> tuple[Numbers, Numbers]:
        places = self._sets.find_chunks(self.uuid, store, digests)
        positions, files = places["position"].astype(np.int64), places["file"].astype(np.int64)
        positions[positions == NOWHERE] = -1
        return positions, files

    def holds_snapshot(self, store: str, path: str) -> bool:
        return self._sets.find_snapshot(self.uuid, store, path) is not None

    def absent(self, store: str, digests: Digests) -> Digests:
        """Those of the sorted ``digests`` that no catalog of the set has."""
        is_absent = self._sets.find_chunks(self.uuid, store, digests)["position"] == NOWHERE
        found: Digests = digests[is_absent]
        return found


def find_set(inventory: Inventory, pools: dict[str, Pool], text: str) -> MediaSet:
    """A media set by its uuid, by its name, by the name of its pool (the newest set), or by the label of one of its
    media. Raises NotFound."""
    try:
        found = inventory.media_set(decode_uuid(text, "uuid"))
        if found.members:
            return found
    except FormatError:
        pass
    named = []
    for media_set in inventory.sets():
        pool = pools.get(media_set.pool or "")
        name = encode_uuid(media_set.uuid) if pool is None else pool.set_name(media_set.uuid, media_set.start)
        if name == text:
            named.append(media_set)
    if len(named) == 1:
        return named[0]
    of_pool = inventory.latest_set(text)
    if of_pool is not None:
        return of_pool
    medium = inventory.labelled(text)
    if medium is not None and medium.in_set is not None:
        return inventory.media_set(medium.in_set.uuid)
    raise NotFound(f"there is no media set {text}", hint="see: archiver tape media list")
