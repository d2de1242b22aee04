"""Passphrases at a real terminal: asked for twice, never echoed."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from pathlib import Path

from formats.keyfile import KeyFile
from tests.cli.command import ROOT

LONG = 120


def at_terminal(arguments: list[str], answers: list[bytes]) -> tuple[int, bytes]:
    """Exit code and everything that stood on the terminal; each question gets the next answer."""
    pid, fd = pty.fork()
    if pid == 0:  # pragma: no cover
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "archiver", *arguments])
    shown, asked, left = b"", 0, list(answers)
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        if not select.select([fd], [], [], 1)[0]:
            continue
        try:
            block = os.read(fd, 4096)
        except OSError:  # the end
            break
        shown += block
        if left and shown[asked:].rstrip(b"\r\n").endswith(b": "):
            asked = len(shown)
            os.write(fd, left.pop(0) + b"\n")
    os.close(fd)
    assert not left, shown
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_create_and_change_at_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    code, shown = at_terminal(["key", "create", str(path), "--kdf", "pbkdf2"], [b"geheim geheim", b"geheim geheim"])
    assert code == 0, shown
    assert b"geheim" not in shown and shown.count(b": ") >= 2
    assert KeyFile.decode(path.read_bytes()).unlock(b"geheim geheim")
    before = path.read_bytes()
    command = ["key", "change-passphrase", str(path), "--kdf", "pbkdf2"]
    code, shown = at_terminal(command, [b"geheim geheim", b"neu neu", b"neu neuer"])
    assert code == 12 and b"differ" in shown and path.read_bytes() == before
    code, shown = at_terminal(command, [b"geheim geheim", b"neu neu", b"neu neu"])
    assert code == 0 and b"neu" not in shown
    assert KeyFile.decode(path.read_bytes()).unlock(b"neu neu")
