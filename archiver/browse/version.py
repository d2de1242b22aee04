"""The name of a version of a path: ``PATH@TIME``, TIME being the newest snapshot of the group that has it."""

from __future__ import annotations

from formats.errors import FormatError
from formats.naming import format_time, parse_time


def version_name(path: bytes, time: int) -> bytes:
    """``time``: of a snapshot, seconds since the epoch."""
    return path + b"@" + format_time(time).encode()


def parse_version(path: bytes) -> tuple[bytes, int | None]:
    """(path, time of the snapshot); the time is None unless the path ends with one. A file whose own name ends like
    that is meant with a second time behind it."""
    plain, at, text = path.rpartition(b"@")
    if not at:
        return path, None
    try:
        return plain, parse_time(text.decode("ascii"))
    except (FormatError, UnicodeDecodeError):
        return path, None
