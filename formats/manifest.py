"""The manifest of a snapshot, the JSON in ``index.json.blob`` (spec blob-index-crypto.md 8, 9).

| key         | value                                                                                                  |
|-------------|--------------------------------------------------------------------------------------------------------|
| backup-type | "ct", "host" or "vm"                                                                                   |
| backup-id   | text                                                                                                   |
| backup-time | integer, Unix seconds                                                                                  |
| files       | objects: filename, crypt-mode ("none" when absent), size (integer), csum (64 hex digits)               |
| signature   | 64 hex digits; null or absent when unsigned                                                            |
| unprotected | object, not signed, may be absent: key-fingerprint, notes, verify_state, chunk_upload_stats, and more  |

Stored text: pretty, 2 spaces, keys sorted, "signature" always there. Signed text: without signature and unprotected,
keys sorted, no spaces; the signature is HMAC-SHA256 over it with the id key. Both are UTF-8, not escaped to ASCII.

size and csum of a file: for an index the length of its stream and its csum; for a blob length and SHA-256 of the file
as stored. Other keys than these, outside of unprotected, are not covered by the signature and are lost when the
manifest is written again.
"""

from __future__ import annotations

import hmac
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn, get_args

from formats.crypt import CryptConfig, format_fingerprint, parse_fingerprint, short_fingerprint
from formats.errors import FormatError, IntegrityError, KeyMissing, LimitExceeded, WrongKey
from formats.naming import check_backup_id, check_backup_time, check_backup_type, check_file_name

MANIFEST_NAME = "index.json.blob"
MAX_TEXT = 16 << 20  # bytes
MAX_TOKENS = 500_000  # brackets, commas and strings: bounds the memory that parsed JSON takes; 13 a file: 38,000 files
MAX_DEPTH = 32

CryptMode = Literal["none", "encrypt", "sign-only"]

_CRYPT_MODES = get_args(CryptMode)
_KEYS = frozenset(("backup-type", "backup-id", "backup-time", "files", "signature", "unprotected"))
_FILE_KEYS = frozenset(("filename", "crypt-mode", "size", "csum"))
_MAX_SIZE = 2**64 - 1
_HEX_64 = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)  # the last string may lack its end


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One archive file of a snapshot; making one raises FormatError for values that no manifest can have."""

    filename: str  # the full name, with .didx, .fidx or .blob
    crypt_mode: CryptMode
    size: int  # bytes
    csum: bytes  # 32

    def __post_init__(self) -> None:
        check_file_name(self.filename)
        if self.filename == MANIFEST_NAME:
            raise FormatError("manifest lists itself")
        if self.crypt_mode not in _CRYPT_MODES:
            _refuse(f"{self.filename}: crypt-mode", " or ".join(_CRYPT_MODES), self.crypt_mode)
        if not 0 <= self.size <= _MAX_SIZE:
            _refuse(f"{self.filename}: size", "0 to 2^64-1", self.size)
        if len(self.csum) != 32:
            _refuse(f"{self.filename}: csum", "32 bytes", self.csum)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot consists of; making one raises FormatError for values that no manifest can have.

    ``unprotected`` is JSON data, to be replaced as a whole (``dataclasses.replace``), not changed in place.
    ``has_unknown``: the text had keys, outside of unprotected, that this class does not carry.
    """

    backup_type: str
    backup_id: str
    backup_time: int  # Unix seconds
    files: tuple[FileInfo, ...]
    unprotected: Mapping[str, Any] = field(default_factory=dict, hash=False)
    signature: bytes | None = None
    has_unknown: bool = False

    def __post_init__(self) -> None:
        check_backup_type(self.backup_type)
        check_backup_id(self.backup_id)
        check_backup_time(self.backup_time)
        names = [file.filename for file in self.files]
        if len(set(names)) != len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise FormatError("manifest lists a file twice", got=twice)
        if self.signature is not None and len(self.signature) != 32:
            _refuse("signature", "32 bytes", self.signature)
        parse_fingerprint(_fingerprint_text(self.unprotected) or "0" * 64)

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """From JSON text in UTF-8. FormatError for anything that is no manifest, LimitExceeded for its size."""
        fields = _object(_parse(data), "manifest")
        unprotected = _object(fields.get("unprotected", {}), "unprotected")
        signature = fields.get("signature")
        files = tuple(map(_decode_file, _field(fields, "files", list)))
        unknown = not fields.keys() <= _KEYS or not all(entry.keys() <= _FILE_KEYS for entry in fields["files"])
        return cls(
            backup_type=_field(fields, "backup-type", str),
            backup_id=_field(fields, "backup-id", str),
            backup_time=_field(fields, "backup-time", int),
            files=files,
            unprotected=unprotected,
            signature=None if signature is None else _digest(fields, "signature"),
            has_unknown=unknown,
        )

    def encode(self) -> bytes:
        """The text as it is stored in the blob, byte for byte what PBS writes. FormatError for text not Unicode."""
        fields = self._signed_fields()
        fields["signature"] = None if self.signature is None else self.signature.hex()
        fields["unprotected"] = dict(self.unprotected)
        text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise FormatError("manifest has text that is not Unicode") from error

    def canonical(self) -> bytes:
        """The text that is signed."""
        return json.dumps(self._signed_fields(), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def sign(self, crypt: CryptConfig) -> Manifest:
        """The same manifest with a signature, and the key's fingerprint in ``unprotected``."""
        return replace(
            self,
            signature=crypt.auth_tag(self.canonical()),
            unprotected={**self.unprotected, "key-fingerprint": format_fingerprint(crypt.fingerprint)},
            has_unknown=False,
        )

    def check_fingerprint(self, crypt: CryptConfig | None) -> None:
        """Raises KeyMissing or WrongKey unless ``crypt`` is the key named here; fine when no key is named."""
        wanted = self.fingerprint
        if wanted is None:
            return
        if crypt is None:
            raise KeyMissing("snapshot was made with a key", expected=f"key {short_fingerprint(wanted)}")
        if wanted != crypt.fingerprint:
            ours = short_fingerprint(crypt.fingerprint)
            raise WrongKey("snapshot was made with another key", expected=short_fingerprint(wanted), got=ours)

    def check_signature(self, crypt: CryptConfig) -> bool:
        """True: signed with this key. False: there is no signature, and the caller must decide what that means; on a
        manifest with a fingerprint, or with files that are not "none", somebody took it away.

        Raises WrongKey when another key's fingerprint is named, IntegrityError when the signature is not that of these
        fields, FormatError when there are fields it cannot cover (has_unknown).
        """
        self.check_fingerprint(crypt)
        if self.signature is None:
            return False
        if self.has_unknown:
            raise FormatError("signed manifest has fields that the signature does not cover")
        if not self.is_signed_with(crypt):
            raise IntegrityError("manifest signature does not match: it was altered, or signed with another key")
        return True

    def is_signed_with(self, crypt: CryptConfig) -> bool:
        """Whether the signature is that of this key, whatever fingerprint is named."""
        return self.signature is not None and hmac.compare_digest(crypt.auth_tag(self.canonical()), self.signature)

    @property
    def fingerprint(self) -> bytes | None:
        """That of the key the snapshot was made with (32 bytes), as the manifest says; it is not signed."""
        text = _fingerprint_text(self.unprotected)
        return None if text is None else parse_fingerprint(text)

    def file(self, name: str) -> FileInfo | None:
        """The file with this full name."""
        return next((file for file in self.files if file.filename == name), None)

    def _signed_fields(self) -> dict[str, Any]:
        return {
            "backup-type": self.backup_type,
            "backup-id": self.backup_id,
            "backup-time": self.backup_time,
            "files": [
                {"filename": file.filename, "crypt-mode": file.crypt_mode, "size": file.size, "csum": file.csum.hex()}
                for file in self.files
            ],
        }


def with_unprotected(data: bytes, unprotected: Mapping[str, Any]) -> bytes:
    """The text of a manifest with another ``unprotected`` and everything else as it is, unknown keys too.

    FormatError when ``data`` is no manifest, or would be none then.
    """
    Manifest.decode(data)
    fields = _parse(data)
    fields["unprotected"] = dict(unprotected)
    try:
        text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise FormatError("manifest has text that is not Unicode") from error
    Manifest.decode(text)
    return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise FormatError("manifest has a key twice in one object")
    return fields


def _refuse_constant(name: str) -> float:
    raise FormatError("manifest has a number out of range", got=name)


def _finite(text: str) -> float:
    """Numbers with a fraction or exponent survive in ``unprotected``; nowhere else are they allowed."""
    value = float(text)
    if not math.isfinite(value):
        _refuse_constant(text[:40])
    return value


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)


