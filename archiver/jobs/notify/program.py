"""Other programs that carry a message: with an end, and without our secrets."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

from archiver.core.disk import explain
from archiver.core.environment import without_secrets
from archiver.errors import ArchiverError

_SECONDS = 60.0
_SHOWN = 200  # characters of what it said
_KEPT = 4096  # bytes
_PIECE = 1 << 16  # bytes
_PATIENCE = 1.0  # seconds until what an ended program has said is read


def run_program(
    command: Sequence[str] | str,
    name: str,
    data: bytes = b"",
    environment: Mapping[str, str] | None = None,
    *,
    user: tuple[int, int] | None = None,
    seconds: float = _SECONDS,
) -> None:
    """Run ``command``, a line of shell if it is a string, with ``data`` as its standard input.

    ``user``: the numbers of the user and group that it becomes. Raises ArchiverError when it fails, or is not done in
    time: it is killed then with all that it started.
    """
    told = without_secrets(os.environ) | dict(environment or {})
    with open(os.memfd_create("message"), "w+b", buffering=0) as given:  # a full disk must not make us silent
        given.write(data)
        given.seek(0)
        try:
            running = subprocess.Popen(
                command,
                shell=isinstance(command, str),
                stdin=given,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=told,
                start_new_session=True,
                cwd="/",
                user=user[0] if user else None,
                group=user[1] if user else None,
                extra_groups=[] if user else None,
            )
        except OSError as error:
            raise explain(error, "run", name) from error
    complaint = _Complaint(running)
    try:
        code = running.wait(seconds)
    except subprocess.TimeoutExpired:
        raise ArchiverError(f"{name} was not done after {seconds:.0f} seconds") from None
    finally:
        if running.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    if code:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        said = complaint.text()
        raise ArchiverError(f"{name} ended with {how}" + (f": {said}" if said else ""))


class _Complaint:
    """The first of what a program says on its stderr; all else is read, too, so that it can go on, and thrown away. It
    may have started another one that keeps the pipe: that is not waited for."""

    def __init__(self, running: subprocess.Popen[bytes]) -> None:
        assert running.stderr is not None
        self._pipe = running.stderr
        self._kept = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._pipe:
            while piece := os.read(self._pipe.fileno(), _PIECE):
                self._kept += piece[: _KEPT - len(self._kept)]

    def text(self) -> str:
        self._reader.join(_PATIENCE)
        return " ".join(self._kept.decode("utf-8", "replace").split())[:_SHOWN]
