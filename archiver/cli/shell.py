"""shell"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import click

from archiver.cli.context import Context, allow_unsigned_option, global_options
from archiver.cli.output import Output, printable
from archiver.errors import ArchiverError

if TYPE_CHECKING:
    from archiver.cli.shell_commands import Shell

_HISTORY = "shell-history"
_LINES_KEPT = 1000


@click.command()
@click.argument("snapshot")
@click.option("--archive", "archive_name", metavar="NAME", help="Look into this archive, for example home.pxar.")
@allow_unsigned_option
@global_options
@click.pass_context
def shell(ctx: click.Context, context: Context, snapshot: str, archive_name: str | None, allow_unsigned: bool) -> None:
    """Look around in a SNAPSHOT, select files and restore them; `help` lists the commands.

    When stdin is no terminal its lines are the commands. The first one that fails is the last one then, and decides the
    exit code. With --json each command is an item with the lines it prints.
    """
    from archiver.browse.navigator import Navigator
    from archiver.cli.shell_commands import Shell

    output = context.output
    with context.open_store(output) as store:
        opened = context.open_snapshot(store, snapshot, allow_unsigned=allow_unsigned)
        tree = opened.tree(opened.archive(archive_name))
        session = Shell(Navigator(tree), output.hear)
        if context.as_json:
            head = {"schema": 1, "snapshot": str(opened.ref), "archive": tree.files.name}
            output.long_document(head, _as_json(session))
        elif sys.stdin.isatty():
            secret = any(file.crypt_mode == "encrypt" for file in tree.files.files)
            _talk(session, output, None if secret else _history_path())
        else:
            _follow(session, output)
    ctx.exit(session.code)


def _lines() -> Iterator[list[str]]:
    """The words of each line of stdin that is no comment."""
    from archiver.cli.shell_words import split

    for line in sys.stdin.buffer:
        words = split(os.fsdecode(line))
        if words and not words[0].startswith("#"):
            yield words


def _follow(session: Shell, output: Output) -> None:
    from archiver.cli.shell_commands import Leave

    with suppress(Leave):
        for words in _lines():
            for line in session.run(words):
                output.line(line)
            sys.stdout.flush()


def _as_json(session: Shell) -> Iterator[dict[str, Any]]:
    from archiver.cli.shell_commands import Leave

    with suppress(Leave):
        for words in _lines():
            yield {"command": words, "lines": list(session.run(words))}


def _talk(session: Shell, output: Output, history: str | None) -> None:
    """At a terminal: a command that fails is told, and the shell goes on."""
    from archiver.cli.shell_commands import Leave
    from archiver.cli.shell_words import split

    with _line_editing(session, history), _CtrlC() as ctrl_c:
        while True:
            try:
                ctrl_c.counts = True
                line = input(session.prompt)
                words = split(line)
                for text in session.run(words) if words else ():
                    output.line(text)
            except Leave:
                return
            except EOFError:
                output.line()
                return
            except KeyboardInterrupt as error:
                if type(error) is not KeyboardInterrupt:  # SIGTERM
                    raise
                output.line()
            except ArchiverError as error:
                output.message(printable(str(error)) + (f" ({printable(error.hint)})" if error.hint else ""))


class _CtrlC:
    """Takes back a line or ends a command. While that is done, another one changes nothing: the shell stays."""

    def __init__(self) -> None:
        self.counts = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._pressed)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _pressed(self, *_: object) -> None:
        if self.counts:
            self.counts = False
            raise KeyboardInterrupt


def _history_path() -> str:
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "archiver", _HISTORY)


@contextmanager
def _line_editing(session: Shell, history: str | None) -> Iterator[None]:
    """Completion, and the lines of earlier sessions. Of an encrypted snapshot nothing is kept (``history`` None): what
    is typed there has its file names in it."""
    try:
        import readline
    except ImportError:  # a Python without it
        yield
        return
    from archiver.cli.shell_completion import Completer

    completer = Completer(session)
    readline.set_completer_delims("")  # words are ours to tell apart
    readline.set_completer(completer)
    readline.set_completion_display_matches_hook(completer.show)
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(_LINES_KEPT)
    if history is not None:
        with suppress(OSError):
            readline.read_history_file(history)
    try:
        yield
    finally:
        if history is not None:
            with suppress(OSError):
                os.makedirs(os.path.dirname(history), 0o700, exist_ok=True)
                os.close(os.open(history, os.O_WRONLY | os.O_CREAT, 0o600))
                readline.write_history_file(history)
