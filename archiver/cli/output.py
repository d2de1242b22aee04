"""How things are printed: results on stdout, messages and progress on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import click

from archiver.core.events import Event, FileProblem, Notice, SpaceShort
from archiver.errors import ArchiverError, Interrupted

_BAR_EVERY = 0.2  # seconds, on a terminal
_LINE_EVERY = 60.0  # seconds, otherwise
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_PROBLEMS_SHOWN = 50
_ITEMS_AT_ONCE = 32  # as many as stdout holds back anyway
_DETAILS = {"skipped", "vanished", "pattern"}  # problems of files that only -v shows
_NO_ERRORS = _DETAILS | {"mount"}


def size_text(size: int) -> str:
    """Binary units, three decimals at most, trailing zeros dropped, as PBS prints sizes."""
    unit = min((size.bit_length() - 1) // 10, len(_UNITS) - 1) if size > 0 else 0
    if unit == 0:
        return f"{size} B"
    text = f"{size / (1 << (10 * unit)):.3f}".rstrip("0").rstrip(".")
    return f"{text} {_UNITS[unit]}"


def _short_text(event: SpaceShort) -> str:
    needed, free = size_text(event.needed), size_text(event.free)
    if event.basis == "runs":
        return f"this may not fit: the last runs stored up to {needed}, and {free} are free"
    return f"this may not fit: the sources hold {needed}, and {free} are free; much of it must compress or be known"


def printable(text: str | bytes) -> str:
    """For a terminal: control characters and bytes that are not UTF-8 are escaped."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    if "\udc80" <= char <= "\udcff":  # a byte that could not be decoded
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


