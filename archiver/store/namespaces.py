"""Namespaces: made, removed and moved, as groups of groups (spec datastore.md 13). What is risky is a plan first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from archiver.core.disk import explain, explained, is_directory
from archiver.core.events import Notice
from archiver.core.locks import DirectoryLock, lock_range
from archiver.errors import ArchiverError, Locked, NotFound, UsageError
from archiver.store import layout as names
from archiver.store.labels import locked_group, set_group_note, set_owner
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.removal import RemovalPlan, check_inside, plan_forget_groups, remove_empty_group
from archiver.store.store import Store
from formats.errors import FormatError
from formats.naming import BACKUP_TYPES, check_namespace


def check_name(text: str) -> str:
    """The namespace that a user names. UsageError for the root, and for what cannot be one."""
    name = text.strip("/")
    try:
        check_namespace(name)
    except FormatError as error:
        raise UsageError(f"{text!r} is no namespace: {error}", hint="write for example a/b") from error
    if not name:
        raise UsageError("the root namespace is always there", hint="name another one, for example a/b")
    return name


def create(store: Store, name: str) -> None:
    """Make a namespace in one that is there. UsageError when it exists, NotFound without its parent."""
    store.check_writable()
    path = store.layout.namespace(name)
    _check_parent(store, name)
    check_inside(store.layout, path)
    if os.path.lexists(path):
        raise UsageError(f"the namespace {name} exists already")
    _make(store, name)


def _check_parent(store: Store, name: str) -> None:
    parent = name.rpartition("/")[0]
    if not is_directory(store.layout.namespace(parent)):
        raise NotFound(f"there is no namespace {parent}", hint=f"make it with: archiver ns create {parent}")


def _make(store: Store, name: str) -> None:
    path = store.layout.namespace(name)
    with explained("make", path):
        store.disk.make_directories(path, names.SNAPSHOT_MODE, inside=store.layout.base)


# -- deleting --------------------------------------------------------------------------------------------------------


def plan_delete(store: Store, name: str, *, with_groups: bool) -> RemovalPlan:
    """The snapshots that go with a namespace and all in it. UsageError when there are groups and they are to stay."""
    groups = [group for level in store.namespaces(name) for group in store.groups(level)]
    if groups and not with_groups:
        raise UsageError(
            f"the namespace {name} has {len(groups)} groups, {groups[0]} among them",
            hint="--delete-groups forgets their snapshots too",
        )
    return plan_forget_groups(store, [str(group) for group in groups])


def delete_levels(store: Store, name: str) -> list[str]:
    """Remove a namespace and those in it, as far as they are empty, the deepest first; returns the removed ones."""
    store.check_writable()
    check_inside(store.layout, store.layout.namespace(name))
    gone = []
    for level in reversed(list(store.namespaces(name))):
        for group in store.groups(level):
            remove_empty_group(store, group)
        path = store.layout.namespace(level)
        for directory in (*(os.path.join(path, kind) for kind in BACKUP_TYPES), os.path.join(path, "ns"), path):
            with suppress(OSError):  # there is something in it, or it is not there
                store.disk.remove_directory(directory)
        if not os.path.lexists(path):
            gone.append(level)
    with suppress(OSError):  # the last one of its parent
        store.disk.remove_directory(os.path.dirname(store.layout.namespace(name)))
    return gone


# -- moving ----------------------------------------------------------------------------------------------------------


class GroupMove(NamedTuple):
    """``problem``: why the group stays where it is."""

    group: GroupRef
    target: GroupRef
    snapshots: int
    merges: bool
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "group": str(self.group),
            "target": str(self.target),
            "snapshots": self.snapshots,
            "action": "merge" if self.merges else "move",
            "problem": self.problem,
        }


def _is_remnant(store: Store, group: GroupRef) -> bool:
    """What a process leaves that is killed while it makes or removes a group."""
    return store.owner(group) is None and not store.times(group)


class MovePlan(NamedTuple):
    """``levels``: namespaces to be made, parents first."""

    source: str
    target: str
    levels: tuple[str, ...]
    moves: tuple[GroupMove, ...]


def plan_move(store: Store, source: str, target: str) -> MovePlan:
    """Move the namespace ``source`` with all in it, so that it is ``target`` then. UsageError, NotFound."""
    found = list(store.namespaces(source))
    if f"{target}/".startswith(f"{source}/"):
        raise UsageError(f"the namespace {source} cannot be moved into itself")
    _check_parent(store, target)
    levels = [target + level.removeprefix(source) for level in found]
    for level in levels:
        try:
            check_namespace(level)
        except FormatError as error:
            raise UsageError(f"{source} cannot be moved to {target}: {error}") from error
    moves = [
        _plan_group(store, group, GroupRef(level, group.type, group.id))
        for old, level in zip(found, levels, strict=True)
        for group in store.groups(old)
    ]
    return MovePlan(source, target, tuple(levels), tuple(moves))


def _plan_group(store: Store, group: GroupRef, target: GroupRef) -> GroupMove:
    times = store.times(group)
    if not os.path.lexists(store.layout.group(target)):
        return GroupMove(group, target, len(times), False)
    return GroupMove(group, target, len(times), True, _obstacle(store, group, target))


def _obstacle(store: Store, group: GroupRef, target: GroupRef) -> str | None:
    """Why a group cannot become a part of another."""
    if not is_directory(store.layout.group(target)):
        return f"{target} is not a directory"
    ours, theirs = store.times(group), store.times(target)
    if _is_remnant(store, group) or _is_remnant(store, target):
        return None
    if store.owner(group) != store.owner(target):
        return f"{target} has another owner"
    if ours and theirs and min(ours) <= max(theirs):
        return f"{target} has a snapshot that is not older than all of {group}"
    return None


def move(store: Store, plan: MovePlan) -> list[GroupMove]:
    """Do it; returns what became of each group. A group that is in use is tried once more. Then what is empty of the
    source is removed. Raises Locked while a garbage collection runs, which might miss what moves.

    What a move that was killed has made, an owner for one, is made durable first: what follows relies on it.
    """
    store.check_writable()
    for place in (plan.source, plan.target):
        check_inside(store.layout, store.layout.namespace(place))
    done: dict[GroupMove, str | None] = {each: each.problem for each in plan.moves}
    with _without_gc(store):
        with explained("write into", store.layout.base):
            store.disk.sync_file_system(store.layout.base)
        for level in plan.levels:
            _make(store, level)
        for _ in range(2):
            for each, problem in done.items():
                if problem is not None or os.path.lexists(store.layout.group(each.group)):
                    done[each] = each.problem or _attempt(store, each)
        delete_levels(store, plan.source)
    store.update_records()
    return [each._replace(problem=problem) for each, problem in done.items()]


def _attempt(store: Store, planned: GroupMove) -> str | None:
    try:
        _move_group(store, planned.group, planned.target)
    except ArchiverError as error:
        return str(error)
    remove_empty_group(store, planned.group)
    return None


def _move_group(store: Store, group: GroupRef, target: GroupRef) -> None:
    check_inside(store.layout, store.layout.group(target))
    with locked_group(store, group):
        if _is_remnant(store, group):
            return
        owner, note = store.owner(group), store.group_note(group)
        place = store.layout.group(target)
        with explained("make", place):
            store.disk.make_directories(place, names.SNAPSHOT_MODE, inside=store.layout.base)
        if owner is not None and store.owner(target) is None:
            set_owner(store, target, owner)
        theirs = store.group_note(target)
        if note is not None and theirs is None:
            set_group_note(store, target, note)
        elif note != theirs and note is not None:
            store.listener(Notice(f"{target} keeps its own notes; those of {group} are dropped", "warning"))
        with locked_group(store, target):
            obstacle = _obstacle(store, group, target)
            if obstacle is not None:
                raise UsageError(obstacle)
            for when in store.times(group):
                _move_snapshot(store, SnapshotRef(group, when), SnapshotRef(target, when))


def _move_snapshot(store: Store, ref: SnapshotRef, target: SnapshotRef) -> None:
    path = store.layout.snapshot(ref)
    try:
        with DirectoryLock(path, follow=False):
            store.disk.rename_directory(path, store.layout.snapshot(target))
    except BlockingIOError as error:
        raise Locked(f"{ref} is in use by another process") from error
    except OSError as error:
        raise explain(error, "move", path) from error


@contextmanager
def _without_gc(store: Store) -> Iterator[None]:
    """Shared with writers and other moves; every kind of garbage collection, a PBS's too, wants some of it alone."""
    path = store.layout.lock
    with explained("open", path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, names.FILE_MODE)
    try:
        if not lock_range(fd, 0, 0, exclusive=False):
            raise Locked(
                f"{store.layout.base} is locked by a garbage collection", hint="try again when it has finished"
            )
        yield
    finally:
        os.close(fd)
