"""Catalogs of encrypted and signed archives are sealed: without the key there is no catalog (DESIGN.md 2, P6; 3).

A sealed value: nonce 12, AES-256-GCM of the value under a key that is derived from the encryption key; the additional
data says what it is sealed for (the catalog, the database key of the record, the run), so that no value can stand in
for another.
"""

from __future__ import annotations

import hmac

from archiver.core.clock import Random
from formats.crypt import CryptConfig

_LABEL = b"archiver file catalog"
_NONCE = 12


class Seal:
    """``crypt`` None: values stay as they are."""

    def __init__(self, crypt: CryptConfig | None, random: Random) -> None:
        self.identity = bytes(8) if crypt is None else crypt.fingerprint[:8]
        self._random = random
        self._cipher = None
        if crypt is not None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._cipher = AESGCM(hmac.digest(crypt.enc_key, _LABEL, "sha256"))

    def close(self, value: bytes, key: bytes) -> bytes:
        if self._cipher is None:
            return value
        nonce = self._random(_NONCE)
        return nonce + self._cipher.encrypt(nonce, value, key)

    def open(self, value: bytes, key: bytes) -> bytes:
        """Raises ValueError when it was not sealed with this key, or for this place."""
        if self._cipher is None:
            return value
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(value[:_NONCE], value[_NONCE:], key)
        except InvalidTag:
            raise ValueError("a sealed record cannot be opened") from None
