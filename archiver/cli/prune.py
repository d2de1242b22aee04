"""prune, forget"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from archiver.cli.context import Context, global_options
from archiver.cli.gc import summarize
from archiver.cli.output import Output
from archiver.errors import ArchiverError, Held, Skipped, worst

if TYPE_CHECKING:
    from archiver.store.gc.result import Result
    from archiver.store.removal import RemovalPlan
    from archiver.store.store import Store

_COUNT = click.IntRange(1)


@click.command()
@click.argument("groups", metavar="[GROUP]...", nargs=-1)
@click.option("--keep-last", type=_COUNT, metavar="N", help="Keep the last N snapshots.")
@click.option("--keep-hourly", type=_COUNT, metavar="N", help="Keep the newest one of each of N more hours.")
@click.option("--keep-daily", type=_COUNT, metavar="N", help="Of N more days.")
@click.option("--keep-weekly", type=_COUNT, metavar="N", help="Of N more weeks.")
@click.option("--keep-monthly", type=_COUNT, metavar="N", help="Of N more months.")
@click.option("--keep-yearly", type=_COUNT, metavar="N", help="Of N more years.")
@click.option("--keep-within", metavar="DURATION", help="Keep all this close to the newest one: 1y5m7d2h, 36h.")
@click.option("--gc", "collects", is_flag=True, help="Then free their space, as the command gc does.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed, and why.")
@click.option("--confirm", metavar="PLAN-ID", help="Do what a guard has held back; the id is printed then.")
@global_options
@click.pass_context
def prune(
    ctx: click.Context,
    context: Context,
    groups: tuple[str, ...],
    keep_last: int | None,
    keep_hourly: int | None,
    keep_daily: int | None,
    keep_weekly: int | None,
    keep_monthly: int | None,
    keep_yearly: int | None,
    keep_within: str | None,
    collects: bool,
    dry_run: bool,
    confirm: str | None,
) -> None:
    """Remove the snapshots that no keep option wants, of each GROUP (default: of all groups).

    The options are those of a Proxmox Backup Server and decide the same; periods are those of the local time zone.
    Protected snapshots stay, and the newest one that was verified. Without any option everything is kept. Space is
    freed by --gc, or later by the command gc.
    """
    from archiver.store.prune import Keep
    from archiver.store.retention import Duration, Retention, plan_prune

    output = context.output
    keep = Keep(keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly)
    retention = Retention(keep, None if keep_within is None else Duration.parse(keep_within))
    with context.open_store(output) as store:
        if groups:
            chosen = list(dict.fromkeys(store.find_group(text, context.namespace) for text in groups))
        else:
            chosen = [group for level in store.namespaces(context.namespace) for group in store.groups(level)]
        plan = plan_prune(store, chosen, retention)
        refused = None
        if plan.holds and confirm != plan.id:
            refused = _held(plan, confirm)
        carry_out(ctx, output, store, plan, dry_run=dry_run, refused=refused, collects=collects)


def _held(plan: RemovalPlan, confirm: str | None) -> Held:
    what = "nothing is removed" if confirm is None else f"nothing is removed, the plan is not {confirm} any more"
    return Held(
        f"{what}: {'; '.join(f'{hold.group}: {hold.reason}' for hold in plan.holds)}",
        hint=f"if that is right, add: --confirm {plan.id}",
    )


@click.command()
@click.argument("snapshots", metavar="SNAPSHOT...", nargs=-1, required=True)
@click.option("--all", "whole_groups", is_flag=True, help="The arguments are groups: forget all their snapshots.")
@click.option("--gc", "collects", is_flag=True, help="Then free their space, as the command gc does.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask before whole groups are forgotten.")
@global_options
@click.pass_context
def forget(
    ctx: click.Context,
    context: Context,
    snapshots: tuple[str, ...],
    whole_groups: bool,
    collects: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Remove each SNAPSHOT (TYPE/ID/TIME), or with --all whole groups (TYPE/ID).

    Nothing is removed when a named one is protected; of whole groups the protected ones stay. Space is freed by
    --gc, or later by the command gc.
    """
    from archiver.store.removal import plan_forget, plan_forget_groups

    output = context.output
    with context.open_store(output) as store:
        refused: ArchiverError | None = None
        if whole_groups:
            plan = plan_forget_groups(store, snapshots, context.namespace)
            ask(output, f"forget all {len(plan.removed)} snapshots of {', '.join(snapshots)}?", dry_run or yes)
        else:
            plan = plan_forget(store, snapshots, context.namespace)
            if plan.protected:
                names = ", ".join(map(str, plan.protected))
                hint = f"allow it with: archiver protect --off {plan.protected[0]}"
                refused = Skipped(f"nothing is removed, protected: {names}", hint=hint)
        carry_out(ctx, output, store, plan, dry_run=dry_run, refused=refused, collects=collects)


