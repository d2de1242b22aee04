"""What a run does to directories, step by step; and a run that ends before a step, as if it was killed."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest

from archiver.core import linux


class Step(NamedTuple):
    """A change of a directory, or ``sync`` of one (of everything: with the path ``""``)."""

    kind: str
    path: str
    target: str = ""


class Killed(BaseException):
    """Ends a run like kill -9: nothing catches it."""


class Recorder:
    """Notes what is done to directories; ends the run at step number ``kill_at``."""

    def __init__(self, patched: pytest.MonkeyPatch, kill_at: int = -1) -> None:
        self.steps: list[Step] = []
        self._kill_at = kill_at
        for name in ("rename", "unlink", "rmdir", "mkdir"):
            patched.setattr(os, name, self._noting(name, getattr(os, name)))
        patched.setattr(os, "fsync", self._syncing(os.fsync))
        patched.setattr("archiver.core.disk.syncfs", self._syncing(linux.syncfs, everything=True))

    def _noting(self, kind: str, real: Any) -> Any:
        def noting(path: str, *rest: Any, **options: Any) -> None:
            target = rest[0] if kind == "rename" else ""
            if "/db" not in path:
                self._note(kind, path, target)
            real(path, *rest, **options)

        return noting

    def _syncing(self, real: Any, *, everything: bool = False) -> Any:
        def noting(fd: int) -> None:
            self._note("sync", "" if everything else os.readlink(f"/proc/self/fd/{fd}"))
            real(fd)

        return noting

    def _note(self, kind: str, path: str, target: str = "") -> None:
        if len(self.steps) == self._kill_at:
            raise Killed
        self.steps.append(Step(kind, path, target))
