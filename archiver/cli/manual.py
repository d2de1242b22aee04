"""manpages, completion"""

from __future__ import annotations

import os
from collections.abc import Iterator

import click

from archiver.cli.context import Context, global_options

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("directory", metavar="DIR")
@global_options
@click.pass_context
def manpages(ctx: click.Context, context: Context, directory: str) -> None:
    """Write a manual page for every command into DIR, which is made.

    Those in ~/.local/share/man/man1 and /usr/local/share/man/man1 are found by man.
    """
    from archiver.cli.man_page import man_page, page_name
    from archiver.core.disk import Disk, explained

    output, disk = context.output, Disk()
    base = os.path.abspath(directory)
    items: list[dict[str, str]] = []
    with explained("make", directory):
        disk.make_directories(base, 0o755)
    for each in every_command(ctx.find_root().command):
        path = os.path.join(directory, page_name(each.command_path))
        with explained("write", path):
            disk.put(os.path.join(base, page_name(each.command_path)), [man_page(each).encode()], 0o644, sync=False)
        items.append({"command": each.command_path, "path": path})
    with explained("write", directory):
        disk.sync_file_system(base)
    if output.as_json:
        output.document({"schema": 1, "items": items})
    output.summary(f"wrote {len(items)} manual pages into {directory}")


def every_command(command: click.Command, parent: click.Context | None = None) -> Iterator[click.Context]:
    """``command`` and all below it, each as a context that knows its whole name."""
    ctx = click.Context(command, parent, info_name=command.name if parent is not None else "archiver")
    yield ctx
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            if below is not None and not below.hidden:
                yield from every_command(below, ctx)


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@global_options
@click.pass_context
def completion(ctx: click.Context, context: Context, shell: str) -> None:
    """Print what makes a SHELL complete commands and options of this program.

    \b
    bash: archiver completion bash > ~/.local/share/bash-completion/completions/archiver
    zsh:  archiver completion zsh > a directory of $fpath/_archiver
    fish: archiver completion fish > ~/.config/fish/completions/archiver.fish
    """
    from click.shell_completion import ShellComplete, get_completion_class

    from archiver.cli.main import COMPLETE

    output = context.output
    kind = get_completion_class(shell)
    assert kind is not None
    # bash's own source() would start a bash to ask for its version
    script = ShellComplete.source(kind(ctx.find_root().command, {}, "archiver", COMPLETE))
    if output.as_json:
        output.document({"schema": 1, "shell": shell, "script": script})
    output.lines(script.strip("\n").splitlines())
