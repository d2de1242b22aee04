"""What is different between two states of an entry, in words that scripts can rely on."""

from __future__ import annotations

from formats.pxar.items import Entry
from formats.pxar.metadata import Acl, DefaultAcl, Metadata

_PERMISSIONS = 0o7777


def differences(before: Entry, after: Entry) -> tuple[str, ...]:
    """Of ``kind``, ``size``, ``target``, ``device``, ``mtime``, ``mode``, ``owner``, ``xattrs``, ``acl``, ``fcaps``,
    ``flags``, ``project``, those that differ; contents are not looked at. Two hard links differ in their targets only.
    """
    if before.kind != after.kind:
        return ("kind",)
    found = []
    if before.kind == "file" and before.size != after.size:
        found.append("size")
    if before.target != after.target:
        found.append("target")
    if (before.major, before.minor) != (after.major, after.minor):
        found.append("device")
    if before.metadata is not None and after.metadata is not None and before.metadata != after.metadata:
        found += _metadata_differences(before.metadata, after.metadata)
    return tuple(found)


def _metadata_differences(before: Metadata, after: Metadata) -> list[str]:
    old, new = before.stat, after.stat
    pairs: list[tuple[str, object, object]] = [
        ("mtime", (old.mtime_secs, old.mtime_nanos), (new.mtime_secs, new.mtime_nanos)),
        ("mode", old.mode & _PERMISSIONS, new.mode & _PERMISSIONS),
        ("owner", (old.uid, old.gid), (new.uid, new.gid)),
        ("xattrs", sorted(before.xattrs), sorted(after.xattrs)),
        ("acl", _ordered(before.acl), _ordered(after.acl)),
        ("fcaps", before.fcaps, after.fcaps),
        ("flags", old.flags, new.flags),
        ("project", before.quota_project_id or 0, after.quota_project_id or 0),
    ]
    return [name for name, one, other in pairs if one != other]


def _ordered(acl: Acl) -> tuple[object, int | None, DefaultAcl | None]:
    lists = (acl.users, acl.groups, acl.default_users, acl.default_groups)
    return tuple(tuple(sorted(pairs)) for pairs in lists), acl.group_obj, acl.default
