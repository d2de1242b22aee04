"""What a sync would do, as a value (spec datastore.md 11.2): a pull of the target from the source.

Of a group only what is newer than the target's newest snapshot is copied: gaps are not filled, the target may have been
pruned. But a snapshot that an earlier sync began and could not finish is tried again. The newest common snapshot is
looked at once more, as its notes, its verify state or its log may have been added later.

``remove_vanished`` is guarded as a prune is: when a group of the target would lose more than half of its snapshots,
nothing at all is done before a person confirms it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from archiver.errors import ArchiverError, Damaged, NotFound, Skipped, UsageError
from archiver.store import layout as names
from archiver.store import snapshots
from archiver.store.layout import DEFAULT_OWNER, GroupRef, Layout, SnapshotRef
from archiver.store.removal import Hold, Item, RemovalPlan
from archiver.store.sessions import RESUME, is_unfinished
from archiver.store.store import Store
from archiver.sync.filters import GroupFilter, chosen
from archiver.sync.missing import missing_chunks
from formats.errors import FormatError
from formats.manifest import Manifest
from formats.naming import check_namespace

Action = Literal["copy", "replace", "update", "skip"]

_LARGEST_RESUME = 4096  # bytes
_OLDER = "older than the newest there: gaps are not filled"


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """Of spec datastore.md 11.1. ``max_depth``: levels of namespaces below ``namespace``; None: all."""

    namespace: str = ""
    to_namespace: str = ""
    max_depth: int | None = None
    filters: Sequence[GroupFilter] = ()
    remove_vanished: bool = False
    transfer_last: int | None = None
    verified_only: bool = False
    encrypted_only: bool = False
    resync_corrupt: bool = False
    owner: str = DEFAULT_OWNER


@dataclass(frozen=True, slots=True)
class Step:
    """What is to become of a snapshot of the source. ``replace``: the target's is taken out of the way for it;
    ``update``: its manifest, notes and log follow. ``size``: bytes of its contents, as its manifest has it."""

    source: SnapshotRef
    target: SnapshotRef
    action: Action
    reason: str
    size: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "snapshot": str(self.source),
            "target": str(self.target),
            "action": self.action,
            "reason": self.reason,
            "size": self.size,
        }


@dataclass(frozen=True, slots=True)
class Problem:
    """What cannot be synced, a snapshot or a group of the source, and why."""

    name: str
    error: ArchiverError

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "code": self.error.code, "reason": str(self.error)}


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """``namespaces``: of the target, to be made, parents first; ``vanished``: those to be removed if nothing is left in
    them. ``unreadable``: copies that there would be if the manifests were not damaged."""

    namespaces: tuple[str, ...]
    steps: tuple[Step, ...]
    problems: tuple[Problem, ...] = ()
    removal: RemovalPlan = field(default_factory=lambda: RemovalPlan(()))
    vanished: tuple[str, ...] = ()
    unreadable: tuple[SnapshotRef, ...] = ()

    @property
    def work(self) -> list[Step]:
        return [step for step in self.steps if step.action != "skip"]


def resume_text(ref: SnapshotRef) -> bytes:
    """What a session says that builds the copy ``ref``."""
    return json.dumps({"schema": 1, "sync": ref.path}).encode()


def make_plan(source: Store, target: Store, options: SyncOptions) -> SyncPlan:
    """Raises NotFound without the namespace, UsageError when namespaces do not fit, ArchiverError when something of the
    source cannot be listed: nothing is taken for vanished then."""
    return _Planner(source, target, options).plan()


def levels(store: Store, base: str, max_depth: int | None) -> list[str]:
    """Names of the namespaces in ``base``, relative to it, parents first; the first one is ``base`` itself."""
    found = []
    for level in store.namespaces(base):
        rest = level[len(base) :].lstrip("/")
        if max_depth is None or (len(rest.split("/")) if rest else 0) <= max_depth:
            found.append(rest)
    return found


def join(base: str, rest: str) -> str:
    return f"{base}/{rest}" if base and rest else base or rest


class _Planner:
    def __init__(self, source: Store, target: Store, options: SyncOptions) -> None:
        self._source, self._target, self._options = source, target, options
        self._steps: list[Step] = []
        self._problems: list[Problem] = []
        self._removed: list[Item] = []
        self._holds: list[Hold] = []
        self._gone_groups: list[GroupRef] = []
        self._unreadable: list[SnapshotRef] = []
        self._begun = set(_begun(target.layout))

    def plan(self) -> SyncPlan:
        options = self._options
        present = levels(self._source, options.namespace, options.max_depth)
        made = []
        for rest in present:
            theirs = join(options.to_namespace, rest)
            try:
                check_namespace(theirs)
            except FormatError as error:
                raise UsageError(f"the namespace {theirs} cannot be made: {error}", hint="see --max-depth") from error
            if not os.path.isdir(self._target.layout.namespace(theirs)):
                made.append(theirs)
            self._namespace(join(options.namespace, rest), theirs)
        vanished = self._vanished_namespaces(set(present)) if options.remove_vanished else []
        removal = RemovalPlan(tuple(self._removed), tuple(self._holds), tuple(self._gone_groups))
        steps, problems, unreadable = tuple(self._steps), tuple(self._problems), tuple(self._unreadable)
        return SyncPlan(tuple(made), steps, problems, removal, tuple(vanished), unreadable)

    def _namespace(self, ours: str, theirs: str) -> None:
        groups = [group for group in self._source.groups(ours) if chosen(group, self._options.filters)]
        for group in groups:
            to = GroupRef(theirs, group.type, group.id)
            if self._may_write(group, to):
                self._group(group, to)
        if self._options.remove_vanished:
            there = {(group.type, group.id) for group in groups}
            self._vanished_groups(theirs, there)

    def _may_write(self, group: GroupRef, to: GroupRef) -> bool:
        owner = self._target.owner(to)
        if owner is None or owner == self._options.owner:
            return True
        text = f"{to} of the target belongs to {owner}, not to {self._options.owner}"
        self._problems.append(Problem(str(group), Skipped(text, hint=f"if that is right: --owner {owner}")))
        return False

    # -- one group ---------------------------------------------------------------------------------------------------

    def _group(self, group: GroupRef, to: GroupRef) -> None:
        times = [when for when in self._source.times(group) if self._source.is_finished(SnapshotRef(group, when))]
        present: set[int] = set()
        manifests: dict[int, Manifest] = {}
        damaged: list[int] = []
        for when in times:
            ref = SnapshotRef(group, when)
            try:
                manifest = self._source.manifest(ref)
            except NotFound:
                continue  # forgotten just now
            except Damaged as error:
                present.add(when)  # what the target has of it is all there is
                self._problems.append(Problem(str(ref), error))
                damaged.append(when)
                continue
            if wanted(manifest, self._options):
                present.add(when)
                manifests[when] = manifest
        newest = self._target.newest(to)
        last = newest.time if newest is not None else None
        self._unreadable += [SnapshotRef(to, when) for when in damaged if last is None or when > last]
        recent = set(sorted(present)[-self._options.transfer_last :]) if self._options.transfer_last else present
        for when, manifest in manifests.items():
            step = Step(SnapshotRef(group, when), SnapshotRef(to, when), "copy", "new", _size(manifest))
            self._step(step, last, when in recent)
        if self._options.remove_vanished:
            self._vanished(to, present)

    def _step(self, step: Step, last: int | None, is_recent: bool) -> None:
        there = self._target.is_finished(step.target)
        when = step.target.time
        corrupt = self._corrupt(step) if there and self._options.resync_corrupt else None
        if corrupt is not None:
            self._add(step, "replace", corrupt)
        elif last is not None and when == last:
            try:
                self._compare(step)
            except ArchiverError as error:
                self._problems.append(Problem(str(step.source), error))
        elif there:
            self._add(step, "skip", "there")
        elif step.target in self._begun:
            self._add(step, "copy", "begun by an earlier sync")
        elif last is not None and when < last:
            self._add(step, "skip", _OLDER)
        elif not is_recent:
            self._add(step, "skip", f"not one of the last {self._options.transfer_last}")
        else:
            self._add(step, "copy", step.reason)

    def _add(self, step: Step, action: Action, reason: str) -> None:
        self._steps.append(Step(step.source, step.target, action, reason, step.size))

    def _corrupt(self, step: Step) -> str | None:
        """Why the target's copy of a snapshot is to be replaced by a new one."""
        target = self._target
        try:
            manifest = target.manifest(step.target, from_file=True)
        except NotFound:
            return "gone in the target"
        except Damaged as error:
            return str(error)
        if verify_state(manifest) == "failed":
            return "a verification of the target's copy failed"
        for file in manifest.files:
            if not os.path.isfile(os.path.join(target.layout.snapshot(step.target), file.filename)):
                return f"{file.filename} is missing in the target"
        database, lost = target.database, self._lost
        references = database.references(step.target.path) if database is not None else None
        if references is None or lost is None:
            return None
        if any(lost[numbers[numbers < len(lost)]].any() for numbers in references):
            return "chunks are missing in the target, or known to be damaged"
        return None

    @cached_property
    def _lost(self) -> NDArray[np.bool_] | None:
        """Of the target's chunks by their numbers."""
        database = self._target.database
        return None if database is None else missing_chunks(self._target, np.ones(len(database.sizes()[0]), np.bool_))

    def _compare(self, step: Step) -> None:
        """The newest one of both. Raises Skipped where the target's must stay as it is."""
        ours = snapshots.read_manifest_blob(self._source.layout, step.source)
        theirs = snapshots.read_manifest_blob(self._target.layout, step.target)
        if ours == theirs:
            if _has_log(self._source.layout, step.source) and not _has_log(self._target.layout, step.target):
                self._add(step, "update", "its log was added later")
            else:
                self._add(step, "skip", "there")
            return
        new = snapshots.decode_manifest(step.source, snapshots.manifest_json(step.source, ours))
        old = snapshots.decode_manifest(step.target, snapshots.manifest_json(step.target, theirs))
        check_not_failed(step.target, old)
        if new.fingerprint == old.fingerprint and signed_contents(new) == signed_contents(old):
            self._add(step, "update", "what is not signed in its manifest has changed: notes or verify state")
        elif new.fingerprint is not None and new.fingerprint == old.fingerprint:
            self._add(step, "replace", "it was made again with the same key")
        else:
            raise Skipped(
                f"{step.target} of the target is another snapshot of the same name",
                hint="compare them, and forget the wrong one",
            )

    # -- what the source does not have any more ----------------------------------------------------------------------

    def _vanished(self, to: GroupRef, present: set[int]) -> None:
        gone = [SnapshotRef(to, when) for when in self._target.times(to) if when not in present]
        if not gone:
            return
        items = []
        for ref in reversed(gone):
            is_protected = snapshots.is_protected(self._target.layout, ref)
            mark, reason = ("protected", "protected") if is_protected else ("remove", "vanished from the source")
            items.append(Item(ref, mark, reason, self._target.is_finished(ref)))
        self._removed += items
        removed = sum(item.finished and not item.keep for item in items)
        finished = sum(self._target.is_finished(SnapshotRef(to, when)) for when in self._target.times(to))
        coming = sum(step.target.group == to and step.action == "copy" for step in self._steps)
        if 2 * removed > finished + coming:
            self._holds.append(Hold(to, f"{removed} of {finished} snapshots would be removed at once"))

    def _vanished_groups(self, theirs: str, there: set[tuple[str, str]]) -> None:
        for group in self._target.groups(theirs):
            if (group.type, group.id) in there or not chosen(group, self._options.filters):
                continue
            if self._target.owner(group) == self._options.owner:
                self._gone_groups.append(group)
                self._vanished(group, set())

    def _vanished_namespaces(self, present: set[str]) -> list[str]:
        options, gone = self._options, []
        if not os.path.isdir(self._target.layout.namespace(options.to_namespace)):
            return []
        for rest in levels(self._target, options.to_namespace, options.max_depth):
            if rest not in present:
                gone.append(join(options.to_namespace, rest))
                self._vanished_groups(gone[-1], set())
        return gone


def wanted(manifest: Manifest, options: SyncOptions) -> bool:
    if options.verified_only and verify_state(manifest) != "ok":
        return False
    if not options.encrypted_only:
        return True
    return manifest.signature is not None and all(file.crypt_mode == "encrypt" for file in manifest.files)


def verify_state(manifest: Manifest) -> str | None:
    state = manifest.unprotected.get("verify_state")
    return str(state.get("state")) if isinstance(state, Mapping) else None


def check_not_failed(ref: SnapshotRef, manifest: Manifest) -> None:
    """Raises Skipped for a snapshot of the target that was found damaged there: nothing may hide that."""
    if verify_state(manifest) == "failed":
        raise Skipped(f"a verification of {ref} failed in the target", hint="bring it again with --resync-corrupt")


def signed_contents(manifest: Manifest) -> tuple[bytes, bytes | None, bool]:
    return manifest.canonical(), manifest.signature, manifest.has_unknown


def _size(manifest: Manifest) -> int:
    return sum(file.size for file in manifest.files)


def _has_log(layout: Layout, ref: SnapshotRef) -> bool:
    return os.path.lexists(os.path.join(layout.snapshot(ref), names.CLIENT_LOG))


def _begun(layout: Layout) -> Iterator[SnapshotRef]:
    """What interrupted syncs have begun to copy into the target."""
    try:
        found = os.listdir(layout.sessions)
    except OSError:
        return
    for name in found:
        path = os.path.join(layout.sessions, name)
        with suppress(OSError, Damaged, ValueError, KeyError, TypeError, RecursionError, UsageError):
            ref = names.parse_reference(json.loads(snapshots.read_small(f"{path}/{RESUME}", _LARGEST_RESUME))["sync"])
            if isinstance(ref, SnapshotRef) and is_unfinished(path):
                yield ref
