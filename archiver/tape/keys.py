"""Keys of media that the drive's hardware encrypts (spec tape.md 11), in ``$XDG_CONFIG_HOME/archiver/``, as a PBS has
them.

    tape-encryption-keys.json         [{"fingerprint", "key": 64 hexadecimal digits}], what the drive is given
    tape-encryption-key-config.json   [key file with its fingerprint], wrapped with a passphrase; also on each medium

The drive does not get the key itself but one that is derived for the media set.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archiver.errors import ArchiverError, KeyProblem, NotFound, UsageError
from archiver.tape.drive.interface import Drive
from archiver.tape.state.place import TapePlace
from formats.crypt import KEY_SIZE, CryptConfig, format_fingerprint, parse_fingerprint, short_fingerprint
from formats.errors import FormatError
from formats.keyfile import KeyFile
from formats.tape.labels import MediaSetLabel

_PLAIN = "tape-encryption-keys.json"
_WRAPPED = "tape-encryption-key-config.json"
_HINT = "put a copy back; keys are on the media too: archiver tape key restore"
_ITERATIONS = 10


@dataclass(frozen=True, slots=True)
class TapeKey:
    """``file``: wrapped with the passphrase, None where only the plain form is there; ``plain``: None where only the
    wrapped one is."""

    fingerprint: bytes
    file: KeyFile | None
    plain: CryptConfig | None


def drive_key(key: CryptConfig, media_set: bytes) -> bytes:
    """What the drive encrypts a media set with (spec tape.md 4.5)."""
    return hashlib.pbkdf2_hmac("sha256", key.enc_key, media_set, _ITERATIONS, KEY_SIZE)


class TapeKeys:
    """The keys of a user."""

    def __init__(self, directory: str) -> None:
        self._place = TapePlace(directory)

    @staticmethod
    def default(environment: Mapping[str, str]) -> TapeKeys:
        base = environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        return TapeKeys(os.path.join(base, "archiver"))

    def path(self) -> str:
        return self._place.file(_WRAPPED)

    def all(self) -> list[TapeKey]:
        """Sorted by fingerprint. Raises Damaged, also where a key is not the one that its fingerprint says."""
        plain, wrapped = self._plain(), self._wrapped()
        return [TapeKey(each, wrapped.get(each), plain.get(each)) for each in sorted(plain.keys() | wrapped.keys())]

    def find(self, text: str) -> TapeKey:
        """By its fingerprint, or how that begins. Raises NotFound, UsageError where several do."""
        start = text.replace(":", "").lower()
        found = [key for key in self.all() if start and key.fingerprint.hex().startswith(start)]
        if not found:
            raise NotFound(f"there is no tape key {text[:100]}", hint="see: archiver tape key list")
        if len(found) > 1:
            raise UsageError(f"{len(found)} tape keys begin with {text[:100]}", hint="write more of the fingerprint")
        return found[0]

    def plain(self, fingerprint: bytes) -> CryptConfig | None:
        return self._plain().get(fingerprint)

    def wrapped(self, fingerprint: bytes) -> KeyFile | None:
        """For the label of each medium."""
        return self._wrapped().get(fingerprint)

    def put(self, file: KeyFile, crypt: CryptConfig, *, overwrite: bool) -> None:
        """Store both forms. Raises UsageError where the key is there."""
        if file.kdf is None or file.fingerprint != crypt.fingerprint:
            raise ValueError("a tape key is wrapped, and says which it is")
        with self._place.lock("tape-keys", "the file of tape keys"):
            plain, wrapped = self._plain(), self._wrapped()
            if not overwrite and (crypt.fingerprint in plain or crypt.fingerprint in wrapped):
                raise UsageError(
                    f"the tape key {short_fingerprint(crypt.fingerprint)} is there already",
                    hint="see: archiver tape key list",
                )
            self._write(plain | {crypt.fingerprint: crypt}, wrapped | {crypt.fingerprint: file})

    def remove(self, fingerprint: bytes) -> None:
        with self._place.lock("tape-keys", "the file of tape keys"):
            plain, wrapped = self._plain(), self._wrapped()
            plain.pop(fingerprint, None)
            wrapped.pop(fingerprint, None)
            self._write(plain, wrapped)

    def _write(self, plain: dict[bytes, CryptConfig], wrapped: dict[bytes, KeyFile]) -> None:
        files = [json.loads(wrapped[each].encode()) for each in sorted(wrapped)]
        self._place.write_json(_WRAPPED, files)
        keys = [{"fingerprint": format_fingerprint(each), "key": plain[each].enc_key.hex()} for each in sorted(plain)]
        self._place.write_json(_PLAIN, keys)

    def _entries(self, name: str) -> list[dict[str, Any]]:
        found = self._place.read_json(name, _HINT)
        if found is None:
            return []
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise self._place.damaged(name, "it is no list of keys", _HINT)
        return found

    def _plain(self) -> dict[bytes, CryptConfig]:
        keys = {}
        for entry in self._entries(_PLAIN):
            try:
                fingerprint = parse_fingerprint(str(entry.get("fingerprint")))
                key = bytes.fromhex(str(entry.get("key")))
            except (FormatError, ValueError) as error:
                raise self._place.damaged(_PLAIN, "an entry in it is no key", _HINT) from error
            if len(key) != KEY_SIZE or CryptConfig(key).fingerprint != fingerprint:
                raise self._place.damaged(
                    _PLAIN, f"a key in it is not {short_fingerprint(fingerprint)} as it says", _HINT
                )
            keys[fingerprint] = CryptConfig(key)
        return keys

    def _wrapped(self) -> dict[bytes, KeyFile]:
        files = {}
        for entry in self._entries(_WRAPPED):
            try:
                file = KeyFile.decode(json.dumps(entry).encode())
            except FormatError as error:
                raise self._place.damaged(_WRAPPED, str(error)[:200], _HINT) from error
            if file.fingerprint is None or file.kdf is None:
                raise self._place.damaged(_WRAPPED, "a key in it has no fingerprint or no passphrase", _HINT)
            files[file.fingerprint] = file
        return files


def use_key(drive: Drive, label: MediaSetLabel | None, keys: TapeKeys) -> None:
    """Have the drive encrypt and decrypt for the set of ``label``, or not at all. Raises KeyProblem for a key that is
    not here, ArchiverError for a drive that cannot."""
    if label is None or label.fingerprint is None:
        if drive.can_encrypt:
            drive.set_key(None)
        return
    name = short_fingerprint(label.fingerprint)
    if not drive.can_encrypt:
        raise ArchiverError(f"the drive {drive.name} cannot read or write media encrypted with the key {name}")
    key = keys.plain(label.fingerprint)
    if key is None:
        words = "" if label.key is None or label.key.hint is None else f" (its hint: {label.key.hint!a})"
        raise KeyProblem(
            f"the medium is encrypted with the tape key {name}, which is not here{words}",
            hint="take it from the medium: archiver tape key restore",
        )
    drive.set_key(drive_key(key, label.uuid))
