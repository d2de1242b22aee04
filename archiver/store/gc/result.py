"""What a garbage collection found and did."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from archiver.store.gc.exclusion import Mode


@dataclass(slots=True)
class Result:
    """Counted as PBS does (spec datastore.md 7.5): ``kept``: in use, or maybe by a running backup; ``pending``: unused,
    but too young to go; ``bad_chunks``: set aside and still there. Bytes are those of the files.

    ``missing_chunks``: in use, but without a file; None unless every shard was listed. ``complete`` False: a writer
    waited, or the database failed; the next collection goes on. ``interrupted``: names of the sessions that were
    discarded.
    """

    mode: Mode
    reason: str
    dry_run: bool
    from_files: bool
    all_shards: bool
    complete: bool = True
    index_files: int = 0
    index_bytes: int = 0  # of the streams
    removed_chunks: int = 0
    removed_bytes: int = 0
    kept_chunks: int = 0
    kept_bytes: int = 0
    pending_chunks: int = 0
    pending_bytes: int = 0
    bad_chunks: int = 0
    removed_bad: int = 0
    removed_leftovers: int = 0
    missing_chunks: int | None = None
    interrupted: list[str] = field(default_factory=list)
    duration: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The document of DESIGN.md 5, and more."""
        return {
            "schema": 1,
            "removed_chunks": self.removed_chunks,
            "removed_bytes": self.removed_bytes,
            "kept_chunks": self.kept_chunks,
            "kept_bytes": self.kept_bytes,
            "pending_chunks": self.pending_chunks,
            "pending_bytes": self.pending_bytes,
            "bad_chunks": self.bad_chunks,
            "removed_bad": self.removed_bad,
            "removed_leftovers": self.removed_leftovers,
            "missing_chunks": self.missing_chunks,
            "interrupted": self.interrupted,
            "index_files": self.index_files,
            "index_bytes": self.index_bytes,
            "mode": self.mode,
            "reason": self.reason,
            "from_files": self.from_files,
            "all_shards": self.all_shards,
            "complete": self.complete,
            "dry_run": self.dry_run,
            "duration_s": round(self.duration, 3),
        }

    def status_file(self) -> bytes:
        """``.gc-status`` as PBS reads it (spec 7.6)."""
        fields = {
            "upid": None,
            "index-file-count": self.index_files,
            "index-data-bytes": self.index_bytes,
            "disk-bytes": self.kept_bytes,
            "disk-chunks": self.kept_chunks,
            "removed-bytes": self.removed_bytes,
            "removed-chunks": self.removed_chunks,
            "pending-bytes": self.pending_bytes,
            "pending-chunks": self.pending_chunks,
            "removed-bad": self.removed_bad,
            "still-bad": self.bad_chunks,
        }
        return json.dumps(fields, separators=(",", ":")).encode()
