"""Loading a key file and finding its passphrase (DESIGN.md 5; spec blob-index-crypto.md 4)."""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Callable, Mapping
from typing import NamedTuple

from archiver.core.clock import Clock
from archiver.errors import KeyProblem, UsageError
from archiver.keys.places import default_public
from formats.crypt import CryptConfig, short_fingerprint
from formats.errors import FormatError, KeyMissing, WrongKey
from formats.keyfile import MAX_KEY_FILE, MIN_PASSPHRASE, KeyFile

PASSWORD = "ARCHIVER_PASSWORD"
NEW_PASSWORD = "ARCHIVER_NEW_PASSWORD"
MASTER_PASSWORD = "ARCHIVER_MASTER_PASSWORD"

_SECRETS = (PASSWORD, NEW_PASSWORD, MASTER_PASSWORD)
_STDERR = 2
_LARGEST_PASSPHRASE = 4096
_COMMAND_SECONDS = 120
_SECONDS_TO_WAIT = 120.0  # for who writes into a pipe

Prompt = Callable[[str], bytes | None]


class UnlockedKey(NamedTuple):
    file: KeyFile
    crypt: CryptConfig


def load_key(path: str, environment: Mapping[str, str], prompt: Prompt) -> CryptConfig:
    """Unlock the key file at ``path``. ``prompt(question)`` asks a person, None when there is nobody.

    Raises KeyProblem.
    """
    return unlock(read_key_file(path), path, environment, prompt).crypt


def read_key_file(path: str) -> KeyFile:
    """Raises KeyProblem."""
    data = read_file(path, "key file", MAX_KEY_FILE)
    try:
        return KeyFile.decode(data)
    except FormatError as error:
        raise KeyProblem(f"{path} is not a usable key file: {error}") from error


def unlock(key: KeyFile, path: str, environment: Mapping[str, str], prompt: Prompt) -> UnlockedKey:
    """The key in ``key``, which was read from ``path``. Raises KeyProblem."""
    name = path if key.fingerprint is None else f"{path} ({short_fingerprint(key.fingerprint)})"
    try:
        passphrase = None
        if key.kdf is not None:
            passphrase = passphrase_from(environment)
            if passphrase is None:
                passphrase = prompt(f"Passphrase of {path}: ")
        return UnlockedKey(key, key.unlock(passphrase))
    except KeyMissing as error:
        raise KeyProblem(f"the key {name} is protected by a passphrase", hint=_where_from(PASSWORD)) from error
    except WrongKey as error:
        raise KeyProblem(f"the key {name} cannot be unlocked: {error}") from error
    except FormatError as error:
        raise KeyProblem(f"{path} is not a usable key file: {error}") from error


def wrapped_for_backup(key: UnlockedKey | None, path: str | None, environment: Mapping[str, str]) -> bytes | None:
    """The key as a snapshot keeps it: for the public master key at ``path``, else for the imported one; None without
    either. Raises KeyProblem, UsageError."""
    if key is None:
        if path is not None:
            raise UsageError("--master-pubkey-file is of no use without a key", hint="name one with --keyfile")
        return None
    default = default_public(environment)
    if path is None and not os.path.lexists(default):
        return None
    from archiver.keys.master import wrap_for

    return wrap_for(default if path is None else path, key)


def read_file(path: str, what: str, limit: int) -> bytes:
    """A file with a key, also the end of a pipe that somebody writes into; of one that is too long, ``limit`` bytes and
    one more. Raises KeyProblem, also where reading would take for ever."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(fd, "rb", buffering=0) as file:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            deadline = Clock().steady() + _SECONDS_TO_WAIT
            data = b""
            while len(data) <= limit:
                block = file.read(limit + 1 - len(data))
                if block is None:  # nothing yet
                    select.select([fd], [], [], max(0.0, deadline - Clock().steady()))
                    if Clock().steady() >= deadline:
                        raise TimeoutError(errno.ETIMEDOUT, f"nothing came for {_SECONDS_TO_WAIT:g} seconds")
                    continue
                if not block:
                    break
                data += block
            return data
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise KeyProblem(f"the {what} {path} cannot be read: {reason}") from error


def passphrase_from(environment: Mapping[str, str], variable: str = PASSWORD) -> bytes | None:
    """The passphrase from the first source that is set: the first line of what it gives. None when none is set.

    ``variable`` and the same with _FD, _FILE, _COMMAND are the sources. Raises KeyProblem, which says of the source no
    more than its name: its value may be a secret put in the wrong place.
    """
    for suffix, read in _SOURCES.items():
        name = variable + suffix
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


def new_passphrase(environment: Mapping[str, str], prompt: Prompt, what: str, *variables: str) -> bytes:
    """A passphrase to protect ``what`` with: from the first of ``variables`` that has a source, else a person is asked
    twice. Raises KeyProblem."""
    passphrase = None
    for variable in variables:
        passphrase = passphrase_from(environment, variable)
        if passphrase is not None:
            break
    else:
        passphrase = prompt(f"New passphrase of {what}: ")
        if passphrase is None:
            raise KeyProblem(f"{what} needs a passphrase to be protected with", hint=_where_from(variables[0]))
        if prompt("The same again: ") != passphrase:
            raise KeyProblem("the two passphrases differ", hint="nothing was written")
    if len(passphrase) < MIN_PASSPHRASE:
        raise KeyProblem(f"the new passphrase is too short: it needs {MIN_PASSPHRASE} bytes or more")
    return passphrase


def _where_from(variable: str) -> str:
    return f"set {variable}_FILE or {variable}_COMMAND, or run in a terminal"


# The readers return a line or more, or one byte more than a passphrase may have. They raise OSError.


def _from_descriptor(value: str) -> bytes:
    """It is closed, unless it is stdin, stdout or stderr: a file that is opened later must not take their place."""
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise OSError(errno.EBADF, "it is no number of a descriptor")
    with os.fdopen(int(value), "rb", buffering=0, closefd=int(value) > _STDERR) as file:
        return _read_line(file.fileno())


def _from_file(value: str) -> bytes:
    fd = os.open(value, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(fd, "rb", buffering=0):
        return _read_line(fd)


def _read_line(fd: int) -> bytes:
    """Who writes into a pipe is waited for, also who has not opened it yet, but not for ever."""
    deadline = Clock().steady() + _SECONDS_TO_WAIT
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    os.read(fd, 0)  # says at once where reading makes no sense
    line = b""
    while b"\n" not in line and len(line) <= _LARGEST_PASSPHRASE:
        if not waiting.poll(max(0.0, deadline - Clock().steady()) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, f"nothing came for {_SECONDS_TO_WAIT:g} seconds")
        block = os.read(fd, _LARGEST_PASSPHRASE + 1 - len(line))
        if not block:
            break
        line += block
    return line


def _from_command(value: str) -> bytes:
    """The command has to succeed, and soon. Only its shell is killed when it does not: in a process group of its own a
    command could not ask on the terminal. It is not told other passphrases: it may start what lives on, like an agent.
    """
    import subprocess

    deadline = Clock().steady() + _COMMAND_SECONDS
    told = {name: text for name, text in os.environ.items() if name not in _SECRETS}
    with subprocess.Popen(value, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=told) as process:
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
    "": os.fsencode,
    "_FD": _from_descriptor,
    "_FILE": _from_file,
    "_COMMAND": _from_command,
}
