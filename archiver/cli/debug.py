"""debug inspect"""

from __future__ import annotations

from typing import Any

import click

from archiver.cli.context import Context, global_options
from archiver.errors import UsageError


@click.group()
@global_options
def debug() -> None:
    """Look into files of the formats."""


@debug.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--payload", type=click.Path(exists=True, dir_okay=False), help="Payload file of an .mpxar archive.")
@click.option("--decode", metavar="FILE", help="Write the contents of a blob or chunk to FILE (- for stdout).")
@global_options
def inspect(context: Context, file: str, payload: str | None, decode: str | None) -> None:
    """Show what a FILE is: chunk, blob, index, manifest, catalog, key file or pxar archive."""
    from archiver.browse.inspect import decode_blob, inspect_file

    output = context.output
    if decode is not None:
        if output.as_json:
            raise UsageError("--decode writes contents, it has no JSON form")
        decode_blob(file, context.key(), decode)
        return
    found = inspect_file(file, payload, context.key())
    if output.as_json:
        output.document({"schema": 1, "file": file, **found})
        return
    for name, value in found.items():
        if isinstance(value, list):
            output.line(f"{name}:")
            for item in value:
                output.line(f"  {_flat(item)}")
        else:
            output.line(f"{name}: {value}")


def _flat(item: Any) -> str:
    return "  ".join(str(value) for value in item.values()) if isinstance(item, dict) else str(item)
