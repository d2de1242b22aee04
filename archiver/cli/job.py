"""job list, check, show, run, ack, status"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options, prompt
from archiver.cli.job_report import report
from archiver.cli.job_units import install, notify, uninstall
from archiver.cli.output import Output
from archiver.errors import EXIT_INTERRUPTED, ArchiverError, Locked, NotFound, Skipped, UsageError, worst

if TYPE_CHECKING:
    from archiver.jobs.history import History, Run
    from archiver.jobs.load import Loaded
    from archiver.jobs.profile import Profile
    from archiver.jobs.standing import Standing
    from archiver.jobs.surroundings import Surroundings
    from archiver.jobs.tables import Origin

STALE = 31
_NOT_DONE = {Skipped.exit_code: "skipped", EXIT_INTERRUPTED: "interrupted"}
_STEPS = ("backup", "guard", "prune", "gc", "verify", "sync", "tape", "drill")


@click.group()
@global_options
def job() -> None:
    """Nightly runs: what a profile says, done by itself.

    NAME is a job: its profile is NAME.toml in your configuration directory (~/.config/archiver) or in /etc/archiver.
    """


@job.command("list")
@global_options
def list_(context: Context) -> None:
    """List the jobs, and how each stands."""
    output = context.output
    items = [_listed(name, path) for name, path in _profiles().items()]
    if output.as_json:
        output.document({"schema": 1, "items": items})
        return
    rows = [(item["job"], item["state"], _when(item["last_run"]), item["profile"]) for item in items]
    if rows:
        output.table(("job", "state", "last run", "profile"), rows)


def _listed(name: str, path: str) -> dict[str, Any]:
    from archiver.jobs.load import ProfileProblem

    item: dict[str, Any] = {"job": name, "profile": path, "last_run": None}
    try:
        found = _standing(name, path)
    except ProfileProblem:
        return item | {"state": "profile wrong"}
    except ArchiverError as error:
        return item | {"state": str(error)}
    if found.last is not None:
        item["last_run"] = found.last.began
    return item | {"state": state_of(found)}


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


@job.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@global_options
@click.pass_context
def check(ctx: click.Context, context: Context, names: tuple[str, ...]) -> None:
    """Explain every mistake in profiles: file, line, and what is allowed (default: of all jobs).

    What is not there at the moment, such as a drive, is told as a note.
    """
    output = context.output
    chosen = {name: _find(name) for name in names} if names else _profiles()
    found = [_checked(name, path, output) for name, path in chosen.items()]
    problems = [(loaded.name, problem) for loaded in found for problem in loaded.problems]
    wrong = any(problem.is_error for _, problem in problems)
    if output.as_json:
        items = [{"job": name, **problem.as_json()} for name, problem in problems]
        output.document({"schema": 1, "jobs": list(chosen), "good": not wrong, "items": items})
    else:
        for _, problem in problems:
            output.line(f"{'' if problem.is_error else 'note: '}{problem}")
        if not wrong:
            output.summary(f"{len(found)} {'profile is' if len(found) == 1 else 'profiles are'} right")
    ctx.exit(UsageError.exit_code if wrong else 0)


@job.command()
@click.argument("name")
@click.option("--origin", is_flag=True, help="Where each value comes from.")
@global_options
def show(context: Context, name: str, origin: bool) -> None:
    """Show what a job's profile says, with the defaults of what it does not say."""
    from archiver.jobs.load import ProfileProblem, read

    output = context.output
    loaded = read(name, _find(name))
    if loaded.profile is None:
        raise ProfileProblem(loaded)
    if output.as_json:
        items = [
            {"key": key, "value": each.value, **_origin_json(each, loaded)} for key, each in loaded.origins.items()
        ]
        output.document({"schema": 1, "job": name, "profile": loaded.path, "items": items})
        return
    rows = [(key, _shown(each.value), _origin(each, loaded)) for key, each in loaded.origins.items()]
    if origin:
        output.table(("key", "value", "from"), rows)
    else:
        output.table(("key", "value"), [row[:2] for row in rows])


def _shown(value: object) -> str:
    import json

    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _origin(origin: Origin, loaded: Loaded) -> str:
    if origin.place == "file":
        return f"{loaded.path}:{origin.line}"
    return origin.source or "default"


def _origin_json(origin: Origin, loaded: Loaded) -> dict[str, Any]:
    return {"from": origin.place, "file": loaded.path if origin.place == "file" else None, "line": origin.line}


