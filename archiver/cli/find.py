"""find, history"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, allow_unsigned_option, global_options
from archiver.cli.entries import (
    archive_option,
    bytes_of,
    entry_json,
    long_line,
    parse_moment,
    parse_sizes,
    print0_option,
    text_of,
)
from archiver.cli.output import Output, printable
from archiver.cli.searched import NotSearched, chosen_groups, opened_groups
from archiver.core.sizes import LARGEST
from archiver.errors import NotFound, UsageError

if TYPE_CHECKING:
    from archiver.browse.history import Version
    from archiver.browse.search import Hit, Query
    from archiver.browse.snapshot import Snapshot
    from archiver.store.layout import GroupRef
    from archiver.store.store import Store
    from formats.pxar.items import Kind

_TYPES: dict[str, Kind] = {
    "f": "file",
    "d": "dir",
    "l": "symlink",
    "h": "hardlink",
    "b": "block",
    "c": "char",
    "p": "fifo",
    "s": "socket",
}
_group_option = click.option("--group", metavar="TYPE/ID", help="Look into all snapshots of this group.")


@click.command()
@click.argument("pattern", required=False)
@click.option("--regex", metavar="EXPRESSION", help="A Python regular expression that matches somewhere in the path.")
@click.option(
    "--type", "types", multiple=True, type=click.Choice(list(_TYPES)), help="Kind of entry, as in find (repeatable)."
)
@click.option("--size", "sizes", multiple=True, metavar="SIZE", help="Of files: +10M or more, -1G or less, 0 exactly.")
@click.option("--newer", metavar="TIME", help="Modified then or later: 2026-11-21, 2026-11-21T20:00:00Z, or 7d ago.")
@click.option("--older", metavar="TIME", help="Modified then or before.")
@click.option("--snapshot", metavar="SNAPSHOT", help="Look into this snapshot only.")
@_group_option
@archive_option
@click.option("-l", "--long", "long_format", is_flag=True, help="Each version with mode, owner, size and time.")
@print0_option
@allow_unsigned_option
@global_options
@click.pass_context
def find(
    ctx: click.Context,
    context: Context,
    pattern: str | None,
    regex: str | None,
    types: tuple[str, ...],
    sizes: tuple[str, ...],
    newer: str | None,
    older: str | None,
    snapshot: str | None,
    group: str | None,
    archive_name: str | None,
    long_format: bool,
    print0: bool,
    allow_unsigned: bool,
) -> None:
    """Find entries by name, in all snapshots unless told otherwise.

    PATTERN is one as for excludes: without a slash it is compared with names, '*half*' finds what has half in its name.
    Each path is told once, with -l each of its versions as PATH@TIME, the newest snapshot that has it; where several
    groups are searched, behind its group, and where that has several trees, behind the archive's name. Snapshots that
    cannot be searched are named, and the exit code is theirs.
    """
    from archiver.core.clock import Clock

    output = context.output
    if print0 and output.as_json:
        raise UsageError("--print0 prints names only")
    if snapshot is not None and group is not None:
        raise UsageError("--snapshot and --group exclude each other")
    query = _query(pattern, regex, types, parse_sizes(sizes), newer, older, Clock().now())
    with context.open_store(output) as store:
        not_searched = NotSearched(output, store)
        groups = [] if snapshot is not None else chosen_groups(context, store, group)
        hits = _hits(context, store, query, snapshot, groups, archive_name, allow_unsigned, not_searched)
        if output.as_json:
            with output.read_or_not():
                output.long_document({"schema": 1}, (_hit_json(hit) for hit, _ in hits), not_searched.as_json)
            ctx.exit(not_searched.exit_code)
        with output.read_or_not():
            _show_hits(output, hits, long_format, print0)
        not_searched.end()


def _show_hits(output: Output, hits: Iterator[tuple[Hit, bytes]], long_format: bool, print0: bool) -> None:
    last = None
    for hit, above in hits:
        where = hit.group, hit.archive, hit.path
        name = version_name_of(hit.path, hit.version)
        if print0:
            if long_format or where != last:
                output.raw((name if long_format else hit.path) + b"\0")
        elif long_format or where != last:
            output.line(long_line(hit.version.entry, above + name) if long_format else printable(above + hit.path))
        last = where


def version_name_of(path: bytes, version: Version) -> bytes:
    from archiver.browse.version import version_name

    return version_name(path, version.times[-1])


def _query(
    pattern: str | None,
    regex: str | None,
    types: tuple[str, ...],
    size: tuple[int, int] | None,
    newer: str | None,
    older: str | None,
    now: int,
) -> Query:
    from archiver.browse.search import Query
    from formats.errors import FormatError
    from formats.patterns import Pattern

    mtime = None
    if newer is not None or older is not None:
        first = -LARGEST if newer is None else parse_moment("--newer", newer, now)
        mtime = first, LARGEST if older is None else parse_moment("--older", older, now) + 999_999_999
    try:
        return Query(
            pattern=None if pattern is None else Pattern.parse(bytes_of(pattern)),
            expression=None if regex is None else re.compile(bytes_of(regex)),
            kinds=frozenset(_TYPES[letter] for letter in types) if types else None,
            size=size,
            mtime=mtime,
        )
    except FormatError as error:
        raise UsageError(f"{pattern!r} is no pattern: {error}") from error
    except re.error as error:
        raise UsageError(f"{regex!r} is no regular expression: {error}") from error


def _hits(
    context: Context,
    store: Store,
    query: Query,
    snapshot: str | None,
    groups: list[GroupRef],
    archive_name: str | None,
    allow_unsigned: bool,
    not_searched: NotSearched,
) -> Iterator[tuple[Hit, bytes]]:
    """What is found, and what says where, to be printed before its path."""
    from archiver.browse.search import search

    if snapshot is not None:
        opened = context.open_snapshot(store, snapshot, allow_unsigned=allow_unsigned)
        chosen: Iterator[list[Snapshot]] = iter([[opened]])
    else:
        chosen = opened_groups(context, store, groups, allow_unsigned, not_searched)
    for snapshots, names in _trees(chosen, archive_name, not_searched):
        group = f"{snapshots[0].ref.group} " if len(groups) > 1 else ""
        for name in names:
            above = (group + (name if len(names) > 1 else "")).encode()
            for hit in search(snapshots, name, query, not_searched.add):
                yield hit, above


def _trees(
    chosen: Iterable[list[Snapshot]], archive_name: str | None, not_searched: NotSearched
) -> Iterator[tuple[list[Snapshot], list[str]]]:
    """The snapshots of each group with the trees to look into. Raises NotFound behind the last when there were none of
    that name, but others, in all snapshots."""
    from archiver.browse.search import tree_names

    others: set[str] = set()
    is_known = False
    for snapshots in chosen:
        names = _tree_names(snapshots, archive_name)
        is_known = is_known or bool(names)
        if names:
            yield snapshots, names
        else:
            others.update(tree_names(snapshots))
    if archive_name is not None and others and not is_known and not_searched.error is None:
        raise NotFound(f"no snapshot has a tree {archive_name}", hint=f"there are: {', '.join(sorted(others))}")


def _tree_names(snapshots: list[Snapshot], archive_name: str | None) -> list[str]:
    from archiver.browse.search import tree_names
    from archiver.browse.snapshot import is_named

    names = tree_names(snapshots)
    if archive_name is None:
        return names
    return [
        name
        for name in names
        if any(
            archive.name == name and is_named(archive, archive_name) for one in snapshots for archive in one.archives()
        )
    ]


def _hit_json(hit: Hit) -> dict[str, Any]:
    found = {"group": str(hit.group), "archive": hit.archive, "path": text_of(hit.path)}
    return found | version_json(hit.group, hit.path, hit.version)


def version_json(group: GroupRef, path: bytes, version: Version) -> dict[str, Any]:
    from archiver.store.layout import SnapshotRef

    return {
        "name": text_of(version_name_of(path, version)),
        "snapshot": str(SnapshotRef(group, version.times[-1])),
        "first": str(SnapshotRef(group, version.times[0])),
        "snapshots": len(version.times),
    } | entry_json(version.entry)


@click.command()
@click.argument("path")
@_group_option
@archive_option
@print0_option
@allow_unsigned_option
@global_options
@click.pass_context
def history(
    ctx: click.Context,
    context: Context,
    path: str,
    group: str | None,
    archive_name: str | None,
    print0: bool,
    allow_unsigned: bool,
) -> None:
    """Show all versions of PATH, oldest first: what changed, and in how many snapshots each is.

    The name of a version is PATH@TIME, TIME being that of the newest snapshot that has it; cat and restore take it.
    """
    from archiver.browse.view import plain_parts

    output = context.output
    if print0 and output.as_json:
        raise UsageError("--print0 prints names only")
    wanted = b"/" + b"/".join(plain_parts(bytes_of(path)))
    with context.open_store(output) as store:
        not_searched = NotSearched(output, store)
        found = _history(context, store, wanted, group, archive_name, allow_unsigned, not_searched)
        if output.as_json:
            items = (_told_json(wanted, *told) for told in found)
            with output.read_or_not():
                output.long_document({"schema": 1}, items, not_searched.as_json)
            ctx.exit(not_searched.exit_code)
        with output.read_or_not():
            _show_versions(output, wanted, found, print0)
        not_searched.end()


Told = tuple["list[Snapshot]", str, "Version", tuple[str, ...]]
"""Snapshots of a group, an archive's name, a version, and what changed in it."""


