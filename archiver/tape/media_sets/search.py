"""What a media set holds, looked for in the catalog logs themselves: for where there can be no database."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from archiver.store.digests import DistinctDigests
from archiver.tape.media_sets.records import NOWHERE, PLACES
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import MediaSet
from formats.tape.catalog import Digests, MediaCatalog, SnapshotEntry

Places = NDArray[np.void]


def catalogs(logs: CatalogLogs, media_set: MediaSet) -> list[tuple[int, MediaCatalog]]:
    """The catalogs of its members by position, of those that have one of this set. Raises Damaged."""
    found = []
    for position, medium in sorted(media_set.members.items()):
        catalog = logs.load(medium.uuid)
        if catalog is not None and (catalog.media_set, catalog.seq_nr) == (media_set.uuid, position):
            found.append((position, catalog))
    return found


def find_chunks(known: list[tuple[int, MediaCatalog]], store: str, digests: Digests) -> Places:
    """As ``MediaSets.find_chunks``."""
    wanted = DistinctDigests(digests)
    places = nowhere(len(wanted))
    flat = np.concatenate([part.view("S32").ravel() for part in wanted.parts()] or [np.empty(0, "S32")])
    for position, catalog in known:
        for archive in catalog.archives:
            if archive.store != store or not len(archive.digests) or not len(flat):
                continue
            there = np.ascontiguousarray(archive.digests).view("S32").ravel()
            at = np.minimum(np.searchsorted(flat, there), len(flat) - 1)
            hits = at[flat[at] == there]
            places["position"][hits] = position
            places["file"][hits] = archive.file
    return places[wanted.positions]


def nowhere(count: int) -> Places:
    places = np.empty(count, PLACES)
    places["position"] = places["file"] = NOWHERE
    return places


def snapshots(known: list[tuple[int, MediaCatalog]]) -> list[tuple[int, SnapshotEntry]]:
    return [(position, entry) for position, catalog in known for entry in catalog.snapshots]
