"""A command's manual page in roff's man macros, out of what its --help says."""

from __future__ import annotations

from collections.abc import Iterator

import click

from archiver import __version__

EXIT_CODES = {
    0: "done",
    1: "failed",
    2: "usage",
    3: "done, but some files were unreadable or torn (or could not be restored completely)",
    4: "differences found: by diff, after restoring, or a copy that is not complete",
    10: "no such store or snapshot",
    11: "locked",
    12: "wrong or missing key",
    13: "the store's directory or a device is absent, or its drive is not mounted",
    14: "skipped: protected, in use, or another owner's",
    20: "damage found",
    30: "held back by a guard",
    31: "a job's newest good snapshot, verification, copy or drill is older than it allows",
    40: "no space",
    50: "made by a newer version",
    70: "a bug",
    130: "interrupted",
}
_ENVIRONMENT = {
    "ARCHIVER_STORE": "The store. Default: $XDG_DATA_HOME/archiver/store.",
    "ARCHIVER_KEYFILE": "The encryption key. Default: $XDG_CONFIG_HOME/archiver/encryption-key.json if it exists.",
    "ARCHIVER_PASSWORD, ARCHIVER_PASSWORD_FILE, ARCHIVER_PASSWORD_FD, ARCHIVER_PASSWORD_COMMAND": (
        "The passphrase of the key, or where it comes from."
    ),
    "ARCHIVER_DB_DIR": "Where the database is kept.",
    "ARCHIVER_RESERVE": "How much room a store keeps for the day when the disk is full. Default: 32M.",
}
_SECTION = 1


def page_name(path: str) -> str:
    """The file's name for the command ``path``, "archiver key create" for example."""
    return f"{path.replace(' ', '-')}.{_SECTION}"


def man_page(ctx: click.Context) -> str:
    """The page of ``ctx.command``."""
    return "\n".join(_lines(ctx)) + "\n"


def _lines(ctx: click.Context) -> Iterator[str]:
    command, path = ctx.command, ctx.command_path
    name = path.replace(" ", "-")
    yield f'.TH "{_text(name.upper())}" "{_SECTION}" "" "archiver {__version__}" "User Commands"'
    yield ".SH NAME"
    yield f"{_text(name)} \\- {_text(_summary(command))}"
    yield ".SH SYNOPSIS"
    yield f".B {_text(path)}"
    yield _text(" ".join(command.collect_usage_pieces(ctx)))
    yield ".SH DESCRIPTION"
    yield from _paragraphs(command.help or "")
    yield from _options(ctx)
    if isinstance(command, click.Group):
        yield from _commands(ctx, command)
    if ctx.parent is None:
        yield ".SH ENVIRONMENT"
        for variables, help_text in _ENVIRONMENT.items():
            yield from _item(variables, help_text)
    yield ".SH EXIT STATUS"
    if ctx.parent is None:
        for code, meaning in EXIT_CODES.items():
            yield from _item(str(code), meaning)
    else:
        yield "0 when all is well; all others are in"
        yield ".BR archiver (1)."
    if ctx.parent is not None:
        yield ".SH SEE ALSO"
        yield f".BR {_text(ctx.parent.command_path.replace(' ', '-'))} ({_SECTION})"


def _summary(command: click.Command) -> str:
    """The first sentence of the help, in one line and without its full stop."""
    first = " ".join((command.help or "").split("\n\n")[0].split())
    return first.partition(". ")[0].removesuffix(".")


def _options(ctx: click.Context) -> Iterator[str]:
    yield ".SH OPTIONS"
    for option in ctx.command.get_params(ctx):
        record = option.get_help_record(ctx)
        if isinstance(option, click.Option) and record is not None:
            yield from _item(*record)


def _commands(ctx: click.Context, group: click.Group) -> Iterator[str]:
    yield ".SH COMMANDS"
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is not None and not command.hidden:
            page = f"{ctx.command_path} {name}".replace(" ", "-")
            yield ".TP"
            yield f".BR {_text(page)} ({_SECTION})"
            yield _line(_summary(command))


def _item(term: str, help_text: str) -> Iterator[str]:
    yield ".TP"
    yield f".B {_text(term)}"
    yield _line(" ".join(help_text.split()))


def _paragraphs(help_text: str) -> Iterator[str]:
    for number, paragraph in enumerate(help_text.split("\n\n")):
        if number:
            yield ".PP"
        if paragraph.lstrip().startswith("\b"):  # click's sign for lines that stay as they are
            yield ".nf"
            yield from map(_line, paragraph.strip("\b\n ").splitlines())
            yield ".fi"
        else:
            yield _line(" ".join(paragraph.split()))


def _line(text: str) -> str:
    """A line that is text whatever it begins with."""
    return ("\\&" if text[:1] in (".", "'") else "") + _text(text)


def _text(text: str) -> str:
    """Nothing in it means anything to roff. Hyphens stay those that are typed, so that options can be copied."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq").replace("'", "\\(aq")
