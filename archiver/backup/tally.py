"""What a run counts and tells: files, bytes that were read, and the problems with single files."""

from __future__ import annotations

from dataclasses import dataclass

from archiver.core.events import FileProblem, Listener, Progress
from archiver.source.problem import Problem, explain
from archiver.source.walk import SourceDirectory

_PROGRESS_EVERY = 512  # entries
_PROGRESS_BYTES = 64 << 20


@dataclass(slots=True)
class FileCounters:
    """Files of a run."""

    total: int = 0
    unchanged: int = 0
    reencoded: int = 0
    read_errors: int = 0
    torn: int = 0
    vanished: int = 0
    bytes_read: int = 0
    audited: int = 0


class Tally:
    """Counts into ``counters``, which the archives of a run share, and tells the listener.

    ``problems``: how many there were; set it to 0 to learn whether something gives any.
    """

    def __init__(self, counters: FileCounters, listener: Listener) -> None:
        self.counters = counters
        self.problems = 0
        self._listener = listener
        self._entries = 0
        self._say_at = _PROGRESS_EVERY
        self._said_bytes = 0

    def count(self, entries: int) -> None:
        """So many entries were reached."""
        self._entries += entries
        if self._entries >= self._say_at:
            self._say_at = (self._entries // _PROGRESS_EVERY + 1) * _PROGRESS_EVERY
            self._say()

    def encoded(self, files: int) -> None:
        """So many files were put into the archive, with contents that were read."""
        self.counters.total += files
        self.counters.reencoded += files

    def took_over(self, files: int) -> None:
        """So many files were not read."""
        self.counters.total += files
        self.counters.unchanged += files

    def has_read(self, length: int) -> None:
        """So many bytes of contents were read."""
        self.counters.bytes_read += length
        if self.counters.bytes_read - self._said_bytes >= _PROGRESS_BYTES:
            self._say()

    def _say(self) -> None:
        self._said_bytes = self.counters.bytes_read
        self._listener(Progress("backup", self._entries, self.counters.bytes_read))

    def report(self, problem: Problem) -> None:
        """Something is left out, or not as it should be."""
        self.problems += 1
        if problem.kind == "unreadable":
            self.counters.read_errors += 1
        elif problem.kind == "vanished":
            self.counters.vanished += 1
        self._listener(FileProblem(problem.path, problem.reason, problem.kind))

    def cannot(self, directory: SourceDirectory, name: bytes, error: OSError) -> None:
        """An entry is left out."""
        kind, reason = explain(error)
        self.report(Problem(directory.path_of(name), reason, kind))

    def torn(self, directory: SourceDirectory, name: bytes, failure: OSError | None) -> None:
        """The stored contents of a file are not those of any one moment; ``failure``: the read error, if any."""
        self.counters.torn += 1
        self.problems += 1
        reason = "changed while it was read" if failure is None else f"could not be read to its end: {failure.strerror}"
        self._listener(FileProblem(directory.path_of(name), reason, "torn"))

    def audited(self, directory: SourceDirectory, name: bytes, length: int, finding: str | None) -> None:
        """The contents of an unchanged file were compared, ``length`` bytes; ``finding``: how they differ."""
        self.counters.audited += 1
        self.has_read(length)
        if finding is not None:
            self._listener(FileProblem(directory.path_of(name), finding, "audit"))
