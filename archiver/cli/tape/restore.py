"""tape restore"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import Output, size_text
from archiver.cli.sync import checked_owner
from archiver.cli.tape.group import drive_option, key_at_hand, opened, pause, wait_option, waited_for
from archiver.errors import ArchiverError, UsageError, worst_of

if TYPE_CHECKING:
    from archiver.store.store import Store
    from archiver.tape.restore.plan import RestorePlan
    from archiver.tape.restore.routes import Routes
    from archiver.tape.restore.run import RestoreResult


@click.command()
@click.argument("media_set", metavar="MEDIA-SET")
@click.argument("snapshots", metavar="[SNAPSHOT]...", nargs=-1)
@click.option(
    "--map",
    "maps",
    metavar="SOURCE=DIR",
    multiple=True,
    help="What was written from the store SOURCE goes into the store in DIR; several. Without: all goes into --store.",
)
@click.option(
    "--namespaces",
    "rules",
    metavar="RULE",
    multiple=True,
    help="[store=NAME][,source=NS][,target=NS][,max-depth=N]: only what is in a namespace, and where it goes; several.",
)
@click.option("--owner", default=None, metavar="USER@REALM", help="Owner of new groups. Default: root@pam.")
@click.option("--dry-run", is_flag=True, help="Only show which media and files are needed, and what they hold.")
@drive_option
@wait_option
@global_options
@click.pass_context
def restore(
    ctx: click.Context,
    context: Context,
    media_set: str,
    snapshots: tuple[str, ...],
    maps: tuple[str, ...],
    rules: tuple[str, ...],
    owner: str | None,
    dry_run: bool,
    drive: str | None,
    wait_seconds: float | None,
) -> None:
    """Bring snapshots from media into a store: all of MEDIA-SET, or each SNAPSHOT ([STORE:]TYPE/ID/TIME).

    MEDIA-SET is its uuid, its name, a pool (its newest set), or the label of one of its media. What is in the store is
    neither read from the media nor changed. With the key of encrypted snapshots their chunks are checked completely.
    """
    from archiver.tape.keys import TapeKeys
    from archiver.tape.restore.job import look_ahead, opened_set
    from archiver.tape.restore.job import restore as bring
    from archiver.tape.restore.plan import make_plan

    output = context.output
    with ExitStack() as held:
        routes = _routes(context, output, held, snapshots, maps, rules, owner)
        crypt = key_at_hand(context)
        access = held.enter_context(opened(drive))
        keys = TapeKeys.default(os.environ)
        wait = 0.0 if dry_run else waited_for(wait_seconds)
        found = held.enter_context(opened_set(access, media_set, keys, output.hear, wait_seconds=wait, pause=pause))
        if dry_run:
            _show_plan(ctx, output, look_ahead(found, routes, crypt, output.hear))
            return
        for store in routes.all_stores():
            store.check_writable()
        plan = make_plan(found.known, routes)
        if plan.visits:
            labels = ", ".join(visit.member.label for visit in plan.visits)
            output.message(
                f"needed media, in this order: {labels}{'' if plan.whole else ', then perhaps earlier ones'}"
            )
        result = bring(found, plan, routes, crypt, output.hear)
    _tell(ctx, output, plan, result)


def _routes(
    context: Context,
    output: Output,
    held: ExitStack,
    snapshots: tuple[str, ...],
    maps: tuple[str, ...],
    rules: tuple[str, ...],
    owner: str | None,
) -> Routes:
    from archiver.store.layout import DEFAULT_OWNER
    from archiver.store.store import Store
    from archiver.tape.restore.routes import NamespaceRule, Routes, Selected

    by_name: dict[str, str] = {}
    for text in maps:
        source, equals, path = text.partition("=")
        if not equals or not source or not path or source in by_name:
            raise UsageError(f"--map {text!r} is no place for a store", hint="write NAME=DIRECTORY, each name once")
        by_name[source] = path
    chosen = [Selected.parse(text) for text in snapshots]
    namespaces = [NamespaceRule.parse(text) for text in rules]
    opened: dict[str, Store] = {}
    for path in dict.fromkeys(map(os.path.realpath, by_name.values())):
        opened[path] = held.enter_context(Store.open(path, read_only=context.read_only, listener=output.hear))
    stores = {source: opened[os.path.realpath(path)] for source, path in by_name.items()}
    default = None if maps else held.enter_context(context.open_store(output))
    return Routes(stores, default, namespaces, chosen, checked_owner(owner or DEFAULT_OWNER))


def _show_plan(ctx: click.Context, output: Output, plan: RestorePlan) -> None:
    errors: list[ArchiverError] = [problem.error for problem in plan.problems]
    error = worst_of(errors)
    if output.as_json:
        document: dict[str, Any] = {
            "schema": 1,
            "dry_run": True,
            **plan.as_json(),
            "problems": [problem.as_json() for problem in plan.problems],
        }
        output.document(document if error is None else document | {"error": error.as_json()})
        if error is not None:
            ctx.exit(error.exit_code)
        return
    media = [(visit.member.label, str(visit.member.seq_nr), _files(visit.snapshots, visit.chunks, visit.all_files)) for visit in plan.visits]  # fmt: skip  # noqa: E501
    if media:
        output.table(("medium", ">number", "files"), media)
    rows = [
        (step.name, ", ".join(map(str, step.targets)) if step.action == "restore" else "", step.action, step.reason)
        for step in plan.steps
    ]
    if rows:
        output.table(("snapshot", "becomes", "action", "reason"), rows)
    for problem in plan.problems:
        output.line(f"{problem.name}: {problem.error}")
    size = "" if plan.bytes is None else f", about {size_text(plan.bytes)} to read"
    output.summary(f"would restore {len(plan.work)} snapshots from {len(plan.visits)} media{size}")
    if error is not None:
        raise error


def _files(snapshots: list[int], chunks: list[int] | None, all_files: bool) -> str:
    if all_files:
        return "all, it has no catalog here"
    if chunks is None:
        return f"{_ranges(snapshots)}, and those with the chunks that are missing"
    return _ranges(sorted({*snapshots, *chunks}))


def _ranges(numbers: list[int]) -> str:
    """``2-5, 7``."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found) or "none"


def _tell(ctx: click.Context, output: Output, plan: RestorePlan, result: RestoreResult) -> None:
    error = worst_of(result.errors)
    if output.as_json:
        document: dict[str, Any] = {"schema": 1, "dry_run": False, **plan.as_json(), **result.as_json()}
        output.document(document if error is None else document | {"error": error.as_json()})
        if error is not None:
            ctx.exit(error.exit_code)
        return
    with output.read_or_not():
        for problem in result.problems:
            output.line(f"{problem.name}: {problem.error}")
    skipped = sum(step.action == "skip" for step in plan.steps) + len(result.present)
    output.summary(
        f"restored {len(result.restored)} snapshots, {skipped} were there: {size_text(result.brought.bytes)}"
        f" in {result.brought.chunks} new chunks"
    )
    if result.files:
        media = ", ".join(result.media)
        output.summary(f"  read {size_text(result.bytes_read)} in {result.files} files of {media}")
    if error is not None:
        raise error
