"""Attributes of live files as archive metadata (spec pxar.md 11.3 to 11.5).

Only regular files and directories carry extended attributes, ACLs, file capabilities, chattr flags and a project id.
What a file system is asked for depends on its type:

file system       xattrs  ACLs  file capabilities  project id  DOS attributes
----------------  ------  ----  -----------------  ----------  --------------
ext4, xfs, zfs    yes     yes   yes                yes         -
fuse              yes     -     -                  -           yes
msdos, vfat       -       -     -                  -           yes
any other         yes     yes   yes                -           -

Unlike the original, tmpfs is one of "any other", and a file never loses its contents over an attribute: an attribute
that cannot be read is reported, everything else is kept.
"""

from __future__ import annotations

import errno
import os
import stat as st
from contextlib import suppress
from typing import NamedTuple

from archiver.core import linux
from archiver.source.problem import Kind, Note, explain
from formats.errors import FormatError
from formats.pxar.acl import from_xattrs
from formats.pxar.constants import MAX_XATTR
from formats.pxar.metadata import NO_ACL, Acl, Metadata, Stat

_CAPABILITY = "security.capability"
_ACCESS_ACL = "system.posix_acl_access"
_DEFAULT_ACL = "system.posix_acl_default"
_STORED_PREFIXES = ("user.", "trusted.")
_STORED_NAME = "security.NTACL"
_U64 = (1 << 64) - 1
_WITH_QUOTA = {linux.EXT4, linux.XFS, linux.ZFS}


class Features(NamedTuple):
    """What files of one file system are asked for. ``device`` is the st_dev this holds for.

    ``stable``: inode numbers and change times tell whether a file is as it was. ``identity``, 8 bytes, names the
    file system, also after it was mounted again.
    """

    xattrs: bool
    acl: bool
    fcaps: bool
    quota: bool
    fat: bool
    device: int
    stable: bool = False
    identity: bytes = b""

    @classmethod
    def from_magic(cls, magic: int, st_dev: int) -> Features:
        stable = magic in linux.STABLE
        if magic == linux.MSDOS:
            return cls(xattrs=False, acl=False, fcaps=False, quota=False, fat=True, device=st_dev)
        if magic == linux.FUSE:
            return cls(xattrs=True, acl=False, fcaps=False, quota=False, fat=True, device=st_dev)
        quota = magic in _WITH_QUOTA
        return cls(xattrs=True, acl=True, fcaps=True, quota=quota, fat=False, device=st_dev, stable=stable)

    @classmethod
    def of(cls, fd: int, st_dev: int) -> Features:
        """Features of the file system that ``fd`` lies on. Raises OSError."""
        number = os.fstatvfs(fd).f_fsid or st_dev
        return cls.from_magic(linux.filesystem_type(fd), st_dev)._replace(
            identity=(number & _U64).to_bytes(8, "little")
        )


def plain(stat: os.stat_result) -> Metadata:
    """Metadata of a symlink or special file, or of anything that is not opened."""
    return Metadata(_stat(stat, 0))


def viewer() -> str:
    """Who looks: owners and attributes are not the same to everyone, nor to root in every container."""
    seen = [f"uid {os.geteuid()}"]
    with suppress(OSError):
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/self/{name}", encoding="ascii") as file:
                seen.append(f"{name} {' '.join(file.read().split())}")
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            seen += [f"capabilities {line.split()[1]}" for line in file if line.startswith("CapEff:")]
    return ", ".join(seen)


def collect(fd: int, stat: os.stat_result, features: Features, *, skip_e2big: bool, problem: Note) -> Metadata:
    """Metadata of an open regular file or directory.

    Attributes that cannot be read are left out and go to ``problem``; with ``skip_e2big`` those that the kernel cannot
    hand out for their size count as skipped, not as unreadable. Raises OSError only when resources run out.
    """
    flags = project = 0
    names: list[str] = []
    try:
        fat = linux.get_fat_attributes(fd) if features.fat else None
        flags = linux.archive_flags(linux.get_flags(fd) or 0, fat or 0)
        if features.quota:
            project = linux.get_project_id(fd)
    except OSError as error:
        problem(*_lost("attribute flags", error, skip_e2big))
    if features.xattrs:
        try:
            names = os.listxattr(fd)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                problem(*_lost("extended attributes", error, skip_e2big))
    if not names:
        return Metadata(_stat(stat, flags), quota_project_id=project or None)
    values = _values(fd, names, features, skip_e2big, problem)
    return Metadata(
        _stat(stat, flags),
        acl=_acl(stat.st_mode, values.pop(_ACCESS_ACL, None), values.pop(_DEFAULT_ACL, None), problem),
        fcaps=values.pop(_CAPABILITY, None),
        xattrs=tuple((os.fsencode(name), value) for name, value in values.items()),
        quota_project_id=project or None,
    )


def plain_flags(fd: int, features: Features) -> int | None:
    """The attribute bits of an open regular file that has nothing else to be kept, as nearly all; None: ask
    ``collect``. Raises OSError."""
    if features.fat or (features.quota and linux.get_project_id(fd)):
        return None
    if features.xattrs:
        for name in os.listxattr(fd):
            if _is_stored(name, features):
                return None
    chattr = linux.get_flags(fd)
    return linux.archive_flags(chattr) if chattr and chattr & linux.KEPT_CHATTR else 0


def _stat(stat: os.stat_result, flags: int) -> Stat:
    seconds, nanoseconds = divmod(stat.st_mtime_ns, 1_000_000_000)
    return Stat(stat.st_mode, flags, stat.st_uid, stat.st_gid, seconds, nanoseconds)


def _values(fd: int, names: list[str], features: Features, skip_e2big: bool, problem: Note) -> dict[str, bytes]:
    """The attributes that an archive keeps, in the order the kernel listed them."""
    values = {}
    for name in names:
        if not _is_stored(name, features):
            continue
        try:
            value = os.getxattr(fd, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):  # ENODATA: removed since it was listed
                problem(*_lost(f"extended attribute {name}", error, skip_e2big))
            continue
        if len(os.fsencode(name)) + 1 + len(value) > MAX_XATTR:
            problem("unreadable", f"extended attribute {name} is not stored: it is larger than the format allows")
            continue
        values[name] = value
    return values


def _is_stored(name: str, features: Features) -> bool:
    if name == _CAPABILITY:
        return features.fcaps
    if name in (_ACCESS_ACL, _DEFAULT_ACL):
        return features.acl
    return name.startswith(_STORED_PREFIXES) or name == _STORED_NAME


def _acl(mode: int, access: bytes | None, default: bytes | None, problem: Note) -> Acl:
    if access is None and default is None:
        return NO_ACL
    try:
        return from_xattrs(mode, access, default if st.S_ISDIR(mode) else None)
    except FormatError as error:
        problem("unreadable", f"access control list is not stored: {error}")
        return NO_ACL


def _lost(what: str, error: OSError, skip_e2big: bool) -> tuple[Kind, str]:
    if error.errno == errno.E2BIG:
        reason = f"{what} not stored: too large for the kernel to hand out"
        return ("skipped", reason) if skip_e2big else ("unreadable", f"{reason} (see --skip-e2big-xattr)")
    return "unreadable", f"{what} not stored: {explain(error)[1]}"
