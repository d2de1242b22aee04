"""job install, uninstall, notify"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from archiver.cli.context import Context, global_options
from archiver.cli.job_status import load_profile
from archiver.errors import EXIT_OK, ArchiverError, UsageError

if TYPE_CHECKING:
    from archiver.cli.output import Output
    from archiver.jobs.install import Plan, Scope, Way

F = TypeVar("F", bound=Callable[..., Any])

_IN_WORDS = {"create": "wrote", "replace": "replaced", "remove": "removed", "unchanged": "unchanged:"}
_TO_BE = {"create": "would write", "replace": "would replace", "remove": "would remove", "unchanged": "unchanged:"}


def scope_option(function: F) -> F:
    return click.option(
        "--scope",
        type=click.Choice(["system", "user"]),
        help="Whose systemd runs it: the system's, or yours while you are logged in. Default: system for root.",
    )(function)


@click.command()
@click.argument("name")
@scope_option
@click.option("--with", "way", type=click.Choice(["systemd", "cron"]), help="Default: systemd where it runs.")
@click.option("--dry-run", is_flag=True, help="Only show what would be written and called.")
@global_options
def install(context: Context, name: str, scope: Scope | None, way: Way | None, dry_run: bool) -> None:
    """Have a job run by itself, as the [schedule] of its profile says: with timers of systemd, or a line of crontab.

    Runs that were missed are caught up as soon as the machine is on. With on-plug a run is started when the drive of a
    store or copy is mounted, too. To be called again when the schedule has changed.
    """
    from archiver.jobs.install import carry_out, is_systemd_running, plan_install

    output = context.output
    chosen_way = way or ("systemd" if is_systemd_running() else "cron")
    plan = plan_install(load_profile(name), program(), os.environ, _scope(scope), chosen_way)
    if not dry_run:
        carry_out(plan)
    _tell(plan, output, dry_run)
    if plan.way == "systemd" and plan.scope == "user" and not dry_run:
        output.message("it runs while you are logged in; to have it run always: loginctl enable-linger")


@click.command()
@click.argument("name")
@scope_option
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@global_options
def uninstall(context: Context, name: str, scope: Scope | None, dry_run: bool) -> None:
    """Have a job run by itself no more. Its profile, its history and all snapshots stay."""
    from archiver.jobs.install import carry_out, plan_uninstall
    from archiver.jobs.places import check_name

    check_name(name)
    plan = plan_uninstall(name, os.environ, _scope(scope))
    if not dry_run:
        carry_out(plan)
    _tell(plan, context.output, dry_run)


@click.command()
@click.argument("name")
@global_options
@click.pass_context
def notify(ctx: click.Context, context: Context, name: str) -> None:
    """Send a test by every way that the job's profile has to tell you of problems, and tell which do not work."""
    from archiver.core.clock import Clock
    from archiver.jobs.notify.chosen import heartbeats, subscriptions
    from archiver.jobs.notify.deliver import Told, beat, try_out

    output, profile = context.output, load_profile(name)
    told = try_out(name, subscriptions(profile.channels), clock=Clock(), listener=output.hear)
    told = Told((*told.items, *(beat(url, output.hear) for url in heartbeats(profile.channels))))
    if not told.items:
        raise UsageError(
            f"the job {name} tells nobody of its problems",
            hint=f'write into {profile.path} for example: [[notify]] and below it kind = "desktop"',
        )
    if output.as_json:
        output.document(told.as_json())
    for item in told.items:
        output.line(f"{item.channel}: {'sent' if item.reason is None else 'not sent'}")
    ctx.exit(ArchiverError.exit_code if told.failed else EXIT_OK)


def program() -> list[str]:
    """How this program is started from anywhere: as it was now, else the one beside this Python."""
    own = os.path.abspath(sys.argv[0])
    beside = os.path.join(os.path.dirname(sys.executable), "archiver")
    for path in (own, beside):
        if os.path.basename(path) == "archiver" and os.path.isfile(path) and os.access(path, os.X_OK):
            return [path]
    found = shutil.which("archiver")
    return [os.path.abspath(found)] if found else [sys.executable, "-m", "archiver"]


def _scope(chosen: Scope | None) -> Scope:
    return chosen or ("system" if os.geteuid() == 0 else "user")


def _tell(plan: Plan, output: Output, dry_run: bool) -> None:
    if output.as_json:
        output.document(plan.as_json(dry_run=dry_run))
        return
    words = _TO_BE if dry_run else _IN_WORDS
    for item in plan.items:
        output.line(f"{words[item.action]} {item.path}")
        if dry_run and item.text is not None and item.action != "unchanged":
            output.lines(item.text.splitlines(), "    ")
    for command in (*plan.before, *plan.after):
        output.line(f"{'would call' if dry_run else 'called'} {' '.join(command)}")
    if not plan.items:
        output.summary(f"nothing of the job {plan.job} is installed")
