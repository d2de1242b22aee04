"""The entry point: finds the command, runs it, and turns what went wrong into a sentence and an exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

import click

from archiver import __version__
from archiver.cli.context import global_options
from archiver.cli.lazy import Commands
from archiver.cli.output import printable, told
from archiver.errors import EXIT_OK, ArchiverError, Interrupted, NoSpace, UsageError

# command -> (module in archiver.cli, function); modules are imported when a command is asked for
COMMANDS = {
    "init": ("store", "init"),
    "backup": ("backup", "backup"),
    "import": ("backup", "import_file"),
    "snapshots": ("listing", "snapshots"),
    "groups": ("listing", "groups"),
    "files": ("listing", "files"),
    "ls": ("look", "ls"),
    "find": ("find", "find"),
    "history": ("find", "history"),
    "diff": ("diff", "diff"),
    "cat": ("look", "cat"),
    "restore": ("restore", "restore"),
    "mount": ("mount", "mount"),
    "shell": ("shell", "shell"),
    "forget": ("prune", "forget"),
    "protect": ("labels", "protect"),
    "note": ("labels", "note"),
    "owner": ("labels", "owner"),
    "prune": ("prune", "prune"),
    "verify": ("verify", "verify"),
    "heal": ("heal", "heal"),
    "gc": ("gc", "gc"),
    "sync": ("sync", "sync"),
    "status": ("store", "status"),
    "du": ("du", "du"),
    "ns": ("ns", "ns"),
    "job": ("job", "job"),
    "drill": ("drill", "drill"),
    "db": ("db", "db"),
    "key": ("key", "key"),
    "tape": ("tape.group", "tape"),
    "debug": ("debug", "debug"),
    "rescue-script": ("rescue", "rescue_script"),
    "manpages": ("manual", "manpages"),
    "completion": ("manual", "completion"),
}
COMPLETE = "_ARCHIVER_COMPLETE"  # what the shells' completion asks with
_EXIT_BUG = 70


@click.group(
    cls=Commands, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="archiver")
@global_options
def cli() -> None:
    """Back up directories into a store in the formats of Proxmox Backup Server, and get them back."""


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit the process (DESIGN.md 5 has the exit codes)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _terminate)
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        os.putenv("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads that nothing here uses: 20 ms of every run
    _open_streams()
    asked = os.environ.get(COMPLETE)
    code = _complete(asked) if asked else run(arguments, "--json" in arguments)
    _close_streams()
    os._exit(code)  # the interpreter would take 60 ms to give back the memory of a quiet backup


def _complete(instruction: str) -> int:
    """A shell asks what the words it has can be completed to: they are in the environment. It shows no errors."""
    from click.shell_completion import shell_complete

    try:
        return shell_complete(cli, {}, "archiver", COMPLETE, instruction)
    except Exception:
        return EXIT_OK


def _open_streams() -> None:
    """Streams that were closed by our caller lead nowhere: a file that is opened later must not take their place. A
    name that the terminal's encoding lacks is escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = open(os.devnull, mode)
            os.set_inheritable(nowhere.fileno(), True)  # what we start has streams, too
            setattr(sys, name, nowhere)
        elif isinstance(stream, TextIOWrapper) and mode == "w":
            stream.reconfigure(errors="backslashreplace")


def _close_streams() -> None:
    """What nobody reads any more, as with `| head`, must not fail once more when the interpreter ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(arguments: list[str], as_json: bool) -> int:
    try:
        with cli.make_context("archiver", list(arguments)) as ctx:
            try:
                cli.invoke(ctx)
            finally:
                with suppress(BrokenPipeError), told():  # how it ended counts, whether or not somebody reads to the end
                    sys.stdout.flush()
        return EXIT_OK
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return _misused(error, as_json)
    except ArchiverError as error:
        return _told(error, as_json)
    except _Terminated:
        return _told(Interrupted("terminated"), as_json)
    except (KeyboardInterrupt, EOFError, click.Abort):
        return _told(Interrupted("interrupted"), as_json)
    except BrokenPipeError:
        return EXIT_OK
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        reason = place + (error.strerror or str(error)).lower()
        return _told(NoSpace(reason) if full else ArchiverError(reason), as_json)
    except MemoryError:
        return _told(ArchiverError("there is not enough memory"), as_json)
    except Exception as error:  # a bug of ours
        if as_json:
            return _tell({"code": "bug", "message": f"{type(error).__name__}: {error}", "hint": None}, _EXIT_BUG)
        import traceback

        for line in "".join(traceback.format_exception(error)).splitlines():
            _say(printable(line))
        _say("archiver: this is a bug of archiver's, please report it with the lines above")
        return _EXIT_BUG


def _misused(error: click.ClickException, as_json: bool) -> int:
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"see: {ctx.command_path} --help" if ctx is not None else None
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        if not as_json:
            error.show()
            return UsageError.exit_code
        return _told(UsageError("a command is missing", hint=hint), as_json)
    return _told(UsageError(error.format_message(), hint=hint), as_json)


def _told(error: ArchiverError, as_json: bool) -> int:
    if as_json:
        return _tell(error.as_json(), error.exit_code)
    _say(f"archiver: {printable(str(error))}")
    if error.hint:
        _say(f"  ({printable(error.hint)})")
    return error.exit_code


def _tell(error: dict[str, Any], code: int) -> int:
    _say(json.dumps({"schema": 1, "error": error}), on_stderr=False)
    return code


def _say(text: str, *, on_stderr: bool = True) -> None:
    try:
        click.echo(text, err=on_stderr)
    except OSError:
        pass  # nobody listens; the exit code still tells


class _Terminated(KeyboardInterrupt):
    """SIGTERM. Like Ctrl-C no Exception: whoever goes on after an error must not go on after this."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated
