"""What a backup to media would write, as a value: which snapshots, and how much of them the media set does not hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from archiver.errors import ArchiverError
from archiver.store.digests import distinct_digests
from archiver.store.filters import GroupFilter, chosen
from archiver.store.indexes import is_index, open_index
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from archiver.tape.digests import without
from archiver.tape.problem import Problem
from formats.manifest import Manifest
from formats.tape.catalog import Digests

Action = Literal["write", "skip"]

_NONE = np.empty((0, 32), np.uint8)


class Held(Protocol):
    """What the media set holds already."""

    def holds_snapshot(self, store: str, path: str) -> bool: ...

    def absent(self, store: str, digests: Digests) -> Digests:
        """Those of the sorted ``digests`` that the set does not hold."""
        ...


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """``latest_only``: of each group the newest snapshot. ``max_depth``: levels of namespaces below ``namespace``;
    None: all. ``require_encryption``: only snapshots that are encrypted."""

    namespace: str = ""
    max_depth: int | None = None
    filters: Sequence[GroupFilter] = ()
    latest_only: bool = False
    require_encryption: bool = False

    @property
    def has_namespaces(self) -> bool:
        """Whether snapshots of namespaces may come: catalogs on media say so."""
        return bool(self.namespace) or self.max_depth != 0


@dataclass(frozen=True, slots=True)
class Step:
    """``chunks`` and ``bytes``: of those that are to be written; None where that was not looked at."""

    ref: SnapshotRef
    action: Action
    reason: str
    chunks: int | None = None
    bytes: int | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "snapshot": str(self.ref),
            "action": self.action,
            "reason": self.reason,
            "chunks": self.chunks,
            "bytes": self.bytes,
        }


@dataclass(slots=True)
class WritePlan:
    """``source``: what the store is called on media."""

    source: str
    steps: list[Step] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def work(self) -> list[Step]:
        return [step for step in self.steps if step.action == "write"]


def name_on_media(store: Store) -> str:
    """What chunks and snapshots of a store are called by."""
    from archiver.store.creation import default_name

    return store.identity.name if store.identity is not None else default_name(store.layout.base)


def make_plan(store: Store, held: Held, options: WriteOptions) -> WritePlan:
    """Raises NotFound without the namespace, ArchiverError when the store cannot be listed."""
    plan = WritePlan(name_on_media(store))
    for group in _groups(store, options):
        finished = [ref for when in store.times(group) if store.is_finished(ref := SnapshotRef(group, when))]
        for ref in finished[-1:] if options.latest_only else finished:
            if held.holds_snapshot(plan.source, ref.path):
                plan.steps.append(Step(ref, "skip", "on the media"))
            else:
                plan.steps.append(Step(ref, "write", "not on the media"))
        if options.latest_only:
            plan.steps += [Step(ref, "skip", "not the newest of its group") for ref in finished[:-1]]
    return plan


def _groups(store: Store, options: WriteOptions) -> list[GroupRef]:
    """As a PBS orders them: by type and id, whatever the namespace."""
    found = []
    base = len(options.namespace.split("/")) if options.namespace else 0
    for level in store.namespaces(options.namespace):
        depth = (len(level.split("/")) if level else 0) - base
        if options.max_depth is None or depth <= options.max_depth:
            found += [group for group in store.groups(level) if chosen(group, options.filters)]
    return sorted(found, key=_order)


def _order(group: GroupRef) -> tuple[str, bool, int, str, str]:
    is_number = group.id.isascii() and group.id.isdigit()
    return group.type, not is_number, int(group.id) if is_number else 0, group.id, group.namespace


def estimate(store: Store, held: Held, plan: WritePlan) -> None:
    """Complete a plan: how much each step would write. Each chunk is looked for once."""
    planned = _NONE
    for number, step in enumerate(plan.steps):
        if step.action != "write":
            continue
        try:
            digests = new_chunks(store, held, plan.source, step.ref, store.manifest(step.ref))
        except ArchiverError as error:
            plan.problems.append(Problem(str(step.ref), error))
            continue
        digests = without(digests, planned)
        planned = distinct_digests(np.concatenate([planned, digests]))
        size = sum(_stored(store, digest.tobytes()) for digest in digests)
        plan.steps[number] = Step(step.ref, step.action, step.reason, len(digests), size)


def _stored(store: Store, digest: bytes) -> int:
    status = store.chunks.seen(digest)
    return 0 if status is None else status.st_size


def new_chunks(
    store: Store,
    held: Held,
    source: str,
    ref: SnapshotRef,
    manifest: Manifest,
    order: Callable[[Digests], Digests] = lambda digests: digests,
) -> Digests:
    """The chunks of a snapshot that the set does not hold, each once: as a PBS does it those of the last index first,
    those of each index in ``order``. Raises Damaged."""
    found: list[Digests] = []
    for file in reversed(manifest.files):
        if is_index(file.filename):
            unique = distinct_digests(open_index(store.layout, ref, file).digests)
            fresh = held.absent(source, unique)
            for before in found:
                fresh = without(fresh, before)
            found.append(order(fresh))
    return np.concatenate(found) if found else _NONE


def is_encrypted(manifest: Manifest) -> bool:
    """Whether no content of a snapshot can be read without its key."""
    return all(file.crypt_mode == "encrypt" for file in manifest.files)
