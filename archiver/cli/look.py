"""ls, cat"""

from __future__ import annotations

import stat as st
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, allow_unsigned_option, global_options
from archiver.cli.output import printable
from archiver.errors import UsageError

if TYPE_CHECKING:
    from archiver.browse.files import Found

_KIND_LETTER = {"hardlink": "h", "file": "-", "dir": "d", "symlink": "l", "fifo": "p", "socket": "s"}


@click.command()
@click.argument("snapshot")
@click.argument("path", default="/")
@click.option("--archive", "archive_name", metavar="NAME", help="Look into this archive, for example home.pxar.")
@click.option("-l", "--long", "long_format", is_flag=True, help="Mode, owner, size and time too.")
@click.option("-R", "--recursive", is_flag=True, help="Everything below, too.")
@allow_unsigned_option
@global_options
def ls(
    context: Context,
    snapshot: str,
    path: str,
    archive_name: str | None,
    long_format: bool,
    recursive: bool,
    allow_unsigned: bool,
) -> None:
    """List a directory of a SNAPSHOT without restoring it.

    Signatures are required as by restore.
    """
    from archiver.browse.files import listing

    output = context.output
    with context.open_store(output) as store:
        opened = context.open_snapshot(store, snapshot, allow_unsigned=allow_unsigned)
        head = {"schema": 1, "snapshot": str(opened.ref)}
        if archive_name is None and path == "/" and len(opened.restorable()) != 1:
            archives = opened.archives()
            if output.as_json:
                output.document(head | {"items": [{"archive": each.name, "kind": each.kind} for each in archives]})
            for archive in archives:
                output.line(archive.name)
            return
        tree = opened.tree(opened.archive(archive_name))
        entries = listing(tree, path.encode("utf-8", "surrogateescape"), recursive=recursive)
        if output.as_json:
            output.long_document(head, map(_as_json, entries))
        else:
            for found in entries:
                output.line(_long(found) if long_format else printable(found.shown))


def _long(found: Found) -> str:
    entry = found.entry
    letter = _KIND_LETTER.get(entry.kind, "c" if entry.kind == "char" else "b")
    if entry.metadata is None:
        return f"{letter}{'':58} {printable(found.shown)} -> /{printable(entry.target)}"
    stat = entry.metadata.stat
    try:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stat.mtime_secs))
    except (OverflowError, ValueError, OSError):
        when = str(stat.mtime_secs)
    size = f"{entry.major},{entry.minor}" if entry.kind in ("char", "block") else str(entry.size)
    target = f" -> {printable(entry.target)}" if entry.kind == "symlink" else ""
    mode = letter + st.filemode(stat.mode)[1:]
    return f"{mode} {stat.uid:>6} {stat.gid:>6} {size:>12} {when:19} {printable(found.shown)}{target}"


def _as_json(found: Found) -> dict[str, Any]:
    entry = found.entry
    item: dict[str, Any] = {"path": found.path.decode("utf-8", "surrogateescape"), "kind": entry.kind}
    if entry.metadata is not None:
        stat = entry.metadata.stat
        item |= {"mode": stat.mode, "uid": stat.uid, "gid": stat.gid}
        item |= {"mtime": stat.mtime_secs, "mtime_nanos": stat.mtime_nanos}
    if entry.kind == "file":
        item["size"] = entry.size
    if entry.target:
        item["target"] = entry.target.decode("utf-8", "surrogateescape")
    return item


@click.command()
@click.argument("snapshot")
@click.argument("path")
@click.option("--archive", "archive_name", metavar="NAME", help="Look into this archive, for example home.pxar.")
@allow_unsigned_option
@global_options
def cat(context: Context, snapshot: str, path: str, archive_name: str | None, allow_unsigned: bool) -> None:
    """Write the contents of one file of a SNAPSHOT to stdout.

    Signatures are required as by restore.
    """
    from archiver.browse.files import contents

    if context.as_json:
        raise UsageError("cat writes a file's contents, it has no JSON form")
    with context.open_store(context.output) as store:
        opened = context.open_snapshot(store, snapshot, allow_unsigned=allow_unsigned)
        try:
            tree = opened.tree(opened.archive(archive_name))
        except UsageError:
            archive = opened.archive(archive_name or path)
            if archive.kind == "tree":
                raise
            pieces = opened.contents(archive)
        else:
            pieces = contents(tree, path.encode("utf-8", "surrogateescape"))
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
