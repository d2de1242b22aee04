"""verify"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import Output, size_text
from archiver.errors import EXIT_DAMAGED, EXIT_OK, UsageError

if TYPE_CHECKING:
    from archiver.browse.verify import VerifyResult
    from archiver.browse.verify_result import BudgetResult
    from archiver.store.layout import SnapshotRef
    from archiver.store.store import Store
    from formats.crypt import CryptConfig

_FILES_SHOWN = 20


@click.command()
@click.argument("snapshot", required=False)
@click.option("--group", metavar="TYPE/ID", help="All snapshots of this group.")
@click.option(
    "--budget",
    metavar="AMOUNT",
    help="Read for that long (90s, 10m, 2h) or that much (500MB, 20GiB): first the chunks that were verified longest"
    " ago, and none again before all have had their turn.",
)
@click.option("--skip-verified", is_flag=True, help="Pass over snapshots that were verified before, well or not.")
@click.option(
    "--outdated-after",
    type=click.IntRange(0),
    metavar="DAYS",
    help="The same, but only if that is at most so many days ago.",
)
@click.option(
    "--keep-bad",
    is_flag=True,
    help="Leave damaged chunks where they are. Otherwise they are renamed to *.bad, and the next backup that has their"
    " contents stores them again.",
)
@click.option("--without-key", is_flag=True, help="Take no key, also where there is one: no passphrase is needed.")
@global_options
@click.pass_context
def verify(
    ctx: click.Context,
    context: Context,
    snapshot: str | None,
    group: str | None,
    budget: str | None,
    skip_verified: bool,
    outdated_after: int | None,
    keep_bad: bool,
    without_key: bool,
) -> None:
    """Read everything back and check it: the whole store, a group, or one SNAPSHOT.

    With the key encrypted chunks are checked completely. Without it their kind and CRC are checked, and the BLAKE3 of
    their stored bytes where the database has it from the backup or from a verification with the key. What was not
    checked is told.

    How it ended is written into the manifests, as a PBS does, and shown by ``snapshots``; "ok" only when every chunk
    was checked by more than its CRC. With --read-only nothing is written into the store.
    """
    from archiver.browse.verify import Budget, VerifyOptions
    from archiver.browse.verify import verify as run

    check_choice(context, snapshot, group, without_key)
    if snapshot is not None and budget is not None:
        raise UsageError("a budget is for the whole store or a group", hint="--group TYPE/ID, or nothing")
    options = VerifyOptions(
        set_aside=not keep_bad,
        write_state=True,
        skip_verified=skip_verified,
        outdated_after=outdated_after,
        budget=None if budget is None else Budget.parse(budget, "--budget"),
        scope=f"{context.namespace}:{group or ''}",
    )
    output = context.output
    with context.open_store(output) as store:
        refs = chosen(store, context.namespace, snapshot, group)
        crypt = None if without_key else fitting_key(context, store, refs)
        result = run(store, refs, crypt, output.hear, options)
    with output.read_or_not():
        _show(output, result)
    ctx.exit(EXIT_DAMAGED if result.error_count else EXIT_OK)


def _show(output: Output, result: VerifyResult) -> None:
    if output.as_json:
        output.document(result.as_json())
    else:
        for error in result.errors:
            where = f"{error.snapshot} {error.archive}"
            output.line(f"{where}: chunk {error.chunk} {error.reason}" if error.chunk else f"{where}: {error.reason}")
            for name in error.files[:_FILES_SHOWN]:
                output.line(f"    {name}")
            if len(error.files) > _FILES_SHOWN:
                output.line(f"    ... and {len(error.files) - _FILES_SHOWN} more")
        if result.error_count > len(result.errors):
            output.line(f"... and {result.error_count - len(result.errors)} more errors")
        output.summary(
            f"{result.snapshots} snapshots, {result.chunks} chunks, {size_text(result.bytes)}:"
            f" {result.error_count} errors"
        )
        for line in (*_unproven(result), *_left_out(result)):
            output.summary(f"  {line}")


def check_choice(context: Context, snapshot: str | None, group: str | None, without_key: bool) -> None:
    """Raises UsageError for options of verify or heal that exclude each other."""
    if without_key and context.keyfile is not None:
        raise UsageError("--without-key and --keyfile exclude each other")
    if snapshot is not None and group is not None:
        raise UsageError("a snapshot and a group were given", hint="give one of them")


def fitting_key(context: Context, store: Store, refs: list[SnapshotRef]) -> CryptConfig | None:
    """The key, if it is of use for any of the snapshots. Raises KeyProblem for one that was chosen and is not."""
    from archiver.browse.verify import any_made_with_key, require_fitting_key

    is_chosen = context.chosen_keyfile() is not None
    crypt = context.key() if is_chosen or any_made_with_key(store, refs) else None
    if crypt is not None and is_chosen:
        require_fitting_key(store, refs, crypt)
    return crypt


def chosen(store: Store, namespace: str, snapshot: str | None, group: str | None) -> list[SnapshotRef]:
    """Groups in their order, the newest snapshots first."""
    from archiver.store.layout import SnapshotRef

    if snapshot is not None:
        return [store.find(snapshot, namespace)]
    if group is None:
        return list(store.snapshots(namespace))
    found = store.find_group(group, namespace)
    return [SnapshotRef(found, when) for when in reversed(store.times(found))]


def _unproven(result: VerifyResult) -> Iterator[str]:
    """What was not checked for lack of the key, and what nobody signed."""
    by_sum = result.unchecked - result.without_sum
    if by_sum:
        yield f"{by_sum} encrypted chunks were checked without their key: CRC and the BLAKE3 of the stored bytes"
    if result.without_sum:
        yield f"{result.without_sum} encrypted chunks were checked without their key: CRC alone, no BLAKE3 is recorded"
    if result.without_sum and result.unproven:
        yield f"{len(result.unproven)} snapshots are not marked as good for that: they need a verification with the key"
    unchecked, unsigned = result.signatures["unchecked"], result.signatures["unsigned"]
    if unchecked:
        yield f"{len(unchecked)} signatures were not checked, their key is missing"
    if unsigned and (unchecked or result.signatures["valid"]):
        yield f"{len(unsigned)} snapshots are unsigned"
    signed = {name.rsplit("/", 1)[0] for name in (*unchecked, *result.signatures["valid"])}
    for name in unsigned:
        if name.rsplit("/", 1)[0] in signed:
            yield f"{name} is unsigned, other snapshots of its group are signed"


def _left_out(result: VerifyResult) -> Iterator[str]:
    """What was not looked at, and what became of the damage."""
    if result.unfinished:
        yield f"{result.unfinished} unfinished snapshots were passed over"
    if result.skipped:
        failed = f", {result.skipped_failed} of them with damage" if result.skipped_failed else ""
        yield f"{result.skipped} snapshots were passed over, they were verified before{failed}"
    if result.busy:
        yield f"{len(result.busy)} snapshots were passed over, they are being removed"
    if result.budget is not None:
        yield from _not_reached(result.budget)
    if result.error_count:
        yield "what could heal that is told by: archiver heal --dry-run"
    if result.set_aside:
        yield f"{result.set_aside} damaged chunks were set aside: a backup that has their contents stores them again"


def _not_reached(budget: BudgetResult) -> Iterator[str]:
    from formats.naming import format_time

    if not budget.not_reached:
        yield "the budget was enough for every chunk"
        return
    yield (
        f"the budget was enough for {budget.reached} chunks, {size_text(budget.reached_bytes)};"
        f" {budget.not_reached}, {size_text(budget.not_reached_bytes)}, were not reached"
    )
    if budget.began is None:
        return
    if not budget.left:
        yield f"the cycle that began {format_time(max(budget.began, 1))} is complete: the next run begins another"
        return
    runs = -(-budget.left_bytes // max(budget.reached_bytes, 1))
    oldest = "never verified" if not budget.oldest else f"verified {format_time(budget.oldest)}"
    yield (
        f"{budget.left} of these, {size_text(budget.left_bytes)}, are left of the cycle that began"
        f" {format_time(max(budget.began, 1))}: about {max(runs, 1)} runs; the oldest was {oldest}"
    )
