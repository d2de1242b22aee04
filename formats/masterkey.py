"""RSA master keys: the encryption key wrapped for whoever has the private key (spec blob-index-crypto.md 5).

| item        | form                                                                                              |
|-------------|---------------------------------------------------------------------------------------------------|
| public key  | PEM, SubjectPublicKeyInfo or PKCS#1 RSA                                                           |
| private key | PEM, PKCS#8; the ones made here are 4096 bits, encrypted with AES-256-CBC under a passphrase      |
| wrapped key | one RSA block, PKCS#1 v1.5 (type 2), as long as the modulus; in it a key file without KDF or hint |

The key file has 255 bytes and the padding at least 11, so that a modulus has 266 bytes (2128 bits) or more.
"""

from __future__ import annotations

import base64
import math
import re
from typing import TYPE_CHECKING

from formats.crypt import CryptConfig
from formats.errors import FormatError, KeyMissing, LimitExceeded, WrongKey
from formats.keyfile import MAX_PBKDF2_ITERATIONS, MAX_SCRYPT_MEMORY, MIN_PASSPHRASE, KeyFile, KeyTime

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

MODULUS_BITS = 4096
SMALLEST_MODULUS = 255 + 11  # bytes
LARGEST_MODULUS = 2048  # bytes, what OpenSSL computes with
MAX_PEM = 16 << 10  # a private key with the largest modulus has 13,000 bytes
MAX_MASTER_PASSPHRASE = 1023  # bytes

_SEQUENCE, _INTEGER = 0x30, 0x02
_SCRYPT = bytes.fromhex("06092b06010401da47040b")  # the OBJECT IDENTIFIER 1.3.6.1.4.1.11591.4.11
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s.*?-----END \1-----", re.DOTALL)


def load_public_key(pem: bytes) -> RSAPublicKey:
    """Raises FormatError for everything but an RSA public key that is large enough; LimitExceeded for a huge one."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    label = _label(pem)
    if "PRIVATE KEY" in label:
        raise FormatError("public master key", expected="a public key", got="the private one")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):  # what they say is about the insides of a library
        raise FormatError("public master key", expected="an RSA public key", got=f"a damaged {label}") from None
    if not isinstance(key, RSAPublicKey):
        raise FormatError("public master key", expected="an RSA public key", got="another kind of key")
    _check_size(key.key_size)
    return key


def load_private_key(pem: bytes, passphrase: bytes | None) -> RSAPrivateKey:
    """The passphrase is not looked at when the key is not protected.

    Raises KeyMissing when one is needed and none was given, WrongKey when it does not open the key, FormatError for
    everything that is no RSA private key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    label = _label(pem)
    if "PRIVATE KEY" not in label:
        raise FormatError("private master key", expected="a PEM private key", got=label.lower())
    is_protected = needs_passphrase(pem)
    if is_protected and passphrase is None:
        raise KeyMissing("the private master key needs its passphrase")
    if is_protected:
        _check_kdf(pem)
    try:
        key = load_pem_private_key(pem, passphrase if is_protected else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if is_protected:
            raise WrongKey("wrong passphrase for the private master key, or its file is damaged") from None
        raise FormatError("private master key", expected="an RSA private key", got=f"a damaged {label}") from None
    if not isinstance(key, RSAPrivateKey):
        raise FormatError("private master key", expected="an RSA private key", got="another kind of key")
    _check_size(key.key_size)
    return key


def _check_kdf(pem: bytes) -> None:
    """Raises LimitExceeded where the passphrase would be worked on for ages, or with all memory: the library does what
    the file says. The parameters are the INTEGERs of the algorithm, the first item of an EncryptedPrivateKeyInfo."""
    text = b"".join(line for line in pem.splitlines() if b"-" not in line and b":" not in line)
    try:
        (_, info), *_ = _items(base64.b64decode(text))
        (_, algorithm), *_ = _items(info)
        numbers = _integers(algorithm)
    except (ValueError, IndexError, RecursionError):
        return  # the library says what is wrong
    if _SCRYPT in algorithm:
        if 128 * math.prod(numbers[:3]) > MAX_SCRYPT_MEMORY:
            raise LimitExceeded("private master key: scrypt", expected=f"at most {MAX_SCRYPT_MEMORY >> 20} MiB")
    elif max(numbers, default=0) > MAX_PBKDF2_ITERATIONS:
        raise LimitExceeded("private master key: iterations", expected=f"at most {MAX_PBKDF2_ITERATIONS}")


def _items(der: bytes) -> list[tuple[int, bytes]]:
    """(tag, contents) of the DER items in ``der``. Raises IndexError, ValueError."""
    found, at = [], 0
    while at < len(der):
        tag, length, start = der[at], der[at + 1], at + 2
        if length >= 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[at + 2 : start], "big")
        at = start + length
        if at > len(der):
            raise ValueError("an item ends beyond the end")
        found.append((tag, der[start:at]))
    return found