@job.command()
@click.argument("name")
@click.option("--only", multiple=True, type=click.Choice(_STEPS), help="This step, due or not (repeatable).")
@click.option("--any-power", is_flag=True, help="Also on battery and on a metered network.")
@click.option("--if-due", is_flag=True, help="Only when none was since the [schedule] wanted one last: for cron.")
@click.option("--dry-run", is_flag=True, help="Only show which steps are due.")
@global_options
@click.pass_context
def run(
    ctx: click.Context,
    context: Context,
    name: str,
    only: tuple[str, ...],
    any_power: bool,
    if_due: bool,
    dry_run: bool,
) -> None:
    """Run a job: backup, prune, gc when due, verify within its budget, copies to where a target is there.

    A step that fails does not keep the others from being done; the exit code is the worst one. Exit code 13: a target
    is absent, and its copy deferred; 14: skipped, as the profile's power policy says; 30: held back, until job ack.
    """
    from archiver.jobs.load import check_name
    from archiver.jobs.notify.after import tell_of_failure
    from archiver.jobs.plan import plan_run
    from archiver.jobs.run import run_job

    output = context.output
    _refuse_global(context)
    around = surroundings(output)
    check_name(name)
    try:
        profile = _loaded(name)
    except ArchiverError:
        _tell_of_profile(name, output)
        raise
    history = _history(name)
    if dry_run:
        planned = plan_run(profile, history.settled(), around.clock.now())
        chosen = [step for step in planned if not only or step.name in only]
        if output.as_json:
            output.document({"schema": 1, "job": name, "dry_run": True, "items": [step.as_json() for step in chosen]})
            return
        rows = [(step.name, step.target, "yes" if step.is_due else "no", step.reason) for step in chosen]
        output.table(("step", "target", "due", "reason"), rows)
        return
    if if_due and not _is_due(profile, history):
        if output.as_json:
            output.document({"schema": 1, "job": name, "dry_run": False, "items": []})
        output.summary("no run is due")
        return
    try:
        if any(run.state == "crashed" for run in history.settled()[:1]):  # the run that begins now would hide it
            _notify(profile, history, None, output)
        done = run_job(profile, history, around, only=only, whatever_the_power=any_power)
    except (Locked, UsageError):
        raise
    except ArchiverError as error:
        tell_of_failure(profile, error, history.directory, history.clock, output.hear)
        raise
    _notify(profile, history, done, output)
    tell_run(output, done)
    ctx.exit(done.exit_code or 0)


def _is_due(profile: Profile, history: History) -> bool:
    """A run that was skipped does not count: perhaps it need not be now. Nor does one of a time that is still to come,
    as the clock was wrong then: who trusted it would not run for years."""
    from archiver.jobs.history import SKEW
    from archiver.jobs.schedule import last_due

    if profile.schedule is None:
        raise UsageError(f"the job {profile.name} has no [schedule] that says when it is due")
    now = history.clock.now()
    due = last_due(profile.schedule, now)
    codes = [run.exit_code for run in history.settled() if due is not None and due <= run.began <= now + SKEW]
    return not any(code is not None and code not in _NOT_DONE for code in codes)


def _notify(profile: Profile, history: History, run: Run | None, output: Output) -> None:
    """Tell people what is new: what went wrong or is too old, and what is over. While a run is going on nothing is
    told: it does so itself. A directory of state that cannot be written must not make it silent."""
    from archiver.core.events import Notice
    from archiver.jobs.notify.after import tell
    from archiver.jobs.standing import standing

    found = standing(profile, history, history.clock.now())
    try:
        history.lock()
    except Locked:
        return
    except ArchiverError as error:
        output.hear(Notice(str(error), "warning"))
    try:
        tell(profile, found, run, history.directory, output.hear, history.clock)
    finally:
        history.close()


def tell_run(output: Output, run: Run) -> None:
    if output.as_json:
        output.document(run.as_json())
        return
    if run.steps:
        rows = [(step.name, step.target, step.state, f"{step.seconds:.1f} s", step.text) for step in run.steps]
        output.table(("step", "target", "result", ">time", ""), rows)
    if run.text:
        due = f"; due {_when(run.due)}" if run.due is not None else ""
        output.line(f"{run.text}{due}")


@job.command()
@click.argument("name")
@global_options
def ack(context: Context, name: str) -> None:
    """What was held back is right: the next run goes on with prune and gc."""
    output = context.output
    profile_path = _find(name)
    history = _history(name)
    held = [trouble for trouble in _standing(name, profile_path).troubles if trouble.kind == "held"]
    newest = next((run.number for run in history.settled() if run.state != "running"), 0)
    if held:
        history.acknowledge(newest)
    if output.as_json:
        output.document({"schema": 1, "job": name, "run": newest, "items": [trouble.as_json() for trouble in held]})
        return
    for trouble in held:
        output.line(f"accepted: {trouble.text}")
    if not held:
        output.summary("nothing is held")


