"""What a run leaves undone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archiver.errors import ArchiverError


@dataclass(frozen=True, slots=True)
class Problem:
    """A snapshot, medium or file that is not written or restored, and why."""

    name: str
    error: ArchiverError

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "code": self.error.code, "reason": str(self.error)}
