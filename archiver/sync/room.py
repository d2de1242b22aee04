"""How much a sync would copy, and whether there is room for it in the target: refused before anything is copied when
there certainly is none.

What is to be copied is known to the byte. First what costs nothing: where the contents fit as they are, their chunks
do. Then what the databases tell of the chunks that are missing; and before a sync is refused, whether their files are
there after all, as an earlier one was interrupted. Where the file system itself may compress nothing is certain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archiver.core import linux
from archiver.core.disk import available
from archiver.errors import NoSpace
from archiver.store.database import bulk, records
from archiver.store.store import Store
from archiver.sync.plan import SyncPlan

_MARGIN = 1 << 20  # bytes, besides one part in 64, for headers, indexes and directories
_SHARE = 64


@dataclass(frozen=True, slots=True)
class Estimate:
    """Chunks that the target does not have, and their stored bytes in the source."""

    chunks: int
    bytes: int


def estimate(source: Store, target: Store, plan: SyncPlan, *, with_files: bool = False) -> Estimate | None:
    """How much the plan would copy, as the databases tell it; None when they cannot. ``with_files``: chunks that the
    target's database does not know, but have a file there, are not counted."""
    ours, theirs = source.database, target.database
    if ours is None or theirs is None:
        return None
    _, stored = ours.sizes()
    used = np.zeros(len(stored), np.bool_)
    for step in plan.work:
        references = ours.references(step.source.path) if step.action != "update" else []
        if references is None:
            return None
        for numbers in references:
            used[numbers[numbers < len(used)]] = True

    def look(txn: Any) -> Estimate:
        chunks = size = 0
        table = ours.table(records.CHUNK)
        for numbers, rows in bulk.scan(txn, table, bulk.U32_KEYS, bulk.CHUNK_VALUES):
            numbers, rows = numbers[numbers < len(used)], rows[numbers < len(used)]
            mine = used[numbers]
            digests = np.ascontiguousarray(rows["digest"][mine]).view(np.uint8).reshape(-1, 32)
            missing = theirs.unknown(digests)
            if with_files:
                missing[missing] = _without_file(target, digests[missing])
            chunks += int(missing.sum())
            size += int(stored[numbers[mine][missing]].sum(dtype=np.int64))
        return Estimate(chunks, size)

    return ours.ask(look)


def _without_file(target: Store, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.fromiter((target.chunks.seen(digest.tobytes()) is None for digest in digests), np.bool_, len(digests))


def check_room(source: Store, target: Store, plan: SyncPlan) -> None:
    """Raises NoSpace."""
    base = target.layout.base
    contents = sum(step.size for step in plan.work if step.action != "update")
    if not contents or contents + contents // _SHARE + _MARGIN <= available(base) or not linux.stores_as_it_is(base):
        return
    found = estimate(source, target, plan)
    if found is not None and found.bytes > available(base):
        found = estimate(source, target, plan, with_files=True)
    free = available(base)
    if found is None or found.bytes <= free:
        return
    raise NoSpace(
        f"no space left to copy into {base}: {found.bytes >> 20} MiB are missing there, {free >> 20} MiB are free",
        hint="make room there (forget or prune, then gc), or copy less, for example with --transfer-last",
    )
