"""The line that runs a job where there is no systemd.

cron forgets what it missed while the machine was off. So it asks once an hour, at a minute that is the job's own, and
``job run --if-due`` does nothing when the last run that was to be has been.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from hashlib import sha256

from archiver.errors import ArchiverError
from archiver.jobs.units import kept_variables

_BEFORE = "# archiver job {job}: archiver job uninstall removes the next line"
_NONE_YET = "no crontab for"
_NOT_ALLOWED = "not allowed"


def cron_lines(job: str, program: Sequence[str], environment: Mapping[str, str], host: str) -> list[str]:
    """The job's part of the crontab."""
    minute = int.from_bytes(sha256(f"{host} {job}".encode()).digest()[:4]) % 60
    variables = [f"{name}={shlex.quote(text)}" for name, text in kept_variables(environment).items()]
    words = ["nice", "-n", "19", "ionice", "-c", "3", *program, "job", "run", job, "--if-due", "--quiet"]
    command = " ".join([*variables, *map(shlex.quote, words), ">/dev/null"])  # cron mails what is printed
    if "\n" in command:
        raise ArchiverError("a crontab has no line breaks, but a path that the job needs has")
    return [_BEFORE.format(job=job), f"{minute} * * * * {_escaped(command)}"]


def _escaped(command: str) -> str:
    """cron ends the command at a percent sign, unless there is a backslash before it that is not one of a pair. One
    that the shell is to see stands between single quotes: they are closed and opened again behind it."""
    return command.replace("\\%", "\\''%").replace("%", "\\%")


def without_job(lines: Sequence[str], job: str) -> list[str]:
    """A crontab without the part of ``job``."""
    before, kept, skip = _BEFORE.format(job=job), list[str](), False
    for line in lines:
        if line == before:
            skip = True
        elif skip:
            skip = False
        else:
            kept.append(line)
    return kept


def read_crontab() -> list[str] | None:
    """This user's crontab, None where there is no cron for this user. Raises ArchiverError."""
    if shutil.which("crontab") is None:
        return None
    done = subprocess.run(["crontab", "-l"], capture_output=True, text=True, errors="surrogateescape", check=False)
    if done.returncode and _NONE_YET in done.stderr:
        return []
    if done.returncode and _NOT_ALLOWED in done.stderr:
        return None
    if done.returncode:
        raise ArchiverError(f"crontab cannot be read: {' '.join(done.stderr.split())}")
    return done.stdout.splitlines()


def write_crontab(lines: Sequence[str]) -> None:
    """Raises ArchiverError."""
    text = "".join(line + "\n" for line in lines)
    done = subprocess.run(
        ["crontab", "-"], input=text, capture_output=True, text=True, errors="surrogateescape", check=False
    )
    if done.returncode:
        raise ArchiverError(f"crontab cannot be written: {' '.join(done.stderr.split())}")
