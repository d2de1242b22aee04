"""Reading chunks in several threads, and what is done about those that are damaged (spec datastore.md 10.3).

A damaged chunk is read once more while nobody stores or removes chunks of its shard, as a backup may just have stored
it again. When what lies there is certainly not the chunk, whoever refers to it, it is renamed to ``.N.bad``. That is
not so when it is missing, when the device fails (it may be the cable), when the key is missing, and when only an index
says otherwise of a sound chunk.

Without the key an encrypted chunk is checked by its CRC, and by the BLAKE3 of its stored bytes where the database has
it: rot is found without the key. These sums come from who had the contents at hand, a backup or a verification with the
key; here none is ever written for what could not be checked otherwise. A CRC alone proves nothing: whoever has several
bits flip, or is asked to believe a store, needs more.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from archiver.browse.verify_result import VerifyResult
from archiver.core.events import Listener, Notice, Progress
from archiver.core.pipeline import Channel, Pipeline
from archiver.errors import ArchiverError
from archiver.store.chunks import ChunkDamaged, ChunkReader
from archiver.store.database.records import UNKNOWN_SUM
from archiver.store.digests import Prefixes
from archiver.store.recorded_sums import is_recorded
from archiver.store.store import Store
from formats.crypt import CryptConfig

_WORKERS = 2
_QUEUED = 4
_AT_ONCE = 8  # chunks: waiting for the next thread costs as much as a small chunk
_SORTED_AT_ONCE = 1024  # chunks
_RECORD_AT_ONCE = 4096
_LAST = 1 << 64
_WORTH_ASKING = 64 << 10  # bytes


class Task(NamedTuple):
    """A chunk to be read; ``with_key``: it is encrypted with the key at hand. ``place`` is the caller's."""

    digest: bytes
    size: int
    encrypted: bool
    with_key: bool
    place: int = 0


class _Read(NamedTuple):
    total: bytes  # BLAKE3 of the stored bytes; UNKNOWN_SUM when it was recorded before
    stored: int
    is_proven: bool  # completely, or by the sum of its bytes


@dataclass(slots=True)
class _Tally:
    chunks: int = 0
    plain_bytes: int = 0
    unchecked: int = 0
    without_sum: int = 0
    good: list[tuple[bytes, bytes, int]] = field(default_factory=list)
    unproven: array[int] = field(default_factory=lambda: array("Q"))


