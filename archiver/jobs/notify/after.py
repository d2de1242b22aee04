"""Telling people how a job stands: after each run, and when somebody looks."""

from __future__ import annotations

from archiver.core.clock import Clock
from archiver.core.events import Listener
from archiver.errors import ArchiverError
from archiver.jobs.history import Run
from archiver.jobs.notify.chosen import heartbeats, subscriptions
from archiver.jobs.notify.deliver import Told, beat, deliver
from archiver.jobs.notify.fallback import remember
from archiver.jobs.profile import Profile
from archiver.jobs.standing import Standing, Trouble

_GOOD = (0, 3)  # exit codes of a run that saved what there was to save


def tell(
    profile: Profile,
    standing: Standing,
    run: Run | None,
    directory: str,
    listener: Listener,
    clock: Clock | None = None,
) -> Told:
    """Tell what is new. ``run``: the one that has ended just now. ``directory``: where the job keeps its state.

    Nothing is raised when nobody can be told. The heartbeat is asked for when all is well: also when a run was put off
    as the drive is not there, as long as nothing is overdue.
    """
    remember(profile.channels, directory, listener)
    done = None
    if run is not None and run.exit_code in _GOOD and not standing.troubles:
        done = f"the run ended well, {len(run.steps)} steps"
    told = deliver(
        profile.name,
        standing.troubles,
        subscriptions(profile.channels),
        directory,
        done=done,
        clock=clock or Clock(),
        listener=listener,
    )
    if run is None or standing.troubles:
        return told
    return Told((*told.items, *(beat(url, listener) for url in heartbeats(profile.channels))))


def tell_of_failure(profile: Profile, error: ArchiverError, directory: str, clock: Clock, listener: Listener) -> Told:
    """That the job cannot even keep a record, or read it, in which it would say so."""
    trouble = Trouble("run", "failure", f"the job cannot be run: {error}", clock.now())
    listeners = subscriptions(profile.channels)
    return deliver(profile.name, [trouble], listeners, directory, is_all=False, clock=clock, listener=listener)