def _parse(data: bytes) -> Any:
    """JSON, in bounded memory and without deep recursion whatever ``data`` holds."""
    if len(data) > MAX_TEXT:
        raise LimitExceeded("manifest length", expected=f"at most {MAX_TEXT} bytes", got=len(data))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("manifest is not UTF-8", offset=error.start) from error
    _check_shape(text)
    try:
        value = _JSON.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # refuses halves of surrogate pairs
    except UnicodeEncodeError as error:
        raise FormatError("manifest has text that is not Unicode") from error
    except json.JSONDecodeError as error:
        raise FormatError("manifest is not JSON", offset=len(text[: error.pos].encode()), got=error.msg) from error
    except FormatError:
        raise
    except ValueError as error:  # an integer with thousands of digits
        raise FormatError("manifest has a number out of range") from error
    return value


def _check_shape(text: str) -> None:
    if len(text) <= MAX_TOKENS and text.count("{") + text.count("[") <= MAX_DEPTH:
        return  # nearly all are so small
    depth = 0
    for count, match in enumerate(_TOKEN.finditer(text)):
        token = match[0]
        if token in ("{", "["):
            depth += 1
        elif token in ("}", "]"):
            depth -= 1
        if depth > MAX_DEPTH:
            raise LimitExceeded("manifest nesting", expected=f"at most {MAX_DEPTH} levels")
        if count > MAX_TOKENS:
            raise LimitExceeded("manifest has too many values", expected=f"at most {MAX_TOKENS}")


def _decode_file(value: Any) -> FileInfo:
    fields = _object(value, "file in the manifest")
    return FileInfo(
        filename=_field(fields, "filename", str),
        crypt_mode=_field(fields, "crypt-mode", str) if "crypt-mode" in fields else "none",
        size=_field(fields, "size", int),
        csum=_digest(fields, "csum"),
    )


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(what, "a JSON object", value)
    return value


def _field(fields: Mapping[str, Any], key: str, kind: type) -> Any:
    value = fields.get(key)
    if type(value) is not kind:  # not isinstance: true is no integer
        _refuse(f"manifest: {key}", kind.__name__, value)
    return value


def _digest(fields: Mapping[str, Any], key: str) -> bytes:
    text = _field(fields, key, str)
    if not _HEX_64.fullmatch(text):
        _refuse(f"manifest: {key}", "64 lower-case hex digits", text)
    return bytes.fromhex(text)


def _fingerprint_text(unprotected: Mapping[str, Any]) -> str | None:
    text = unprotected.get("key-fingerprint")
    if text is not None and not isinstance(text, str):
        _refuse("key-fingerprint", "text", text)
    return text


def _refuse(what: str, expected: str, got: object) -> NoReturn:
    raise FormatError(what, expected=expected, got=ascii(got)[:80])
