"""The encryption key and what is derived from it, AES-256-GCM, fingerprints (spec blob-index-crypto.md 1, 3).

| item         | definition                                                                                   |
|--------------|----------------------------------------------------------------------------------------------|
| enc_key      | 32 random bytes, the AES-256-GCM key of all blobs                                            |
| id_key       | PBKDF2-HMAC-SHA256(password = enc_key, salt = "_id_key", 10 iterations, 32 bytes)            |
| chunk digest | SHA-256(plain text) without a key, SHA-256(plain text || id_key) with one                    |
| auth tag     | HMAC-SHA256(id_key, message)                                                                 |
| fingerprint  | SHA-256(SHA-256("Proxmox Backup Encryption Key Fingerprint") || id_key)                      |
| GCM          | IV of 16 bytes (not 12), tag of 16 bytes, no additional data; the IV may never repeat        |
| text         | fingerprint as lower-case hex bytes joined by ":"; the short form shows the first 8 of them  |
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING

from formats.errors import FormatError, IntegrityError
from formats.wire import Buffer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import AEADDecryptionContext, AEADEncryptionContext

KEY_SIZE = 32
IV_SIZE = 16
TAG_SIZE = 16
GCM_SLACK = 15  # bytes that ``update_into`` of a GCM context may ask for beyond the text itself

_FINGERPRINT_LABEL = hashlib.sha256(b"Proxmox Backup Encryption Key Fingerprint").digest()
_HEX_64 = re.compile(r"[0-9a-fA-F]{64}")


def gcm_encryptor(key: bytes, iv: bytes) -> AEADEncryptionContext:
    """A streaming AES-256-GCM encryptor; its ``tag`` exists after ``finalize()``. Raises ValueError: size of ``iv``."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    if len(iv) != IV_SIZE:
        raise ValueError(f"the IV must have {IV_SIZE} bytes, not {len(iv)}")
    return Cipher(algorithms.AES(key), modes.GCM(iv)).encryptor()


def gcm_decryptor(key: bytes, iv: bytes, tag: bytes) -> AEADDecryptionContext:
    """A streaming AES-256-GCM decryptor. What it yields is unproven until :func:`finish_decryption` returned."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    if len(iv) != IV_SIZE or len(tag) != TAG_SIZE:
        raise FormatError(
            "encryption IV and tag", expected=f"{IV_SIZE} and {TAG_SIZE} bytes", got=f"{len(iv)} and {len(tag)}"
        )
    return Cipher(algorithms.AES(key), modes.GCM(iv, tag)).decryptor()


def finish_decryption(decryptor: AEADDecryptionContext) -> None:
    """Check the tag. Raises IntegrityError: damaged or altered bytes, or another key."""
    from cryptography.exceptions import InvalidTag

    try:
        decryptor.finalize()
    except InvalidTag:
        raise IntegrityError("encryption tag does not match: the data was altered, or the key is another one") from None


def gcm_encrypt(key: bytes, plain: Buffer, iv: bytes) -> tuple[bytes, bytes]:
    """(ciphertext, tag) of ``plain``."""
    encryptor = gcm_encryptor(key, iv)
    ciphertext = encryptor.update(plain)
    encryptor.finalize()
    return ciphertext, encryptor.tag


def gcm_decrypt(key: bytes, iv: bytes, tag: bytes, ciphertext: Buffer) -> bytes:
    """The plain text, after its tag was checked. Raises IntegrityError."""
    decryptor = gcm_decryptor(key, iv, tag)
    plain = decryptor.update(ciphertext)
    finish_decryption(decryptor)
    return plain


class CryptConfig:
    """An encryption key and what is derived from it. ``fingerprint`` (32 bytes) is public, the two keys are secret.

    ``enc_key`` must be 32 bytes, else FormatError. Safe to share between threads.
    """

    __slots__ = ("enc_key", "fingerprint", "id_key")

    def __init__(self, enc_key: bytes) -> None:
        if len(enc_key) != KEY_SIZE:
            raise FormatError("encryption key", expected=f"{KEY_SIZE} bytes", got=f"{len(enc_key)} bytes")
        self.enc_key = bytes(enc_key)
        self.id_key = hashlib.pbkdf2_hmac("sha256", self.enc_key, b"_id_key", 10, KEY_SIZE)
        self.fingerprint = self.digest(_FINGERPRINT_LABEL)

    def __repr__(self) -> str:
        return f"<CryptConfig {short_fingerprint(self.fingerprint)}>"

    def digest(self, *parts: Buffer) -> bytes:
        """The keyed chunk digest of the concatenated ``parts``."""
        sha = hashlib.sha256()
        for part in parts:
            sha.update(part)
        sha.update(self.id_key)
        return sha.digest()

    def auth_tag(self, message: Buffer) -> bytes:
        """HMAC-SHA256 of ``message``, 32 bytes: what signs a manifest."""
        return hmac.digest(self.id_key, message, "sha256")

    def encrypt(self, plain: Buffer, iv: bytes) -> tuple[bytes, bytes]:
        """(ciphertext, tag). ``iv`` is 16 random bytes that were never used before."""
        return gcm_encrypt(self.enc_key, plain, iv)

    def decrypt(self, iv: bytes, tag: bytes, ciphertext: Buffer) -> bytes:
        """The plain text, after its tag was checked. Raises IntegrityError."""
        return gcm_decrypt(self.enc_key, iv, tag, ciphertext)


def chunk_digest(data: Buffer, crypt: CryptConfig | None) -> bytes:
    """The 32-byte name of a chunk: keyed when its archive is encrypted (give ``crypt``), plain SHA-256 otherwise."""
    return hashlib.sha256(data).digest() if crypt is None else crypt.digest(data)


def format_fingerprint(fingerprint: bytes) -> str:
    """The full text form, 95 characters for 32 bytes."""
    return fingerprint.hex(":")


def short_fingerprint(fingerprint: bytes) -> str:
    """The form for messages: 8 bytes, 23 characters."""
    return fingerprint[:8].hex(":")


def parse_fingerprint(text: str) -> bytes:
    """32 bytes from the full text form; colons are optional and may be anywhere. Raises FormatError."""
    digits = text.replace(":", "")
    if not _HEX_64.fullmatch(digits):
        raise FormatError("key fingerprint", expected="64 hex digits", got=repr(text[:100]))
    return bytes.fromhex(digits)
