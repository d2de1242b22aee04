"""diff"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, allow_unsigned_option, global_options
from archiver.cli.entries import (
    CHANGE_MARKS,
    archive_option,
    bytes_of,
    change_line,
    entry_json,
    name_in,
    print0_option,
    text_of,
)
from archiver.cli.output import Output, size_text
from archiver.errors import EXIT_DIFFERENT, EXIT_OK, EXIT_PARTIAL, NotFound, UsageError, worst

if TYPE_CHECKING:
    from archiver.browse.diff import Change, Sizes
    from archiver.browse.sides import WholeChange, WholeState
    from archiver.browse.snapshot import Snapshot
    from archiver.source.problem import Problem
    from archiver.store.layout import SnapshotRef
    from archiver.store.store import Store
    from formats.patterns import Pattern
    from formats.pxar.items import Entry

_NO_ERRORS = {"vanished", "skipped", "mount", "pattern"}
# Whatever was found, more may be different where nobody could look: nobody is to take the list for all there is. (Of
# what is restored it is the other way round: there a difference is a file that did not come back as it was.)
_ORDER = (EXIT_PARTIAL, EXIT_DIFFERENT)


@click.command()
@click.argument("before", metavar="SNAPSHOT")
@click.argument("after", metavar="[SNAPSHOT|DIR]", required=False)
@archive_option
@click.option("--path", "path", default="/", metavar="PATH", help="Only this, and what is below it.")
@click.option("--content", "contents", is_flag=True, help="Compare the contents of files too.")
@click.option("--sizes", is_flag=True, help="Show how many bytes are new and gone in each directory, largest first.")
@click.option("--depth", type=click.IntRange(0), default=3, show_default=True, help="Of directories with --sizes.")
@click.option(
    "--exclude",
    "excludes",
    multiple=True,
    metavar="PATTERN",
    help="Leave out what matches on both sides, as backup does (repeatable).",
)
@print0_option
@allow_unsigned_option
@global_options
@click.pass_context
def diff(
    ctx: click.Context,
    context: Context,
    before: str,
    after: str | None,
    archive_name: str | None,
    path: str,
    contents: bool,
    sizes: bool,
    depth: int,
    excludes: tuple[str, ...],
    print0: bool,
    allow_unsigned: bool,
) -> None:
    """Show what changed from one SNAPSHOT to another one, or to a live directory.

    Exit code 4 when anything did; 3 when something could not be read, whether or not anything is different elsewhere.

    With one SNAPSHOT alone: what is new in it since the one before it in its group. A DIR best starts with / or a dot,
    for it could be the name of a snapshot; what the backup had left out is left out of it again. Metadata are compared,
    and contents with --content: those with the same chunks are the same, of the others both are read.
    """
    output = context.output
    if print0 and (output.as_json or sizes):
        raise UsageError("--print0 prints names only")
    patterns = _patterns(excludes)
    with context.open_store(output) as store:
        run = _Run(context, output, store, allow_unsigned, contents, patterns, Tally(depth))
        if after is not None and _is_directory(after):
            found = run.to_directory(before, after, archive_name, bytes_of(path))
        else:
            found = run.to_snapshot(before, after, archive_name, bytes_of(path))
        with output.read_or_not():
            _show(output, run, found, sizes, print0)
    codes = EXIT_PARTIAL if run.errors else EXIT_OK, EXIT_DIFFERENT if run.tally.count else EXIT_OK
    ctx.exit(worst(codes, _ORDER))


def _patterns(texts: tuple[str, ...]) -> list[Pattern]:
    from formats.errors import FormatError
    from formats.patterns import parse_exclude_option

    try:
        return [parse_exclude_option(bytes_of(text)) for text in texts]
    except FormatError as error:
        raise UsageError(f"--exclude: {error}") from error


def _is_directory(text: str) -> bool:
    """Whether a user who writes that means a live directory."""
    from archiver.store.layout import parse_reference

    if text == "latest" or text.startswith(("/", ".")):
        return text != "latest"
    try:
        parse_reference(text)
    except UsageError:
        return os.path.isdir(text)
    return False


Told = tuple[str, "Change | WholeChange"]  # name of the archive, and what is different in it


class Tally:
    """What was told, counted."""

    def __init__(self, depth: int) -> None:
        self.counts = dict.fromkeys(CHANGE_MARKS, 0)
        self.added = self.removed = 0
        self._depth = depth
        self.sizes: dict[str, Sizes] = {}  # by archive

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    def add(self, archive: str, change: Change | WholeChange) -> None:
        from archiver.browse.diff import Sizes

        self.counts[change.change] += 1
        self.added += change.bytes_added
        self.removed += change.bytes_removed
        self.sizes.setdefault(archive, Sizes(self._depth)).add(change)

    def as_json(self) -> dict[str, int]:
        return self.counts | {"bytes_added": self.added, "bytes_removed": self.removed}

    def text(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return f"{counts}; {size_text(self.added)} new, {size_text(self.removed)} gone"


class _Run:
    """One comparison; what is told about it is counted."""

    def __init__(
        self,
        context: Context,
        output: Output,
        store: Store,
        allow_unsigned: bool,
        contents: bool,
        excludes: list[Pattern],
        tally: Tally,
    ) -> None:
        self._context, self._store, self._allow_unsigned = context, store, allow_unsigned
        self._output = output
        self._contents = contents
        self._excludes = excludes
        self.tally = tally
        self.several = False  # archives
        self.head: dict[str, Any] = {"schema": 1}
        self.errors: list[dict[str, str]] = []

    def _open(self, text: str) -> Snapshot:
        return self._context.open_snapshot(self._store, text, allow_unsigned=self._allow_unsigned)

    def summary(self) -> dict[str, Any]:
        return {"summary": self.tally.as_json(), "errors": self.errors}

    def text(self) -> str:
        unread = f"; {len(self.errors)} could not be read" if self.errors else ""
        return self.tally.text() + unread

    def to_snapshot(self, first: str, second: str | None, archive_name: str | None, path: bytes) -> Iterator[Told]:
        if second is None:
            new = self._open(first)
            old = self._open(str(self._before(new)))
        else:
            old, new = self._open(first), self._open(second)
        self.head |= {"before": str(old.ref), "after": str(new.ref)}
        return self._counted(self._between(old, new, archive_name, path))

    def _before(self, snapshot: Snapshot) -> SnapshotRef:
        from archiver.store.layout import SnapshotRef

        group = snapshot.ref.group
        for when in reversed(self._store.times(group)):
            ref = SnapshotRef(group, when)
            if when < snapshot.ref.time and self._store.is_finished(ref):
                return ref
        raise NotFound(f"{snapshot.ref} is the first one of its group", hint="name two snapshots, or a directory")

    def _between(self, old: Snapshot, new: Snapshot, archive_name: str | None, path: bytes) -> Iterator[Told]:
        from archiver.browse.sides import archive_names, tree_changes, whole_change
        from archiver.browse.snapshot import is_named
        from archiver.browse.view import plain_parts

        names = archive_names(old, new)
        if archive_name is not None:
            chosen = {
                archive.name for one in (old, new) for archive in one.archives() if is_named(archive, archive_name)
            }
            if not chosen:
                raise NotFound(f"neither snapshot has an archive {archive_name}", hint=f"there are {', '.join(names)}")
            names = {name: kind for name, kind in names.items() if name in chosen}
        elif plain_parts(path):
            names = {name: kind for name, kind in names.items() if kind == "tree"}
            if len(names) != 1:
                raise UsageError(f"there are {len(names)} trees", hint=f"choose one: --archive {' or '.join(names)}")
        self.several = len(names) > 1
        for name, kind in names.items():
            if kind == "tree":
                changes = tree_changes(old, new, name, path, contents=self._contents, excludes=self._excludes)
                for change in changes:
                    yield name, change
            else:
                whole = whole_change(old, new, name)
                if whole is not None:
                    yield name, whole

    def to_directory(self, first: str, directory: str, archive_name: str | None, path: bytes) -> Iterator[Told]:
        from archiver.browse.live import LiveView, walk_options
        from archiver.browse.sides import live_changes

        snapshot = self._open(first)
        archive = snapshot.archive(archive_name)
        options = walk_options(snapshot.tree(archive), path, self._excludes, self._store.own_directories())
        self.head |= {"before": str(snapshot.ref), "after": os.path.abspath(directory)}

        def problem(found: Problem) -> None:
            self._problem(found._replace(path=found.path.removeprefix(options.base) or b"/"))

        def live() -> LiveView:
            return LiveView(directory, options, problem)

        changes = live_changes(snapshot, archive, path, live, contents=self._contents, excludes=self._excludes)
        return self._counted((archive.name, change) for change in changes)

    def _problem(self, problem: Problem) -> None:
        from archiver.core.events import FileProblem

        self._output.hear(FileProblem(*problem))
        if problem.kind not in _NO_ERRORS:
            self.errors.append({"path": text_of(problem.path), "reason": problem.reason})

    def _counted(self, found: Iterator[Told]) -> Iterator[Told]:
        for archive, change in found:
            self.tally.add(archive, change)
            yield archive, change


def _show(output: Output, run: _Run, found: Iterator[Told], sizes: bool, print0: bool) -> None:
    if sizes:
        for _ in found:
            pass
        _show_sizes(output, run)
    elif output.as_json:
        output.long_document(run.head, (_as_json(*each) for each in found), run.summary)
    else:
        for archive, change in found:
            if print0:
                output.raw((change.path or archive.encode()) + b"\0")
            else:
                output.line(change_line(archive, change, several=run.several))
        if not print0:
            output.summary(run.text())


def _as_json(archive: str, change: Change | WholeChange) -> dict[str, Any]:
    sides = {"before": change.before, "after": change.after}
    return {
        "archive": archive,
        "path": text_of(change.path) or None,
        "change": change.change,
        "what": list(change.what),
        "bytes_added": change.bytes_added,
        "bytes_removed": change.bytes_removed,
    } | {side: _side(entry) for side, entry in sides.items()}


def _side(entry: Entry | WholeState | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    from archiver.browse.sides import WholeState

    return {"kind": entry.kind, "size": entry.size} if isinstance(entry, WholeState) else entry_json(entry)


def _show_sizes(output: Output, run: _Run) -> None:
    rows = [(archive, *row) for archive, sizes in run.tally.sizes.items() for row in sizes.largest_first()]
    if output.as_json:
        names = ("archive", "path", "bytes_added", "bytes_removed", "entries")
        items = [dict(zip(names, (archive, text_of(path), *numbers), strict=True)) for archive, path, *numbers in rows]
        output.document(run.head | {"items": items} | run.summary())
        return
    output.table(
        (">new", ">gone", ">entries", "directory"),
        [
            (size_text(added), size_text(removed), str(count), name_in(archive, path, run.several))
            for archive, path, added, removed, count in rows
        ],
    )
    output.summary(run.text())