@job.command("status")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@global_options
@click.pass_context
def status(ctx: click.Context, context: Context, names: tuple[str, ...]) -> None:
    """How jobs stand (default: all): exit code 31 when anything is older than a profile allows.

    Whoever is to be told of problems, as the profiles say, is told what is new.
    """
    from archiver.jobs.load import check_name

    output = context.output
    for name in names:
        check_name(name)
    try:
        chosen = {name: _find(name) for name in names} if names else _profiles()
    except NotFound:
        for name in set(names) - _profiles().keys():
            _tell_of_profile(name, output)
        raise
    for name, path in chosen.items():
        _tell_of(name, path, output)
    items, code = standings(chosen)
    if output.as_json:
        output.document({"schema": 1, "items": items})
    else:
        show_standings(output, items)
        if not items:
            output.summary("there are no jobs")
    ctx.exit(code)


def _tell_of(name: str, path: str, output: Output) -> None:
    from archiver.jobs.load import load
    from archiver.jobs.notify.after import tell_of_failure

    try:
        profile = load(name, path)
    except ArchiverError:  # what is wrong with it is shown
        _tell_of_profile(name, output)
        return
    history = _history(name)
    try:
        _notify(profile, history, None, output)
    except ArchiverError as error:
        tell_of_failure(profile, error, history.directory, history.clock, output.hear)


def _tell_of_profile(name: str, output: Output) -> None:
    """Whoever the last good profile wants to be told hears that there is none now: a job that cannot begin must not be
    silent."""
    from archiver.jobs.notify.fallback import tell_of_profile

    history = _history(name)
    if os.path.isdir(history.directory):
        with suppress(ArchiverError):
            history.lock()
            try:
                tell_of_profile(name, history.directory, history.clock, output.hear)
            finally:
                history.close()


def standings(chosen: dict[str, str]) -> tuple[list[dict[str, Any]], int]:
    """How each of these jobs stands, as --json has it, and the exit code that says so."""
    items: list[dict[str, Any]] = []
    codes = []
    for name, path in chosen.items():
        try:
            found = _standing(name, path)
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

    found = _profiles()
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
        when = f", last run {_when(last['began'])}" if last is not None else ""
        output.line(f"job {item['job']}: {item['state']}{when}")
        for age in item["ages"]:
            newest = _when(age["newest"]) if age["newest"] is not None else "never"
            late = "  TOO OLD" if age["stale"] else ""
            output.line(f"  {age['step']:8}{newest:22}{age['target']}{late}")
        for trouble in item["troubles"]:
            output.line(f"  {trouble['kind']}: {trouble['text']}")


# -- what all of them need -------------------------------------------------------------------------------------------


def surroundings(output: Output) -> Surroundings:
    from archiver.jobs.surroundings import Surroundings

    return Surroundings(os.environ, listener=output.hear, prompt=prompt)


def _refuse_global(context: Context) -> None:
    given = {"--store": context.store, "--ns": context.ns, "--keyfile": context.keyfile}
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} is for other commands: a job's profile says that")
    if context.read_only:
        raise UsageError("--read-only is for other commands: a job writes into its store")


def _places() -> tuple[str, ...]:
    from archiver.jobs.load import directories

    return directories(os.environ)


def _profiles() -> dict[str, str]:
    from archiver.jobs.load import profiles

    return profiles(_places())


def _find(name: str) -> str:
    from archiver.jobs.load import find

    try:
        return find(name, _places())
    except NotFound as error:
        known = ", ".join(_profiles())
        raise NotFound(str(error), hint=f"there are {known}" if known else error.hint) from error


def _history(name: str) -> History:
    from archiver.jobs.history import History, state_directory

    return History(state_directory(os.environ, name))


def _checked(name: str, path: str, output: Output) -> Loaded:
    from archiver.jobs.check import check as check_all
    from archiver.jobs.load import read

    return check_all(read(name, path), surroundings(output))


def _loaded(name: str) -> Profile:
    """Raises NotFound, ProfileProblem."""
    from archiver.jobs.load import load

    return load(name, _find(name))


def _standing(name: str, path: str) -> Standing:
    from archiver.jobs.load import load
    from archiver.jobs.standing import standing

    history = _history(name)
    return standing(load(name, path), history, history.clock.now())


def _when(seconds: int | None) -> str:
    from formats.naming import format_time

    return format_time(max(seconds, 1)) if seconds is not None else ""


for command in (install, uninstall, notify, report):
    job.add_command(command)
