"""Removing snapshots, so that none is ever seen half: what is to go is a plan first, a value.

A snapshot's directory is renamed to ``.archiver/removed/`` and that is made durable before the first of its files is
unlinked: at any moment it is there completely or not at all, for a PBS too. Where there is no room for that, or it is
another file system, the manifest is unlinked first and that is made durable: what may be left then is an unfinished
snapshot. What a killed process left in ``removed/`` is unlinked by the next one.

The flock on a snapshot's directory is held by who removes it, and shared by who reads it (:meth:`Store.held`). With its
last snapshot a group goes too, unless somebody has the flock on that: a backup that is being published.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from archiver.core.disk import Disk, explain, explained, is_directory
from archiver.core.events import Notice
from archiver.core.locks import DirectoryLock
from archiver.errors import ArchiverError, Locked, NotFound, Skipped, UsageError, worst_of
from archiver.store import layout as names
from archiver.store import snapshots
from archiver.store.layout import GroupRef, Layout, SnapshotRef, parse_reference
from archiver.store.store import Store

# There is no room for a rename, or ``removed/`` is on another file system, or it cannot be made.
_IN_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EXDEV, errno.EACCES, errno.EPERM, errno.ENOTDIR}
_ID_LENGTH = 12  # hex digits
_OF_A_GROUP = re.compile(rf"({names.OWNER}|{names.NOTES})(\.tmp_.*)?", re.DOTALL)  # what killed writers left, too


class Item(NamedTuple):
    """What is to become of a snapshot, and why."""

    ref: SnapshotRef
    mark: str  # keep, keep-partial, protected or remove
    reason: str
    finished: bool = True

    @property
    def keep(self) -> bool:
        return self.mark != "remove"

    def as_json(self) -> dict[str, Any]:
        return {
            "snapshot": str(self.ref),
            "keep": self.keep,
            "reason": self.reason,
            "protected": self.mark == "protected",
            "mark": self.mark,
        }


class Hold(NamedTuple):
    """Why nothing of a plan is done before it is confirmed."""

    group: GroupRef
    reason: str

    def as_json(self) -> dict[str, str]:
        return {"group": str(self.group), "reason": self.reason}


class RemovalPlan(NamedTuple):
    """Group by group, the newest snapshot first. ``groups``: to be removed when they are empty, besides those that lose
    their last snapshot."""

    items: tuple[Item, ...]
    holds: tuple[Hold, ...] = ()
    groups: tuple[GroupRef, ...] = ()

    @property
    def removed(self) -> list[Item]:
        """What is to be removed, the oldest first."""
        return sorted((item for item in self.items if not item.keep), key=lambda item: (item.ref.time, item.ref.group))

    @property
    def protected(self) -> list[SnapshotRef]:
        return [item.ref for item in self.items if item.mark == "protected"]

    @property
    def id(self) -> str:
        """The same for the same decisions about the same snapshots only."""
        decisions = [[item.ref.path, item.mark] for item in self.items]
        text = json.dumps([decisions, [hold.as_json() for hold in self.holds]])
        return hashlib.sha256(text.encode()).hexdigest()[:_ID_LENGTH]


@dataclass(slots=True)
class Outcome:
    """What became of a plan. ``skipped`` and ``failed``: snapshots that are still there, and why."""

    removed: list[SnapshotRef] = field(default_factory=list)
    groups: list[GroupRef] = field(default_factory=list)
    skipped: list[tuple[SnapshotRef, str]] = field(default_factory=list)
    failed: list[tuple[SnapshotRef, ArchiverError]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "removed": [str(ref) for ref in self.removed],
            "removed_groups": [str(group) for group in self.groups],
            "skipped": [{"snapshot": str(ref), "reason": reason} for ref, reason in self.skipped],
            "failed": [{"snapshot": str(ref), "reason": str(error)} for ref, error in self.failed],
        }


def plan_forget(store: Store, texts: Sequence[str], namespace: str = "") -> RemovalPlan:
    """``texts``: snapshots by their full names, unfinished ones too. NotFound, UsageError for groups."""
    refs = dict.fromkeys(_named(store, text, namespace) for text in texts)
    return RemovalPlan(tuple(_item(store, ref) for ref in refs))


def plan_forget_groups(store: Store, texts: Sequence[str], namespace: str = "") -> RemovalPlan:
    """``texts``: groups, of which every snapshot is forgotten that is not protected. NotFound, UsageError."""
    groups = tuple(dict.fromkeys(store.find_group(text, namespace) for text in texts))
    items = [_item(store, SnapshotRef(group, when)) for group in groups for when in reversed(store.times(group))]
    return RemovalPlan(tuple(items), groups=groups)


def _named(store: Store, text: str, namespace: str) -> SnapshotRef:
    if text == "latest":
        return store.find(text, namespace)
    reference = parse_reference(store.qualified(text, namespace))
    if isinstance(reference, GroupRef):
        raise UsageError(
            f"{text!r} is a group, not a snapshot", hint=f"name one of its snapshots, or all: {reference} --all"
        )
    if not is_directory(store.layout.snapshot(reference)):
        raise NotFound(f"there is no snapshot {reference}", hint="see the list with: archiver snapshots")
    return reference


def _item(store: Store, ref: SnapshotRef) -> Item:
    finished = store.is_finished(ref)
    if snapshots.is_protected(store.layout, ref):
        return Item(ref, "protected", "protected", finished)
    return Item(ref, "remove", "named" if finished else "named, unfinished", finished)


def remove(store: Store, plan: RemovalPlan) -> Outcome:
    """Remove what the plan says, the oldest first; one that cannot be removed does not stop the others.

    UsageError on a store that cannot be written. Holds are the caller's to respect.
    """
    store.check_writable()
    remover = _Remover(store.layout, store.disk, store.random(8).hex())
    remover.sweep()
    outcome = Outcome()
    for item in plan.removed:
        try:
            remover.remove(item)
            outcome.removed.append(item.ref)
        except (Locked, Skipped, NotFound) as error:
            outcome.skipped.append((item.ref, str(error)))
        except ArchiverError as error:
            outcome.failed.append((item.ref, error))
    for text in remover.leftovers:
        store.listener(Notice(text, "warning"))
    groups = {item.ref.group for item in plan.removed} | set(plan.groups)
    outcome.groups = [group for group in sorted(groups) if remover.remove_group(group)]
    if outcome.removed:
        store.forget_records(outcome.removed)
    return outcome


def shortfall(plan: RemovalPlan, outcome: Outcome) -> ArchiverError | None:
    """What was not removed although it was to be."""
    if outcome.failed:
        return worst_of([error for _, error in outcome.failed])
    if outcome.skipped:
        reasons = "; ".join(reason for _, reason in outcome.skipped)
        return Skipped(f"not removed: {reasons}", hint="try again later")
    if plan.groups and plan.protected:
        names = ", ".join(map(str, plan.protected))
        hint = f"allow it with: archiver protect --off {plan.protected[0]}"
        return Skipped(f"protected, and still there: {names}", hint=hint)
    return None


def remove_empty_group(store: Store, group: GroupRef) -> bool:
    """Remove a group without snapshots; False when it has some, or is in use."""
    store.check_writable()
    return _Remover(store.layout, store.disk, store.random(8).hex()).remove_group(group)


def check_inside(layout: Layout, path: str) -> None:
    """Raises Skipped when a symlink leads from the store to ``path``: what lies behind it is not the store's."""
    below = layout.base
    for part in os.path.relpath(path, layout.base).split("/"):
        below = os.path.join(below, part)
        if os.path.islink(below):
            raise Skipped(f"{below} is a symlink: nothing behind it is changed or removed")


