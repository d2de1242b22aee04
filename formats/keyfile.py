"""Key files: an encryption key as JSON, raw or wrapped with a passphrase (spec blob-index-crypto.md 4.1, 4.2).

One compact JSON object, no newline at the end, keys in this order:

| key         | value                                                                                              |
|-------------|----------------------------------------------------------------------------------------------------|
| kdf         | null, or {"Scrypt":{"n":..,"r":..,"p":..,"salt":base64}}, or {"PBKDF2":{"iter":..,"salt":base64}}  |
| created     | 2026-03-01T10:11:12+01:00, whole seconds; "Z" instead of the offset is read too                    |
| modified    | the same form                                                                                      |
| data        | base64: the 32 raw bytes (kdf null), else IV (16), tag (16), ciphertext (32): AES-256-GCM          |
| fingerprint | full text form; may be absent                                                                      |
| hint        | passphrase hint; may be absent                                                                     |
"""

from __future__ import annotations

import binascii
import hashlib
import json
import re
import unicodedata
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NamedTuple

from formats.crypt import (
    IV_SIZE,
    KEY_SIZE,
    TAG_SIZE,
    CryptConfig,
    format_fingerprint,
    gcm_decrypt,
    gcm_encrypt,
    parse_fingerprint,
    short_fingerprint,
)
from formats.errors import FormatError, IntegrityError, KeyMissing, LimitExceeded, WrongKey

MIN_PASSPHRASE = 5  # bytes
MAX_KEY_FILE = 64 << 10  # the reference's files have about 400 bytes
MAX_SCRYPT_MEMORY = 1025 << 20
MAX_PBKDF2_ITERATIONS = 10_000_000  # some seconds

_WRAPPED_SIZE = IV_SIZE + TAG_SIZE + KEY_SIZE
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d))", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Scrypt(NamedTuple):
    """scrypt with cost ``n`` (a power of two), block size ``r``, parallelism ``p``."""

    n: int
    r: int
    p: int
    salt: bytes

    def derive(self, passphrase: bytes) -> bytes:
        """The 32-byte wrapping key. Raises LimitExceeded, FormatError on parameters that scrypt does not allow."""
        if min(self.n, self.r, self.p) < 1:
            raise FormatError("scrypt parameters", expected="at least 1", got=f"n={self.n} r={self.r} p={self.p}")
        # n * r * p measures the time as well as the memory (which is 128 * r * (n + p + 2))
        if 128 * self.r * (self.n + 2) * self.p > MAX_SCRYPT_MEMORY:
            raise LimitExceeded(
                "scrypt parameters",
                expected=f"128 * n * r * p of at most {MAX_SCRYPT_MEMORY >> 20} MiB",
                got=f"n={self.n} r={self.r} p={self.p}",
            )
        try:
            return hashlib.scrypt(
                passphrase, salt=self.salt, n=self.n, r=self.r, p=self.p, maxmem=MAX_SCRYPT_MEMORY, dklen=KEY_SIZE
            )
        except ValueError as error:
            raise FormatError(f"scrypt parameters n={self.n} r={self.r} p={self.p}: {error}") from None


class Pbkdf2(NamedTuple):
    """PBKDF2-HMAC-SHA256."""

    iterations: int
    salt: bytes

    def derive(self, passphrase: bytes) -> bytes:
        """The 32-byte wrapping key. Raises FormatError, LimitExceeded."""
        if self.iterations < 1:
            raise FormatError("PBKDF2 iterations", expected="at least 1", got=self.iterations)
        if self.iterations > MAX_PBKDF2_ITERATIONS:
            raise LimitExceeded("PBKDF2 iterations", expected=f"at most {MAX_PBKDF2_ITERATIONS}", got=self.iterations)
        return hashlib.pbkdf2_hmac("sha256", passphrase, self.salt, self.iterations, KEY_SIZE)


Kdf = Scrypt | Pbkdf2 | None


