"""How entries of archives are shown, and options that say which are meant; for the commands that look inside."""

from __future__ import annotations

import os
import stat as st
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.output import printable, size_text
from archiver.core.sizes import LARGEST, parse_size
from archiver.errors import UsageError

if TYPE_CHECKING:
    from archiver.browse.diff import Change
    from archiver.browse.sides import WholeChange
    from formats.pxar.items import Entry

_KIND_LETTER = {"hardlink": "h", "file": "-", "dir": "d", "symlink": "l", "fifo": "p", "socket": "s"}
CHANGE_MARKS = {"added": "+", "removed": "-", "changed": "M"}

archive_option: Callable[..., Any] = click.option(
    "--archive", "archive_name", metavar="NAME", help="Look into this archive, for example home.pxar."
)
print0_option: Callable[..., Any] = click.option(
    "-0", "--print0", is_flag=True, help="Names only, as they are, each with a NUL behind it."
)


def text_of(data: bytes) -> str:
    """For JSON: what is no UTF-8 becomes lone surrogates, so that nothing is lost."""
    return data.decode("utf-8", "surrogateescape")


def bytes_of(text: str) -> bytes:
    """Of a path on the command line."""
    return os.fsencode(text)


def entry_json(entry: Entry) -> dict[str, Any]:
    """The members that are the same in all commands; which of them there are depends on the kind."""
    item: dict[str, Any] = {"kind": entry.kind}
    if entry.metadata is not None:
        stat = entry.metadata.stat
        item |= {"mode": stat.mode, "uid": stat.uid, "gid": stat.gid}
        item |= {"mtime": stat.mtime_secs, "mtime_nanos": stat.mtime_nanos}
    if entry.kind == "file":
        item["size"] = entry.size
    if entry.target:
        item["target"] = text_of(entry.target)
    return item


def long_line(entry: Entry, name: bytes, size: int | None = None) -> str:
    """``size`` instead of the entry's own."""
    letter = _KIND_LETTER.get(entry.kind, "c" if entry.kind == "char" else "b")
    if entry.metadata is None:
        return f"{letter}{'':58} {printable(name)} -> /{printable(entry.target)}"
    stat = entry.metadata.stat
    shown = f"{entry.major},{entry.minor}" if entry.kind in ("char", "block") else str(entry.size)
    shown = shown if size is None else str(size)
    target = f" -> {printable(entry.target)}" if entry.kind == "symlink" else ""
    mode = letter + st.filemode(stat.mode)[1:]
    when = time_text(stat.mtime_secs)
    return f"{mode} {stat.uid:>6} {stat.gid:>6} {shown:>12} {when:19} {printable(name)}{target}"


def change_line(archive: str, change: Change | WholeChange, *, several: bool) -> str:
    """One difference; ``archive`` is the name of what it is in, told where there are ``several``."""
    what = f"  ({', '.join(change.what)})" if change.what else ""
    sizes = f"+{size_text(change.bytes_added)} " * bool(change.bytes_added)
    sizes += f"-{size_text(change.bytes_removed)}" * bool(change.bytes_removed)
    return f"{CHANGE_MARKS[change.change]} {name_in(archive, change.path, several)}{what}  {sizes}".rstrip()


def name_in(archive: str, path: bytes, several: bool) -> str:
    """``/a/b``, of several archives ``x.pxar/a/b``; an archive that is no tree has no path."""
    return (archive if several or not path else "") + printable(path)


def time_text(seconds: int) -> str:
    """In the local time zone."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def parse_sizes(texts: tuple[str, ...]) -> tuple[int, int] | None:
    """Smallest and largest size in bytes that all of ``+10M`` (or more), ``-10M`` (or less), ``0`` (exactly) allow."""
    smallest, largest = 0, LARGEST
    for text in texts:
        sign = text[:1] if text.startswith(("+", "-")) else ""
        size = parse_size(
            text.removeprefix(sign), "--size", hint="write +10M for 10 MiB or more, -1G for 1 GiB or less"
        )
        smallest = smallest if sign == "-" else max(smallest, size)
        largest = largest if sign == "+" else min(largest, size)
    return (smallest, largest) if texts else None


def parse_moment(option: str, text: str, now: int) -> int:
    """A moment in ns: an ISO date or time (local unless it says otherwise), or a duration before ``now`` (s)."""
    from archiver.store.retention import Duration

    try:
        return int(datetime.fromisoformat(text).timestamp()) * 1_000_000_000
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return Duration.parse(text).before(now) * 1_000_000_000
    except UsageError:
        hint = "write 2026-11-21, 2026-11-21T20:00:00Z, or 7d for seven days ago"
        raise UsageError(f"{option} {text!r} is no time", hint=hint) from None