class _Remover:
    """Removes snapshots of one store. ``leftovers``: sentences about files of removed ones that are still there."""

    def __init__(self, layout: Layout, disk: Disk, token: str) -> None:
        self._layout = layout
        self._disk = disk
        self._token = token
        self._count = 0
        self.leftovers: list[str] = []

    def sweep(self) -> None:
        """Unlink what killed processes have left in ``removed/``."""
        place = self._layout.removed
        if not is_directory(self._layout.private) or not is_directory(place):
            return
        with suppress(OSError):
            left = sorted(os.listdir(place))
            if left:
                self._disk.sync_file_system(place)  # a name that came back must not lead to half a snapshot
            for name in left:
                path = os.path.join(place, name)
                with suppress(OSError), DirectoryLock(path, follow=False):  # or another process is at it
                    self._disk.remove_tree(path)

    def remove(self, item: Item) -> None:
        """Raises Locked, Skipped, NotFound when the snapshot is to stay, ArchiverError when it cannot be removed."""
        ref, path = item.ref, self._layout.snapshot(item.ref)
        check_inside(self._layout, path)
        try:
            lock = DirectoryLock(path, follow=False)
        except FileNotFoundError as error:
            raise NotFound(f"{ref} is not there any more") from error
        except BlockingIOError as error:
            raise Locked(f"{ref} is in use by another process") from error
        except OSError as error:
            raise explain(error, "lock", path) from error
        with lock:
            with explained("look at", path):
                is_there = lock.is_at(path)
            if not is_there:
                raise NotFound(f"{ref} is not there any more")
            if snapshots.is_protected(self._layout, ref):
                raise Skipped(f"{ref} is protected")
            if (snapshots.manifest_stamp(self._layout, ref) is not None) != item.finished:
                raise Skipped(f"{ref} has changed since it was looked at")
            try:
                self._remove(path)
            except OSError as error:
                raise explain(error, "remove", path) from error

    def _remove(self, path: str) -> None:
        target = self._target()
        try:
            if target is not None:
                self._disk.rename_directory(path, target)
        except OSError as error:
            if error.errno not in _IN_PLACE or not is_directory(path):
                raise
            target = None
        if target is None:
            self._remove_in_place(path)
            return
        try:
            self._disk.remove_tree(target)
        except OSError as error:
            self.leftovers.append(str(explain(error, "remove what is left of it,", target)))

    def _target(self) -> str | None:
        """A free name in ``removed/``; None where there can be none."""
        try:
            for directory in (self._layout.private, self._layout.removed):
                if not is_directory(directory):
                    self._disk.make_directory(directory, names.PRIVATE_MODE)
                    self._disk.sync_directory(os.path.dirname(directory))
        except OSError:
            return None
        self._count += 1
        return os.path.join(self._layout.removed, f"{self._token}-{self._count}")

    def _remove_in_place(self, path: str) -> None:
        self._disk.remove_file(os.path.join(path, names.MANIFEST))
        self._disk.sync_directory(path)
        self._disk.remove_tree(path)
        self._disk.sync_directory(os.path.dirname(path))

    def remove_group(self, group: GroupRef) -> bool:
        """Remove a group that has no snapshots left and nothing that is not its own. False when it stays."""
        path = self._layout.group(group)
        try:
            check_inside(self._layout, path)
            with DirectoryLock(path, follow=False) as lock:
                if not lock.is_at(path):
                    return False
                present = os.listdir(path)
                if not all(_OF_A_GROUP.fullmatch(name) for name in present):
                    return False
                for name in sorted(present, key=names.OWNER.__eq__):  # without an owner it is no group
                    self._disk.remove_file(os.path.join(path, name))
                self._disk.remove_directory(path)
                return True
        except (OSError, Skipped):  # in use, or gone, or something has come into it
            return False
