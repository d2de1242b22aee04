"""What the exit code of a command tells when several things went wrong (DESIGN.md 5)."""

from __future__ import annotations

from collections.abc import Sequence

from archiver.errors import ArchiverError

_FIRST = (1, 10, 11, 12, 13, 14, 40, 50, 20, 30, 31)  # exit codes: the first one of these that applies


def worst(errors: Sequence[ArchiverError]) -> ArchiverError | None:
    """The error that the exit code tells, and how many more there are."""
    if not errors:
        return None
    first = min(errors, key=lambda error: _FIRST.index(error.exit_code) if error.exit_code in _FIRST else 0)
    if len(errors) == 1:
        return first
    found = ArchiverError(f"{first} (and {len(errors) - 1} more)", hint=first.hint)
    found.code, found.exit_code = first.code, first.exit_code
    return found
