"""What a verification is asked to do, and what it tells."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from archiver.core.sizes import parse_size
from archiver.errors import UsageError
from formats.naming import format_time

ERRORS_KEPT = 10_000
SIGNATURE_STATES = ("valid", "unchecked", "unsigned")

_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|m|min|h|d)")
_MAYBE_TIME = re.compile(r"[0-9.]+\s*M?")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_HINT = "write a time, 10m or 2h, or an amount of data, 20GiB"


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be spent on a run: ``seconds``, or ``bytes`` of chunk files; the other one is None."""

    seconds: float | None = None
    bytes: int | None = None

    @classmethod
    def parse(cls, text: str, name: str = "") -> Budget:
        """``90s``, ``10m``, ``2h``, ``1d``, or a size, ``20GiB``; ``name`` as for ``parse_size``. UsageError.

        A number alone, or with an M, is none: who writes that may well mean a time.
        """
        match = _TIME.fullmatch(text.strip())
        seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
        if match is None and _MAYBE_TIME.fullmatch(text.strip()) is None:
            return cls(bytes=parse_size(text, name, least=1, hint=_HINT))
        if not 0 < seconds < 1e9:
            raise UsageError(f"{name} {text!r} is no budget".lstrip(), hint=_HINT)
        return cls(seconds=seconds)


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """``set_aside``: rename chunks that are certainly damaged, so that the next backup stores them again;
    ``write_state``: say in the manifests how it ended. Neither is done in a store that is opened to be read only.

    ``skip_verified``: pass over snapshots that were verified, well or not; with ``outdated_after`` only those of which
    that is at most so many days ago. ``scope``: what was chosen, the same words for each run of a cycle of budgets.
    """

    set_aside: bool = False
    write_state: bool = False
    skip_verified: bool = False
    outdated_after: int | None = None
    budget: Budget | None = None
    scope: str = ""


@dataclass(frozen=True, slots=True)
class VerifyError:
    """``chunk`` and ``files`` are empty where the damage is not that of a chunk."""

    snapshot: str
    archive: str
    chunk: str
    reason: str
    files: list[str]


@dataclass(slots=True)
class BudgetResult:
    """What a budget was enough for; bytes are those of chunk files.

    ``not_reached``: chunks that were not read in this run, ``left``: those of them that are still to come in this
    cycle. ``oldest``: when the one of these that was verified longest ago was (Unix seconds, 0: never, None: none is
    left). ``began``: the cycle, in Unix seconds; None when there is no database that could remember one.
    """

    reached: int = 0
    reached_bytes: int = 0
    not_reached: int = 0
    not_reached_bytes: int = 0
    left: int = 0
    left_bytes: int = 0
    oldest: int | None = None
    began: int | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "reached_chunks": self.reached,
            "reached_bytes": self.reached_bytes,
            "not_reached_chunks": self.not_reached,
            "not_reached_bytes": self.not_reached_bytes,
            "cycle": None
            if self.began is None
            else {
                "began": format_time(max(self.began, 1)),
                "left_chunks": self.left,
                "left_bytes": self.left_bytes,
                "oldest_verified": format_time(self.oldest) if self.oldest else None,
            },
        }


@dataclass(slots=True)
class Found:
    """Errors, the first ones of very many: ``count`` counts all."""

    count: int = 0
    errors: list[VerifyError] = field(default_factory=list)

    def add(self, error: VerifyError) -> None:
        self.count += 1
        if len(self.errors) < ERRORS_KEPT:
            self.errors.append(error)


@dataclass(slots=True)
class VerifyResult:
    """``bytes`` are plain bytes of the chunks read; ``unchecked`` chunks could only be checked without their key, and
    ``without_sum`` of these by their CRC alone. ``signatures``: names of the snapshots whose signature is "valid",
    could not be checked without its key ("unchecked"), and of those that are wholly plain and "unsigned".

    ``unfinished`` snapshots, that have no manifest, were passed over; so were ``skipped`` ones, as verified before,
    ``skipped_failed`` of them with damage; and ``busy`` ones, that are just being removed. ``set_aside``: files of
    chunks that were renamed. ``unwritten``: snapshots whose manifest could not be told. ``unproven``: those in which no
    damage was found, but not each chunk was proven, in this cycle of a budget. ``errors`` holds the first 10,000 of
    ``error_count``."""

    snapshots: int = 0
    chunks: int = 0
    bytes: int = 0
    unchecked: int = 0
    without_sum: int = 0
    signatures: dict[str, list[str]] = field(default_factory=lambda: {state: [] for state in SIGNATURE_STATES})
    unfinished: int = 0
    skipped: int = 0
    skipped_failed: int = 0
    busy: list[str] = field(default_factory=list)
    set_aside: int = 0
    unwritten: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)
    budget: BudgetResult | None = None
    error_count: int = 0
    errors: list[VerifyError] = field(default_factory=list)

    def take(self, found: Found) -> None:
        self.error_count += found.count
        self.errors += found.errors[: max(ERRORS_KEPT - len(self.errors), 0)]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "snapshots": self.snapshots,
            "chunks": self.chunks,
            "bytes": self.bytes,
            "without_key": self.unchecked,
            "without_sum": self.without_sum,
            "signatures": self.signatures,
            "unfinished": self.unfinished,
            "skipped": self.skipped,
            "skipped_failed": self.skipped_failed,
            "busy": self.busy,
            "set_aside": self.set_aside,
            "state_not_written": self.unwritten,
            "not_proven": self.unproven,
            "budget": None if self.budget is None else self.budget.as_json(),
            "error_count": self.error_count,
            "errors": [asdict(error) for error in self.errors],
        }
