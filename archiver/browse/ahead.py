"""A stream whose next chunks are read by other threads while the last one is in use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from archiver.browse.snapshot import Snapshot
from archiver.browse.stream import ChunkStream
from archiver.core.pipeline import chunk_workers
from formats.manifest import FileInfo

_AHEAD = 3  # chunks; each may have 16 MiB


class AheadStream(ChunkStream):
    """For one thread, like its base, and meant to be read from its start on. Close it, or use it in a ``with``.

    Raises what opening the stream raises: KeyProblem, Unsigned, Damaged.
    """

    def __init__(self, snapshot: Snapshot, file: FileInfo) -> None:
        snapshot.require_key(file)
        encrypted = file.crypt_mode == "encrypt"
        super().__init__(snapshot.index(file), snapshot.store.reader(snapshot.crypt), encrypted=encrypted)
        self._own = threading.local()
        self._snapshot = snapshot
        self._threads = ThreadPoolExecutor(chunk_workers(), "read")
        self._coming: OrderedDict[int, Future[bytes]] = OrderedDict()

    def __enter__(self) -> AheadStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _load(self, number: int) -> bytes:
        for passed in [other for other in self._coming if not number <= other <= number + _AHEAD]:
            self._coming.pop(passed).cancel()
        digest = b""
        for other in range(number, min(number + _AHEAD + 1, len(self.index))):
            before, digest = digest, self.index.digest(other)
            if other not in self._coming and digest != before:
                self._coming[other] = self._threads.submit(self._read, other)
        return self._coming.pop(number).result()

    def _read(self, number: int) -> bytes:
        reader = getattr(self._own, "reader", None)
        if reader is None:
            reader = self._own.reader = self._snapshot.store.reader(self._snapshot.crypt)
        return self._decoded(reader, number)
