"""tape: the group, and what its commands share"""

from __future__ import annotations

import math
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import click

from archiver.cli.context import global_options
from archiver.cli.lazy import Commands
from archiver.errors import UsageError

if TYPE_CHECKING:
    from archiver.cli.context import Context
    from archiver.cli.output import Output
    from archiver.tape.access import Access
    from archiver.tape.state.place import TapePlace
    from formats.crypt import CryptConfig

F = TypeVar("F", bound=Callable[..., Any])

# command -> (module in archiver.cli, function)
COMMANDS = {
    "drive": ("tape.drives", "drive"),
    "changer": ("tape.changers", "changer"),
    "pool": ("tape.pools", "pool"),
    "label": ("tape.labels", "label"),
    "barcode-label": ("tape.labels", "barcode_label"),
    "read-label": ("tape.labels", "read_label"),
    "inventory": ("tape.inventory", "inventory"),
    "media": ("tape.media", "media"),
    "load": ("tape.handling", "load"),
    "rewind": ("tape.handling", "rewind"),
    "eject": ("tape.handling", "eject"),
    "format": ("tape.handling", "format_"),
    "scan": ("tape.scan", "scan"),
    "catalog": ("tape.catalog", "catalog"),
    "backup": ("tape.backup", "backup"),
    "restore": ("tape.restore", "restore"),
    "verify": ("tape.verify", "verify"),
    "key": ("tape.keys", "key"),
}


@click.group(cls=Commands, table=COMMANDS)
@global_options
def tape() -> None:
    """Backups on media in a drawer: virtual tapes on attached disks, or real ones, as a Proxmox Backup Server has them.

    DRIVE: --drive, ARCHIVER_TAPE_DRIVE, else the only one that is set up.
    """


def drive_option(function: F) -> F:
    return click.option("--drive", metavar="NAME", help="The drive. Default: ARCHIVER_TAPE_DRIVE, else the only one.")(
        function
    )


def wait_option(function: F) -> F:
    return click.option(
        "--wait",
        "wait_seconds",
        type=click.FloatRange(0, 10**7),
        metavar="SECONDS",
        help="How long a missing medium is waited for. Default: for ever on a terminal, else not at all.",
    )(function)


def tape_place() -> TapePlace:
    from archiver.tape.state.place import TapePlace

    return TapePlace.default(os.environ)


def opened(drive: str | None, *, new: bool = False) -> Access:
    """The drive that a user chose. Raises NotFound, UsageError, TargetAbsent, Locked."""
    from archiver.tape.access import open_access

    return open_access(tape_place(), drive or os.environ.get("ARCHIVER_TAPE_DRIVE") or None, new=new)


def waited_for(wait_seconds: float | None) -> float:
    """How long, when a user said nothing: for ever, where there is somebody who can put a medium in."""
    if wait_seconds is not None:
        if math.isnan(wait_seconds):
            raise UsageError("--wait is no number of seconds")
        return wait_seconds
    return float("inf") if sys.stdin.isatty() else 0.0


def pause(seconds: float) -> None:
    """So long, or until somebody presses Enter."""
    if not sys.stdin.isatty():
        select.select([], [], [], seconds)
        return
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if ready:
        with suppress(OSError):
            sys.stdin.readline()


def key_at_hand(context: Context) -> CryptConfig | None:
    """The key that was chosen, or the user's own one where it can be had: nothing needs it, but it proves more. Raises
    KeyProblem for one that was chosen."""
    from archiver.errors import KeyProblem

    try:
        return context.key()
    except KeyProblem as error:
        if context.chosen_keyfile() is not None:
            raise
        context.output.message(f"encrypted chunks are checked without their key: {error}")
        return None


def listed(output: Output, items: list[dict[str, Any]], columns: tuple[str, ...], empty: str) -> None:
    """A document, or a table of some members of its items; ``>`` before a column aligns it to the right."""
    if output.as_json:
        output.document({"schema": 1, "items": items})
        return
    if not items:
        output.summary(empty)
        return
    output.table(columns, [[cell(item[column.lstrip(">")]) for column in columns] for item in items])


def told(output: Output, document: dict[str, Any], text: str) -> None:
    """What a command did: a document, or a line."""
    if output.as_json:
        output.document({"schema": 1, **document})
    output.summary(text)


def described(output: Output, document: dict[str, Any]) -> None:
    """One thing with its members: a document, or a line each."""
    if output.as_json:
        output.document({"schema": 1, **document})
        return
    width = max(map(len, document)) + 1
    for name, value in document.items():
        if value is not None:
            output.line(f"{name + ':':{width}} {cell(value)}")


def cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return str(value)
