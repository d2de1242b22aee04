"""Which chunks come first when a verification is not to read all of them.

Those that are known to be damaged come always, and count for nothing. Then those that the round (store/database/rounds)
has not come to, the ones first that were verified longest ago; then the others in the same order. When a round has
come to all, the next one begins. Without a database nobody remembers: the order is random.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from archiver.browse.chunk_check import Task
from archiver.browse.seen import Rows, SeenChunks, digests_of, pairs_of, sizes_of
from archiver.browse.verify_result import Budget, BudgetResult
from archiver.core.events import Listener, Notice
from archiver.store.database.records import NO_NUMBER
from archiver.store.database.rounds import Known, Round, known_of, load_round, new_round, save_round
from archiver.store.digests import Prefixes, prefixes_of
from archiver.store.store import Store

_ALWAYS, _NEXT, _LATER = range(3)
_SHARE = 4  # of a time at least one part of so many is for chunks, however long manifests and indexes took
_SAVE_AFTER = 4096  # chunks
_COUNTED_AT_ONCE = 1 << 16  # chunks


class Kind(NamedTuple):
    """Of chunks: to be encrypted, and whether with the key at hand."""

    encrypted: bool
    with_key: bool


class Plan:
    """One run over the chunks that were ``seen``. ``began``: of the run, Unix seconds; ``steady``: the same moment for
    durations."""

    def __init__(
        self,
        store: Store,
        seen: Mapping[Kind, SeenChunks],
        scope: str,
        budget: Budget,
        began: int,
        steady: float,
        listener: Listener,
    ) -> None:
        self._store, self._scope, self._budget = store, scope, budget
        self._database = database = store.database  # it may give up on the way: then it knows nothing
        self._began, self._steady = began, steady
        self._kinds = list(seen)
        self._rows = [seen[kind].rows() for kind in self._kinds]
        self._firsts = np.cumsum([0, *(len(rows) for rows in self._rows)])
        self._count = int(self._firsts[-1])
        self._done = np.zeros(self._count, np.bool_)
        self._lock = threading.Lock()
        self._unsaved = 0
        self._first, self._deadline = True, 0.0
        self._round: Round | None = None
        parts = [known_of(database, digests_of(rows)) if database is not None else None for rows in self._rows]
        if database is None:
            listener(Notice("without a database nobody knows where the last run ended: the order is random", "warning"))
            sizes = [sizes_of(rows) for rows in self._rows]
            nobody = np.full(self._count, NO_NUMBER, np.uint32)
            self._known = Known(nobody, np.zeros(self._count, np.uint32), _joined(sizes))
            self._classes = np.full(self._count, _LATER, np.uint8)
            seed = int.from_bytes(store.random(8))
            self._order = np.arange(self._count, dtype=np.uint32)
            np.random.default_rng(seed).shuffle(self._order)
            return
        found = [part for part in parts if part is not None]
        self._known = Known(*(_joined([part[column] for part in map(_columns, found)]) for column in range(3)))
        self._twice = self._met_twice()
        self._round = load_round(database, scope) or new_round(database, began)
        self._classes = self._classify(self._round)
        if not (self._classes == _NEXT).any():
            self._round = new_round(database, began)
            self._classes = self._classify(self._round)
        order = np.lexsort((self._known.number, self._known.verified, self._classes))
        self._order = order.astype(np.uint32)

    def _met_twice(self) -> NDArray[np.bool_]:
        """Chunks of which indexes say different things: few, and one of them must be wrong."""
        number = self._known.number
        is_known: NDArray[np.bool_] = number != NO_NUMBER
        met = np.zeros(int(number.max(initial=0, where=is_known)) + 1, np.bool_)
        twice = np.zeros(met.size, np.bool_)  # untouched memory of both takes none
        for start in range(0, len(number), _COUNTED_AT_ONCE):
            part = slice(start, start + _COUNTED_AT_ONCE)
            here, counts = np.unique(number[part][is_known[part]], return_counts=True)
            twice[here] = (counts > 1) | met[here]
            met[here] = True
        is_known[is_known] = twice[number[is_known]]
        return is_known

    def _classify(self, current: Round) -> NDArray[np.uint8]:
        number = self._known.number
        is_due = number < len(current.looked_at)
        is_due[is_due] = ~current.looked_at[number[is_due]]
        classes = np.where(is_due, np.uint8(_NEXT), np.uint8(_LATER))
        classes[self._twice | ((self._known.stored == 0) & (number != NO_NUMBER))] = _ALWAYS
        return classes

    # -- what to read ------------------------------------------------------------------------------------------------

    def always(self) -> Iterator[Task]:
        """Chunks that are read whatever the budget is."""
        return self._tasks(self._order[self._classes[self._order] == _ALWAYS])

    def others(self) -> tuple[Iterator[Task], Iterator[Task]]:
        """What is due in this round, and then the rest, as far as a budget of bytes goes, at least one; a time is
        measured by ``goes_on``."""
        order = self._order[self._classes[self._order] != _ALWAYS]
        if self._budget.bytes is not None:
            spent = np.cumsum(self._known.stored[order], dtype=np.int64)
            order = order[: max(int(np.searchsorted(spent, self._budget.bytes, "right")), 1)]
        if self._budget.seconds is not None:
            seconds, now = self._budget.seconds, self._store.clock.steady()
            self._deadline = max(self._steady + seconds, now + seconds / _SHARE)
        is_due = self._classes[order] == _NEXT
        return self._tasks(order[is_due]), self._tasks(order[~is_due])

    def goes_on(self) -> bool:
        if self._first or self._budget.seconds is None:
            self._first = False
            return True
        return self._store.clock.steady() < self._deadline

    def _tasks(self, places: NDArray[np.uint32]) -> Iterator[Task]:
        for start in range(0, len(places), _COUNTED_AT_ONCE):
            part = places[start : start + _COUNTED_AT_ONCE]
            of = np.searchsorted(self._firsts, part, "right") - 1
            for place, which in zip(part.tolist(), of.tolist(), strict=True):
                at = place - int(self._firsts[which])
                ((digest, size),) = pairs_of(self._rows[which][at : at + 1])
                kind = self._kinds[which]
                yield Task(digest, size, kind.encrypted, kind.with_key, place)

    # -- what was read -----------------------------------------------------------------------------------------------

    def done(self, tasks: Sequence[Task]) -> None:
        """These were read; called by any thread."""
        places = [task.place for task in tasks]
        with self._lock:
            self._done[places] = True
            self._unsaved += len(places)
            is_due = self._unsaved >= _SAVE_AFTER
            self._unsaved = 0 if is_due else self._unsaved
        if is_due:
            self.save()

    def save(self) -> None:
        """Let the next run know how far this one has come."""
        with self._lock:
            if self._round is None or self._database is None:
                return
            numbers = self._known.number[self._done]
            looked_at = self._round.looked_at
            looked_at[numbers[numbers < len(looked_at)]] = True
            save_round(self._database, self._scope, self._round)

    def result(self) -> BudgetResult:
        stored, missed = self._known.stored, ~self._done
        left = missed & (self._classes == _NEXT)
        return BudgetResult(
            reached=int(self._done.sum()),
            reached_bytes=int(stored[self._done].sum(dtype=np.int64)),
            not_reached=int(missed.sum()),
            not_reached_bytes=int(stored[missed].sum(dtype=np.int64)),
            left=int(left.sum()),
            left_bytes=int(stored[left].sum(dtype=np.int64)),
            oldest=int(self._known.verified[left].min()) if left.any() else None,
            began=None if self._round is None else self._round.began,
        )

    @property
    def began(self) -> int:
        """Nothing that is not ``unproven`` was read before."""
        return self._began if self._round is None else self._round.began

    def unproven(self) -> list[Prefixes]:
        """The first 8 bytes of every digest that neither this run nor an earlier one of its round has come to: of each
        kind, sorted. An earlier one that came to an encrypted chunk may not have proved it, without the key: then nor
        has the round.
        """
        proven = self._done.copy()
        if self._round is not None:
            number = self._known.number
            is_old = (number < len(self._round.looked_at)) & (self._classes != _ALWAYS)
            is_old[is_old] = self._round.looked_at[number[is_old]]
            for kind, first, stop in zip(
                self._kinds, self._firsts[:-1].tolist(), self._firsts[1:].tolist(), strict=True
            ):
                if kind.encrypted:
                    is_old[first:stop] &= self._known.verified[first:stop] >= self._round.began
            proven |= is_old
        return [
            _prefixes(rows, ~proven[first : first + len(rows)])
            for rows, first in zip(self._rows, self._firsts[:-1].tolist(), strict=True)
        ]


def _columns(known: Known) -> tuple[NDArray[np.uint32], ...]:
    return known.number, known.verified, known.stored


def _prefixes(rows: Rows, chosen: NDArray[np.bool_]) -> Prefixes:
    """Those of some digests."""
    starts = range(0, len(rows), _COUNTED_AT_ONCE)
    parts = (slice(start, start + _COUNTED_AT_ONCE) for start in starts)
    return np.concatenate(
        [np.zeros(0, np.uint64), *(prefixes_of(digests_of(rows[part][chosen[part]])) for part in parts)]
    )


def _joined(parts: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
    return np.concatenate(parts) if parts else np.zeros(0, np.uint32)
