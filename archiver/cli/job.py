"""job list, check, show, run, ack"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options, prompt
from archiver.cli.job_report import report
from archiver.cli.job_status import (
    find_profile,
    history_of,
    load_profile,
    profiles_here,
    standing_of,
    state_of,
    status,
    tell_of_error,
    tell_of_profile,
    tell_people,
    when_text,
)
from archiver.cli.job_units import install, notify, uninstall
from archiver.cli.output import Output
from archiver.errors import ArchiverError, Locked, UsageError

if TYPE_CHECKING:
    from archiver.jobs.history import History, Run
    from archiver.jobs.load import Loaded
    from archiver.jobs.profile import Profile
    from archiver.jobs.surroundings import Surroundings
    from archiver.jobs.tables import Origin

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
    items = [_listed(name, path) for name, path in profiles_here().items()]
    if output.as_json:
        output.document({"schema": 1, "items": items})
        return
    rows = [(item["job"], item["state"], when_text(item["last_run"]), item["profile"]) for item in items]
    if rows:
        output.table(("job", "state", "last run", "profile"), rows)


def _listed(name: str, path: str) -> dict[str, Any]:
    from archiver.jobs.load import ProfileProblem

    item: dict[str, Any] = {"job": name, "profile": path, "last_run": None}
    try:
        found = standing_of(name, path)
    except ProfileProblem:
        return item | {"state": "profile wrong"}
    except ArchiverError as error:
        return item | {"state": str(error)}
    if found.last is not None:
        item["last_run"] = found.last.began
    return item | {"state": state_of(found)}


@job.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@global_options
@click.pass_context
def check(ctx: click.Context, context: Context, names: tuple[str, ...]) -> None:
    """Explain every mistake in profiles: file, line, and what is allowed (default: of all jobs).

    What is not there at the moment, such as a drive, is told as a note.
    """
    output = context.output
    chosen = {name: find_profile(name) for name in names} if names else profiles_here()
    found = [_checked(name, path, output) for name, path in chosen.items()]
    problems = [(loaded.name, problem) for loaded in found for problem in loaded.problems]
    wrong = any(problem.is_error for _, problem in problems)
    with output.read_or_not():
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
    loaded = read(name, find_profile(name))
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
@click.option("--if-due", is_flag=True, help="Only when none has ended since the [schedule] wanted one last.")
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
    from archiver.jobs.places import check_name
    from archiver.jobs.plan import plan_run
    from archiver.jobs.report.write import write_reports
    from archiver.jobs.run import run_job
    from archiver.jobs.standing import crash_of

    output = context.output
    _refuse_global(context)
    around = surroundings(output)
    check_name(name)
    try:
        profile = load_profile(name)
    except ArchiverError:
        tell_of_profile(name, output)
        raise
    history = history_of(name)
    if dry_run:
        planned = plan_run(profile, history.settled(), around.clock.now())
        chosen = [step for step in planned if not only or step.name in only]
        if output.as_json:
            output.document({"schema": 1, "job": name, "dry_run": True, "items": [step.as_json() for step in chosen]})
            return
        rows = [(step.name, step.target, "yes" if step.is_due else "no", step.reason) for step in chosen]
        output.table(("step", "target", "due", "reason"), rows)
        return
    try:
        if if_due and (history.is_running() or not _is_due(profile, history)):
            if output.as_json:
                output.document({"schema": 1, "job": name, "dry_run": False, "items": []})
            output.summary("no run is due")
            return
        if crash_of(history.settled()) is not None:  # the run that begins now would hide it
            tell_people(profile, history, None, output)
        done = run_job(profile, history, around, only=only, whatever_the_power=any_power)
    except (Locked, UsageError):
        raise
    except ArchiverError as error:
        tell_of_error(profile, history, error, output)
        raise
    except Exception:  # a bug of ours is told by main, but not to whom the profile names
        tell_people(profile, history, None, output)
        raise
    tell_people(profile, history, done, output)
    write_reports(profile, history, done, around.listener)
    tell_run(output, done)
    ctx.exit(done.exit_code or 0)


def _is_due(profile: Profile, history: History) -> bool:
    from archiver.jobs.schedule import is_due

    if profile.schedule is None:
        raise UsageError(f"the job {profile.name} has no [schedule] that says when it is due")
    return is_due(profile.schedule, history.settled(), history.clock.now())


def tell_run(output: Output, run: Run) -> None:
    if output.as_json:
        output.document(run.as_json())
        return
    if run.steps:
        rows = [(step.name, step.target, step.state, f"{step.seconds:.1f} s", step.text) for step in run.steps]
        output.table(("step", "target", "result", ">time", ""), rows)
    if run.text:
        due = f"; due {when_text(run.due)}" if run.due is not None else ""
        output.line(f"{run.text}{due}")


@job.command()
@click.argument("name")
@global_options
def ack(context: Context, name: str) -> None:
    """What was held back is right: the next run goes on with prune and gc."""
    output = context.output
    profile_path = find_profile(name)
    history = history_of(name)
    held = [trouble for trouble in standing_of(name, profile_path).troubles if trouble.kind == "held"]
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


def _checked(name: str, path: str, output: Output) -> Loaded:
    from archiver.jobs.check import check as check_all
    from archiver.jobs.load import read

    return check_all(read(name, path), surroundings(output))


for command in (status, install, uninstall, notify, report):
    job.add_command(command)
