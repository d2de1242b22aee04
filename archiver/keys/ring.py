"""Loading a key file and finding its passphrase (DESIGN.md 5; spec blob-index-crypto.md 4)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping

from archiver.errors import KeyProblem
from formats.crypt import CryptConfig
from formats.errors import FormatError, KeyMissing, WrongKey
from formats.keyfile import KeyFile

_LARGEST_KEY_FILE = 64 * 1024
_LARGEST_PASSPHRASE = 4096
_COMMAND_SECONDS = 120

Prompt = Callable[[str], bytes | None]


def default_keyfile(environment: Mapping[str, str]) -> str | None:
    """The key in the user's configuration directory, when there is one."""
    base = environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    path = os.path.join(base, "archiver", "encryption-key.json")
    return path if os.path.isfile(path) else None


def load_key(path: str, environment: Mapping[str, str], prompt: Prompt) -> CryptConfig:
    """Unlock the key file at ``path``. ``prompt(question)`` asks a person, None when there is nobody.

    Raises KeyProblem.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_KEY_FILE + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise KeyProblem(f"the key file {path} cannot be read: {reason}") from error
    try:
        key = KeyFile.decode(data)
        passphrase = None
        if key.kdf is not None:
            passphrase = passphrase_from(environment)
            if passphrase is None:
                passphrase = prompt(f"Passphrase of {path}: ")
        return key.unlock(passphrase)
    except KeyMissing as error:
        raise KeyProblem(
            f"the key {path} is protected by a passphrase",
            hint="set ARCHIVER_PASSWORD_FILE or ARCHIVER_PASSWORD_COMMAND, or run in a terminal",
        ) from error
    except WrongKey as error:
        raise KeyProblem(f"the key {path} cannot be unlocked: {error}") from error
    except FormatError as error:
        raise KeyProblem(f"{path} is not a usable key file: {error}") from error


def passphrase_from(environment: Mapping[str, str]) -> bytes | None:
    """The passphrase from the environment's sources, first line only; None when none is set. Raises KeyProblem."""
    value = environment.get("ARCHIVER_PASSWORD")
    if value is not None:
        return _first_line(os.fsencode(value))
    descriptor = environment.get("ARCHIVER_PASSWORD_FD")
    path = environment.get("ARCHIVER_PASSWORD_FILE")
    command = environment.get("ARCHIVER_PASSWORD_COMMAND")
    try:
        if descriptor is not None:
            with os.fdopen(int(descriptor), "rb") as file:
                return _first_line(file.read(_LARGEST_PASSPHRASE))
        if path is not None:
            with open(path, "rb") as file:
                return _first_line(file.read(_LARGEST_PASSPHRASE))
        if command is not None:
            done = subprocess.run(
                command,
                shell=True,
                stdout=subprocess.PIPE,
                timeout=_COMMAND_SECONDS,
                check=True,
                stdin=subprocess.DEVNULL,
            )
            return _first_line(done.stdout[:_LARGEST_PASSPHRASE])
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        source = "ARCHIVER_PASSWORD_" + ("FD" if descriptor is not None else "FILE" if path is not None else "COMMAND")
        raise KeyProblem(f"the passphrase cannot be read: {source} does not work", hint=type(error).__name__) from error
    return None


def _first_line(data: bytes) -> bytes:
    return data.split(b"\n", 1)[0].rstrip(b"\r")
