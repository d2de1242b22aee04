"""Carrying out a restore from media (spec tape.md 10)."""

from __future__ import annotations

from archiver.core.events import Listener
from archiver.tape.members import Loader, Member, SetCatalog
from archiver.tape.restore.chosen import Chosen
from archiver.tape.restore.plan import RestorePlan
from archiver.tape.restore.receiving import RestoreResult
from archiver.tape.restore.routes import Routes
from archiver.tape.restore.whole import Catalogued, Whole
from formats.crypt import CryptConfig
from formats.tape.catalog import Entry

__all__ = ["RestoreResult", "carry_out", "survey"]


def _ignore(member: Member, entries: list[Entry], lost: int) -> None:
    """Nobody wants a catalog."""


def carry_out(
    catalog: SetCatalog,
    plan: RestorePlan,
    routes: Routes,
    media: Loader,
    crypt: CryptConfig | None,
    listener: Listener,
    *,
    catalogued: Catalogued = _ignore,
) -> RestoreResult:
    """Do what the plan says. ``catalogued`` is told what is on a medium of which there was no catalog, once all of it
    was read. Raises UsageError when a store cannot be written, Locked during a gc; all else is in the result."""
    result = RestoreResult(problems=list(plan.problems))
    if not plan.visits:
        return result
    if plan.whole:
        with Whole(catalog, routes, media, crypt, listener, result) as whole, whole.stopping():
            whole.run(plan, catalogued)
    else:
        with Chosen(catalog, routes, media, crypt, listener, result) as chosen, chosen.stopping():
            chosen.run(plan)
    return result


def survey(
    catalog: SetCatalog,
    plan: RestorePlan,
    routes: Routes,
    media: Loader,
    crypt: CryptConfig | None,
    listener: Listener,
) -> None:
    """Complete a plan: read the snapshots' archives from the media that are at hand, so that it tells exactly which
    files with chunks are needed. The stores stay as they are."""
    if plan.visits:
        kind = Whole if plan.whole else Chosen
        with kind(catalog, routes, media, crypt, listener, RestoreResult(), is_dry=True) as run:
            run.survey(plan)
