"""db check, rebuild, stats"""

from __future__ import annotations

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import size_text
from archiver.errors import EXIT_DAMAGED, EXIT_OK


@click.group()
@global_options
def db() -> None:
    """The database over the store: an index that can be rebuilt from the files at any time."""


@db.command()
@global_options
@click.pass_context
def check(ctx: click.Context, context: Context) -> None:
    """Look for contradictions in the database."""
    output = context.output
    with context.open_store(output) as store:
        found = store.require_database().check()
    with output.read_or_not():
        if output.as_json:
            output.document({"schema": 1, "items": found})
        for text in found:
            output.line(text)
        if not found:
            output.summary("no contradictions")
    ctx.exit(EXIT_DAMAGED if found else EXIT_OK)


@db.command()
@global_options
def rebuild(context: Context) -> None:
    """Build the database anew from the files."""
    output = context.output
    with context.open_store(output) as store:
        store.rebuild_database()
        numbers = store.require_database().statistics()
    if output.as_json:
        output.document({"schema": 1, **numbers})
    output.summary(f"rebuilt: {numbers['snap']} snapshots, {numbers['chunk']} chunks")


@db.command()
@global_options
def stats(context: Context) -> None:
    """Where the database is and how large its tables are."""
    output = context.output
    with context.open_store(output) as store:
        database = store.require_database()
        directory, numbers = database.directory, database.statistics()
    if output.as_json:
        output.document({"schema": 1, "directory": directory, **numbers})
        return
    output.line(directory)
    for name, number in numbers.items():
        output.line(f"  {name:8} {size_text(number) if name == 'bytes' else number}")