def ask(output: Output, question: str, is_settled: bool) -> None:
    """A person at a terminal is asked; who says no has changed his mind."""
    if not is_settled and not output.as_json and sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)


def carry_out(
    ctx: click.Context,
    output: Output,
    store: Store,
    plan: RemovalPlan,
    *,
    dry_run: bool,
    refused: ArchiverError | None = None,
    collects: bool = False,
    namespace: str | None = None,
) -> None:
    """Show the plan, do it unless it is refused or ``dry_run``, tell the result. Exits unless all went well.

    ``collects``: garbage is collected afterwards. ``namespace``: what is to be removed with the snapshots.
    """
    from archiver.store.removal import Outcome, remove, shortfall

    outcome = Outcome()
    collected: Result | None = None
    levels: list[str] = []
    error = None if dry_run else refused
    if not output.as_json:
        with output.read_or_not():
            _show(output, plan)
    if not dry_run and refused is None:
        outcome = remove(store, plan)
        error = shortfall(plan, outcome)
        if namespace is not None:
            from archiver.store.namespaces import delete_levels

            levels = delete_levels(store, namespace)
            if namespace not in levels and error is None:
                error = Skipped(f"the namespace {namespace} is not empty and still there")
        if collects:
            collected, error = _collect(store, error)
    if output.as_json:
        document = {
            "schema": 1,
            "plan": plan.id,
            "dry_run": dry_run,
            "held": [hold.as_json() for hold in plan.holds],
            "items": [item.as_json() for item in plan.items],
            **outcome.as_json(),
            "gc": None if collected is None else collected.as_json(),
        }
        if namespace is not None:
            document["removed_namespaces"] = levels
        output.document(document if error is None else document | {"error": error.as_json()})
        if error is not None:
            ctx.exit(error.exit_code)
        return
    if error is not None and (refused is not None or not collects):
        raise error
    for hold in plan.holds if dry_run else ():
        output.line(f"held until confirmed: {hold.group}: {hold.reason}")
    if dry_run:
        output.summary(f"would remove {len(plan.removed)} of {len(plan.items)} snapshots, plan {plan.id}")
        return
    what = f", {len(levels)} namespaces" if namespace is not None else ""
    output.summary(f"removed {len(outcome.removed)} of {len(plan.items)} snapshots{what}")
    if collected is not None:
        summarize(output, collected)
    if error is not None:
        raise error


def _collect(store: Store, error: ArchiverError | None) -> tuple[Result | None, ArchiverError | None]:
    """``error``: what went wrong before. Of two the one that decides about the exit code is left, the other is told."""
    from archiver.core.events import Notice
    from archiver.store.gc.collect import collect

    try:
        return collect(store), error
    except ArchiverError as failed:
        if error is None:
            return None, failed
        is_worse = worst((error.exit_code, failed.exit_code)) == failed.exit_code
        store.listener(Notice(str(error if is_worse else failed), "warning"))
        return None, failed if is_worse else error


def _show(output: Output, plan: RemovalPlan) -> None:
    """Every snapshot; with --quiet only those to be removed."""
    shown = [item for item in plan.items if not output.quiet or not item.keep]
    if shown:
        rows = [(str(item.ref), "keep" if item.keep else "remove", item.reason) for item in shown]
        output.table(("snapshot", "action", "reason"), rows)
