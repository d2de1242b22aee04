"""debug inspect, recover, recover-chunks"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options
from archiver.errors import EXIT_DAMAGED, EXIT_OK, UsageError

if TYPE_CHECKING:
    from archiver.cli.output import Output
    from archiver.restore.recover import Recovered
    from archiver.store.layout import Layout


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


chunks_option = click.option(
    "--chunks",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="The store's .chunks, wherever it is. Default: that of --store.",
)


@debug.command()
@click.argument("index", type=click.Path(exists=True, dir_okay=False))
@click.argument("target")
@chunks_option
@click.option("--zero-fill", is_flag=True, help="Zeros in place of lost chunks, which are listed.")
@global_options
@click.pass_context
def recover(ctx: click.Context, context: Context, index: str, target: str, chunks: str | None, zero_fill: bool) -> None:
    """Write what an INDEX file stands for to the new file TARGET (- for stdout), with nothing but the chunks.

    An image comes out as it is; of a tree come pxar streams, which restore as any pxar file.
    """
    from archiver.restore.recover import recover_index

    output = context.output
    _check_target(target, output)
    layout = _layout(context, chunks)
    result = recover_index(layout, index, target, context.key(), zero_fill=zero_fill, listener=output.hear)
    _tell(result, target, ctx, output)


@debug.command("recover-chunks")
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
@click.argument("target")
@chunks_option
@global_options
@click.pass_context
def recover_chunks(
    ctx: click.Context, context: Context, digests: tuple[str, ...], target: str, chunks: str | None
) -> None:
    """Write the contents of the chunks with these DIGESTs one after the other to the new file TARGET (- for stdout)."""
    from archiver.restore.recover import recover_chunks as run

    output = context.output
    _check_target(target, output)
    _tell(run(_layout(context, chunks), digests, target, context.key()), target, ctx, output)


def _layout(context: Context, chunks: str | None) -> Layout:
    import os

    from archiver.store.layout import CHUNKS, Layout

    if chunks is None:
        with context.open_store(context.output) as store:
            return store.layout
    base, name = os.path.split(os.path.abspath(chunks))
    if name != CHUNKS:
        raise UsageError(f"{chunks} is not a directory of chunks", hint=f"its name is {CHUNKS}")
    return Layout(base)


def _check_target(target: str, output: Output) -> None:
    if target == "-" and output.as_json:
        raise UsageError("--json writes to stdout, and so would the contents", hint="name a file as the target")


def _tell(result: Recovered, target: str, ctx: click.Context, output: Output) -> None:
    if output.as_json:
        output.document(result.as_json())
    lost = f", {result.gap_count} of them lost, {result.lost_bytes} bytes" if result.gap_count else ""
    tell = output.message if target == "-" else output.summary
    tell(f"wrote {result.size} bytes from {result.chunks} chunks{lost}")
    ctx.exit(EXIT_DAMAGED if result.gap_count else EXIT_OK)


def _flat(item: Any) -> str:
    return "  ".join(str(value) for value in item.values()) if isinstance(item, dict) else str(item)
