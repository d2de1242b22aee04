"""How long ago what snapshots consist of was read and found good: a verification by budgets reads another part in each
run, so that no single date says it. Answered from the database alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from archiver.store.database import bulk, records
from archiver.store.database.bulk import Numbers
from archiver.store.database.database import Database
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store

_DAY = 86400
DAYS = (7, 30, 90)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Stored bytes by the age of their last verification: at most 7, 30 and 90 days, longer, never. ``oldest``: of the
    chunks that were verified at all, Unix seconds."""

    within: tuple[int, ...]
    longer: int
    never: int
    damaged_chunks: int
    oldest: int | None

    @property
    def bytes(self) -> int:
        return sum(self.within) + self.longer + self.never

    def as_json(self) -> dict[str, Any]:
        days = {f"within_{day}_days": size for day, size in zip(DAYS, self.within, strict=True)}
        rest = {"longer": self.longer, "never": self.never}
        return days | rest | {"damaged_chunks": self.damaged_chunks, "oldest": self.oldest}


def coverage(store: Store, refs: Iterable[SnapshotRef], now: int) -> Coverage | None:
    """Of all chunks of these snapshots, each counted once. None where the database does not know them all."""
    database = store.database
    if database is None:
        return None
    _, stored = database.sizes()
    verified = _verified(database, len(stored))
    used = np.zeros(len(stored), np.bool_)
    for ref in refs:
        references = database.references(ref.path)
        if references is None or any(len(numbers) and int(numbers.max()) >= len(used) for numbers in references):
            return None
        for numbers in references:
            used[numbers] = True
    sizes, times = stored[used].astype(np.int64), verified[used].astype(np.int64)
    classes = np.searchsorted(np.array(DAYS) * _DAY, now - times)
    classes[times == 0] = len(DAYS) + 1
    *within, longer, never = (int(sizes[classes == number].sum()) for number in range(len(DAYS) + 2))
    known = times[times > 0]
    oldest = int(known.min()) if len(known) else None
    return Coverage(tuple(within), longer, never, int((sizes == 0).sum()), oldest)


def _verified(database: Database, count: int) -> Numbers:
    """When each chunk was verified, by its number: Unix seconds, 0 for never."""

    def look(txn: Any) -> Numbers:
        found = np.zeros(count, np.uint32)
        table = database.table(records.CHUNK)
        for numbers, rows in bulk.scan(txn, table, bulk.U32_KEYS, bulk.CHUNK_VALUES):
            known = numbers < count
            found[numbers[known]] = rows["verified"][known]
        return found

    found = database.ask(look)
    return np.zeros(count, np.uint32) if found is None else found
