"""Stores mounted by the program in a process of its own, for tests that look at them through the kernel."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.stores import ROOT, command

PATIENCE = 20.0  # seconds


def has_fuse() -> bool:
    return os.access("/dev/fuse", os.R_OK | os.W_OK) and shutil.which("fusermount3") is not None


def need_fuse() -> None:
    """Skips where there is no FUSE."""
    if has_fuse():
        return
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is not there, or not for this user")
    pytest.skip("fusermount3 is not installed")


def is_mounted(place: Path) -> bool:
    return any(line.split()[1] == str(place) for line in Path("/proc/self/mounts").read_text().splitlines())


def wait_until(condition: bool, place: Path) -> bool:
    """Whether ``place`` is mounted, or is not, within the patience."""
    end = time.monotonic() + PATIENCE
    while is_mounted(place) != condition:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Mount:
    """``messages``: what the program has said on stderr so far."""

    def __init__(self, process: subprocess.Popen[bytes], place: Path, log: Path) -> None:
        self.process = process
        self.place = place
        self._log = log

    @property
    def messages(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def document(self) -> Any:
        """What ``--json`` prints when it is mounted."""
        end = time.monotonic() + PATIENCE
        while not self.messages.endswith("\n") and time.monotonic() < end:
            time.sleep(0.02)
        return json.loads(self.messages)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def mounted(place: Path, *arguments: str | Path, wrapper: tuple[str, ...] = ()) -> Iterator[Mount]:
    """``archiver ARGUMENTS PLACE``; ``place`` is made. At the end it must be unmounted, whatever the test has done."""
    need_fuse()
    place.mkdir(exist_ok=True)
    log = place.parent / f"{place.name}.log"
    with open(log, "wb") as messages:
        process = subprocess.Popen(
            [*wrapper, *command(*arguments, place)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
        )
    try:
        end = time.monotonic() + PATIENCE
        while not is_mounted(place):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        yield Mount(process, place, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        left = not wait_until(False, place)
        if left:
            subprocess.run(["fusermount3", "-u", "-z", str(place)], check=False)
    text = log.read_text(errors="replace")
    assert "Traceback" not in text and "a bug of archiver" not in text, text
    assert not left, "it was still mounted"