def _show_versions(output: Output, path: bytes, found: Iterator[Told], print0: bool) -> None:
    last = None
    for snapshots, name, version, what in found:
        if print0:
            output.raw(version_name_of(path, version) + b"\0")
            continue
        heading = f"{snapshots[0].ref.group} {name}, {len(snapshots)} snapshots"
        if heading != last:
            output.line(heading)
        last = heading
        line = long_line(version.entry, version_name_of(path, version))
        output.line("  ".join((f"{len(version.times):>5}", line, ", ".join(what))).rstrip())


def _history(
    context: Context,
    store: Store,
    path: bytes,
    group: str | None,
    archive_name: str | None,
    allow_unsigned: bool,
    not_searched: NotSearched,
) -> Iterator[Told]:
    """All versions of a path. Raises NotFound behind the last of none, when all snapshots were looked into."""
    from archiver.browse.search import versions_of

    count = 0
    groups = chosen_groups(context, store, group)
    opened = opened_groups(context, store, groups, allow_unsigned, not_searched)
    for snapshots, names in _trees(opened, archive_name, not_searched):
        for name in names:
            for version, what in with_changes(versions_of(snapshots, name, path, not_searched.add)):
                count += 1
                yield snapshots, name, version, what
    if not count and not_searched.error is None:
        raise NotFound(f"there is no {printable(path)} in any snapshot", hint="find looks for parts of names")


def _told_json(
    path: bytes, snapshots: list[Snapshot], archive: str, version: Version, what: tuple[str, ...]
) -> dict[str, Any]:
    group = snapshots[0].ref.group
    where = {"group": str(group), "archive": archive, "path": text_of(path)}
    return where | version_json(group, path, version) | {"what": list(what)}


def with_changes(versions: list[Version]) -> Iterator[tuple[Version, tuple[str, ...]]]:
    """Each version, and in what it is not as the one before; ``replaced``: in nothing that an archive keeps."""
    from archiver.browse.difference import differences

    before: Version | None = None
    for version in versions:
        if before is None:
            yield version, ()
        else:
            yield version, differences(before.entry, version.entry) or ("replaced",)
        before = version