class KeyTime(NamedTuple):
    """A time in a key file: Unix seconds, and the offset from UTC in minutes it is written with (None: as "Z")."""

    epoch: int
    utc_offset: int | None = 0

    @classmethod
    def parse(cls, text: str) -> KeyTime:
        """Raises FormatError."""
        found = _TIME.fullmatch(text)
        if found is None:
            raise FormatError("key file time", expected="2026-03-01T10:11:12+01:00", got=repr(text[:40]))
        local, sign, hours, minutes = found.groups()
        try:
            seconds = (datetime.fromisoformat(local).replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)
        except ValueError as error:
            raise FormatError(f"key file time: {error}", got=text) from None
        if sign is None:
            return cls(seconds, None)
        offset = int(sign + hours) * 60 + int(sign + minutes)
        return cls(seconds - offset * 60, offset)

    def format(self) -> str:
        """Raises FormatError for years before 1 or after 9999."""
        try:
            local = datetime.fromtimestamp(0, UTC) + timedelta(seconds=self.epoch, minutes=self.utc_offset or 0)
        except OverflowError:
            raise FormatError("key file time", expected="a year from 1 to 9999", got=self.epoch) from None
        zone = timezone(timedelta(minutes=self.utc_offset or 0))
        text = local.replace(tzinfo=zone).isoformat(timespec="seconds")
        return text if self.utc_offset is not None else text[:-6] + "Z"


@dataclass(frozen=True, slots=True)
class KeyFile:
    """One key file. ``data`` is secret when ``kdf`` is None; ``fingerprint`` is 32 bytes."""

    kdf: Kdf
    created: KeyTime
    modified: KeyTime
    data: bytes = field(repr=False)
    fingerprint: bytes | None = None
    hint: str | None = None

    @staticmethod
    def decode(raw: bytes) -> KeyFile:
        """Parse a key file. Unknown members are ignored. Raises FormatError."""
        members = _Members("key file", _parse_json(raw))
        kdf = _decode_kdf(members.get("kdf", (dict, type(None))))
        data = members.bytes("data")
        expected = KEY_SIZE if kdf is None else _WRAPPED_SIZE
        if len(data) != expected:
            raise FormatError("key file: data", expected=f"{expected} bytes", got=f"{len(data)} bytes")
        fingerprint = members.optional_text("fingerprint")
        return KeyFile(
            kdf,
            KeyTime.parse(members.get("created", str)),
            KeyTime.parse(members.get("modified", str)),
            data,
            None if fingerprint is None else parse_fingerprint(fingerprint),
            members.optional_text("hint"),
        )

    def encode(self) -> bytes:
        """The file's bytes; of a decoded file the bytes it came from, if they had the usual form."""
        kdf: dict[str, Any] | None = None
        if isinstance(self.kdf, Scrypt):
            kdf = {"Scrypt": {"n": self.kdf.n, "r": self.kdf.r, "p": self.kdf.p, "salt": _base64(self.kdf.salt)}}
        elif isinstance(self.kdf, Pbkdf2):
            kdf = {"PBKDF2": {"iter": self.kdf.iterations, "salt": _base64(self.kdf.salt)}}
        members = {
            "kdf": kdf,
            "created": self.created.format(),
            "modified": self.modified.format(),
            "data": _base64(self.data),
        }
        if self.fingerprint is not None:
            members["fingerprint"] = format_fingerprint(self.fingerprint)
        if self.hint is not None:
            members["hint"] = self.hint
        return json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()

    def unlock(self, passphrase: bytes | None) -> CryptConfig:
        """The key. The passphrase is not looked at when ``kdf`` is None.

        Raises KeyMissing when a passphrase is needed and none was given, WrongKey when it is the wrong one (the text
        shows the hint) or the key has another fingerprint than the file says, FormatError on absurd parameters.
        """
        crypt = CryptConfig(self.data if self.kdf is None else self._unwrap(self.kdf, passphrase))
        if self.fingerprint is not None and self.fingerprint != crypt.fingerprint:
            raise WrongKey(
                "key file: fingerprint of the key in it",
                expected=short_fingerprint(self.fingerprint),
                got=short_fingerprint(crypt.fingerprint),
            )
        return crypt

    def _unwrap(self, kdf: Scrypt | Pbkdf2, passphrase: bytes | None) -> bytes:
        # repr: a hint comes from the file and may hold control characters
        hint = "" if self.hint is None else f" (hint: {self.hint!r})"
        if passphrase is None:
            raise KeyMissing(f"the key file needs its passphrase{hint}")
        if len(passphrase) < MIN_PASSPHRASE:
            raise WrongKey(f"a passphrase has at least {MIN_PASSPHRASE} bytes{hint}")
        iv, tag, wrapped = self.data[:16], self.data[16:32], self.data[32:]
        try:
            return gcm_decrypt(kdf.derive(passphrase), iv, tag, wrapped)
        except IntegrityError:
            raise WrongKey(f"wrong passphrase for the key file{hint}") from None

    @staticmethod
    def wrap(
        crypt: CryptConfig,
        passphrase: bytes | None,
        kdf: Kdf,
        iv: bytes | None,
        created: KeyTime,
        modified: KeyTime,
        hint: str | None = None,
    ) -> KeyFile:
        """A key file for ``crypt``; a ``kdf`` takes a ``passphrase`` (5 bytes or more) and an ``iv`` (16, random).

        Raises FormatError on a passphrase or hint that the format does not allow, ValueError on a missing ``iv``.
        """
        if hint is not None and not (1 <= len(hint) <= 64 and _is_plain_text(hint)):
            raise FormatError("passphrase hint", expected="1 to 64 characters, no control characters", got=repr(hint))
        if kdf is None:
            return KeyFile(None, created, modified, crypt.enc_key, crypt.fingerprint, hint)
        if passphrase is None or len(passphrase) < MIN_PASSPHRASE:
            raise FormatError("new passphrase", expected=f"at least {MIN_PASSPHRASE} bytes")
        if iv is None:
            raise ValueError("an IV is needed to wrap a key")
        wrapped, tag = gcm_encrypt(kdf.derive(passphrase), crypt.enc_key, iv)
        return KeyFile(kdf, created, modified, iv + tag + wrapped, crypt.fingerprint, hint)


