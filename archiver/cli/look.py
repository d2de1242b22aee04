"""ls, cat"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, allow_unsigned_option, global_options
from archiver.cli.entries import (
    archive_option,
    bytes_of,
    entries_json,
    entry_json,
    long_line,
    long_lines,
    print0_option,
    text_of,
)
from archiver.cli.output import Output, printable, size_text
from archiver.errors import UsageError

if TYPE_CHECKING:
    from archiver.browse.files import Block, Found
    from archiver.browse.snapshot import Snapshot
    from archiver.browse.view import AnyView
    from archiver.store.store import Store
    from formats.pxar.items import Entry
    from formats.wire import Buffer


@click.command()
@click.argument("snapshot")
@click.argument("path", default="/")
@archive_option
@click.option("-l", "--long", "long_format", is_flag=True, help="Mode, owner, size and time too.")
@click.option("-R", "--recursive", is_flag=True, help="Everything below, too.")
@click.option("--tree", "as_tree", is_flag=True, help="Everything below, each level further to the right.")
@click.option("--sizes", is_flag=True, help="Of directories show the bytes of all files below them.")
@print0_option
@allow_unsigned_option
@global_options
def ls(
    context: Context,
    snapshot: str,
    path: str,
    archive_name: str | None,
    long_format: bool,
    recursive: bool,
    as_tree: bool,
    sizes: bool,
    print0: bool,
    allow_unsigned: bool,
) -> None:
    """List a directory of a SNAPSHOT without restoring it.

    Signatures are required as by restore.
    """
    from archiver.browse.files import (
        answered_blocks,
        entries_below,
        listing,
        names_below,
        size_below,
        sizes_below,
    )
    from archiver.browse.view import answered, open_view, plain_parts

    output = context.output
    if print0 and (output.as_json or as_tree or long_format or sizes):
        raise UsageError("--print0 prints names only")
    with context.open_store(output) as store:
        opened, wanted = open_version(context, store, snapshot, path, allow_unsigned=allow_unsigned)
        head = {"schema": 1, "snapshot": str(opened.ref)}
        if archive_name is None and not plain_parts(wanted) and len(opened.restorable()) != 1:
            _list_archives(output, opened, head)
            return
        archive = opened.archive(archive_name)

        all_below = recursive or as_tree

        def names(use_catalog: bool) -> Iterator[Block[bytes]]:
            return names_below(open_view(opened, archive, use_catalog=use_catalog), wanted, recursive=all_below)

        def described(use_catalog: bool) -> Iterator[Block[Entry]]:
            return entries_below(open_view(opened, archive, use_catalog=use_catalog), wanted, recursive=all_below)

        def sized(use_catalog: bool) -> Iterator[_Sized]:
            view: Any = open_view(opened, archive, use_catalog=use_catalog)
            below = iter(sizes_below(view, wanted)) if all_below else None
            for found in listing(view, wanted, recursive=all_below):
                size = None
                if found.node.kind == "dir":
                    size = size_below(view, found.node) if below is None else next(below)
                yield _Sized(view, found, size)

        if sizes and output.as_json:
            output.long_document(head, (shown.as_json() for shown in answered(sized)))
        elif sizes:
            for shown in answered(sized):
                output.line(shown.line(long_format, as_tree))
        elif output.as_json:
            blocks = answered_blocks(described)
            output.long_document(
                head, (item for block in blocks for item in entries_json(block.top + block.above, block.those))
            )
        elif long_format:
            for there in answered_blocks(described):
                output.lines(long_lines(_before(there, as_tree), there.those))
        else:
            for block in answered_blocks(names):
                if print0:
                    output.raw(b"".join(block.above + name + b"\0" for name in block.those))
                else:
                    output.lines(list(map(text_of, block.those)), text_of(_before(block, as_tree)))


def _before(block: Block[Any], as_tree: bool) -> bytes:
    """What is shown before the names."""
    return b"  " * block.above.count(b"/") if as_tree else block.above


def _list_archives(output: Output, snapshot: Snapshot, head: dict[str, Any]) -> None:
    archives = snapshot.archives()
    if output.as_json:
        output.document(head | {"items": [{"archive": each.name, "kind": each.kind} for each in archives]})
    for archive in archives:
        output.line(archive.name)


class _Sized:
    """An entry that is listed with sizes."""

    def __init__(self, view: AnyView, found: Found[Any], size: int | None) -> None:
        """``size``: of a directory all that is below it."""
        self._found = found
        self._view: Any = view
        self._size = size

    def as_json(self) -> dict[str, Any]:
        item = {"path": text_of(self._found.path)} | entry_json(self._view.entry(self._found.node))
        return item if self._size is None else item | {"size": self._size}

    def line(self, long_format: bool, as_tree: bool) -> str:
        name = self._found.shown
        indent = ""
        if as_tree:
            indent, name = "  " * name.count(b"/"), self._found.node.name
        if long_format:
            return long_line(self._view.entry(self._found.node), indent.encode() + name, self._size)
        size = self._found.node.size if self._size is None else self._size
        return f"{size_text(size):>12} {indent}{printable(name)}"


def open_version(
    context: Context, store: Store, snapshot: str, path: str, *, allow_unsigned: bool
) -> tuple[Snapshot, bytes]:
    """The snapshot a user names, and the path in it; ``PATH@TIME`` is one in another snapshot of its group."""
    from archiver.browse.version import parse_version
    from archiver.store.layout import SnapshotRef

    plain, when = parse_version(bytes_of(path))
    if when is not None:
        group = store.find(snapshot, context.namespace).group
        snapshot = str(SnapshotRef(group, when))
    return context.open_snapshot(store, snapshot, allow_unsigned=allow_unsigned), plain


@click.command()
@click.argument("snapshot")
@click.argument("path")
@archive_option
@allow_unsigned_option
@global_options
def cat(context: Context, snapshot: str, path: str, archive_name: str | None, allow_unsigned: bool) -> None:
    """Write the contents of one file of a SNAPSHOT to stdout.

    PATH may be a version that history names, PATH@TIME. Signatures are required as by restore.
    """
    if context.as_json:
        raise UsageError("cat writes a file's contents, it has no JSON form")
    with context.open_store(context.output) as store:
        opened, wanted = open_version(context, store, snapshot, path, allow_unsigned=allow_unsigned)
        for piece in _contents(opened, archive_name, wanted):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def _contents(snapshot: Snapshot, archive_name: str | None, path: bytes) -> Iterator[Buffer]:
    """Of a file in a tree; of an image or small file, which ``path`` may name where no single tree is meant."""
    from archiver.browse.files import contents
    from archiver.browse.snapshot import is_named

    archives, name = snapshot.archives(), archive_name
    if name is None and sum(archive.kind == "tree" for archive in archives) != 1:
        whole = (each.name for each in archives if each.kind != "tree" and is_named(each, text_of(path)))
        name = next(whole, None)
    archive = snapshot.archive(name)
    if name is not None and archive.kind != "tree":
        return snapshot.contents(archive)
    return contents(snapshot.tree(archive), path)