class ChunkCheck:
    """Counts into ``result``. ``bad``: why a chunk is damaged, by digest, size and whether it is to be encrypted."""

    def __init__(
        self, store: Store, crypt: CryptConfig | None, result: VerifyResult, listener: Listener, *, set_aside: bool
    ) -> None:
        self._store = store
        self._database = store.database  # opened here, not by one of the threads
        self._listener = listener
        self._result = result
        self._set_aside = set_aside and not store.read_only
        self._lock = threading.Lock()
        self._readers = [
            {with_key: store.reader(crypt if with_key else None) for with_key in (False, True)} for _ in range(_WORKERS)
        ]
        self._good: list[tuple[bytes, bytes, int]] = []
        self._unproven = array("Q")
        self._sorted = np.zeros(0, np.uint64)
        self.bad: dict[tuple[bytes, int, bool], str] = {}

    def run(
        self,
        tasks: Iterable[Task],
        *,
        goes_on: Callable[[], bool] = lambda: True,
        done: Callable[[Sequence[Task]], None] = lambda tasks: None,
    ) -> None:
        """Read chunks, about in the order of ``tasks``, as long as ``goes_on`` says so. ``done`` is called by any of
        the threads with chunks that were read. Raises what ends a verification: TargetAbsent, ArchiverError."""
        parts = self._parts(tasks)
        first, second = next(parts, None), next(parts, None)
        if first is None:
            return
        if second is None:  # for one thread; starting it would take longer than to read a few small chunks
            if goes_on():
                self._check_all(self._readers[0], first, done)
                self._listener(Progress("verify", self._result.chunks, self._result.bytes))
            return
        following = chain([first, second], parts)
        with Pipeline() as pipeline:
            channel: Channel[list[Task]] = Channel(pipeline, _QUEUED)
            for number, readers in enumerate(self._readers):
                pipeline.start(lambda readers=readers: self._work(readers, channel, done), f"verify-{number}")  # type: ignore[misc]
            for part in following:
                if not goes_on():
                    break
                channel.put(part)
                self._listener(Progress("verify", self._result.chunks, self._result.bytes))
            channel.close()
            pipeline.join()

    def _parts(self, tasks: Iterable[Task]) -> Iterator[list[Task]]:
        iterator = iter(tasks)
        while some := list(islice(iterator, _SORTED_AT_ONCE)):
            some.sort(key=self._inode)
            for start in range(0, len(some), _AT_ONCE):
                yield some[start : start + _AT_ONCE]

    def _inode(self, task: Task) -> int:
        """The order in which a disk has the files, about."""
        try:
            return os.lstat(self._store.layout.chunk(task.digest.hex())).st_ino
        except OSError:
            return _LAST

    def _work(
        self,
        readers: dict[bool, ChunkReader],
        channel: Channel[list[Task]],
        done: Callable[[Sequence[Task]], None],
    ) -> None:
        while (tasks := channel.get()) is not None:
            self._check_all(readers, tasks, done)

    def _check_all(
        self, readers: dict[bool, ChunkReader], tasks: list[Task], done: Callable[[Sequence[Task]], None]
    ) -> None:
        tally = _Tally()
        for task in tasks:
            self._check(readers[task.with_key], task, tally)
        with self._lock:
            result = self._result
            result.chunks += tally.chunks
            result.bytes += tally.plain_bytes
            result.unchecked += tally.unchecked
            result.without_sum += tally.without_sum
            self._good += tally.good
            self._unproven += tally.unproven
            is_full = len(self._good) >= _RECORD_AT_ONCE
        done(tasks)
        if is_full:
            self.record()

    def _check(self, reader: ChunkReader, task: Task, tally: _Tally) -> None:
        tally.chunks += 1
        read: _Read | None
        try:
            read = self._read(reader, task)
        except ChunkDamaged:
            read = self._read_again(reader, task)
        if read is None:
            return
        tally.plain_bytes += task.size
        if read.is_proven:
            tally.good.append((task.digest, read.total, read.stored))
        if task.encrypted and not task.with_key:
            tally.unchecked += 1
            if not read.is_proven:
                tally.without_sum += 1
                tally.unproven.frombytes(task.digest[:8])

    def _read(self, reader: ChunkReader, task: Task) -> _Read:
        if not task.encrypted and self._has_sum(task):
            return _Read(UNKNOWN_SUM, len(reader.checked_bytes(task.digest, task.size, encrypted=False)), True)
        total, stored = reader.verify(task.digest, task.size, encrypted=task.encrypted)
        is_proven = (
            task.with_key or not task.encrypted or is_recorded(self._store.chunks, self._database, task.digest, total)
        )
        return _Read(total, stored, is_proven)

    def _has_sum(self, task: Task) -> bool:
        """A plain chunk is proven by its digest; asking pays when there are many bytes to sum."""
        return (
            task.size >= _WORTH_ASKING
            and self._database is not None
            and self._database.recorded_sum(task.digest) is not None
        )

    def _read_again(self, reader: ChunkReader, task: Task) -> _Read | None:
        """None when the chunk is damaged still; then it is set aside if that is certain, and the database told."""
        with self._alone(task.digest):
            try:
                return self._read(reader, task)
            except ChunkDamaged as error:
                reason = error.reason
            if self._set_aside and reader.is_bad(task.digest):
                self._rename(task.digest)
            if self._database is not None:
                self._database.mark_damaged(task.digest)
        with self._lock:
            self.bad[(task.digest, task.size, task.encrypted)] = reason
        return None

    @contextmanager
    def _alone(self, digest: bytes) -> Iterator[None]:
        """While nobody stores or removes chunks of this shard, when chunks are to be set aside."""
        with ExitStack() as held:
            if self._set_aside:
                try:
                    held.enter_context(self._store.chunks.lock.cleared(int.from_bytes(digest[:2])))
                except ArchiverError as error:
                    self._leave(error)
            yield

    def _rename(self, digest: bytes) -> None:
        try:
            renamed = self._store.chunks.set_aside(digest)
        except ArchiverError as error:
            self._leave(error)
            return
        if renamed is not None:
            with self._lock:
                self._result.set_aside += 1

    def _leave(self, error: ArchiverError) -> None:
        if self._set_aside:
            self._set_aside = False
            self._listener(Notice(f"damaged chunks are left where they are: {error}", "warning"))

    def unproven(self) -> Prefixes:
        """The first 8 bytes of the digest of each chunk that was checked by its CRC alone, sorted (``prefixes_of``)."""
        with self._lock:
            found, self._unproven = self._unproven, array("Q")
        if found:
            self._sorted = np.union1d(self._sorted, np.frombuffer(found, ">u8").astype(np.uint64))
        return self._sorted

    def record(self) -> None:
        """Tell the database which chunks were read and found good."""
        with self._lock:
            good, self._good = self._good, []
        if good and self._database is not None:
            self._database.mark_verified(good, self._store.clock.now())