def _is_plain_text(text: str) -> bool:
    """Neither control characters nor lone surrogates."""
    return not any(unicodedata.category(char) in ("Cc", "Cs") for char in text)


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def _parse_json(raw: bytes) -> dict[str, Any]:
    """The one object in ``raw``: no member twice. Raises FormatError."""
    if len(raw) > MAX_KEY_FILE:
        raise LimitExceeded("key file", expected=f"at most {MAX_KEY_FILE} bytes", got=f"{len(raw)}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise FormatError("key file: a JSON member is given twice")
        return members

    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError, JSONDecodeError, a number of 5000 digits
        raise FormatError(f"key file is no JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise FormatError("key file", expected="a JSON object", got=type(parsed).__name__)
    return parsed


def _decode_kdf(tagged: dict[str, Any] | None) -> Kdf:
    if tagged is None:
        return None
    if len(tagged) == 1 and "Scrypt" in tagged:
        members = _Members("key file: scrypt", tagged["Scrypt"])
        return Scrypt(members.get("n", int), members.get("r", int), members.get("p", int), members.bytes("salt"))
    if len(tagged) == 1 and "PBKDF2" in tagged:
        members = _Members("key file: PBKDF2", tagged["PBKDF2"])
        return Pbkdf2(members.get("iter", int), members.bytes("salt"))
    raise FormatError("key file: kdf", expected="null, Scrypt or PBKDF2", got=repr(sorted(tagged))[:100])


class _Members:
    """Typed access to the members of a JSON object."""

    def __init__(self, what: str, members: object) -> None:
        if not isinstance(members, dict):
            raise FormatError(what, expected="a JSON object", got=type(members).__name__)
        self._what = what
        self._members = members

    def get(self, name: str, kind: type | tuple[type, ...]) -> Any:
        if name not in self._members:
            raise FormatError(f"{self._what}: {name} is missing")
        value = self._members[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise FormatError(f"{self._what}: {name} has the wrong type", got=type(value).__name__)
        return value

    def optional_text(self, name: str) -> str | None:
        if self._members.get(name) is None:
            return None
        text: str = self.get(name, str)
        if any("\ud800" <= char <= "\udfff" for char in text):  # from \\u escapes; no UTF-8 holds them
            raise FormatError(f"{self._what}: {name} is no valid text")
        return text

    def bytes(self, name: str) -> bytes:
        """Standard base64; its padding may be missing."""
        text: str = self.get(name, str)
        try:
            return binascii.a2b_base64(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), strict_mode=True)
        except ValueError as error:
            raise FormatError(f"{self._what}: {name} is no base64: {error}") from None
