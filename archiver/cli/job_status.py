"""job status, and how jobs stand for whoever else tells it"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import Output
from archiver.core.events import Notice
from archiver.errors import EXIT_INTERRUPTED, ArchiverError, Locked, NotFound, Skipped, UsageError, worst

if TYPE_CHECKING:
    from archiver.jobs.history import History, Run
    from archiver.jobs.profile import Profile
    from archiver.jobs.standing import Standing

STALE = 31
_NOT_DONE = {Skipped.exit_code: "skipped", EXIT_INTERRUPTED: "interrupted"}


@click.command("status")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@global_options
@click.pass_context
def status(ctx: click.Context, context: Context, names: tuple[str, ...]) -> None:
    """How jobs stand (default: all): exit code 31 when anything is older than a profile allows.

    Whoever is to be told of problems, as the profiles say, is told what is new.
    """
    from archiver.jobs.places import check_name

    output = context.output
    for name in names:
        check_name(name)
    try:
        chosen = {name: find_profile(name) for name in names} if names else profiles_here()
    except NotFound:
        for name in set(names) - profiles_here().keys():
            tell_of_profile(name, output)
        raise
    for name, path in chosen.items():
        _tell_of(name, path, output)
    items, code = standings(chosen)
    with output.read_or_not():
        if output.as_json:
            output.document({"schema": 1, "items": items})
        else:
            show_standings(output, items)
            if not items:
                output.summary("there are no jobs")
    ctx.exit(code)


def _tell_of(name: str, path: str, output: Output) -> None:
    from archiver.jobs.load import load

    try:
        profile = load(name, path)
    except ArchiverError:  # what is wrong with it is shown
        tell_of_profile(name, output)
        return
    tell_people(profile, history_of(name), None, output)


def tell_of_profile(name: str, output: Output) -> None:
    """Whoever the last good profile wants to be told hears that there is none now: a job that cannot begin must not be
    silent."""
    from archiver.jobs.notify.fallback import tell_of_profile as tell_them

    history = history_of(name)
    if os.path.isdir(history.directory):
        with suppress(ArchiverError), history.telling():
            tell_them(name, history.directory, history.clock, output.hear)


def standings(chosen: dict[str, str]) -> tuple[list[dict[str, Any]], int]:
    """How each of these jobs stands, as --json has it, and the exit code that says so."""
    items: list[dict[str, Any]] = []
    codes = []
    for name, path in chosen.items():
        try:
            found = standing_of(name, path)
        except ArchiverError as error:
            state = "profile wrong" if isinstance(error, UsageError) else "unknown"
            items.append({"job": name, "state": state, "error": error.as_json()})
            codes.append(error.exit_code)
            continue
        items.append({"state": state_of(found), **found.as_json()})
        codes.append(STALE if found.is_stale else 0)
    return items, worst(codes)


def jobs_of(store: str | None) -> dict[str, str]:
    """The profiles of the jobs that back up into ``store``, of all jobs for None. A wrong one is told always."""
    from archiver.jobs.load import read

    found = profiles_here()
    if store is None:
        return found
    place = os.path.realpath(store)
    chosen = {}
    for name, path in found.items():
        profile = read(name, path).profile
        if profile is None or place in map(os.path.realpath, profile.stores):
            chosen[name] = path
    return chosen


def show_standings(output: Output, items: Sequence[dict[str, Any]]) -> None:
    for item in items:
        if "error" in item:
            output.line(f"job {item['job']}: {item['error']['message']}")
            continue
        last = item["last_run"]
        when = f", last run {when_text(last['began'])}" if last is not None else ""
        output.line(f"job {item['job']}: {item['state']}{when}")
        for age in item["ages"]:
            newest = when_text(age["newest"]) if age["newest"] is not None else "never"
            late = "  TOO OLD" if age["stale"] else ""
            output.line(f"  {age['step']:8}{newest:22}{age['target']}{late}")
        for trouble in item["troubles"]:
            output.line(f"  {trouble['kind']}: {trouble['text']}")


def state_of(standing: Standing) -> str:
    """In one or two words."""
    if standing.is_running:
        return "running"
    if standing.is_stale:
        return "stale"
    kinds = [trouble.kind for trouble in standing.troubles]
    if kinds:
        return {"failure": "failed", "crash": "crashed"}.get(kinds[0], kinds[0])
    if standing.last is None:
        return "never run"
    if all(age.newest is None for age in standing.ages if age.step == "backup"):
        return "never saved"
    return _NOT_DONE.get(standing.last.exit_code or 0, "good")


def tell_people(profile: Profile, history: History, run: Run | None, output: Output) -> None:
    """Tell people what is new: what went wrong or is too old, and what is over. While a run is going on nothing is
    told: it does so itself."""
    from archiver.jobs.notify.after import tell, tell_of_failure
    from archiver.jobs.standing import standing

    def say() -> None:
        if history.is_running():
            return
        try:
            found = standing(profile, history, history.clock.now())
        except ArchiverError as error:
            tell_of_failure(profile, error, history.directory, history.clock, output.hear)
            return
        tell(profile, found, run, history.directory, output.hear, history.clock)

    _alone(history, say, output)


def tell_of_error(profile: Profile, history: History, error: ArchiverError, output: Output) -> None:
    """Tell people what kept a run from having a record."""
    from archiver.jobs.notify.after import tell_of_failure

    _alone(history, lambda: tell_of_failure(profile, error, history.directory, history.clock, output.hear), output)


def _alone(history: History, say: Callable[[], object], output: Output) -> None:
    """A directory of state that cannot be written must not make it silent."""
    with ExitStack() as stack:
        try:
            stack.enter_context(history.telling())
        except Locked as error:
            output.hear(Notice(f"nobody was told how the job stands: {error}", "warning"))
            return
        except ArchiverError as error:
            output.hear(Notice(str(error), "warning"))
        say()


def _places() -> tuple[str, ...]:
    from archiver.jobs.places import directories

    return directories(os.environ)


def profiles_here() -> dict[str, str]:
    from archiver.jobs.places import profiles

    return profiles(_places())


def find_profile(name: str) -> str:
    from archiver.jobs.places import find

    try:
        return find(name, _places())
    except NotFound as error:
        known = ", ".join(profiles_here())
        raise NotFound(str(error), hint=f"there are {known}" if known else error.hint) from error


def load_profile(name: str) -> Profile:
    """Raises NotFound, ProfileProblem."""
    from archiver.jobs.load import load

    return load(name, find_profile(name))


def history_of(name: str) -> History:
    from archiver.jobs.history import History, state_directory

    return History(state_directory(os.environ, name))


def standing_of(name: str, path: str) -> Standing:
    from archiver.jobs.load import load
    from archiver.jobs.standing import standing

    history = history_of(name)
    return standing(load(name, path), history, history.clock.now())


def when_text(seconds: int | None) -> str:
    from formats.naming import format_time

    return format_time(max(seconds, 1)) if seconds is not None else ""
