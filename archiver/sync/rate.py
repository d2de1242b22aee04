"""How fast a sync may read."""

from __future__ import annotations

import threading
import time

from archiver.core.clock import Clock
from archiver.core.pipeline import Cancelled, Pipeline
from archiver.core.sizes import parse_size

_SLICE = 0.1  # seconds between two looks at whether to go on


def parse_rate(text: str, name: str = "") -> int:
    """Bytes a second: ``500K``, ``20M``; ``name`` as for ``parse_size``. UsageError."""
    return parse_size(text, name, least=1, hint="write bytes a second, for example 20M or 500K")


class Rate:
    """At most so many bytes a second, over all threads; None: no limit."""

    def __init__(self, limit: int | None, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._due = clock.steady()

    def spend(self, count: int, pipeline: Pipeline) -> None:
        """``count`` bytes were read: wait until that was right. Raises Cancelled when the pipeline fails meanwhile."""
        if self._limit is None:
            return
        with self._lock:
            self._due = max(self._due, self._clock.steady()) + count / self._limit
            due = self._due
        while (left := due - self._clock.steady()) > 0:
            if pipeline.error is not None:
                raise Cancelled
            time.sleep(min(left, _SLICE))
