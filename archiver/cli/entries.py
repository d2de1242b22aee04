"""How entries of archives are shown, and options that say which are meant; for the commands that look inside."""

from __future__ import annotations

import os
import stat as st
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.output import printable, size_text
from archiver.core.sizes import LARGEST, parse_size
from archiver.errors import UsageError

if TYPE_CHECKING:
    from archiver.browse.diff import Change
    from archiver.browse.sides import WholeChange
    from formats.pxar.items import Entry, Kind

_KIND_LETTER = {"hardlink": "h", "file": "-", "dir": "d", "symlink": "l", "fifo": "p", "socket": "s"}
_DEVICES = ("char", "block")
_DAY = 86_400
_TWO_DIGITS = [f"{number:02}" for number in range(60)]
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
    return _described({}, entry)


def entries_json(above: bytes, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The same with their paths; ``above`` stands in these before their names."""
    before = text_of(above)
    names = text_of(b"/".join([entry.name for entry in entries])).split("/")
    return [_described({"path": before + name}, entry) for entry, name in zip(entries, names, strict=True)]


def _described(item: dict[str, Any], entry: Entry) -> dict[str, Any]:
    kind, _, _, metadata, size, _, _, target, _, _, _, _, _, _ = entry
    item["kind"] = kind
    if metadata is not None:
        item["mode"], _, item["uid"], item["gid"], item["mtime"], item["mtime_nanos"] = metadata.stat
    if kind == "file":
        item["size"] = size
    if target:
        item["target"] = text_of(target)
    return item


def long_line(entry: Entry, name: bytes, size: int | None = None) -> str:
    """``size`` instead of the entry's own."""
    return _long_line(entry, printable(name), size)


def long_lines(above: bytes, entries: Sequence[Entry]) -> list[str]:
    """Of one or more entries with the same ``above`` before their names."""
    before = printable(above)
    names = text_of(b"/".join([entry.name for entry in entries]))  # decoded and looked at all at once
    shown = names.split("/") if names.isprintable() else [printable(entry.name) for entry in entries]
    return [_long_line(entry, before + name, None) for entry, name in zip(entries, shown, strict=True)]


def _long_line(entry: Entry, name: str, size: int | None) -> str:
    kind, _, _, metadata, own_size, _, _, target, _, major, minor, _, _, _ = entry
    if metadata is None:
        return f"{_letter(kind)}{'':58} {name} -> /{printable(target)}"
    mode, _, uid, gid, seconds, _ = metadata.stat
    shown: int | str = own_size if size is None else size
    if kind in _DEVICES and size is None:
        shown = f"{major},{minor}"
    line = f"{_owned(kind, mode, uid, gid)} {shown:>12} {time_text(seconds):19} {name}"
    return f"{line} -> {printable(target)}" if kind == "symlink" else line


def _letter(kind: Kind) -> str:
    return _KIND_LETTER.get(kind, "c" if kind == "char" else "b")


@lru_cache(maxsize=1024)  # nearly all entries of a tree are alike in this
def _owned(kind: Kind, mode: int, uid: int, gid: int) -> str:
    return f"{_letter(kind)}{st.filemode(mode)[1:]} {uid:>6} {gid:>6}"


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
        offset = _offset(seconds // _DAY)
        if offset is None:
            return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
        local = seconds + offset
        return f"{_date(local // _DAY)} {_minute(local // 60 % 1440)}:{_TWO_DIGITS[local % 60]}"
    except (OverflowError, ValueError, OSError):
        return str(seconds)


# A listing has many moments of few days: asking for the local time of each takes longer than the rest of its line.


@lru_cache(maxsize=4096)
def _offset(day: int) -> int | None:
    """Of local time all through a day of UTC, in seconds; None where it changes in it."""
    first, last = (time.localtime(second).tm_gmtoff for second in (day * _DAY, day * _DAY + _DAY - 1))
    return first if first == last else None


@lru_cache(maxsize=4096)
def _date(day: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(day * _DAY))


@lru_cache(maxsize=1440)
def _minute(minute: int) -> str:
    """Of a day."""
    return f"{minute // 60:02}:{minute % 60:02}"


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
