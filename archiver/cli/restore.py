"""restore"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import click

from archiver.cli.context import Context, allow_unsigned_option, global_options
from archiver.cli.output import Output, printable, size_text
from archiver.errors import EXIT_DAMAGED, EXIT_DIFFERENT, EXIT_OK, EXIT_PARTIAL, NotFound, TargetAbsent, UsageError

if TYPE_CHECKING:
    from archiver.browse.snapshot import ArchiveFiles, Snapshot
    from archiver.restore.export.run import Format
    from archiver.restore.plan import Plan
    from archiver.restore.run import RestoreOptions, RestoreResult
    from archiver.store.store import Store

_SIGNS = {"create": "+", "replace": "~", "update": ".", "remove": "-", "blocked": "!"}


@click.command()
@click.argument("snapshot")
@click.argument("places", nargs=-1, required=True, metavar="[PATH[@TIME]] TARGET")
@click.option("--archive", "archive_name", metavar="NAME", help="Restore this archive only, for example home.pxar.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Restore only what fits, and all that is below it.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out what fits, and all that is below it.")
@click.option(
    "--overwrite",
    type=click.Choice(["never", "if-changed", "if-newer", "always"]),
    help="Restore over what is in TARGET. if-changed believes in equal sizes and times, the last two read and compare.",
)
@click.option("--delete", is_flag=True, help="Move what the snapshot does not have to TARGET.removed-TIME.")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@click.option(
    "--owner",
    type=click.Choice(["number", "name", "none"]),
    default="number",
    show_default=True,
    help="Owners by number; by the names that the archive's /etc/passwd and /etc/group give them; or left out.",
)
@click.option("--usermap", metavar="FROM:TO,...", help="Other owners: names or numbers, FROM also '*'.")
@click.option("--groupmap", metavar="FROM:TO,...", help="The same for groups.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Read everything again and compare.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["dir", "tar", "tar.zst", "zip", "pxar"]),
    default="dir",
    show_default=True,
    help="TARGET is a directory, or a file of this kind (- for stdout).",
)
@click.option("--to-device", is_flag=True, help="TARGET is a block device: an image replaces everything on it.")
@allow_unsigned_option
@global_options
@click.pass_context
def restore(
    ctx: click.Context,
    context: Context,
    snapshot: str,
    places: tuple[str, ...],
    archive_name: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    overwrite: Any,
    delete: bool,
    dry_run: bool,
    owner: Any,
    usermap: str | None,
    groupmap: str | None,
    verify: bool,
    form: str,
    to_device: bool,
    allow_unsigned: bool,
) -> None:
    """Restore a SNAPSHOT into TARGET, a new or empty directory unless --overwrite says otherwise, or with --format as a
    file of another kind.

    SNAPSHOT is TYPE/ID/TIME, TYPE/ID for the group's newest one, or latest. A single archive is put at TARGET itself,
    of several each at TARGET/NAME. An image or small file becomes the new file TARGET.

    With PATH only that entry is restored: a directory becomes TARGET, of a file TARGET is the new name or the directory
    that gets it. PATH@TIME, as history and find print it, is its version in the group's snapshot of that time.

    Files get their names when they are complete, so an interruption leaves old or new ones; the same command with
    --overwrite if-changed goes on. The signature of a snapshot that was made with a key is checked before anything is
    restored.
    """
    from archiver.restore.export.run import export
    from archiver.restore.run import RestoreOptions, plan
    from archiver.restore.run import restore as run

    if len(places) > 2:
        raise UsageError("too many arguments", hint="restore SNAPSHOT [PATH] TARGET")
    target = places[-1]
    output = context.output
    if form != "dir":
        _check_file_options(target, output, overwrite is not None or delete or dry_run or to_device)
    if to_device:
        _check_device(target)
    with context.open_store(output) as store:
        path = None
        if len(places) == 2:
            snapshot, path = _version(store, context, snapshot, places[0])
        options = RestoreOptions(overwrite, delete, include, exclude, path, owner, usermap, groupmap)
        opened, archives = _open(context, output, store, snapshot, archive_name, options, allow_unsigned)
        if dry_run:
            plans = plan(opened, archives, target, options, output.hear)
            try:
                with output.read_or_not():
                    _print_plans(output, opened, target, plans)
                blocked = any(made.totals.blocked or made.totals.incomplete for _, made in plans)
            finally:
                for _, made in plans:
                    made.close()
            ctx.exit(EXIT_PARTIAL if blocked else EXIT_OK)
        if form == "dir":
            result = run(
                opened, archives, target, verify=verify, listener=output.hear, options=options, to_device=to_device
            )
        else:
            result = export(
                opened, archives, target, cast("Format", form), verify=verify, listener=output.hear, options=options
            )
    _print_result(output, result)
    if result.kinds.get("damaged"):
        ctx.exit(EXIT_DAMAGED)
    if result.kinds.get("different"):
        ctx.exit(EXIT_DIFFERENT)
    ctx.exit(EXIT_PARTIAL if result.problem_count else EXIT_OK)


def _version(store: Store, context: Context, snapshot: str, text: str) -> tuple[str, bytes]:
    """(snapshot, path) of a path that may name its version."""
    from archiver.browse.version import parse_version
    from archiver.store.layout import SnapshotRef

    path, time = parse_version(text.encode("utf-8", "surrogateescape"))
    if time is None:
        return snapshot, path
    ref = SnapshotRef(store.find(snapshot, context.namespace).group, time)
    if time not in store.times(ref.group):
        raise NotFound(f"there is no snapshot {ref}", hint="history PATH tells which versions there are")
    return str(ref), path


def _open(
    context: Context,
    output: Output,
    store: Store,
    snapshot: str,
    archive_name: str | None,
    options: RestoreOptions,
    allow_unsigned: bool,
) -> tuple[Snapshot, list[ArchiveFiles]]:
    from archiver.store.layout import WRAPPED_KEY

    wrapped_key = WRAPPED_KEY.removesuffix(".blob")  # for whoever has lost the key
    with_key = archive_name not in (WRAPPED_KEY, wrapped_key)
    opened = context.open_snapshot(store, snapshot, allow_unsigned=allow_unsigned, with_key=with_key)
    if archive_name is not None or options.path is not None:
        return opened, [opened.archive(archive_name)]
    archives = opened.restorable()
    chosen = {archive.name for archive in archives}
    left = [archive.name for archive in opened.archives() if archive.name not in chosen | {wrapped_key}]
    if left:
        output.message(f"not restored, they are no directory trees: {', '.join(left)} (--archive restores them)")
    return opened, archives


def _print_plans(output: Output, snapshot: Snapshot, target: str, plans: list[tuple[str, Plan]]) -> None:
    if output.as_json:
        totals: dict[str, int] = {}
        for _, made in plans:
            for key, value in made.as_json().items():
                totals[key] = min(totals.get(key, value), value) if key == "available" else totals.get(key, 0) + value
        head = {"schema": 1, "snapshot": str(snapshot.ref), "target": target, "dry_run": True, **totals}
        output.long_document(head, _items(plans))
        return
    for place, made in plans:
        for action in made:
            size = f"  {size_text(action.bytes)}" if action.kind == "file" and action.deed != "remove" else ""
            why = f"  ({'; '.join(action.reasons)})" if action.reasons else ""
            output.line(f"{_SIGNS[action.deed]} {action.deed:7} {action.kind:8} {printable(action.path)}{size}{why}")
        totals_ = made.totals
        output.summary(
            f"{place}: would create {totals_.create}, replace {totals_.replace}, update {totals_.update},"
            f" move away {totals_.remove} entries; {totals_.unchanged} are as in the snapshot, {totals_.kept} are kept"
        )
        output.summary(
            f"  {size_text(totals_.bytes)} to write, at most {size_text(totals_.space)} of space needed,"
            f" {size_text(made.available)} free"
        )
        if totals_.blocked or totals_.incomplete:
            output.summary(f"  cannot be restored: {totals_.blocked}, not completely: {totals_.incomplete}")


def _items(plans: list[tuple[str, Plan]]) -> Iterator[dict[str, Any]]:
    for place, made in plans:
        for action in made:
            yield {"target": place, **action.as_json()}


def _print_result(output: Output, result: RestoreResult) -> None:
    for place in result.quarantine:
        output.message(f"{result.removed} entries that the snapshot does not have were moved to {place}")
    if output.as_json:
        output.document(result.as_json())
    checked = ", verified" if result.verified else ""
    tell = output.message if result.target == "-" else output.summary
    tell(
        f"restored {result.entries} entries, {size_text(result.bytes)}, from {result.snapshot}"
        f" to {result.target} in {result.duration:.1f} s{checked}"
    )
    found = {
        "replaced": result.replaced,
        "updated": result.updated,
        "unchanged": result.unchanged,
        "kept": result.kept,
        **result.kinds,
    }
    for kind, count in found.items():
        if count:
            tell(f"  {kind}: {count}")


def _check_file_options(target: str, output: Output, others: bool) -> None:
    """Raises UsageError for options that go with directories, and when the file would be mixed with other output."""
    if others:
        raise UsageError(
            "--overwrite, --delete, --dry-run and --to-device do not go with --format", hint="a new file is made"
        )
    if target == "-" and output.as_json:
        raise UsageError("--json writes to stdout, and so would the file", hint="name a file as the target")
    if target == "-" and sys.stdout.isatty():
        raise UsageError("the file would be written to the terminal", hint="name a file, or redirect stdout")


def _check_device(target: str) -> None:
    """Raises TargetAbsent, as a device that is not there must not become a file; UsageError for what is none."""
    from archiver.restore.image import is_device

    if not os.path.lexists(target):
        raise TargetAbsent(f"there is no device {target}", hint="lsblk lists devices")
    if not is_device(target):
        raise UsageError(f"{target} is no block device", hint="lsblk lists devices")