@contextmanager
def told() -> Iterator[None]:
    """Results are written. Raises ArchiverError where they cannot be; BrokenPipeError where nobody wants them."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        from archiver.core.disk import explain

        raise explain(error, "write", "the result") from error


def _encoded(items: Iterable[dict[str, Any]]) -> Iterator[str]:
    """JSON of some items at a time, which takes half as long as of each. What goes wrong comes behind those before."""
    some: list[dict[str, Any]] = []
    try:
        for item in items:
            some.append(item)
            if len(some) == _ITEMS_AT_ONCE:
                those, some = some, []
                yield json.dumps(those)[1:-1]
    except (ArchiverError, KeyboardInterrupt):
        if some:
            yield json.dumps(some)[1:-1]
        raise
    if some:
        yield json.dumps(some)[1:-1]


class Output:
    """One per command. Whatever is printed is made ``printable`` here: names in a store or an archive are anybody's."""

    def __init__(self, *, as_json: bool, quiet: bool, verbose: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self._terminal = sys.stderr.isatty()
        self._last = time.monotonic()
        self._bar = False
        self._shown = 0

    # -- results -----------------------------------------------------------------------------------------------------

    @staticmethod
    def read_or_not() -> AbstractContextManager[None]:
        """Around the printing of what happened: that counts, and what follows is done, whether or not somebody reads it
        to the end. A listing that nobody reads any more ends with BrokenPipeError."""
        return suppress(BrokenPipeError)

    def document(self, document: dict[str, Any]) -> None:
        with self.read_or_not():
            self._print(json.dumps(document) + "\n")

    def long_document(
        self,
        head: dict[str, Any],
        items: Iterable[dict[str, Any]],
        tail: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """A document with ``items``, printed as they come; ``tail``: what is known after the last one. What goes wrong
        after the first one is told in the document too, which is a whole one then."""
        opening, begun = json.dumps(head)[:-1] + ', "items": [', False
        try:
            for some in _encoded(items):
                self._print((", " if begun else opening) + some)
                begun = True
        except (ArchiverError, KeyboardInterrupt) as error:
            if not begun:
                raise
            told = error if isinstance(error, ArchiverError) else Interrupted("interrupted")
            self._print(f'], "error": {json.dumps(told.as_json())}}}\n')
            raise click.exceptions.Exit(told.exit_code) from error
        rest = json.dumps(tail())[1:]
        self._print(("" if begun else opening) + "]" + (", " if len(rest) > 1 else "") + rest + "\n")

    def line(self, text: str = "") -> None:
        """A line of the result; nothing with --json."""
        if not self.as_json:
            self._print(printable(text) + "\n")

    def lines(self, texts: Sequence[str], before: str = "") -> None:
        """Many of them at once, all with the same ``before``; nothing with --json."""
        if self.as_json or not texts:
            return
        if before.isprintable() and "".join(texts).isprintable():
            self._print(before + ("\n" + before).join(texts) + "\n")
        else:
            self._print("".join(printable(before + text) + "\n" for text in texts))

    def raw(self, data: bytes) -> None:
        """Bytes of the result as they are: for other programs. Of a command that prints nothing else there."""
        self.clear()
        with told():
            sys.stdout.buffer.write(data)

    def _print(self, text: str) -> None:
        """Not flushed: a long listing would need a system call for each line."""
        self.clear()
        with told():
            sys.stdout.write(text)

    def summary(self, text: str) -> None:
        """What was done, where that is not what the command was asked to print; nothing with --json or --quiet."""
        if not self.quiet:
            with self.read_or_not():
                self.line(text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns side by side; a header that starts with ``>`` aligns its column to the right."""
        right = [name.startswith(">") for name in header]
        lines = [[name.lstrip(">") for name in header], *[list(row) for row in rows]]
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        texts = []
        for line in lines:
            cells = (
                cell.rjust(width) if to_right else cell.ljust(width)
                for cell, width, to_right in zip(line, widths, right, strict=True)
            )
            texts.append("  ".join(cells).rstrip())
        with self.read_or_not():
            self.lines(texts)

    # -- messages ----------------------------------------------------------------------------------------------------

    def message(self, text: str) -> None:
        """Nothing with --quiet."""
        if not self.quiet:
            self._tell(text)

    def _tell(self, text: str) -> None:
        """Nothing fails for a message that nobody gets, as where stderr is a file on a full disk."""
        self.clear()
        with suppress(BrokenPipeError), told():  # who does not read what was printed ends no work
            sys.stdout.flush()  # what was printed before stays before it
        with suppress(OSError):
            click.echo(printable(text), err=True)

    def hear(self, event: Event) -> None:
        """The listener of the engine."""
        if isinstance(event, Notice):
            if event.level == "warning" or self.verbose:
                self.message(event.text)
        elif isinstance(event, FileProblem):
            self._problem(event)
        elif isinstance(event, SpaceShort):
            self.message(_short_text(event))
        else:
            self._progress(event.task, event.files, event.bytes, event.total_bytes)

    def _problem(self, problem: FileProblem) -> None:
        if (problem.kind in _NO_ERRORS and self.quiet) or (problem.kind in _DETAILS and not self.verbose):
            return
        self._shown += 1
        if self._shown == _PROBLEMS_SHOWN + 1 and not self.verbose:
            self._tell("... and more; -v shows all of them")
        if self._shown <= _PROBLEMS_SHOWN or self.verbose:
            self._tell(f"{problem.kind}: {printable(problem.path)}: {problem.reason}")

    def _progress(self, task: str, files: int, done: int, total: int | None) -> None:
        if self.quiet:
            return
        now = time.monotonic()
        if now - self._last < (_BAR_EVERY if self._terminal else _LINE_EVERY):
            return
        self._last = now
        share = f" of {size_text(total)}" if total else ""
        text = f"{task}: {files} entries, {size_text(done)}{share}"
        if not self._terminal:
            with suppress(OSError):
                click.echo(text, err=True)
            return
        width = os.get_terminal_size(2).columns
        sys.stderr.write("\r\x1b[K" + text[: width - 1])
        sys.stderr.flush()
        self._bar = True

    def clear(self) -> None:
        """Take the progress line away before something else is printed."""
        if self._bar:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._bar = False
