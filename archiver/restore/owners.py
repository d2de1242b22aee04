"""Who restored entries belong to: the numbers that the archive has, others instead of them, or whoever restores.

An archive has no names. Where it holds ``/etc/passwd`` and ``/etc/group`` of its machine, these tell them.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat as st
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from archiver.browse.files import contents
from archiver.browse.snapshot import Tree
from archiver.errors import NotFound, UsageError
from formats.pxar.metadata import Stat

Owner = Literal["number", "name", "none"]

_LARGEST_TABLE = 16 << 20  # bytes of a passwd or group file
_LARGEST_ID = 2**32 - 2
_ANY = "*"
_SET_IDS = st.S_ISUID | st.S_ISGID


@dataclass(frozen=True, slots=True)
class Owners:
    """Numbers of the archive -> numbers here; ``None`` as a key stands for all others."""

    users: Mapping[int | None, int] = field(default_factory=dict)
    groups: Mapping[int | None, int] = field(default_factory=dict)
    left_out: bool = False  # entries belong to whoever restores, and run with nobody else's rights

    @property
    def unchanged(self) -> bool:
        return not (self.users or self.groups or self.left_out)

    def of(self, stat: Stat) -> Stat:
        if self.left_out:
            own = os.geteuid(), os.getegid()
            mode = stat.mode if (stat.uid, stat.gid) == own else stat.mode & ~_SET_IDS
            return stat._replace(mode=mode, uid=own[0], gid=own[1])
        uid = self.users.get(stat.uid, self.users.get(None, stat.uid))
        gid = self.groups.get(stat.gid, self.groups.get(None, stat.gid))
        return stat._replace(uid=uid, gid=gid)


def make_owners(tree: Tree, owner: Owner, user_map: str | None, group_map: str | None) -> Owners:
    """``user_map``, ``group_map``: ``FROM:TO,...`` as rsync has them, names or numbers, FROM also ``*``; the first that
    fits counts. Raises UsageError."""
    if owner == "none":
        if user_map or group_map:
            raise UsageError("--owner none leaves owners out, there is nothing to map")
        return Owners(left_out=True)
    users: dict[int | None, int] = {}
    groups: dict[int | None, int] = {}
    if user_map:
        users = _parse(user_map, "--usermap", lambda name: _there(tree, b"/etc/passwd", name), _user_here)
    if group_map:
        groups = _parse(group_map, "--groupmap", lambda name: _there(tree, b"/etc/group", name), _group_here)
    if owner == "name":
        users = _by_name(_table(tree, b"/etc/passwd"), _user_here) | users
        groups = _by_name(_table(tree, b"/etc/group"), _group_here) | groups
    return Owners(users, groups)


def _parse(
    text: str, option: str, there: Callable[[str], int | None], here: Callable[[str], int | None]
) -> dict[int | None, int]:
    found: dict[int | None, int] = {}
    for part in text.split(","):
        source, colon, target = part.partition(":")
        if not (source and colon and target):
            raise UsageError(f"{option} {part!r}: write FROM:TO, for example 1000:1001 or '*:root'")
        key = None if source == _ANY else _number(source, option, "in the archive", there)
        found.setdefault(key, _number(target, option, "here", here))
    return found


def _number(text: str, option: str, where: str, known: Callable[[str], int | None]) -> int:
    number = int(text) if text.isascii() and text.isdigit() else known(text)
    if number is None or number > _LARGEST_ID:
        raise UsageError(f"{option}: nobody is called {text} {where}")
    return number


def _user_here(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _group_here(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _by_name(table: dict[str, int], here: Callable[[str], int | None]) -> dict[int | None, int]:
    """Who has a name in the archive and here; the first name of a number counts. Others keep their numbers."""
    found: dict[int | None, int] = {}
    for name, number in table.items():
        own = here(name)
        if own is not None:
            found.setdefault(number, own)
    return found


def _there(tree: Tree, path: bytes, name: str) -> int | None:
    return _table(tree, path).get(name)


def _table(tree: Tree, path: bytes) -> dict[str, int]:
    """Names and numbers of a passwd or group file in the archive."""
    data = b""
    try:
        for piece in contents(tree, path):
            data += piece
            if len(data) > _LARGEST_TABLE:
                break
    except NotFound:
        text = f"{tree.files.name} has no {os.fsdecode(path)}, so the names of owners are not known"
        raise UsageError(text, hint="give numbers: --usermap 1000:1001") from None
    found: dict[str, int] = {}
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2].isascii() and fields[2].isdigit() and int(fields[2]) <= _LARGEST_ID:
            found.setdefault(fields[0], int(fields[2]))
    return found