def _integers(der: bytes) -> list[int]:
    """All INTEGERs, also in sequences, in their order."""
    found: list[int] = []
    for tag, contents in _items(der):
        if tag == _SEQUENCE:
            found += _integers(contents)
        elif tag == _INTEGER:
            found.append(int.from_bytes(contents, "big"))
    return found


def needs_passphrase(pem: bytes) -> bool:
    """Whether a PEM private key is encrypted."""
    return b"ENCRYPTED" in pem


def generate(passphrase: bytes) -> tuple[bytes, bytes]:
    """(public PEM, private PEM) of a new master key. Raises FormatError on a passphrase that the format forbids."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    if not MIN_PASSPHRASE <= len(passphrase) <= MAX_MASTER_PASSPHRASE:
        raise FormatError("new passphrase", expected=f"{MIN_PASSPHRASE} to {MAX_MASTER_PASSPHRASE} bytes")
    key = rsa.generate_private_key(65537, MODULUS_BITS)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )
    return public, private


def wrap(public: RSAPublicKey, crypt: CryptConfig, created: KeyTime, modified: KeyTime) -> bytes:
    """The wrapped key, as many bytes as the modulus has; ``created`` is that of the key file."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

    return public.encrypt(KeyFile.wrap(crypt, None, None, None, created, modified).encode(), PKCS1v15())


def unwrap(private: RSAPrivateKey, wrapped: bytes) -> KeyFile:
    """The key file, without a KDF. Raises WrongKey when ``wrapped`` was not made for this master key."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

    if len(wrapped) * 8 != private.key_size + -private.key_size % 8:
        raise WrongKey(
            "wrapped key of another master key", expected=f"{(private.key_size + 7) // 8} bytes", got=len(wrapped)
        )
    try:
        # Of a block for another key OpenSSL makes random bytes instead of an error.
        file = KeyFile.decode(private.decrypt(wrapped, PKCS1v15()))
        crypt = file.unlock(None)
    except ValueError:
        raise WrongKey("the key was wrapped for another master key, or is damaged") from None
    return KeyFile(None, file.created, file.modified, crypt.enc_key, crypt.fingerprint)


def _label(pem: bytes) -> str:
    """What the PEM block says it is. Raises FormatError, LimitExceeded."""
    if len(pem) > MAX_PEM:
        raise LimitExceeded("PEM file", expected=f"at most {MAX_PEM} bytes")
    found = _PEM.search(pem)
    if found is None:
        cut = b"-----BEGIN" in pem
        raise FormatError("PEM file", expected="BEGIN and END lines", got="no END line" if cut else "none of them")
    return found[1].decode()


def _check_size(bits: int) -> None:
    if bits > LARGEST_MODULUS * 8:
        raise LimitExceeded("master key", expected=f"at most {LARGEST_MODULUS * 8} bits", got=bits)
    if (bits + 7) // 8 < SMALLEST_MODULUS:
        raise FormatError("master key", expected=f"at least {SMALLEST_MODULUS * 8} bits (4096 are usual)", got=bits)
