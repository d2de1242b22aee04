"""A table that grows with the input without growing the process: small in memory, beyond a bound on disk, sealed.

What is on disk is encrypted with a key that only this process knows, and keys are hashed with another one, so a table
leaks neither file names nor what it is asked for them by: inode numbers, sizes, times.
"""

from __future__ import annotations

from typing import Any

from blake3 import blake3

from archiver.core.clock import system_random
from archiver.core.disk import explained, nearly_full, no_space
from archiver.errors import ArchiverError

_IN_MEMORY = 16 << 20  # bytes
_BATCH = 2 << 20  # of them, once there is a file: each may change a page of it
_ENTRY = 200  # of these for an entry itself, its key and value apart
_NONCE = 12
_LARGEST_MAP = 1 << 40  # bytes of address space
_SMALLEST_MAP = 1 << 30


class SpillTable:
    """bytes -> bytes. The spill file is made in ``directory``; ``in_memory`` is in bytes."""

    def __init__(self, directory: str, in_memory: int = _IN_MEMORY) -> None:
        self._directory = directory
        self._in_memory = in_memory
        self._recent: dict[bytes, bytes] = {}
        self._size = 0  # bytes of ``_recent``; an entry that is put again counts again
        self._spilled: _Sealed | None = None

    def put(self, key: bytes, value: bytes) -> None:
        self._recent[key] = value
        self._size += len(key) + len(value) + _ENTRY
        if self._size > (self._in_memory if self._spilled is None else _BATCH):
            if self._spilled is None:
                self._spilled = _Sealed(self._directory)
            self._spilled.add(self._recent)
            self._recent = {}
            self._size = 0

    def get(self, key: bytes) -> bytes | None:
        value = self._recent.get(key)
        if value is None and self._spilled is not None:
            value = self._spilled.get(key)
        return value

    def close(self) -> None:
        if self._spilled is not None:
            self._spilled.close()
            self._spilled = None
        self._recent.clear()
        self._size = 0


class _Sealed:
    def __init__(self, directory: str) -> None:
        import tempfile

        import lmdb
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        with explained("write into", directory):
            self._folder = tempfile.TemporaryDirectory(prefix="spill-", dir=directory)
        self._cipher = AESGCM(system_random(32))
        self._secret = system_random(32)
        self._count = 0
        try:
            self._env = _open(self._folder.name)
        except lmdb.Error as error:
            problem = _explain(error, self._folder.name)
            self._folder.cleanup()
            raise problem from error

    def add(self, entries: dict[bytes, bytes]) -> None:
        """Raises ArchiverError (NoSpace on a full disk)."""
        import lmdb

        try:
            with self._env.begin(write=True) as txn:
                for key, value in sorted((self._hidden(key), value) for key, value in entries.items()):
                    nonce = self._count.to_bytes(_NONCE, "little")
                    self._count += 1
                    txn.put(key, nonce + self._cipher.encrypt(nonce, value, key))
        except lmdb.Error as error:
            raise _explain(error, self._folder.name) from error

    def get(self, key: bytes) -> bytes | None:
        key = self._hidden(key)
        with self._env.begin() as txn:
            sealed = txn.get(key)
        return None if sealed is None else self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], key)

    def _hidden(self, key: bytes) -> bytes:
        return blake3(key, key=self._secret).digest()

    def close(self) -> None:
        self._env.close()
        self._folder.cleanup()


def _explain(error: Exception, directory: str) -> ArchiverError:
    if nearly_full(directory):
        return no_space("write into", directory)
    return ArchiverError(f"cannot write into {directory}: {error}")


def _open(directory: str) -> Any:
    import lmdb

    size = _LARGEST_MAP
    while True:
        try:
            # Gone with the process, so nothing needs to be durable.
            return lmdb.open(directory, map_size=size, sync=False, lock=False, mode=0o600)
        except lmdb.MemoryError:  # the process may not have so much address space
            if size <= _SMALLEST_MAP:
                raise
            size //= 2
