"""The entry point: finds the command, runs it, and turns what went wrong into a sentence and an exit code."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
import traceback
from typing import Any

import click

from archiver import __version__
from archiver.cli.context import global_options
from archiver.errors import ArchiverError, Interrupted

# command -> (module in archiver.cli, function); modules are imported when a command is asked for
COMMANDS = {
    "init": ("store", "init"),
    "backup": ("backup", "backup"),
    "snapshots": ("listing", "snapshots"),
    "groups": ("listing", "groups"),
    "files": ("listing", "files"),
    "ls": ("look", "ls"),
    "cat": ("look", "cat"),
    "restore": ("restore", "restore"),
    "verify": ("verify", "verify"),
    "status": ("store", "status"),
    "db": ("db", "db"),
    "debug": ("debug", "debug"),
}
_EXIT_BUG = 70
_EXIT_USAGE = 2


class Commands(click.Group):
    """Loads a command's module when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        command = getattr(importlib.import_module(f"archiver.cli.{place[0]}"), place[1])
        assert isinstance(command, click.Command)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="archiver")
@global_options
def cli() -> None:
    """Back up directories into a store in the formats of Proxmox Backup Server, and get them back."""


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit the process (DESIGN.md 5 has the exit codes)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(arguments, "--json" in arguments))


def run(arguments: list[str], as_json: bool) -> int:
    try:
        code = cli.main(arguments, prog_name="archiver", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        if as_json:
            return _tell({"code": "usage", "message": error.format_message(), "hint": None}, _EXIT_USAGE)
        error.show()
        return _EXIT_USAGE
    except ArchiverError as error:
        return _told(error, as_json)
    except (KeyboardInterrupt, click.Abort):
        return _told(Interrupted("interrupted"), as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read our output has gone, as with `| head`
        return 0
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _told(ArchiverError(f"no space left: {error}"), as_json)
        return _told(ArchiverError(str(error)), as_json)
    except Exception as error:  # a bug of ours
        if as_json:
            return _tell({"code": "bug", "message": f"{type(error).__name__}: {error}", "hint": None}, _EXIT_BUG)
        traceback.print_exc()
        click.echo("archiver: this is a bug of archiver's, please report it with the lines above", err=True)
        return _EXIT_BUG


def _told(error: ArchiverError, as_json: bool) -> int:
    if as_json:
        return _tell({"code": error.code, "message": str(error), "hint": error.hint}, error.exit_code)
    click.echo(f"archiver: {error}", err=True)
    if error.hint:
        click.echo(f"  ({error.hint})", err=True)
    return error.exit_code


def _tell(error: dict[str, Any], code: int) -> int:
    click.echo(json.dumps({"schema": 1, "error": error}))
    return code


def _terminate(number: int, frame: object) -> None:
    raise Interrupted("terminated")
