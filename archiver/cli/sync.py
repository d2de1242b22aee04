"""sync"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import Output, size_text
from archiver.errors import EXIT_DIFFERENT, ArchiverError, Held, UsageError, worst_of

if TYPE_CHECKING:
    from archiver.store.store import Store
    from archiver.sync.check import CheckResult
    from archiver.sync.plan import SyncOptions, SyncPlan
    from archiver.sync.room import Estimate
    from archiver.sync.run import SyncResult


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--to-ns", metavar="NAMESPACE", default="", help="Where in the target; --ns says where in the source.")
@click.option("--max-depth", type=click.IntRange(0, 7), help="Levels of namespaces below --ns. Default: all.")
@click.option(
    "--group",
    "filters",
    metavar="FILTER",
    multiple=True,
    help="type:host, group:host/laptop, regex:PATTERN; exclude: before it leaves groups out.",
)
@click.option("--transfer-last", type=click.IntRange(1), metavar="N", help="Only the last N snapshots of a group.")
@click.option("--verified-only", is_flag=True, help="Only snapshots that were verified and found good in the source.")
@click.option("--encrypted-only", is_flag=True, help="Only snapshots that are encrypted and signed.")
@click.option("--resync-corrupt", is_flag=True, help="Bring again what was found damaged in the target.")
@click.option("--remove-vanished", is_flag=True, help="Forget what the source does not have any more.")
@click.option("--owner", default=None, metavar="USER@REALM", help="Owner of the target's groups. Default: root@pam.")
@click.option("--rate", metavar="BYTES", help="Read so many bytes a second at most: 20M, 500K.")
@click.option("--new-target", is_flag=True, help="Another store than before in the same place is right.")
@click.option("--check", "only_check", is_flag=True, help="Only say whether the copy is complete; exit code 4 if not.")
@click.option("--dry-run", is_flag=True, help="Only show what would be copied and removed.")
@click.option("--confirm", metavar="PLAN-ID", help="Do what a guard has held back; the id is printed then.")
@global_options
@click.pass_context
def sync(
    ctx: click.Context,
    context: Context,
    source: str,
    target: str,
    to_ns: str,
    max_depth: int | None,
    filters: tuple[str, ...],
    transfer_last: int | None,
    verified_only: bool,
    encrypted_only: bool,
    resync_corrupt: bool,
    remove_vanished: bool,
    owner: str | None,
    rate: str | None,
    new_target: bool,
    only_check: bool,
    dry_run: bool,
    confirm: str | None,
) -> None:
    """Copy snapshots from the store in directory SOURCE to the one in TARGET, which must be there.

    What is newer than the target's newest snapshot of a group is copied, no key is needed. An interrupted sync is gone
    on with by the next one.
    """
    from archiver.store.layout import DEFAULT_OWNER
    from archiver.store.store import Store
    from archiver.sync.filters import GroupFilter
    from archiver.sync.partners import open_target, remember
    from archiver.sync.plan import SyncOptions, make_plan
    from archiver.sync.rate import parse_rate
    from archiver.sync.room import estimate
    from archiver.sync.run import SyncResult, carry_out

    output = context.output
    options = SyncOptions(
        context.namespace,
        _namespace(to_ns),
        max_depth,
        [GroupFilter.parse(text) for text in filters],
        remove_vanished,
        transfer_last,
        verified_only,
        encrypted_only,
        resync_corrupt,
        checked_owner(owner or DEFAULT_OWNER),
    )
    limit = None if rate is None else parse_rate(rate, "--rate")
    for name, path in (("SOURCE", source), ("TARGET", target)):
        if not path:
            raise UsageError(f"{name} is empty")
    with (
        Store.open(source, read_only=context.read_only, listener=output.hear) as ours,
        open_target(ours, target, output.hear, new_target=new_target, read_only=context.read_only) as theirs,
    ):
        if only_check:
            _check(ctx, output, ours, theirs, options)
            return
        if not dry_run:
            theirs.identify()
            remember(ours, theirs)
        plan = make_plan(ours, theirs, options)
        held = None
        if plan.removal.holds and confirm != plan.removal.id:
            held = _held(plan, confirm)
        result = SyncResult(problems=list(plan.problems))
        guess = estimate(ours, theirs, plan) if dry_run else None
        if not dry_run and held is None:
            result = carry_out(ours, theirs, plan, options, output.hear, rate=limit)
        _tell(ctx, output, plan, result, None if dry_run else held, dry_run=dry_run, guess=guess)


def _namespace(text: str) -> str:
    from formats.errors import FormatError
    from formats.naming import check_namespace

    namespace = text.strip("/")
    try:
        check_namespace(namespace)
    except FormatError as error:
        raise UsageError(f"--to-ns {text!r} is no namespace: {error}", hint="write for example a/b") from error
    return namespace


def checked_owner(text: str) -> str:
    from formats.errors import FormatError
    from formats.naming import check_owner

    try:
        check_owner(text)
    except FormatError as error:
        raise UsageError(f"{text!r} cannot be an owner: {error}", hint="write USER@REALM") from error
    return text


def _held(plan: SyncPlan, confirm: str | None) -> Held:
    what = "nothing is done" if confirm is None else f"nothing is done, the plan is not {confirm} any more"
    return Held(
        f"{what}: {'; '.join(f'{hold.group}: {hold.reason}' for hold in plan.removal.holds)}",
        hint=f"if that is right, add: --confirm {plan.removal.id}; without --remove-vanished it only copies",
    )


def _check(ctx: click.Context, output: Output, source: Store, target: Store, options: SyncOptions) -> None:
    from archiver.sync.check import check

    result = check(source, target, options)
    with output.read_or_not():
        _show_check(output, result)
    if result.shortfalls:
        ctx.exit(EXIT_DIFFERENT)


def _show_check(output: Output, result: CheckResult) -> None:
    if output.as_json:
        output.document(result.as_json())
        return
    for each in result.shortfalls:
        output.line(f"{each.snapshot}: {each.reason}")
    lacking = len({each.snapshot for each in result.shortfalls})
    output.summary(
        f"the copy is complete: {result.snapshots} snapshots"
        if not lacking
        else f"the copy lacks {lacking} of {result.snapshots} snapshots"
    )


def _tell(
    ctx: click.Context,
    output: Output,
    plan: SyncPlan,
    result: SyncResult,
    held: Held | None,
    *,
    dry_run: bool,
    guess: Estimate | None,
) -> None:
    error: ArchiverError | None = held or (None if dry_run else worst_of(result.errors))
    if output.as_json:
        document: dict[str, Any] = {
            "schema": 1,
            "plan": plan.removal.id,
            "dry_run": dry_run,
            "held": [hold.as_json() for hold in plan.removal.holds],
            "items": [step.as_json() for step in plan.steps],
            "removals": [item.as_json() for item in plan.removal.items],
            "estimate": None if guess is None else {"chunks": guess.chunks, "bytes": guess.bytes},
            **result.as_json(),
        }
        output.document(document if error is None else document | {"error": error.as_json()})
        if error is not None:
            ctx.exit(error.exit_code)
        return
    if dry_run or held is not None:
        _show(output, plan)
    if held is not None:
        raise held
    with output.read_or_not():
        for problem in result.problems:
            output.line(f"{problem.name}: {problem.error}")
    if dry_run:
        for hold in plan.removal.holds:
            output.line(f"held until confirmed: {hold.group}: {hold.reason}")
        size = "" if guess is None else f", about {size_text(guess.bytes)} in {guess.chunks} chunks"
        output.summary(f"would copy {len(plan.work)} snapshots{size}; remove {len(plan.removal.removed)}")
        return
    copied = result.copied
    output.summary(
        f"copied {len(result.done)} of {len(plan.work)} snapshots: {size_text(copied.bytes)} in {copied.chunks} chunks,"
        f" {copied.present} were there"
    )
    if plan.removal.items:
        output.summary(f"removed {len(result.removal.removed)} of {len(plan.removal.items)} that have vanished")
    if error is not None:
        raise error


def _show(output: Output, plan: SyncPlan) -> None:
    rows: list[tuple[str, str, str, str]] = []
    rows += [(str(step.source), step.action, step.reason, size_text(step.size)) for step in plan.steps]
    rows += [(str(item.ref), "keep" if item.keep else "remove", item.reason, "") for item in plan.removal.items]
    if rows:
        output.table(("snapshot", "action", "reason", ">contents"), rows)
