"""One restore: where things go, writing, checking, and what became of it."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NoReturn

from archiver.browse.snapshot import ArchiveFiles, Snapshot, Tree
from archiver.core.disk import available, explained
from archiver.core.events import Event, FileProblem, Listener
from archiver.core.new_file import lies_in, make_parents
from archiver.core.spill import SpillTable
from archiver.errors import Damaged, NotFound, UsageError
from archiver.restore.choice import Choice, entry_at
from archiver.restore.existing import Existing, Overwrite
from archiver.restore.image import check_device, is_device, write_blob, write_image
from archiver.restore.large import LargePieces
from archiver.restore.owners import Owner, make_owners
from archiver.restore.plan import Plan
from archiver.restore.planner import Planner
from archiver.restore.quarantine import Quarantine
from archiver.restore.reread import Rereader
from archiver.restore.room import New, check_room, existing_part
from archiver.restore.traversal import Traversal
from archiver.restore.write import Writer

_PROBLEMS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """What is restored of trees, and over what.

    overwrite           None: the target must be empty; else what becomes of what is there (see existing.py)
    delete              what is in the target but not in the snapshot is moved to a quarantine
    include, exclude    patterns (see choice.py)
    path                this entry alone; unless it is a directory, the target is its new name, or the directory it gets
                        into
    owner               whose numbers, and mapped how (see owners.py)
    """

    overwrite: Overwrite | None = None
    delete: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    path: bytes | None = None
    owner: Owner = "number"
    user_map: str | None = None
    group_map: str | None = None

    @property
    def for_trees_only(self) -> bool:
        """Whether anything is said that an image or blob could not follow."""
        return self != EVERYTHING


EVERYTHING = RestoreOptions()


@dataclass(slots=True)
class RestoreResult:
    """``replaced`` entries stood in the way of others, of ``updated`` ones the attributes alone were wrong,
    ``unchanged`` were as in the snapshot, ``kept`` ones stay by the rule, ``removed`` ones are in ``quarantine``.
    ``problems`` holds the first 10,000 of ``problem_count``. Kinds: not-restored and attribute (this user or file
    system may not), not-removed, damaged (the store), different (found when reading again)."""

    snapshot: str
    target: str
    entries: int = 0
    files: int = 0
    bytes: int = 0
    replaced: int = 0
    updated: int = 0
    unchanged: int = 0
    kept: int = 0
    removed: int = 0
    quarantine: list[str] = field(default_factory=list)
    verified: bool = False
    duration: float = 0.0
    problem_count: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    problems: list[FileProblem] = field(default_factory=list)

    def hearing(self, listener: Listener) -> Listener:
        """A listener for any thread, which counts problems; one event at a time reaches ``listener``."""
        lock = threading.Lock()

        def hear(event: Event) -> None:
            with lock:
                if isinstance(event, FileProblem):
                    self.problem_count += 1
                    self.kinds[event.kind] = self.kinds.get(event.kind, 0) + 1
                    if len(self.problems) < _PROBLEMS_KEPT:
                        self.problems.append(event)
                listener(event)

        return hear

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "snapshot": self.snapshot,
            "target": self.target,
            "entries": self.entries,
            "files": self.files,
            "bytes": self.bytes,
            "replaced": self.replaced,
            "updated": self.updated,
            "unchanged": self.unchanged,
            "kept": self.kept,
            "removed": self.removed,
            "quarantine": self.quarantine,
            "verified": self.verified,
            "duration_s": round(self.duration, 3),
            "problems": self.problem_count,
            "errors": [
                {"path": os.fsdecode(problem.path), "reason": problem.reason, "kind": problem.kind}
                for problem in self.problems
            ],
        }


def restore(
    snapshot: Snapshot,
    archives: Sequence[ArchiveFiles],
    target: str,
    *,
    verify: bool,
    listener: Listener,
    options: RestoreOptions = EVERYTHING,
    to_device: bool = False,
    needs_room: bool = True,
) -> RestoreResult:
    """Restore ``archives``: a single tree becomes ``target`` itself, of several each becomes ``target/NAME``. With
    ``to_device`` a single image may replace what is on the block device ``target``. ``needs_room``: for all that the
    archives are known to have.

    Raises UsageError when the target is in use, KeyProblem without the key that is needed and NoSpace when what is new
    cannot fit, all before anything is written; Damaged when archives cannot be read to their end, once all others are
    restored; ArchiverError when the restore cannot go on. What concerns single files is told as events and in the
    result.
    """
    clock = snapshot.store.clock
    began = clock.steady()
    result = RestoreResult(str(snapshot.ref), target)
    hear = result.hearing(listener)
    damage: list[Damaged] = []
    places = _places(snapshot, archives, target, options, to_device)
    if needs_room:
        check_room(snapshot, _all_new(snapshot, places, options), hear)
    for archive, place in places:
        try:
            if archive.kind == "tree":
                _restore_tree(_Job.of(snapshot, archive, place, options), verify, hear, result)
            else:
                _restore_file(snapshot, archive, place, verify, hear, result)
        except Damaged as error:
            damage.append(error)
    if len(damage) > 1:
        hint = "everything that could be read is restored; verify tells which files are concerned"
        raise Damaged("; ".join(map(str, damage)), hint=hint) from damage[0]
    if damage:
        raise damage[0]
    result.verified = verify
    result.duration = clock.steady() - began
    return result


def plan(
    snapshot: Snapshot, archives: Sequence[ArchiveFiles], target: str, options: RestoreOptions, listener: Listener
) -> list[tuple[str, Plan]]:
    """What ``restore`` would do: the target of each tree and its plan, to be closed. Files that may have the right
    contents are read, nothing is written. Raises as ``restore``."""
    plans: list[tuple[str, Plan]] = []
    try:
        for archive, place in _places(snapshot, archives, target, options):
            if archive.kind != "tree":
                raise UsageError(f"{archive.name} is no directory tree, there is nothing to plan")
            job = _Job.of(snapshot, archive, place, options)
            made = Plan()
            plans.append((job.target, made))
            _plan(job, made, listener)
    except BaseException:
        for _, made in plans:
            made.close()
        raise
    return plans


@dataclass(frozen=True, slots=True)
class _Job:
    """One tree to be restored to the directory ``target``."""

    tree: Tree
    target: str
    choice: Choice
    existing: Existing
    options: RestoreOptions
    fresh: bool  # nothing is in the target

    @classmethod
    def of(cls, snapshot: Snapshot, archive: ArchiveFiles, place: str, options: RestoreOptions) -> _Job:
        tree = snapshot.tree(archive)
        choice = make_choice(tree, replace(options, path=None))
        existing = Existing(options.overwrite)
        if options.path is not None:
            place, choice = _one_entry(tree, options, place, choice)
            if choice.name:
                if options.overwrite is None and os.path.lexists(os.path.join(os.fsencode(place), choice.name)):
                    shown = os.path.join(place, os.fsdecode(choice.name))
                    raise UsageError(f"{shown} exists already", hint="--overwrite says what becomes of it")
                return cls(tree, place, choice, existing, options, fresh=False)
        fresh = _is_free(place)
        if options.overwrite is None and not fresh:
            _refuse(place)
        return cls(tree, place, choice, existing, options, fresh)


def _all_new(snapshot: Snapshot, places: Sequence[tuple[ArchiveFiles, str]], options: RestoreOptions) -> Iterator[New]:
    """What is written whatever is in the target already."""
    is_part = bool(options.include or options.exclude or options.path is not None)
    for archive, place in places:
        if archive.kind == "image" and not is_device(place):
            yield New(archive, place)
        elif archive.kind == "tree" and is_part:
            yield New(archive, place, partial(_new_part, snapshot, archive, place, options))
        elif archive.kind == "tree" and _is_free(place):
            yield New(archive, place)


def _new_part(
    snapshot: Snapshot, archive: ArchiveFiles, place: str, options: RestoreOptions
) -> tuple[Tree, Choice] | None:
    job = _Job.of(snapshot, archive, place, options)
    name = job.choice.name
    is_new = job.fresh or (name and not os.path.lexists(os.path.join(os.fsencode(job.target), name)))
    return (job.tree, job.choice) if is_new else None


def _is_free(place: str) -> bool:
    return not os.path.isdir(place) or not os.listdir(place)


def make_choice(tree: Tree, options: RestoreOptions) -> Choice:
    """What of a tree the options choose; a path that is no directory keeps its name. Raises UsageError, NotFound."""
    owners = make_owners(tree, options.owner, options.user_map, options.group_map)
    choice = Choice.of(options.include, options.exclude, owners)
    choice.check(tree)
    if options.path is None:
        return choice
    if options.include or options.exclude:
        raise UsageError("a single path is restored as it is, without --include and --exclude")
    node = entry_at(tree, options.path)
    return replace(choice, path=options.path, name=b"" if node.kind == "dir" else node.name)


def _one_entry(tree: Tree, options: RestoreOptions, place: str, choice: Choice) -> tuple[str, Choice]:
    """Where a single entry goes: (directory, choice with the name in it)."""
    path = options.path
    assert path is not None
    node = entry_at(tree, path)
    if node.kind == "dir":
        return place, replace(choice, path=path)
    if os.path.isdir(place):
        return place, replace(choice, path=path, name=node.name)
    directory, name = os.path.split(place)
    if not name:
        raise UsageError(f"{place} is not a directory")
    return directory or ".", replace(choice, path=path, name=os.fsencode(name))


def _plan(job: _Job, made: Plan | None, listener: Listener) -> None:
    delete = job.options.delete
    planner = Planner(job.target, job.choice, job.existing, made, delete=delete, fresh=job.fresh)
    Traversal(job.tree, job.choice, planner, "compare", listener).run()
    planner.finish()
    if made is not None:
        made.available = available(existing_part(job.target))


def _restore_tree(job: _Job, verify: bool, hear: Listener, result: RestoreResult) -> None:
    tree, store = job.tree, job.tree.snapshot.store
    if not job.fresh and job.existing.compares:
        _plan(job, None, hear)
    make_parents(os.path.join(job.target, ""))
    quarantine = Quarantine(job.target, store.clock.now()) if job.options.delete else None
    kept = SpillTable(tempfile.gettempdir())
    rereader = Rereader(job.target, hear) if verify else None
    large = LargePieces(rereader, store.clock.steady)
    try:
        writer = Writer(job.target, job.choice, job.existing, quarantine, rereader, large, kept, store.random, hear)
        traversal = Traversal(tree, job.choice, writer, "restore", hear)
        try:
            with _read_to_its_end(rereader):
                traversal.run()
        finally:
            _count(result, traversal, writer, quarantine)
        if not traversal.chosen:
            raise NotFound(f"nothing in {tree.files.name} of {tree.snapshot.ref} fits --include and --exclude")
    finally:
        kept.close()
        if quarantine is not None:
            quarantine.close()
        large.close()
        if rereader is not None:
            rereader.close()


def _count(result: RestoreResult, traversal: Traversal, writer: Writer, quarantine: Quarantine | None) -> None:
    result.entries += traversal.entries
    result.files += traversal.files
    result.bytes += traversal.bytes
    result.replaced += writer.replaced
    result.updated += writer.outcome.updated
    result.unchanged += writer.outcome.unchanged
    result.kept += writer.outcome.kept
    if quarantine is not None and quarantine.path is not None:
        result.removed += quarantine.moved
        result.quarantine.append(quarantine.path)


@contextmanager
def _read_to_its_end(rereader: Rereader | None) -> Iterator[None]:
    """What was restored before an archive turned out to be damaged counts, too."""
    try:
        yield
    except Damaged:
        if rereader is not None:
            rereader.finish()
        raise
    if rereader is not None:
        rereader.finish()


def _places(
    snapshot: Snapshot,
    archives: Sequence[ArchiveFiles],
    target: str,
    options: RestoreOptions,
    to_device: bool = False,
) -> list[tuple[ArchiveFiles, str]]:
    """Where the archives go. Raises UsageError and KeyProblem, before anything is written."""
    if is_device(target) and (len(archives) > 1 or archives[0].kind != "image"):
        raise UsageError(f"{target} is a device: only an image can be restored to it", hint="choose it with --archive")
    if options.delete and options.overwrite is None:
        raise UsageError("--delete needs --overwrite", hint="without it the target must be empty anyhow")
    if options.path is not None and (options.include or options.exclude or options.delete or len(archives) > 1):
        raise UsageError("a single path is restored as it is, without --include, --exclude and --delete")
    several = len(archives) > 1
    places = [(archive, _place(archive, target, several=several)) for archive in archives]
    for archive, place in places:
        if archive.kind != "tree" and options.for_trees_only:
            raise UsageError(f"{archive.name} is no directory tree: it is restored as a whole, to a new file")
        for file in archive.files:
            snapshot.require_key(file)
        _check_place(archive, place, snapshot, options, to_device)
    return places


def _place(archive: ArchiveFiles, target: str, *, several: bool) -> str:
    """Where an archive goes. For an image or blob the target names the new file, or the directory that gets it."""
    if several or (archive.kind != "tree" and os.path.isdir(target)):
        return os.path.join(target, archive.name)
    return target


def _check_place(
    archive: ArchiveFiles, place: str, snapshot: Snapshot, options: RestoreOptions, to_device: bool
) -> None:
    """Raises UsageError unless ``place`` is free: for a tree an empty directory will do, or whatever is overwritten."""
    if not place:
        raise UsageError("the target has no name")
    with explained("look into", place):
        if lies_in(place, snapshot.store.layout.base):
            raise UsageError(f"{place} lies in the store itself", hint="restore to a place outside of it")
        if not os.path.lexists(place) or options.path is not None:
            return
        if archive.kind == "image" and is_device(place):
            check_device(place, archive.files[0].size, allowed=to_device)
            return
        if archive.kind != "tree":
            raise UsageError(f"{place} exists already", hint="name a file that does not exist")
        if not os.path.isdir(place):
            raise UsageError(f"{place} is not a directory")
        if options.overwrite is None and os.listdir(place):
            _refuse(place)


def _refuse(place: str) -> NoReturn:
    hint = "restore into a new or empty directory, or say --overwrite; an interrupted restore goes on with if-changed"
    raise UsageError(f"{place} is not empty", hint=hint)


def _restore_file(
    snapshot: Snapshot, archive: ArchiveFiles, path: str, verify: bool, hear: Listener, result: RestoreResult
) -> None:
    make_parents(path)
    write = write_image if archive.kind == "image" else write_blob
    result.bytes += write(snapshot, archive.files[0], path, verify, hear)
    result.files += 1
    result.entries += 1
