"""The snapshots of whole groups, opened for commands that look into all of them: one that cannot be looked into does
not hide the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from archiver.cli.context import Context
from archiver.errors import EXIT_OK, ArchiverError, Damaged, KeyProblem, NotFound, worst_of

if TYPE_CHECKING:
    from archiver.browse.snapshot import Snapshot
    from archiver.cli.output import Output
    from archiver.store.layout import GroupRef, SnapshotRef
    from archiver.store.store import Store


class NotSearched:
    """Snapshots that could not be looked into, or not to the end: each is told at once, the worst error in the end."""

    def __init__(self, output: Output, store: Store) -> None:
        self._output, self._store = output, store
        self._errors: dict[SnapshotRef, ArchiverError] = {}

    def add(self, ref: SnapshotRef, error: ArchiverError) -> None:
        """One that was removed meanwhile is nothing to tell."""
        from archiver.core.events import FileProblem

        if ref in self._errors or not self._store.is_finished(ref):
            return
        self._errors[ref] = error
        self._output.hear(FileProblem(str(ref).encode(), str(error), "not searched"))

    @property
    def error(self) -> ArchiverError | None:
        return worst_of(list(self._errors.values()))

    @property
    def exit_code(self) -> int:
        return EXIT_OK if self.error is None else self.error.exit_code

    def as_json(self) -> dict[str, Any]:
        """The end of a document that has what was found in the others."""
        told = [{"snapshot": str(ref), "reason": str(error)} for ref, error in self._errors.items()]
        return {"not_searched": told} | ({} if self.error is None else {"error": self.error.as_json()})

    def end(self) -> None:
        """Raises the worst error."""
        if self.error is not None:
            raise self.error


def chosen_groups(context: Context, store: Store, group: str | None) -> list[GroupRef]:
    """That one, or all at and below ``--ns``."""
    if group is not None:
        return [store.find_group(group, context.namespace)]
    return [found for below in store.namespaces(context.namespace) for found in store.groups(below)]


def opened_groups(
    context: Context, store: Store, groups: list[GroupRef], allow_unsigned: bool, not_searched: NotSearched
) -> Iterator[list[Snapshot]]:
    """The finished snapshots of each group, those that vanish meanwhile left out, and those whose key is missing, that
    nobody signed or that are damaged told to ``not_searched``. Raises KeyProblem when the key that was asked for cannot
    be had."""
    from archiver.store.layout import SnapshotRef

    for group in groups:
        found: list[Snapshot] = []
        failed = False
        try:
            times = store.times(group)
        except NotFound:
            continue
        for when in times:
            ref = SnapshotRef(group, when)
            try:
                found += _opened(context, store, ref, allow_unsigned)
            except (Damaged, KeyProblem) as error:
                if error is context.no_key and context.keyfile is not None:
                    raise  # there is no use in going on with what was asked for
                failed = True
                not_searched.add(ref, error)
        snapshots = list(_proven(found, failed, not_searched))
        if snapshots:
            yield snapshots


def _proven(snapshots: list[Snapshot], failed: bool, not_searched: NotSearched) -> Iterator[Snapshot]:
    """Those of a group that may be handed out. ``failed``: there are others in it, which may be signed."""
    is_signed = any(one.made_with_key for one in snapshots)
    if failed and snapshots and not is_signed:
        is_signed = snapshots[0].is_group_signed()
    for one in snapshots:
        one.group_is_signed = is_signed
        try:
            for archive in one.archives():
                for file in archive.files:
                    one.require_key(file)
        except (Damaged, KeyProblem) as error:
            not_searched.add(one.ref, error)
        else:
            yield one


def _opened(context: Context, store: Store, ref: SnapshotRef, allow_unsigned: bool) -> list[Snapshot]:
    """A snapshot; nothing when it is not finished, or gone."""
    try:
        if not store.is_finished(ref):
            return []
        snapshot = context.opened(store, ref, allow_unsigned=allow_unsigned)
    except NotFound:
        return []
    snapshot.archives()  # raises Damaged when these cannot be told
    return [snapshot]
