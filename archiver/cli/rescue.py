"""rescue-script"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from archiver.cli.context import Context, global_options
from archiver.errors import UsageError


@click.command("rescue-script")
@click.argument("file", required=False)
@global_options
def rescue_script(context: Context, file: str | None) -> None:
    """Write a stand-alone Python program to FILE, or stdout, that lists and extracts plain snapshots.

    Keep it beside the store: where this program cannot be had, it needs nothing but Python 3.8 and zstd.
    """
    import archiver.rescue
    from archiver.core.disk import Disk, explained

    output = context.output
    script = Path(archiver.rescue.__file__).with_name("script.py").read_bytes()
    if file is None or file == "-":
        if output.as_json:
            raise UsageError("a script on stdout has no JSON form", hint="name a FILE")
        sys.stdout.flush()
        sys.stdout.buffer.write(script)
        return
    path = os.path.join(file, "rescue.py") if os.path.isdir(file) else file
    with explained("write", path):
        try:
            Disk().put_new(os.path.abspath(path), [script], 0o755)
        except FileExistsError as error:
            raise UsageError(f"{path} exists already", hint="name a file that does not exist") from error
    if output.as_json:
        output.document({"schema": 1, "path": path, "size": len(script)})
    output.summary(f"wrote {path}; run it with: python3 {path} --help")
