"""Threads that work on one task, are bounded in memory, and stop together.

A failure in any thread, Ctrl-C or SIGTERM in the main thread, makes every blocked ``put``/``get``/``acquire`` raise
:class:`Cancelled` at once; ``close`` joins the threads and raises the first failure.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from archiver.errors import ArchiverError

T = TypeVar("T")

_NICER = 5
_MOST_WORKERS = 4


class Cancelled(BaseException):
    """Raised inside threads of a pipeline that has failed elsewhere. Not an Exception, so no handler swallows it."""


def chunk_workers() -> int:
    """How many threads may work on chunks: one for each processor, but each keeps buffers of up to three times 16 MiB
    (16 of them took 350 MiB for a backup, 410 for a restore)."""
    return min(len(os.sched_getaffinity(0)), _MOST_WORKERS)


def yield_to_main_thread() -> None:
    """Let the main thread, which feeds the others, go first where there are more threads than processors.

    /usr/share on two processors: 2.13 s instead of 2.35 s. Called by a worker for itself.
    """
    lower = min(os.getpriority(os.PRIO_PROCESS, 0) + _NICER, 19)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), lower)


class Pipeline:
    """Owner of the threads.

    All of it is under one lock, as there are few threads and hundreds of items a second. Each thing to wait for has a
    condition of its own: a thread woken for nothing takes the interpreter lock from the main thread for nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._conditions: list[threading.Condition] = []
        self.changed = self.condition()  # for whatever users of the pipeline wait for
        self.error: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def condition(self) -> threading.Condition:
        """One more thing to wait for, by ``wait``."""
        condition = threading.Condition(self._lock)
        with self._lock:
            self._conditions.append(condition)
        return condition

    def start(self, work: Callable[[], None], name: str) -> None:
        """Run ``work`` in a thread of its own; an exception in it stops the pipeline. Raises ArchiverError."""

        def run() -> None:
            try:
                work()
            except Cancelled:
                pass
            except BaseException as error:
                self.fail(error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise ArchiverError(f"cannot go on: {error}", hint="is the number of processes limited?") from error
        self._threads.append(thread)

    def fail(self, error: BaseException) -> None:
        with self._lock:
            if self.error is None:
                self.error = error
            for condition in self._conditions:
                condition.notify_all()

    def wait(self, condition: threading.Condition | None = None) -> None:
        """Wait for a change, ``changed`` or that of ``condition``; the caller holds it. Raises Cancelled after a
        failure."""
        if self.error is not None:
            raise Cancelled
        (condition or self.changed).wait()
        if self.error is not None:
            raise Cancelled

    def join(self) -> None:
        """Wait until every thread has ended by itself; raises the first failure."""
        for thread in self._threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None:
            self.fail(error)
            for thread in self._threads:
                thread.join()
            if isinstance(error, Cancelled) and self.error is not None and self.error is not error:
                raise self.error


class Channel(Generic[T]):
    """A bounded queue between threads of one pipeline."""

    def __init__(self, pipeline: Pipeline, capacity: int) -> None:
        self._pipeline = pipeline
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._closed = False
        self._filled = pipeline.condition()
        self._emptied = pipeline.condition()

    def put(self, item: T) -> None:
        with self._emptied:
            while len(self._items) >= self._capacity:
                self._pipeline.wait(self._emptied)
            if self._pipeline.error is not None:
                raise Cancelled
            self._items.append(item)
            self._filled.notify()

    def get(self) -> T | None:
        """The next item; None when the channel was closed and is empty."""
        with self._filled:
            while not self._items:
                if self._closed:
                    return None
                self._pipeline.wait(self._filled)
            item = self._items.popleft()
            self._emptied.notify()
            return item

    def close(self) -> None:
        """No more items will come."""
        with self._filled:
            self._closed = True
            self._filled.notify_all()


class Pool(Generic[T]):
    """A fixed number of reusable objects (buffers): the byte budget of a pipeline."""

    def __init__(self, pipeline: Pipeline, items: list[T]) -> None:
        self._pipeline = pipeline
        self._free = items
        self._released = pipeline.condition()

    def acquire(self) -> T:
        with self._released:
            while not self._free:
                self._pipeline.wait(self._released)
            return self._free.pop()

    def release(self, item: T) -> None:
        with self._released:
            self._free.append(item)
            self._released.notify()
