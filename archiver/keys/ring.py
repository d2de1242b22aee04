"""Loading a key file and finding its passphrase (DESIGN.md 5; spec blob-index-crypto.md 4)."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Mapping

from archiver.core.clock import Clock
from archiver.errors import KeyProblem
from formats.crypt import CryptConfig
from formats.errors import FormatError, KeyMissing, WrongKey
from formats.keyfile import KeyFile

_LARGEST_KEY_FILE = 64 * 1024
_LARGEST_PASSPHRASE = 4096
_COMMAND_SECONDS = 120

Prompt = Callable[[str], bytes | None]


def default_keyfile(environment: Mapping[str, str]) -> str | None:
    """The key in the user's configuration directory, when there is one; also one that cannot be read, so that nothing
    is saved without encryption because of that."""
    base = environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    path = os.path.join(base, "archiver", "encryption-key.json")
    return path if os.path.lexists(path) else None


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
    """The passphrase from the first source that is set: the first line of what it gives. None when none is set.

    Raises KeyProblem, which says of the source no more than its name: its value may be a secret put in the wrong place.
    """
    for name, read in _SOURCES.items():
        value = environment.get(name)
        if value is None:
            continue
        try:
            passphrase = read(value).split(b"\n", 1)[0].rstrip(b"\r")
        except OSError as error:
            raise KeyProblem(f"the passphrase cannot be read: {name} does not work", hint=error.strerror) from error
        if len(passphrase) > _LARGEST_PASSPHRASE:
            raise KeyProblem(f"the passphrase of {name} is longer than {_LARGEST_PASSPHRASE} bytes")
        return passphrase
    return None


# The readers return a line or more, or one byte more than a passphrase may have. They raise OSError.


def _from_descriptor(value: str) -> bytes:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise OSError(errno.EBADF, "it is no number of a descriptor")
    with os.fdopen(int(value), "rb") as file:
        return file.readline(_LARGEST_PASSPHRASE + 1)


def _from_file(value: str) -> bytes:
    with open(value, "rb") as file:
        return file.readline(_LARGEST_PASSPHRASE + 1)


def _from_command(value: str) -> bytes:
    """The command has to succeed, and soon. Only its shell is killed when it does not: in a process group of its own a
    command could not ask on the terminal."""
    import subprocess

    deadline = Clock().steady() + _COMMAND_SECONDS
    with subprocess.Popen(value, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            output = _read_until(deadline, process.stdout.fileno())
            code = process.wait(max(0.0, deadline - Clock().steady()))
        except subprocess.TimeoutExpired:
            raise _too_slow() from None
        finally:
            process.kill()
    if code != 0:
        raise ChildProcessError(errno.ECHILD, f"the command ended with exit code {code}")
    return output


def _read_until(deadline: float, fd: int) -> bytes:
    """All that comes from a pipe up to its end; of very much, the start."""
    output = b""
    while (left := deadline - Clock().steady()) > 0 and select.select([fd], [], [], left)[0]:
        block = os.read(fd, _LARGEST_PASSPHRASE)
        if not block:
            return output
        if len(output) <= _LARGEST_PASSPHRASE:
            output += block
    raise _too_slow()


def _too_slow() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"the command takes longer than {_COMMAND_SECONDS} seconds")


_SOURCES: dict[str, Callable[[str], bytes]] = {
    "ARCHIVER_PASSWORD": os.fsencode,
    "ARCHIVER_PASSWORD_FD": _from_descriptor,
    "ARCHIVER_PASSWORD_FILE": _from_file,
    "ARCHIVER_PASSWORD_COMMAND": _from_command,
}
