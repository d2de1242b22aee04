"""Attributes of restored entries: applied in the order that keeps them, and compared afterwards (spec pxar.md 14.6)."""

from __future__ import annotations

import errno
import os
import stat as st
from collections.abc import Callable
from contextlib import suppress

from archiver.core import linux
from formats.errors import FormatError
from formats.pxar.acl import to_xattrs
from formats.pxar.metadata import NO_ACL, Metadata, Stat

ACCESS_ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"
CAPABILITY = "security.capability"

_RESTORED_CHATTR = linux.KEPT_CHATTR & ~linux.FS_NODUMP_FL  # nodump is archived, never restored
_EARLY_CHATTR = (  # these work on empty files only, or spare work when set first
    linux.FS_NOATIME_FL | linux.FS_COMPR_FL | linux.FS_NOCOW_FL | linux.FS_NOCOMP_FL | linux.FS_PROJINHERIT_FL
)
_FOREVER_CHATTR = linux.FS_IMMUTABLE_FL | linux.FS_APPEND_FL
_SET_IDS = st.S_ISUID | st.S_ISGID
_LARGEST_TIME = 0x37FFFFFFF  # what ext4 can hold, seconds
_SMALLEST_TIME = -(1 << 31)
_NANO = 1_000_000_000
_KEEP_ID = 2**32 - 1  # to chown this is no owner but: leave the owner as it is

_groups = set(os.getgroups()) | {os.getegid()}


def may_own(stat: Stat) -> bool:
    """Whether this process may give a file to the owner and group it had."""
    euid = os.geteuid()
    return euid == 0 or (stat.uid == euid and stat.gid in _groups)


def is_plain(metadata: Metadata) -> bool:
    """Nothing but owner, mode and time: nearly every file."""
    return not (
        metadata.xattrs
        or metadata.stat.flags
        or metadata.acl is not NO_ACL
        or metadata.fcaps is not None
        or metadata.quota_project_id
    )


def prepare(fd: int, stat: Stat) -> None:
    """Attributes that must be set while a regular file is still empty; what is not supported is told by ``apply``."""
    if not stat.flags:
        return
    wanted = linux.chattr_flags(stat.flags) & _EARLY_CHATTR
    if wanted:
        try:
            linux.set_flags(fd, (linux.get_flags(fd) or 0) | wanted)
        except OSError:
            pass


def apply(fd: int, metadata: Metadata, *, owner: tuple[int, int] | None = None, mode: int = -1) -> list[str]:
    """Set everything on an open file or directory; returns what could not be set, as short reasons. ``owner`` and
    ``mode``: whose it is already and its permissions, where that is known."""
    stat = metadata.stat
    if is_plain(metadata):
        try:
            if owner is None or owner != (stat.uid, stat.gid):
                _chown(fd, stat)
            if mode != stat.mode & 0o7777:
                os.fchmod(fd, stat.mode & 0o7777)
            linux.set_mtime(fd, stat.mtime_secs, stat.mtime_nanos)
            return []
        except OSError:
            pass  # find out below which of them
    lost: list[str] = []

    def attempt(what: str, work: Callable[[], object]) -> bool:
        try:
            work()
            return True
        except OSError as error:
            lost.append(f"{what}: {(error.strerror or str(error)).lower()}")
            return False

    mode = stat.mode & 0o7777
    if not attempt(f"owner {stat.uid}:{stat.gid}", lambda: _chown(fd, stat)):
        mode &= ~_SET_IDS  # somebody else's program must not run with our rights
    for name, value in metadata.xattrs:
        if not _is_kept(name):
            lost.append(f"extended attribute {os.fsdecode(name)}: not of a kind that archives keep")
            continue
        attempt(f"extended attribute {os.fsdecode(name)}", lambda name=name, value=value: os.setxattr(fd, name, value))  # type: ignore[misc]
    if metadata.fcaps is not None:
        capability = metadata.fcaps
        attempt("file capabilities", lambda: os.setxattr(fd, CAPABILITY, capability))
    try:
        for acl_name, acl in _acls(metadata).items():
            attempt("access control list", lambda acl_name=acl_name, acl=acl: os.setxattr(fd, acl_name, acl))  # type: ignore[misc]
    except FormatError as error:
        lost.append(f"access control list: {error}")
    if metadata.quota_project_id:
        project = metadata.quota_project_id
        attempt("project id", lambda: linux.set_project_id(fd, project))
    attempt("mode", lambda: os.fchmod(fd, mode))
    attempt("modification time", lambda: linux.set_mtime(fd, stat.mtime_secs, stat.mtime_nanos))
    if stat.flags:
        _apply_flags(fd, stat.flags, attempt)
    return lost


