"""du"""

from __future__ import annotations

import click

from archiver.cli.context import Context, global_options
from archiver.cli.output import size_text


@click.command()
@click.argument("names", metavar="[SNAPSHOT|GROUP]...", nargs=-1)
@global_options
def du(context: Context, names: tuple[str, ...]) -> None:
    """What each SNAPSHOT (TYPE/ID/TIME) or GROUP (TYPE/ID) takes, and what would come back without it.

    Without any all groups. What is freed is what gc removes after forget; several that share data free more together
    than each alone.
    """
    from archiver.store.usage import Usage, named, usage

    output = context.output
    with context.open_store(output) as store:
        found = usage(store, named(store, names, context.namespace))
    if output.as_json:
        output.document(found.as_json())
        return

    def row(name: str, usage: Usage) -> tuple[str, str, str, str, str]:
        sizes = (usage.contents, usage.stored, usage.freed)
        contents, stored, freed = map(size_text, sizes)
        return name, str(usage.snapshots), contents, stored, freed

    rows = [row(str(name), usage) for name, usage in found.items]
    if len(rows) != 1:
        rows.append(row("together", found.together))
    output.table(("", ">snapshots", ">contents", ">stored", ">freed"), rows)
    if found.unused:
        output.summary(f"{size_text(found.unused)} are of no snapshot: gc frees them")
