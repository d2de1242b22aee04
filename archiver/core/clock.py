"""The one place that reads the clock and makes random bytes; tests hand in their own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


class Clock:
    """Wall time in Unix seconds, and a steady time for durations."""

    def now(self) -> int:
        return int(time.time())

    def now_ns(self) -> int:
        return time.time_ns()

    def steady(self) -> float:
        return time.monotonic()


Random = Callable[[int], bytes]

system_random: Random = os.urandom
