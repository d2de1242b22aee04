"""Everything a user can run into, as one tree: a sentence, a stable code, an exit code (DESIGN.md 5) and a hint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

EXIT_OK = 0
EXIT_PARTIAL = 3  # done, but some source files were unreadable or changed while read
EXIT_DIFFERENT = 4  # restored, but read again something is not as in the archive
EXIT_DAMAGED = 20
EXIT_INTERRUPTED = 130
EXIT_BUG = 70

# When several apply the first one counts (DESIGN.md 5).
_ORDER = (
    EXIT_INTERRUPTED,
    EXIT_BUG,
    1,
    2,
    10,
    11,
    12,
    13,
    14,
    40,
    50,
    EXIT_DAMAGED,
    30,
    31,
    EXIT_DIFFERENT,
    EXIT_PARTIAL,
)


class ArchiverError(Exception):
    """``str()`` is one sentence that names the object; ``code`` is stable for scripts; ``hint`` says what to do."""

    code = "failed"
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def as_json(self) -> dict[str, str | None]:
        return {"code": self.code, "message": str(self), "hint": self.hint}


class UsageError(ArchiverError):
    code = "usage"
    exit_code = 2


class NotFound(ArchiverError):
    """No such store, snapshot, archive or path in an archive."""

    code = "not-found"
    exit_code = 10


class Locked(ArchiverError):
    code = "locked"
    exit_code = 11


class KeyProblem(ArchiverError):
    """A key is missing or is the wrong one."""

    code = "key"
    exit_code = 12


class TargetAbsent(ArchiverError):
    """The store's drive is not there."""

    code = "target-absent"
    exit_code = 13


class Skipped(ArchiverError):
    """Left as it is, as a rule says: it is protected, or in use."""

    code = "skipped"
    exit_code = 14


class Damaged(ArchiverError):
    """Stored data is damaged, missing or altered."""

    code = "damaged"
    exit_code = EXIT_DAMAGED


class Unsigned(Damaged):
    """Nobody signed a snapshot of a group that has signed ones: somebody may have put it there."""

    code = "unsigned"


class Held(ArchiverError):
    """A guard wants the plan confirmed first."""

    code = "held"
    exit_code = 30


class NoSpace(ArchiverError):
    code = "no-space"
    exit_code = 40


class TooNew(ArchiverError):
    """Written by a newer version of this program or format."""

    code = "too-new"
    exit_code = 50


class Interrupted(ArchiverError):
    """Ctrl-C or SIGTERM."""

    code = "interrupted"
    exit_code = EXIT_INTERRUPTED


def worst(codes: Iterable[int], order: Sequence[int] = _ORDER) -> int:
    """The exit code of a run in which several apply; 0 for none. One that ``order`` does not have comes first."""
    return min((code for code in codes if code), key=lambda code: order.index(code) if code in order else -1, default=0)


def worst_of(errors: Sequence[ArchiverError]) -> ArchiverError | None:
    """The error of several that the exit code tells, with their number; None when there is none."""
    if not errors:
        return None
    code = worst(error.exit_code for error in errors)
    first = next(error for error in errors if error.exit_code == code)
    if len(errors) == 1:
        return first
    found = ArchiverError(f"{first} (and {len(errors) - 1} more)", hint=first.hint)
    found.code, found.exit_code = first.code, first.exit_code
    return found
