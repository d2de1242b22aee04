"""POSIX ACLs: the kernel's extended attributes and what an archive says (spec pxar.md 11.5, 14.6, 14.8).

Value of ``system.posix_acl_access`` and ``system.posix_acl_default``, little-endian:

    offset  size  field
    0       4     version, 2
    4       8*n   entries: u16 tag, u16 permissions (4 read, 2 write, 1 execute), u32 id (2^32-1 where there is none)

Tags: 1 user_obj, 2 user, 4 group_obj, 8 group, 0x10 mask, 0x20 other. The kernel wants the entries in this order, users
and groups sorted by id.

An archive keeps user_obj, other and mask of the access ACL in the mode: the mode's group bits are the mask as soon as
there is one, and only then the real group permission is stored on its own (``Acl.group_obj``).
"""

from __future__ import annotations

import struct

from formats.errors import FormatError
from formats.pxar.constants import DIRECTORY
from formats.pxar.metadata import ACL_UNSET, NO_ACL, Acl, DefaultAcl

_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")

_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 0x10, 0x20
_BASE = (_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER)
_NO_ID = 2**32 - 1

_Named = tuple[tuple[int, int], ...]  # (id, permissions)


def from_xattrs(mode: int, access: bytes | None, default: bytes | None) -> Acl:
    """The ACL of an object with ``mode`` from the values of its two attributes (None: the attribute is absent).

    Only directories have a default ACL; it is ignored for others. Raises FormatError for a malformed value.
    """
    users: _Named = ()
    groups: _Named = ()
    group_obj = None
    if access is not None:
        users, groups, base = _parse(access, "system.posix_acl_access")
        if _MASK in base:
            group_obj = base.get(_GROUP_OBJ)
            if group_obj is None:
                raise FormatError("system.posix_acl_access: a mask without an entry of the owning group")
    if default is None or mode >> 12 != DIRECTORY:
        return Acl(users, groups, group_obj) if users or groups or group_obj is not None else NO_ACL
    default_users, default_groups, base = _parse(default, "system.posix_acl_default")
    four = None
    if base:
        four = DefaultAcl(*(base.get(tag, ACL_UNSET) for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER, _MASK)))
    return Acl(users, groups, group_obj, four, default_users, default_groups)


def to_xattrs(mode: int, acl: Acl) -> tuple[bytes | None, bytes | None]:
    """The two attribute values for an object with ``mode``; None: nothing to set, the mode says it all.

    An ACL without a mask gets the mode's group bits as mask when it names users or groups. Raises FormatError for an id
    or permissions that the kernel cannot hold.
    """
    if acl == NO_ACL:
        return None, None
    access = None
    if acl.users or acl.groups or acl.group_obj is not None:
        owner, mask, other = mode >> 6 & 7, mode >> 3 & 7, mode & 7
        group = mask if acl.group_obj is None else acl.group_obj
        entries = {_USER_OBJ: owner, _GROUP_OBJ: group, _MASK: mask, _OTHER: other}
        access = _build(entries, acl.users, acl.groups)
    if acl.default is None:
        return access, None
    four = acl.default
    default = {_USER_OBJ: four.user_obj, _GROUP_OBJ: four.group_obj, _MASK: four.mask, _OTHER: four.other}
    default = {tag: permissions for tag, permissions in default.items() if permissions != ACL_UNSET}
    if not default and not acl.default_users and not acl.default_groups:
        return access, None
    return access, _build(default, acl.default_users, acl.default_groups)


def _parse(value: bytes, what: str) -> tuple[_Named, _Named, dict[int, int]]:
    """(users, groups, base entries by tag), the first two sorted."""
    if len(value) < _VERSION.size or (len(value) - _VERSION.size) % _ENTRY.size:
        raise FormatError(f"{what}: length of the value", expected="4 bytes and 8 for each entry", got=len(value))
    (version,) = _VERSION.unpack_from(value)
    if version != 2:
        raise FormatError(f"{what}: version", offset=0, expected=2, got=version)
    users: list[tuple[int, int]] = []
    groups: list[tuple[int, int]] = []
    base: dict[int, int] = {}
    for number, (tag, permissions, owner) in enumerate(_ENTRY.iter_unpack(value[_VERSION.size :])):
        offset = _VERSION.size + number * _ENTRY.size
        if permissions > 7:
            raise FormatError(f"{what}: permissions", offset=offset, expected="0 to 7", got=permissions)
        if tag == _USER:
            users.append((owner, permissions))
        elif tag == _GROUP:
            groups.append((owner, permissions))
        elif tag not in _BASE:
            raise FormatError(f"{what}: unknown tag", offset=offset, got=tag)
        elif tag in base:
            raise FormatError(f"{what}: tag {tag} appears twice", offset=offset)
        else:
            base[tag] = permissions
    return tuple(sorted(users)), tuple(sorted(groups)), base


def _build(base: dict[int, int], users: _Named, groups: _Named) -> bytes:
    entries = [(tag, permissions, _NO_ID) for tag, permissions in base.items()]
    entries += [(_USER, permissions, owner) for owner, permissions in users]
    entries += [(_GROUP, permissions, owner) for owner, permissions in groups]
    for tag, permissions, owner in entries:
        if not 0 <= permissions <= 7:
            raise FormatError(f"ACL entry with tag {tag}: permissions", expected="0 to 7", got=permissions)
        if not 0 <= owner <= _NO_ID:
            raise FormatError(f"ACL entry with tag {tag}: id", expected="at most 2^32-1", got=owner)
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries)
