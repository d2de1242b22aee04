"""init, status"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import Output, size_text
from archiver.errors import UsageError

if TYPE_CHECKING:
    from archiver.store.status import StoreStatus


@click.command()
@click.argument("directory", required=False)
@click.option("--name", help="Name of the store, 3 to 32 characters. Default: the directory's.")
@click.option("--complete-shards", is_flag=True, help="Make all 65,536 chunk directories, so that a PBS can adopt it.")
@click.option("--new-uuid", is_flag=True, help="DIRECTORY is a copy of a store: make it known as another one.")
@global_options
def init(context: Context, directory: str | None, name: str | None, complete_shards: bool, new_uuid: bool) -> None:
    """Make an empty store in DIRECTORY (default: the store that other commands would use)."""
    from archiver.store.store import Store

    output = context.output
    path = os.path.abspath(directory or context.store_path())
    if new_uuid and (name is not None or complete_shards):
        raise UsageError("--new-uuid changes nothing else of a store", hint="leave out --name and --complete-shards")
    identity = Store.renew(path) if new_uuid else Store.create(path, name=name, complete_shards=complete_shards)
    if output.as_json:
        output.document({"schema": 1, "store": path, "uuid": identity.uuid, "name": identity.name})
    what = f"the store in {path} is known as {identity.uuid} now" if new_uuid else None
    output.summary(what or f"made the store {identity.name} in {path}")


@click.command()
@global_options
@click.pass_context
def status(ctx: click.Context, context: Context) -> None:
    """Space, deduplication, and the groups of the store; how the jobs stand that back up into it.

    Exit code 31 when anything of a job is older than its profile allows. Without --store and a store in the default
    place all jobs are told.
    """
    from archiver.cli.job_status import jobs_of, show_standings, standings

    output = context.output
    place = None if context.uses_default_store() and not os.path.lexists(context.store_path()) else context.store_path()
    jobs = jobs_of(None if context.uses_default_store() else place)
    found = None if place is None and jobs else _store_status(context, output)
    items, code = standings(jobs)
    with output.read_or_not():
        if output.as_json:
            output.document(({"schema": 1, "items": []} if found is None else found.as_json()) | {"jobs": items})
        else:
            if found is not None:
                _show(output, found)
            if found is not None and items:
                output.line()
            show_standings(output, items)
    ctx.exit(code)


def _store_status(context: Context, output: Output) -> StoreStatus:
    from archiver.store.status import store_status

    with context.open_store(output) as store:
        return store_status(store)


def _show(output: Output, found: StoreStatus) -> None:
    output.line(f"store {found.name} in {found.path}")
    output.line(
        f"  disk      {size_text(found.used)} used, {size_text(found.available)} free of {size_text(found.total)}"
    )
    output.line(f"  stored    {size_text(found.stored_bytes)} in {found.chunks} chunks")
    output.line(f"  contents  {size_text(found.logical_bytes)} in {found.snapshots} snapshots")
    output.line(f"  deduplication factor {found.factor:.2f}")
    if found.groups:
        output.line()
        output.table(
            ("group", ">snapshots", ">contents", ">stored", ">factor", "last backup"),
            [
                (
                    group.group,
                    str(group.snapshots),
                    size_text(group.logical_bytes),
                    size_text(group.stored_bytes),
                    f"{group.factor:.2f}",
                    group.last,
                )
                for group in found.groups
            ],
        )
