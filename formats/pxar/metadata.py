"""What an archive says about one entry besides its name and contents (spec pxar.md 3, 5).

Units: mode is the full st_mode; flags are the pxar attribute bits of spec 11.3; mtime is floored seconds plus
nanoseconds counted forward (0..999999999); permissions of ACL entries are 4 read, 2 write, 1 execute.
"""

from __future__ import annotations

from typing import NamedTuple

ACL_UNSET = 2**64 - 1  # placeholder for a missing base entry of a default ACL


class Stat(NamedTuple):
    """The 40 bytes of an ENTRY item. A named tuple: one is made for every file of a backup."""

    mode: int
    flags: int
    uid: int
    gid: int
    mtime_secs: int
    mtime_nanos: int


class DefaultAcl(NamedTuple):
    """Base entries of a directory's default ACL; ACL_UNSET where one is missing."""

    user_obj: int
    group_obj: int
    other: int
    mask: int


class Acl(NamedTuple):
    """POSIX ACL entries beyond the mode bits. Lists hold (id, permissions) in archive order.

    ``group_obj`` is None unless the access ACL has a mask (the mode's group bits are the mask then).
    """

    users: tuple[tuple[int, int], ...] = ()
    groups: tuple[tuple[int, int], ...] = ()
    group_obj: int | None = None
    default: DefaultAcl | None = None
    default_users: tuple[tuple[int, int], ...] = ()
    default_groups: tuple[tuple[int, int], ...] = ()


NO_ACL = Acl()


class Metadata(NamedTuple):
    """All attributes of one entry. xattrs are (name, value) in archive order, ``security.capability`` excluded.

    A named tuple like Stat, and for the same reason.
    """

    stat: Stat
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    acl: Acl = NO_ACL
    fcaps: bytes | None = None
    quota_project_id: int | None = None
