"""A table that grows with the input without growing the process: small in memory, beyond a bound on disk, sealed.

What is on disk is encrypted with a key that only this process knows, so a table of file names leaks none of them.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

_IN_MEMORY = 100_000  # entries
_BATCH = 10_000
_NONCE = 12
_FIRST_MAP = 1 << 40


class SpillTable:
    """bytes -> bytes; keys of at most 511 bytes. The directory for the spill file is that of ``directory``."""

    def __init__(self, directory: str, in_memory: int = _IN_MEMORY) -> None:
        self._directory = directory
        self._in_memory = in_memory
        self._recent: dict[bytes, bytes] = {}
        self._spilled: _Sealed | None = None

    def put(self, key: bytes, value: bytes) -> None:
        self._recent[key] = value
        if len(self._recent) > (self._in_memory if self._spilled is None else _BATCH):
            if self._spilled is None:
                self._spilled = _Sealed(self._directory)
            self._spilled.add(self._recent)
            self._recent = {}

    def get(self, key: bytes) -> bytes | None:
        value = self._recent.get(key)
        if value is None and self._spilled is not None:
            value = self._spilled.get(key)
        return value

    def forget(self, key: bytes) -> None:
        """The entry will not be asked for again; what is on disk may stay there."""
        self._recent.pop(key, None)

    def close(self) -> None:
        if self._spilled is not None:
            self._spilled.close()
            self._spilled = None
        self._recent.clear()


class _Sealed:
    def __init__(self, directory: str) -> None:
        import lmdb
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._folder = tempfile.TemporaryDirectory(prefix="spill-", dir=directory)
        self._cipher = AESGCM(os.urandom(32))
        self._count = 0
        # Gone with the process, so nothing needs to be durable.
        self._env: Any = lmdb.open(self._folder.name, map_size=_FIRST_MAP, sync=False, lock=False, mode=0o600)

    def add(self, entries: dict[bytes, bytes]) -> None:
        with self._env.begin(write=True) as txn:
            for key, value in sorted(entries.items()):
                nonce = self._count.to_bytes(_NONCE, "little")
                self._count += 1
                txn.put(key, nonce + self._cipher.encrypt(nonce, value, key))

    def get(self, key: bytes) -> bytes | None:
        with self._env.begin() as txn:
            sealed = txn.get(key)
        return None if sealed is None else self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], key)

    def close(self) -> None:
        self._env.close()
        self._folder.cleanup()
