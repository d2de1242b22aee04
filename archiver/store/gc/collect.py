"""One garbage collection: mark, then sweep. Why it never removes a chunk that somebody needs (promise P4):

*Published snapshots.* All index files in the store are counted, in the database's words only where its record is that
of this very snapshot and proves whole (``references``, ``database/unused``): a database that is stale, lost, of an
earlier time or damaged costs time, and one that cannot be believed is left out. An index that cannot be read ends the
collection before anything is removed. Removed snapshots are made durable (syncfs) before the first chunk goes.

*Running writers.* Bytes of ``.lock`` keep out every PBS and every other collection, and with byte 0 every session of
ours (``exclusion``). Where sessions run beside it, a chunk goes only when its access time is before ``minimum``, which
is at least five minutes before the oldest of them began. A hit is a touch under the shard's shared lock, and the look
at the access time and the unlink happen under its exclusive one (``chunk_lock``): either the touch comes first, and
the chunk stays, or the unlink does, and the touch finds nothing, so the chunk is stored again. What was touched before
this session was seen here is of a session that lives still, then its start counts, or that has published, then its
snapshot is in the tree: sessions are looked at before the tree. One that begins later touches with times from the
start of this collection on; neither depends on the clock, which may be set meanwhile.

*Interrupted sessions* that may be gone on with have their unfinished indexes counted for 30 days. Those that are given
up before are removed when all is marked, so that a collection which cannot be leaves them. One that a new session goes
on with by then stays: that touches what it takes over, as any other does.

*Any end.* Files go first, rows of the database after them: a row without a file is a hit that finds nothing, and is
dropped by the next collection. A row is dropped only when no snapshot that was recorded since the marking refers to its
number; numbers are never given out twice. Locks vanish with the process.

Referenced chunks are not touched: a PBS marks for itself before it sweeps, and no session runs then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from archiver.core.events import Notice, Progress
from archiver.store import layout as names
from archiver.store.chunks import check_present
from archiver.store.database import records
from archiver.store.database.bulk import Numbers
from archiver.store.database.database import Database
from archiver.store.database.unused import Unused, forget_chunks
from archiver.store.gc.exclusion import DEFAULT_CUTOFF, Mode, Others, Terms, exclusive
from archiver.store.gc.references import DatabaseFailed, References
from archiver.store.gc.result import Result
from archiver.store.gc.sweep import Stopped, Sweep
from archiver.store.sessions import discard_interrupted
from archiver.store.store import Store

_LOOK_AGAIN = 7 * 86400  # seconds after which every shard is listed, which costs as much as the store is large

_WALKED = b"walked"
_BAD = b"bad"


class Plan(NamedTuple):
    """What is to be done. ``unused`` is None where only the files tell; ``all_shards``: list every shard, too."""

    terms: Terms
    references: References
    unused: Unused | None
    all_shards: bool


def collect(
    store: Store,
    *,
    mode: Mode | None = None,
    cutoff: int = DEFAULT_CUTOFF,
    from_files: bool = False,
    interrupted: bool = False,
    dry_run: bool = False,
) -> Result:
    """Remove unused chunks. ``mode`` None: what is right; ``cutoff`` in minutes; ``from_files``: the database is not
    asked; ``interrupted``: what interrupted backups and syncs have stored goes too. A dry run removes and writes
    nothing.

    Raises Locked, UsageError for a read-only store, Damaged for an index that cannot be read, ArchiverError.
    """
    began = store.clock.steady()
    if not dry_run:
        store.identify()
    database = None if from_files else store.database  # brought up to date before anybody is kept out
    with exclusive(store, mode, cutoff, dry_run=dry_run, interrupted=interrupted) as (terms, others):
        marker = _marker(store)
        try:
            plan = make_plan(store, database, terms, others)
            discarded = others.interrupted if interrupted else []
            if discarded and not dry_run:
                discarded = discard_interrupted(store.layout, store.disk, discarded)
                marker = _marker(store)  # which that has set: every shard is listed after it
            result = carry_out(store, plan, dry_run=dry_run)
            result.interrupted = [os.path.basename(path) for path in discarded]
        except Stopped:
            result = Result(terms.mode, terms.reason, dry_run, True, False, complete=False)
        if not dry_run and result.complete and result.all_shards and marker == _marker(store):
            with suppress(OSError):
                store.disk.remove_file(store.layout.unlisted)
    if result.missing_chunks:
        text = (
            f"{result.missing_chunks} chunks that snapshots need are missing; run verify to see which files lack them"
        )
        store.listener(Notice(text, "warning"))
    result.duration = store.clock.steady() - began
    return result


def make_plan(store: Store, database: Database | None, terms: Terms, others: Others) -> Plan:
    """Mark. Raises Damaged for an index that cannot be read; Stopped when a writer waits while all index files are
    read, which may take minutes: nothing was removed then."""
    if database is not None:
        try:
            references = _marked(store, database, others, lambda: False)
            all_shards = _due(store, database, others)
            return Plan(terms, references, references.unused(with_all=all_shards), all_shards)
        except DatabaseFailed:
            store.listener(Notice("the index files are read, as the database cannot be believed", "warning"))
    immediate = terms.mode == "immediate"
    return Plan(terms, _marked(store, None, others, lambda: immediate and store.chunks.lock.writer_waits()), None, True)


def _marked(store: Store, database: Database | None, others: Others, stops: Callable[[], bool]) -> References:
    def told(count: int) -> None:
        store.listener(Progress("index files counted", count, 0))
        if stops():
            raise Stopped

    references = References(store.layout, database, told)
    references.mark(others.kept)
    return references


def _due(store: Store, database: Database, others: Others) -> bool:
    """Whether files may lie in the store that the database does not know."""
    walked, bad = (database.get(records.META, key) for key in (_WALKED, _BAD))
    if others.unfinished or walked is None or bad is None or _marker(store) is not None:
        return True
    age = store.clock.now() - records.U32.unpack(walked)[0]
    return not 0 <= age <= _LOOK_AGAIN or records.U32.unpack(bad)[0] > 0


def _marker(store: Store) -> tuple[int, int] | None:
    try:
        status = os.lstat(store.layout.unlisted)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def carry_out(store: Store, plan: Plan, *, dry_run: bool) -> Result:
    """Sweep."""
    references, terms, unused = plan.references, plan.terms, plan.unused
    result = Result(terms.mode, terms.reason, dry_run, unused is None, plan.all_shards)
    result.index_files, result.index_bytes = references.index_files, references.index_bytes
    if unused is not None:
        result.kept_chunks, result.kept_bytes = unused.kept_chunks, unused.kept_bytes
    sweep = Sweep(store, terms, result, dry_run=dry_run)
    gone: list[Numbers] = []
    try:
        # First what frees space at once; a dry run would count it twice.
        if unused is not None and references.database is not None and not (dry_run and plan.all_shards):
            result.complete = sweep.known(references.database, unused.numbers, gone)
        if plan.all_shards:
            sweep.everything(references, count_kept=unused is None)
        sweep.leftovers(references.leftovers)
    except Stopped:
        result.complete = False
    if not dry_run:
        check_present(store.layout)
        _tell_database(store, plan, result, gone)
        _write_status(store, result)
    return result


def _tell_database(store: Store, plan: Plan, result: Result, gone: list[Numbers]) -> None:
    """Now that there is space again."""
    database = plan.references.database
    if database is None:
        return
    if gone:
        forget_chunks(database, np.concatenate(gone), plan.references.before)
    if plan.all_shards and result.complete:
        told = {_WALKED: store.clock.now(), _BAD: result.bad_chunks}

        def work(txn: Any) -> None:
            for key, value in told.items():
                txn.put(key, records.U32.pack(value), db=database.table(records.META))

        database.change(work)


def _write_status(store: Store, result: Result) -> None:
    try:
        store.disk.put(store.layout.gc_status, [result.status_file()], names.FILE_MODE, sync=False)
    except OSError as error:
        text = f"{store.layout.gc_status} cannot be written: {(error.strerror or str(error)).lower()}"
        store.listener(Notice(text, "warning"))
