"""Making key files and writing them (spec blob-index-crypto.md 4.2, 4.3)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

from archiver.core.clock import Clock, Random, system_random
from archiver.core.disk import Disk, explained
from archiver.errors import UsageError
from archiver.keys.ring import Prompt, new_passphrase
from formats.crypt import IV_SIZE, KEY_SIZE, CryptConfig
from formats.errors import FormatError
from formats.keyfile import Kdf, KeyFile, KeyTime, Pbkdf2, Scrypt

_SALT_SIZE = 32
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700


def new_key(random: Random = system_random) -> CryptConfig:
    return CryptConfig(random(KEY_SIZE))


def key_time(clock: Clock | None = None) -> KeyTime:
    """Now, as this machine's clock on the wall shows it."""
    now = (clock or Clock()).now()
    offset = datetime.fromtimestamp(now).astimezone().utcoffset()
    return KeyTime(now, 0 if offset is None else int(offset.total_seconds()) // 60)


def kdf_name(kdf: Kdf) -> str:
    """The word of the command line for it."""
    if kdf is None:
        return "none"
    return "scrypt" if isinstance(kdf, Scrypt) else "pbkdf2"


def check_hint(kdf: str, hint: str | None) -> None:
    """Raises UsageError; before a passphrase is asked for."""
    if hint is None:
        return
    if kdf == "none":
        raise UsageError("a hint is of no use without a passphrase", hint="leave out --hint or --kdf none")
    now = KeyTime(0)
    try:
        KeyFile.wrap(CryptConfig(bytes(KEY_SIZE)), None, None, None, now, now, hint)
    except FormatError as error:
        raise UsageError(f"--hint: {error}") from error


def protect(
    crypt: CryptConfig,
    path: str,
    kdf: str,
    hint: str | None,
    created: KeyTime | None,
    environment: Mapping[str, str],
    prompt: Prompt,
    *variables: str,
    random: Random = system_random,
) -> KeyFile:
    """A key file for ``crypt``, to be written to ``path``, under a new passphrase that comes from ``variables`` or a
    person; with ``kdf`` "none" there is no passphrase. ``created``: None for now. Raises KeyProblem, UsageError."""
    check_hint(kdf, hint)
    now = key_time()
    if kdf == "none":
        return KeyFile.wrap(crypt, None, None, None, created or now, now)
    passphrase = new_passphrase(environment, prompt, path, *variables)
    salt = random(_SALT_SIZE)
    wrapping = Scrypt(65536, 8, 1, salt) if kdf == "scrypt" else Pbkdf2(65535, salt)
    return KeyFile.wrap(crypt, passphrase, wrapping, random(IV_SIZE), created or now, now, hint)


def check_free(path: str, force: bool) -> None:
    """Raises UsageError where no file can be, or one would be overwritten that may not be."""
    directory = os.path.dirname(path) or "."
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise UsageError(f"{directory} is no directory")
    if os.path.isdir(path) or path.endswith("/"):
        raise UsageError(f"{path} is a directory", hint="name the file to write")
    if os.path.exists(path) and not os.path.isfile(path):  # /dev/null must stay what it is
        raise UsageError(f"{path} is no regular file", hint="name the file to write")
    if not force and os.path.lexists(path):
        raise UsageError(f"{path} exists already", hint="--force overwrites it")


def write_file(path: str, data: bytes, *, force: bool, disk: Disk | None = None) -> None:
    """Write a file for its owner only, whole and durable; with ``force`` in place of one that is there, of a symlink
    what it leads to. Raises UsageError, ArchiverError."""
    check_free(path, force)
    disk = disk or Disk()
    place = os.path.realpath(path)
    with explained("write", path):
        try:
            directory = os.path.dirname(place)
            disk.make_directories(directory, _DIRECTORY_MODE)
            with suppress(PermissionError):  # above it; it may be what a killed process has made just now
                disk.sync_directory(os.path.dirname(directory))
            if force:
                disk.put(place, [data], _FILE_MODE, sync=True)
            else:
                disk.put_new(place, [data], _FILE_MODE)
        except FileExistsError:  # just now
            raise UsageError(f"{path} exists already", hint="--force overwrites it") from None