def bring(fd: int, metadata: Metadata) -> list[str]:
    """As ``apply`` for what was there before: what the archive does not have is taken away first."""
    present = linux.get_flags(fd) or 0
    wanted = linux.chattr_flags(metadata.stat.flags)
    if present & _FOREVER_CHATTR & ~wanted:
        return ["it is immutable or append-only"]
    expected = _expected(metadata)
    lost = []
    with suppress(OSError):  # no extended attributes at all
        for name in os.listxattr(fd):
            if _compared(name) and name not in expected:
                try:
                    os.removexattr(fd, name)
                except OSError as error:
                    lost.append(f"extended attribute {name} stays: {(error.strerror or str(error)).lower()}")
    return lost + apply(fd, metadata)


def is_sealed(stat: Stat) -> bool:
    """Whether its attributes (immutable, append-only) forbid to rename it once they are set."""
    return bool(linux.chattr_flags(stat.flags) & _FOREVER_CHATTR)


def is_sealed_now(fd: int) -> bool:
    """The same for an open file or directory."""
    return bool((linux.get_flags(fd) or 0) & _FOREVER_CHATTR)


def unsealed(metadata: Metadata) -> Metadata:
    """The same without these attributes."""
    keep = ~sum(bit for bit, kernel in linux.CHATTR_BITS if kernel & _FOREVER_CHATTR)
    return metadata._replace(stat=metadata.stat._replace(flags=metadata.stat.flags & keep))


def beyond_rights(metadata: Metadata, kind: str) -> list[str]:
    """What of an entry this process has no right to restore, as far as that is known before it is tried."""
    if os.geteuid() == 0:
        return []
    stat = metadata.stat
    found = ["only root makes devices"] if kind in ("char", "block") else []
    if not may_own(stat):
        found.append(f"owner {stat.uid}:{stat.gid}")
    found += [f"extended attribute {os.fsdecode(name)}" for name, _ in metadata.xattrs if name.startswith(b"trusted.")]
    if metadata.fcaps is not None:
        found.append("file capabilities")
    if is_sealed(stat):
        found.append("file attributes")
    return found


def _chown(target: int | bytes, stat: Stat, *, dir_fd: int | None = None) -> None:
    if _KEEP_ID in (stat.uid, stat.gid):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if isinstance(target, int):
        os.fchown(target, stat.uid, stat.gid)
    else:
        os.chown(target, stat.uid, stat.gid, dir_fd=dir_fd, follow_symlinks=False)


def _is_kept(name: bytes) -> bool:
    """spec pxar.md 11.5; others (labels, signatures) belong to the machine."""
    return name.startswith((b"user.", b"trusted.")) or name == b"security.NTACL"


def _acls(metadata: Metadata) -> dict[str, bytes]:
    """Names and values of the attributes that hold the ACLs. FormatError: no kernel can hold them."""
    values = zip((ACCESS_ACL, DEFAULT_ACL), to_xattrs(metadata.stat.mode, metadata.acl), strict=True)
    return {name: value for name, value in values if value is not None}


def _apply_flags(fd: int, flags: int, attempt: Callable[[str, Callable[[], object]], object]) -> None:
    wanted = linux.chattr_flags(flags) & _RESTORED_CHATTR
    if wanted:
        current = linux.get_flags(fd) or 0
        target = wanted | (current & ~_RESTORED_CHATTR)
        if target != current:
            attempt("file attributes", lambda: linux.set_flags(fd, target))
    dos = linux.fat_attributes(flags)
    if dos and (present := linux.get_fat_attributes(fd)) is not None:
        attempt("DOS attributes", lambda: linux.set_fat_attributes(fd, dos | (present & ~linux.KEPT_FAT)))


