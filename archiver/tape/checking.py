"""Chunks as they come from a medium, checked as far as the key at hand goes (spec blob-index-crypto.md 2.4)."""

from __future__ import annotations

from typing import NamedTuple

from archiver.store.chunks import MAX_CHUNK
from formats.blob import BlobDecoder
from formats.crypt import CryptConfig, chunk_digest
from formats.errors import FormatError, IntegrityError


class Checked(NamedTuple):
    """``size`` of the plain contents; None of an encrypted chunk that was not opened: there is no key, or it is another
    key's, or it is damaged behind a right CRC."""

    encrypted: bool
    size: int | None


class ChunkChecker:
    """For one thread."""

    def __init__(self, crypt: CryptConfig | None) -> None:
        self._crypt = crypt
        self._plain, self._keyed = BlobDecoder(), BlobDecoder(crypt)

    def check(self, digest: bytes, data: bytes) -> Checked:
        """Raises FormatError."""
        if not self._plain.check_stored(data).encrypted:
            plain = self._plain.decode(data, max_size=MAX_CHUNK)
            found = chunk_digest(plain, None)
            if found != digest:
                raise IntegrityError("chunk digest", expected=digest.hex(), got=found.hex())
            return Checked(False, len(plain))
        if self._crypt is not None:
            try:
                plain = self._keyed.decode(data, max_size=MAX_CHUNK)
                if chunk_digest(plain, self._crypt) == digest:
                    return Checked(True, len(plain))
            except FormatError:
                pass
        return Checked(True, None)
