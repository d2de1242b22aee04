"""The snapshots that are in use by a mounted store: opened when something in them is asked for, held meanwhile."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from archiver.browse.snapshot import Snapshot
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store

_KEPT = 32  # snapshots that are held while nobody uses them just now
_WHOLE = 4  # of these that keep what was opened in them, up to 30 MiB each
_IDLE = 120.0  # seconds after which such a one is given back

Opener = Callable[[SnapshotRef], Snapshot]


class _Opened:
    __slots__ = ("hold", "last", "parts", "ready", "snapshot", "users")

    def __init__(self) -> None:
        self.users = 0
        self.last = 0.0
        self.hold = ExitStack()
        self.ready = threading.Lock()
        self.snapshot: Snapshot | None = None
        self.parts: dict[str, object] = {}


class OpenSnapshots:
    """Nobody removes a snapshot while it is in use, nor for two minutes from then on (while others are used more
    recently, for less)."""

    def __init__(self, store: Store, opener: Opener) -> None:
        self._store = store
        self._opener = opener
        self._lock = threading.RLock()  # a listing that nobody goes on with is given up wherever Python notices
        self._opened: OrderedDict[SnapshotRef, _Opened] = OrderedDict()

    @contextmanager
    def using(self, ref: SnapshotRef) -> Iterator[tuple[Snapshot, dict[str, object]]]:
        """A snapshot, and what its user wants to keep as long as it is open. Raises as ``Store.held``, the opener."""
        opened = self.acquire(ref)
        try:
            with opened.ready:
                if opened.snapshot is None:
                    with ExitStack() as hold:
                        hold.enter_context(self._store.held(ref))
                        opened.snapshot = self._opener(ref)
                        opened.hold = hold.pop_all()
            yield opened.snapshot, opened.parts
        finally:
            self.release(ref)

    def acquire(self, ref: SnapshotRef) -> _Opened:
        """It is in use until ``release``: as often as it was acquired."""
        with self._lock:
            opened = self._opened.get(ref)
            if opened is None:
                opened = self._opened[ref] = _Opened()
            opened.users += 1
            self._opened.move_to_end(ref)
            return opened

    def release(self, ref: SnapshotRef) -> None:
        with self._lock:
            opened = self._opened[ref]
            opened.users -= 1
            opened.last = self._store.clock.steady()
        self._give_back(kept=_KEPT, before=None)

    def expire(self) -> None:
        """Give back what was not used for a while."""
        self._give_back(kept=None, before=self._store.clock.steady() - _IDLE)

    def close(self) -> None:
        self._give_back(kept=0, before=None)

    def _give_back(self, *, kept: int | None, before: float | None) -> None:
        """Those that nobody uses: all but the ``kept`` most recent ones, or those last used ``before`` a time."""
        with self._lock:
            idle = [ref for ref, opened in list(self._opened.items()) if not opened.users]
            for ref in idle[:-_WHOLE]:
                self._opened[ref].parts = {}
            if kept is not None:
                idle = idle[: max(0, len(self._opened) - kept)]
            late = [ref for ref in idle if before is None or self._opened[ref].last < before]
            gone = [self._opened.pop(ref) for ref in late]
        for opened in gone:
            opened.hold.close()
