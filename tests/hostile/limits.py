"""Bounds on time and memory for a test that reads hostile bytes."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from formats.errors import FormatError


class TooSlow(BaseException):
    """Not an Exception, so that nothing under test catches it by accident."""


@contextmanager
def bounded(seconds: float = 60, memory: int = 256 << 20) -> Iterator[None]:
    """Raise TooSlow after ``seconds`` and MemoryError above ``memory`` bytes of address space more than now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, _too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def _too_slow(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise TooSlow


def outcome(read: Callable[[], Any]) -> Any:
    """What ``read()`` returns, or the FormatError it raises, within the bounds; the error's text must be printable."""
    with bounded():
        try:
            return read()
        except FormatError as error:
            assert str(error)
            return error