def apply_at(name: bytes, dir_fd: int, stat: Stat) -> list[str]:
    """Owner, mode (not for symlinks) and time of a name that must not be opened: symlink, device, fifo, socket."""
    lost: list[str] = []
    mode = stat.mode & 0o7777
    try:
        _chown(name, stat, dir_fd=dir_fd)
    except OSError as error:
        lost.append(f"owner {stat.uid}:{stat.gid}: {(error.strerror or str(error)).lower()}")
        mode &= ~_SET_IDS
    try:
        if not st.S_ISLNK(stat.mode):
            linux.chmod_at(name, mode, dir_fd=dir_fd)
        linux.set_mtime_at(name, stat.mtime_secs, stat.mtime_nanos, dir_fd=dir_fd)
    except OSError as error:
        lost.append(f"mode or time: {(error.strerror or str(error)).lower()}")
    return lost


def may_link(fd: int) -> int:
    """Take away the attributes that forbid hard links to an open file; the bits to be given to ``linked``."""
    current = linux.get_flags(fd) or 0
    if current & _FOREVER_CHATTR:
        linux.set_flags(fd, current & ~_FOREVER_CHATTR)
    return current


def linked(fd: int, flags: int) -> None:
    linux.set_flags(fd, flags)


def differences(fd: int, metadata: Metadata, found: os.stat_result) -> list[str]:
    """What an open restored file or directory has different from ``metadata``, as short texts."""
    result = stat_differences(metadata.stat, found)
    result += _attribute_differences(fd, _expected(metadata))
    if not metadata.stat.flags and not metadata.quota_project_id:
        return result
    wanted = linux.chattr_flags(metadata.stat.flags) & _RESTORED_CHATTR
    if wanted:
        present = linux.get_flags(fd)
        if present is not None and (present & _RESTORED_CHATTR) != wanted:
            result.append("file attributes")
    if metadata.quota_project_id and linux.get_project_id(fd) != metadata.quota_project_id:
        result.append("project id")
    return result


def _expected(metadata: Metadata) -> dict[str, bytes]:
    """The extended attributes that an entry has when everything of it could be restored."""
    if is_plain(metadata):
        return {}
    expected = {os.fsdecode(name): value for name, value in metadata.xattrs if _is_kept(name)}
    if metadata.fcaps is not None:
        expected[CAPABILITY] = metadata.fcaps
    with suppress(FormatError):  # told by ``apply``
        expected |= _acls(metadata)
    return expected


def _attribute_differences(fd: int, expected: dict[str, bytes]) -> list[str]:
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            names = []
        else:
            raise
    if not names and not expected:
        return []
    present = {name for name in names if _compared(name)}
    if os.geteuid() != 0:
        expected = {name: value for name, value in expected.items() if not name.startswith("trusted.")}
    result = [f"extended attribute {name}" for name in sorted(present ^ expected.keys())]
    for name in sorted(present & expected.keys()):
        try:
            value: bytes | None = os.getxattr(fd, name)
        except PermissionError:
            continue  # its permissions forbid reading it to its owner, too
        except OSError:
            value = None  # the kernel stores some capabilities that it does not read
        if value != expected[name]:
            result.append(f"value of extended attribute {name}")
    return result


def _compared(name: str) -> bool:
    return name.startswith(("user.", "trusted.")) or name in (CAPABILITY, ACCESS_ACL, DEFAULT_ACL, "security.NTACL")


def stat_differences(stat: Stat, found: os.stat_result) -> list[str]:
    """The same for what lstat shows. Owner and set-id bits count only where this process may set them."""
    result = []
    owned = may_own(stat)
    if owned and (found.st_uid, found.st_gid) != (stat.uid, stat.gid):
        result.append(f"owner {found.st_uid}:{found.st_gid} instead of {stat.uid}:{stat.gid}")
    compared = 0o177777 if owned else 0o177777 & ~_SET_IDS
    if not st.S_ISLNK(stat.mode) and (found.st_mode ^ stat.mode) & compared:
        result.append(f"mode {found.st_mode:o} instead of {stat.mode:o}")
    expected = stat.mtime_secs * _NANO + stat.mtime_nanos
    if found.st_mtime_ns != expected and _SMALLEST_TIME <= stat.mtime_secs <= _LARGEST_TIME:
        result.append(f"modification time {found.st_mtime_ns} instead of {expected}")
    return result
