"""tape scan"""

from __future__ import annotations

from typing import Any

import click

from archiver.cli.context import Context, global_options
from archiver.cli.tape.group import drive_option, opened
from archiver.errors import EXIT_DAMAGED, EXIT_OK


@click.command()
@drive_option
@global_options
@click.pass_context
def scan(ctx: click.Context, context: Context, drive: str | None) -> None:
    """List the files on the medium in the drive, whatever they are. The exit code is 20 when one has a warning."""
    from archiver.cli.output import size_text
    from archiver.tape.request import check_loaded
    from archiver.tape.scan import scan as run
    from formats.tape.content import encode_uuid

    output = context.output
    items: list[dict[str, Any]] = []
    with opened(drive) as access:
        check_loaded(access)
        for found in run(access.drive):
            content = found.content
            item: dict[str, Any] = {
                "file-number": found.number,
                "kind": None if content is None else content.kind,
                "uuid": None if content is None else encode_uuid(content.uuid),
                "ctime": None if content is None else content.time,
                "header": None if content is None else {k: v for k, v in content.fields.items() if k != "key-config"},
                "bytes": found.size,
                "warnings": list(found.warnings),
            }
            items.append(item)
            if not output.as_json:
                kind = "unknown" if content is None else content.kind
                output.line(f"{found.number:>4}  {kind}, {size_text(found.size)}  {item['uuid'] or ''}".rstrip())
                for name, value in (item["header"] or {}).items():
                    output.line(f"        {name}: {value}")
                for text in found.warnings:
                    output.line(f"        warning: {text}")
    if output.as_json:
        output.document({"schema": 1, "items": items})
    elif not items:
        output.summary("the medium is empty")
    ctx.exit(EXIT_DAMAGED if any(item["warnings"] for item in items) else EXIT_OK)
