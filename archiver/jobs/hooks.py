"""The commands of a profile that run before and after the work."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress

from archiver.core.environment import without_secrets
from archiver.errors import ArchiverError
from archiver.jobs.profile import Hook

_STDERR = 2
_GRACE = 5.0  # seconds from the polite signal to the other one


def run_hook(hook: Hook, environment: Mapping[str, str], facts: Mapping[str, str]) -> None:
    """Run it in a shell, with ``facts`` as ARCHIVER_* variables. What it prints goes to stderr: our stdout may be a
    JSON document. It and all it has started end with its time. Raises ArchiverError unless it exits with 0."""
    told = without_secrets(environment) | {f"ARCHIVER_{name}": value for name, value in facts.items()}
    try:
        process = subprocess.Popen(
            hook.command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,
            env=told,
            start_new_session=True,
        )
    except OSError as error:
        raise ArchiverError(f"the hook cannot be run: {(error.strerror or str(error)).lower()}") from error
    try:
        code = process.wait(hook.timeout)
    except subprocess.TimeoutExpired as error:
        raise ArchiverError(f"the hook took longer than {hook.timeout} seconds and was ended") from error
    finally:
        if process.returncode is None:
            _end(process)
    if code < 0:
        raise ArchiverError(f"the hook was ended by signal {-code}")
    if code:
        raise ArchiverError(f"the hook ended with exit code {code}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(_GRACE)
            return
        except subprocess.TimeoutExpired:
            continue
