"""Other programs that carry a message: with an end, and without our secrets."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from archiver.core.disk import explain
from archiver.core.environment import without_secrets
from archiver.errors import ArchiverError

_SECONDS = 60.0
_SHOWN = 200  # characters of what it said


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
    try:
        running = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            stdin=subprocess.PIPE,
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
    with running:
        try:
            _, complaint = running.communicate(data, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise ArchiverError(f"{name} was not done after {seconds:.0f} seconds") from None
        finally:
            if running.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(running.pid, signal.SIGKILL)
    if running.returncode:
        how = f"exit code {running.returncode}" if running.returncode > 0 else f"signal {-running.returncode}"
        said = " ".join(complaint.decode("utf-8", "replace").split())[:_SHOWN]
        raise ArchiverError(f"{name} ended with {how}" + (f": {said}" if said else ""))
