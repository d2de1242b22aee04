"""Snapshots that are gone: their runs, and the records that no other run needs.

A run on which no other leans is removed, with a key or without. One that others lean on stays, but for

* its records that nobody has any more: a pack without any other is removed, in others they become zeros, which take no
  space and leave all the rest where it is;
* its places, when no run looks further back than to a later one that has all places.

The names that were new in it stay: most of them are still there. What is sealed is cleared when its key is at hand.
Clearing looks at the places of all runs (some seconds for 100 runs of a million files), so it waits for several.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from archiver.store.catalog import runs
from archiver.store.catalog.catalog import (
    CHANGE,
    CHANGED,
    CLEARED,
    DROPPED,
    FORGOTTEN,
    GONE,
    LENGTH,
    LIVE,
    PART_KEY,
    RUN_KEY,
    Catalog,
    RunHead,
)
from archiver.store.catalog.columns import compress
from archiver.store.database import records

if TYPE_CHECKING:
    from archiver.store.catalog.columns import U64s

Rows = NDArray[np.uint64]  # (n, 3): time, pack, offset
_Offsets = dict[tuple[int, int], frozenset[int]]  # of a run and pack: what is needed
_WORTH = 8  # forgotten runs are cleared when they are more than this part of the others
_NONE = np.full((1, 2), 2**64 - 1, np.uint64)
_CHANGES = np.dtype([("length", "<u4"), ("time", "<u8"), ("pack", "<u4"), ("offset", "<u4")])


def forget(catalog: Catalog, alive: Collection[int]) -> None:
    """Forget the runs of all snapshots but those of the times ``alive``. Without the key of a sealed catalog it is only
    noted what there is to clear."""
    database = catalog.database
    if set(catalog.times()) <= set(alive):
        return
    with runs.alone(database) as is_alone:
        if is_alone:
            database.change(partial(_remove, catalog, frozenset(alive)))
    clear(catalog)


def clear(catalog: Catalog) -> None:
    """Remove what only runs of forgotten snapshots have, when there are enough of them to be worth it."""
    heads = catalog.heads()
    ours = {time: head for time, head in heads.items() if head.identity == catalog.seal.identity}
    states = [head.state for head in ours.values()]
    if states.count(FORGOTTEN) * _WORTH <= states.count(LIVE):
        return
    with runs.alone(catalog.database) as is_alone:
        if is_alone:
            _Clearing(catalog, ours).run()


def _remove(catalog: Catalog, alive: frozenset[int], txn: Any) -> None:
    """Remove the runs that are gone and that no other leans on; note the others."""
    row = runs.archive_row(catalog, txn)
    leaned: set[int] = set()
    for time, head in reversed(runs.heads(catalog, txn, row.number).items()):
        if time not in alive and time not in leaned:
            runs.delete_run(catalog, txn, runs.archive_row(catalog, txn), time)
            continue
        leaned.add(head.parent)
        if time not in alive and head.state == LIVE:
            runs.put_state(catalog, txn, RUN_KEY.pack(row.number, time), FORGOTTEN)


class _Clearing:
    """``heads``: all runs of this key by time, in order."""

    def __init__(self, catalog: Catalog, heads: dict[int, RunHead]) -> None:
        self._catalog = catalog
        self._heads = heads
        self._gone = frozenset(time for time, head in heads.items() if head.state != LIVE)
        number = catalog.number()
        assert number is not None
        self._number = number

    def run(self) -> None:
        needed = self._needed()
        if needed is None:
            return
        offsets, linked = needed
        database = self._catalog.database
        for time in self._gone:
            for key in database.keys(records.PACK, RUN_KEY.pack(self._number, time)):
                self._clear_pack(key, offsets.get((time, PART_KEY.unpack(key)[2]), frozenset()))
            self._catalog.forget_kept(time)
            if time not in linked:
                database.change(partial(self._delete_places, time))
        database.change(self._note)

    def _note(self, txn: Any) -> None:
        for time in self._gone:
            runs.put_state(self._catalog, txn, RUN_KEY.pack(self._number, time), CLEARED)

    def _delete_places(self, time: int, txn: Any) -> None:
        runs.delete_all(self._catalog, txn, records.PLACE, RUN_KEY.pack(self._number, time))

    def _needed(self) -> tuple[_Offsets, set[int]] | None:
        """(The records of gone runs that live ones have; the gone runs whose places live ones look at). None when that
        cannot be known."""
        places = {time: self._catalog.own_places(time) for time in self._heads}
        keys = np.unique(np.concatenate([own[0] for own in places.values() if own is not None]))
        asked = {time: np.full(len(keys), time not in self._gone) for time in self._heads}
        found: list[Rows] = []
        linked: set[int] = set()
        for time, head in reversed(self._heads.items()):
            own = places[time]
            if not asked[time].any():
                continue
            if own is None:
                return None
            linked.add(time)
            where = np.searchsorted(keys, own[0])
            mine = asked[time][where] & (own[2] != GONE)
            found.append(np.stack([column[mine] for column in own[1:]], axis=1))
            if head.chain:
                if head.parent not in asked:
                    return None
                asked[time][where] = False
                asked[head.parent] |= asked[time]
        rows = np.concatenate(found)
        bases = self._bases(rows[rows[:, 1] & np.uint64(CHANGED) != 0])
        return None if bases is None else (self._by_pack(np.concatenate((rows, bases))), linked)

    def _bases(self, rows: Rows) -> Rows | None:
        """The places of the records that changed ones are changes of."""
        found = [np.zeros((0, 3), np.uint64)]
        for (time, number), offsets in _grouped(rows):
            pack = self._catalog.pack(time, number)
            if pack is None:
                return None
            changes = np.frombuffer(pack, np.uint8)[offsets.astype(np.int64)[:, None] + np.arange(CHANGE.size)]
            columns = changes.view(_CHANGES).ravel()
            found.append(np.stack([columns[name].astype(np.uint64) for name in ("time", "pack", "offset")], axis=1))
        return np.concatenate(found)

    def _by_pack(self, rows: Rows) -> _Offsets:
        gone = np.isin(rows[:, 0], np.array(sorted(self._gone), np.uint64))
        return {pack: frozenset(offsets.tolist()) for pack, offsets in _grouped(rows[gone])}

    def _clear_pack(self, key: bytes, needed: frozenset[int]) -> None:
        """Remove a pack without any needed record; put zeros in the place of those that are not in another one."""
        _, time, number = PART_KEY.unpack(key)
        database = self._catalog.database
        if not needed:
            database.change(lambda txn: txn.delete(key, db=database.table(records.PACK)))
            return
        before = self._catalog.pack(time, number)
        if before is None:
            return
        pack = bytearray(before)
        head = CHANGE.size if number & CHANGED else LENGTH.size
        at = 0
        while at < len(pack):
            (length,) = LENGTH.unpack_from(pack, at)
            behind = at + head + (length & ~DROPPED)
            if at not in needed:
                pack[at:behind] = LENGTH.pack(length | DROPPED) + bytes(behind - at - LENGTH.size)
            at = behind
        if pack != before:
            value = self._catalog.sealed(compress(bytes(pack)), key)
            database.change(lambda txn: txn.put(key, value, db=database.table(records.PACK)))


def _grouped(rows: Rows) -> Iterator[tuple[tuple[int, int], U64s]]:
    """Run, pack, and the different offsets of all rows of it."""
    rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
    starts = np.flatnonzero((np.diff(rows[:, :2], axis=0, prepend=_NONE) != 0).any(axis=1))
    for start, stop in pairwise((*starts.tolist(), len(rows))):
        yield (int(rows[start, 0]), int(rows[start, 1])), np.unique(rows[start:stop, 2])
