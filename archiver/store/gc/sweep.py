"""Removing chunk files, a shard at a time. What is known to be unused is looked up by its name; only now and then, and
where nothing but the files is trusted, every shard is listed: for chunks that no database knows, for those set aside
and for leftovers of writers.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from archiver.core.disk import explain, explained
from archiver.core.events import Progress
from archiver.store.database import unused as queries
from archiver.store.database.bulk import Numbers
from archiver.store.database.database import Database
from archiver.store.gc.exclusion import Terms
from archiver.store.gc.references import References
from archiver.store.gc.result import Result
from archiver.store.store import Store

_AT_ONCE = 4096  # chunks looked up at a time
_SHARD = re.compile(r"[0-9a-f]{4}\Z")
_CHUNK = re.compile(r"[0-9a-f]{64}\Z")
_BAD = re.compile(r"([0-9a-f]{64})\.[0-9]\.bad\Z")
_TEMPORARY = re.compile(r"[0-9a-f]{64}\.tmp(_[A-Za-z0-9]+)?\Z")


class Stopped(Exception):
    """A writer waits."""


class Sweep:
    """``result`` tells what was removed, or would be in a dry run."""

    def __init__(self, store: Store, terms: Terms, result: Result, *, dry_run: bool) -> None:
        self._store = store
        self._terms = terms
        self._result = result
        self._dry_run = dry_run
        self._synced = dry_run
        self._maybe_chunks = self._maybe_bytes = 0  # unused, unless a running backup needs them

    # -- one file ----------------------------------------------------------------------------------------------------

    def _shard(self, shard: int) -> AbstractContextManager[None]:
        """While files of a shard are judged and removed. Raises Stopped."""
        if self._dry_run:
            return nullcontext()
        if self._terms.mode == "immediate":  # nobody uses anything
            if self._store.chunks.lock.writer_waits():
                raise Stopped
            return nullcontext()
        return self._store.chunks.lock.cleared(shard)

    def _look(self, path: str) -> os.stat_result | None:
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise explain(error, "look at", path) from error
        return status if stat.S_ISREG(status.st_mode) else None

    def _remove(self, path: str) -> None:
        if not self._synced:
            self._make_durable()
        if not self._dry_run:
            with explained("remove", path):
                self._store.disk.remove_file(path)

    def _make_durable(self) -> None:
        """Before the first chunk goes: that a snapshot was removed must not be undone by a power cut after this."""
        base = self._store.layout.base
        with explained("write", base):
            self._store.disk.sync_file_system(base)
        self._synced = True

    def _goes(self, last_use: int) -> bool:
        return self._terms.mode == "immediate" or last_use < self._terms.minimum

    def _judge(self, path: str) -> bool:
        """An unused chunk: True when there is none any more."""
        status = self._look(path)
        if status is None:
            return not os.path.lexists(path)
        result, size = self._result, status.st_size
        if self._goes(status.st_atime_ns):
            self._remove(path)
            result.removed_chunks += 1
            result.removed_bytes += size
            return True
        if status.st_atime_ns < self._terms.oldest:
            result.pending_chunks += 1
            result.pending_bytes += size
        else:  # as PBS counts what a running backup may have stored
            self._maybe_chunks += 1
            self._maybe_bytes += size
            result.kept_chunks += 1
            result.kept_bytes += size
        return False

    def _judge_bad(self, path: str, *, is_needed: bool) -> None:
        status = self._look(path)
        if status is None:
            return
        if not is_needed and self._goes(status.st_atime_ns):
            self._remove(path)
            self._result.removed_bad += 1
            self._result.removed_bytes += status.st_size
        else:
            self._result.bad_chunks += 1
            self._result.pending_bytes += 0 if is_needed else status.st_size

    def _judge_leftover(self, path: str, *, at_once: bool) -> None:
        status = self._look(path)
        if status is not None and (at_once or max(status.st_atime_ns, status.st_mtime_ns) < self._terms.minimum):
            self._remove(path)
            self._result.removed_leftovers += 1
            self._result.removed_bytes += status.st_size

    # -- the known ---------------------------------------------------------------------------------------------------

    def known(self, database: Database, numbers: Numbers, gone: list[Numbers]) -> bool:
        """Remove chunks that the database knows and nothing refers to. ``gone`` gets the numbers of those without a
        file, also when this ends early: Stopped, or False when the database fails."""
        for start in range(0, len(numbers), _AT_ONCE):
            part = numbers[start : start + _AT_ONCE]
            digests = queries.digests_of(database, part)
            if digests is None:
                return False
            without = np.zeros(len(part), np.bool_)
            try:
                for shard, places in _by_shard(digests):
                    with self._shard(shard):
                        for place in places:
                            without[place] = self._judge(self._store.layout.chunk(digests[place].hex()))
            finally:
                gone.append(part[without])
            self._tell("unused chunks looked at", start + len(part))
        return True

    # -- the unknown -------------------------------------------------------------------------------------------------

    def everything(self, references: References, *, count_kept: bool) -> None:
        """List every shard and judge whatever lies there. ``count_kept``: chunks in use are counted too. Stopped."""
        result = self._result
        result.pending_chunks = result.pending_bytes = 0  # those that are known are met again
        result.kept_chunks -= self._maybe_chunks
        result.kept_bytes -= self._maybe_bytes
        missing = len(references)
        chunks = self._store.layout.chunks
        for done, shard_name in enumerate(filter(_SHARD.match, sorted(self._list(chunks)))):
            needed = references.in_shard(int(shard_name, 16))
            missing -= len(needed)
            names = self._list(f"{chunks}/{shard_name}")
            if names:
                with self._shard(int(shard_name, 16)):
                    self._judge_shard(f"{chunks}/{shard_name}", names, needed, count_kept)
            missing += len(needed)
            if done % 256 == 0:
                self._tell("shards looked at", done)
        result.missing_chunks = missing

    def _list(self, path: str) -> list[str]:
        try:
            return os.listdir(path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise explain(error, "list", path) from error

    def _judge_shard(self, directory: str, names: list[str], needed: set[int], count_kept: bool) -> None:
        """What was found is taken out of ``needed``."""
        others = []
        for name in names:
            if not _CHUNK.match(name):
                others.append(name)
            elif (prefix := int(name[:16], 16)) in needed:
                needed.remove(prefix)
                if count_kept and (status := self._look(f"{directory}/{name}")) is not None:
                    self._result.kept_chunks += 1
                    self._result.kept_bytes += status.st_size
            else:
                self._judge(f"{directory}/{name}")
        for name in others:
            path = f"{directory}/{name}"
            if match := _BAD.match(name):
                self._judge_bad(path, is_needed=int(match[1][:16], 16) in needed)
            elif _TEMPORARY.match(name):
                self._judge_leftover(path, at_once=self._terms.mode == "immediate")

    def leftovers(self, paths: Iterable[str]) -> None:
        """Temporary files beside indexes and manifests, paths relative to the store. Whoever writes such a file need
        not be a session, so only old ones go."""
        for path in paths:
            self._judge_leftover(os.path.join(self._store.layout.base, path), at_once=False)

    def _tell(self, task: str, done: int) -> None:
        self._store.listener(Progress(task, done, self._result.removed_bytes))


def _by_shard(digests: list[bytes]) -> Iterator[tuple[int, list[int]]]:
    """Places of the digests that are there, in runs of the same shard."""
    places: list[int] = []
    last = -1
    for place, digest in enumerate(digests):
        if not digest:
            continue
        shard = int.from_bytes(digest[:2])
        if places and shard != last:
            yield last, places
            places = []
        last = shard
        places.append(place)
    if places:
        yield last, places
