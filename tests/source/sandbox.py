"""Run a piece of a test in a child process: as an ordinary user, or where it may mount things."""

from __future__ import annotations

import ctypes
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534
IS_ROOT = os.geteuid() == 0

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_REC_PRIVATE = 0x4000 | 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def world_readable_directory() -> Iterator[Path]:
    """A directory that another user may reach; pytest's own ones are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_ordinary_user(work: Callable[[], Any]) -> Any:
    """The value of ``work()`` run without privileges."""

    def unprivileged() -> Any:
        if IS_ROOT:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        return work()

    return in_child(unprivileged)


def with_mounts(work: Callable[[], Any]) -> Any:
    """The value of ``work()`` run in a mount namespace of its own; skips the test where that is not allowed."""

    def namespaced() -> Any:
        if _libc.unshare(_CLONE_NEWNS if IS_ROOT else _CLONE_NEWNS | _CLONE_NEWUSER) != 0:
            return pytest.skip.Exception("no privilege to make a mount namespace")
        mount(b"none", Path("/"), None, flags=_MS_REC_PRIVATE)
        return work()

    result = in_child(namespaced)
    if isinstance(result, pytest.skip.Exception):
        raise result
    return result


def mount(source: bytes, target: Path, kind: bytes | None, *, flags: int = 0, data: bytes | None = None) -> None:
    if _libc.mount(source, os.fsencode(target), kind, flags, data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def in_child(work: Callable[[], Any]) -> Any:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            answer: tuple[bool, Any] = (True, work())
        except BaseException:
            answer = (False, traceback.format_exc())
        with os.fdopen(writing, "wb") as stream:
            pickle.dump(answer, stream)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        data = stream.read()
    os.waitpid(child, 0)
    assert data, "the child process died"
    succeeded, value = pickle.loads(data)
    if not succeeded:
        pytest.fail(value)
    return value
