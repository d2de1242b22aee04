"""System calls of a child process that fail, by strace: those of libraries and of the interpreter too.

The child is a fork of the test, so all modules are loaded: only the work itself makes calls. strace counts the calls of
each thread by itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from re import compile as pattern

import pytest

_LINE = pattern(r"(\d+) +(\w+)\(")
_INJECTED = "(INJECTED)"


def require() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-qq", "-f", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this process may not trace others")


def wait_for_tracer() -> None:
    """In the child."""
    signal.sigwait({signal.SIGUSR1})


class Tracer:
    """Traces ``child``, which waits for it, and lets it go. ``inject``: CALLS, what becomes of them, which (as strace
    wants it); without it they are only logged. ``paths``: only calls that concern these files."""

    def __init__(self, child: int, log: Path, calls: str, inject: str = "", paths: Sequence[Path] = ()) -> None:
        self._log = log
        arguments = ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={calls}", "-e", "signal=none"]
        if inject:
            arguments += ["-e", f"inject={calls}:{inject}"]
        arguments += [text for path in paths for text in ("-P", str(path))]
        self._process = subprocess.Popen([*arguments, "-p", str(child)], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        told = self._process.stderr.readline()
        assert "attached" in told, told
        os.kill(child, signal.SIGUSR1)

    def end(self) -> None:
        self._process.communicate(timeout=60)

    def injected(self) -> list[str]:
        """The calls that were made to end otherwise."""
        return [line for line in self._log.read_text(errors="replace").splitlines() if _INJECTED in line]

    def counts(self) -> Counter[str]:
        """How often one thread makes each call at most."""
        lines = self._log.read_text(errors="replace").splitlines()
        by_thread = Counter(match.groups() for line in lines if (match := _LINE.match(line)))
        most: Counter[str] = Counter()
        for (_, call), count in by_thread.items():
            most[call] = max(most[call], count)
        return most
