"""tape backup"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import Output, size_text
from archiver.cli.tape.group import drive_option, opened, pause, wait_option, waited_for
from archiver.errors import worst_of

if TYPE_CHECKING:
    from archiver.tape.write.job import Outlook
    from archiver.tape.write.plan import WritePlan
    from archiver.tape.write.run import WriteResult


@click.command()
@click.argument("pool")
@click.option("--latest-only", is_flag=True, help="Of each group only the newest snapshot.")
@click.option(
    "--group",
    "filters",
    metavar="FILTER",
    multiple=True,
    help="type:host, group:host/laptop, regex:PATTERN; exclude: before it leaves groups out.",
)
@click.option("--max-depth", type=click.IntRange(0, 7), help="Levels of namespaces below --ns. Default: all.")
@click.option("--new-set", is_flag=True, help="Begin a new media set, whatever the pool says.")
@click.option("--eject", is_flag=True, help="Take the medium out at the end.")
@click.option("--export", is_flag=True, help="Put all media of the set where a person takes them from.")
@click.option("--dry-run", is_flag=True, help="Only show what would be written.")
@drive_option
@wait_option
@global_options
@click.pass_context
def backup(
    ctx: click.Context,
    context: Context,
    pool: str,
    latest_only: bool,
    filters: tuple[str, ...],
    max_depth: int | None,
    new_set: bool,
    eject: bool,
    export: bool,
    dry_run: bool,
    drive: str | None,
    wait_seconds: float | None,
) -> None:
    """Write snapshots of the store onto media of POOL: those that its media set does not hold, and of these only the
    chunks that it does not hold.

    No key is needed: what is encrypted stays so. An interrupted run is gone on with by the next one.
    """
    from archiver.store.filters import GroupFilter
    from archiver.tape.keys import TapeKeys
    from archiver.tape.state.pools import Pools
    from archiver.tape.write.job import JobOptions, back_up, look_ahead
    from archiver.tape.write.plan import WriteOptions

    output = context.output
    chosen = [GroupFilter.parse(text) for text in filters]
    with context.open_store(output) as store, opened(drive) as access:
        known = Pools(access.place).get(pool)
        write = WriteOptions(context.namespace, max_depth, chosen, latest_only, known.require_encryption)
        options = JobOptions(write, new_set, eject, export)
        if dry_run:
            _show_plan(output, look_ahead(access, store, known, options, output.hear), known.name)
            return
        plan, result = back_up(
            access,
            store,
            known,
            options,
            TapeKeys.default(os.environ),
            output.hear,
            wait_seconds=waited_for(wait_seconds),
            pause=pause,
        )
    _tell(ctx, output, plan, result, known.name)


def _show_plan(output: Output, outlook: Outlook, pool: str) -> None:
    from formats.tape.content import encode_uuid

    if output.as_json:
        document = {"schema": 1, "dry_run": True, "pool": pool, "media_set": encode_uuid(outlook.media_set)}
        output.document(document | outlook.as_json())
        return
    plan = outlook.plan
    rows = [
        (str(step.ref), step.action, step.reason, str(step.chunks or ""), size_text(step.bytes) if step.bytes else "")
        for step in plan.steps
    ]
    if rows:
        output.table(("snapshot", "action", "reason", ">chunks", ">bytes"), rows)
    for problem in plan.problems:
        output.line(f"{problem.name}: {problem.error}")
    size = size_text(sum(step.bytes or 0 for step in plan.work))
    where = "the current media set" if outlook.new_set is None else f"a new media set ({outlook.new_set})"
    output.summary(f"would write {len(plan.work)} snapshots, {size}, into {where}")
    output.summary(f"media in this order: {', '.join(outlook.media) or 'none can be written'}")


def _tell(ctx: click.Context, output: Output, plan: WritePlan, result: WriteResult, pool: str) -> None:
    error = worst_of(result.errors)
    if output.as_json:
        document: dict[str, Any] = {
            "schema": 1,
            "dry_run": False,
            "pool": pool,
            "items": [step.as_json() for step in plan.steps],
            **result.as_json(),
        }
        output.document(document if error is None else document | {"error": error.as_json()})
        if error is not None:
            ctx.exit(error.exit_code)
        return
    with output.read_or_not():
        for problem in result.problems:
            output.line(f"{problem.name}: {problem.error}")
    used = f" onto {', '.join(result.media)}" if result.media else ""
    output.summary(
        f"wrote {len(result.written)} of {len(plan.work)} snapshots: {size_text(result.bytes)}"
        f" in {result.chunks} chunks{used}"
    )
    if error is not None:
        raise error
