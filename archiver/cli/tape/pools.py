"""tape pool create, update, list, remove"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options
from archiver.cli.tape.group import listed, tape_place, told

if TYPE_CHECKING:
    from archiver.tape.state.pools import Pool

_ALLOCATION = click.option(
    "--allocation", metavar="WHEN", help="When a new media set begins: continue (never by itself), always, or an event."
)
_RETENTION = click.option(
    "--retention", metavar="HOW", help="When media are used again: keep (never), overwrite (as soon as they are not"
    " needed), or a time span such as 30d.",
)  # fmt: skip
_TEMPLATE = click.option("--template", metavar="TEXT", help="Name of its media sets, strftime and %id%. Default: %c.")
_ENCRYPT = click.option("--encrypt", metavar="KEY", help='Tape key that the drive encrypts with; "" for none.')
_COMMENT = click.option("--comment", metavar="TEXT", help='"" for none.')


@click.group()
@global_options
def pool() -> None:
    """Pools: media that belong together, and the rules for using them.

    An event is daily, weekly, monthly, or like "sat 18:15", "*-1 4:00" (spec of a Proxmox Backup Server).
    """


@pool.command()
@click.argument("name")
@_ALLOCATION
@_RETENTION
@_TEMPLATE
@_ENCRYPT
@_COMMENT
@click.option("--require-encryption", is_flag=True, help="Take only snapshots that are encrypted themselves.")
@global_options
def create(
    context: Context,
    name: str,
    allocation: str | None,
    retention: str | None,
    template: str | None,
    encrypt: str | None,
    comment: str | None,
    require_encryption: bool,
) -> None:
    """Make the pool NAME."""
    from archiver.tape.state.pools import Pool, Pools

    made = Pool.make(
        name,
        allocation=allocation,
        retention=retention,
        template=template,
        encrypt=_key(encrypt),
        comment=comment,
        require_encryption=require_encryption,
    )
    Pools(tape_place()).create(made)
    told(context.output, {"pool": _described(made)}, f"made the pool {name}")


@pool.command()
@click.argument("name")
@_ALLOCATION
@_RETENTION
@_TEMPLATE
@_ENCRYPT
@_COMMENT
@click.option("--require-encryption/--no-require-encryption", default=None, help="Take only encrypted snapshots.")
@global_options
def update(
    context: Context,
    name: str,
    allocation: str | None,
    retention: str | None,
    template: str | None,
    encrypt: str | None,
    comment: str | None,
    require_encryption: bool | None,
) -> None:
    """Change what is given of the pool NAME. Another key begins a new media set with the next backup."""
    from archiver.tape.state.pools import Pool, Pools

    given = {
        "allocation": allocation,
        "retention": retention,
        "template": template,
        "encrypt": _key(encrypt),
        "comment": comment,
    }
    wanted = {key: value for key, value in given.items() if value is not None}
    made = Pool.make(name, **wanted)  # type: ignore[arg-type]
    changes: dict[str, Any] = {key: getattr(made, key) for key in wanted}
    if require_encryption is not None:
        changes["require_encryption"] = require_encryption
    changed = Pools(tape_place()).update(name, lambda before: replace(before, **changes))
    told(context.output, {"pool": _described(changed)}, f"changed the pool {name}")


@pool.command("list")
@global_options
def list_(context: Context) -> None:
    """List the pools."""
    from archiver.tape.state.pools import Pools

    items = [_described(each) for each in Pools(tape_place()).all().values()]
    columns = ("name", "allocation", "retention", "template", "encrypt", "require-encryption")
    listed(context.output, items, columns, "there are no pools; archiver tape pool create NAME makes one")


@pool.command()
@click.argument("name")
@global_options
def remove(context: Context, name: str) -> None:
    """Forget the rules of the pool NAME. Its media stay what they are, and cannot be written any more."""
    from archiver.tape.state.pools import Pools

    Pools(tape_place()).remove(name)
    told(context.output, {"pool": name}, f"the pool {name} is gone; its media are still known")


def _key(text: str | None) -> str | None:
    """The whole fingerprint of a key that is known."""
    if not text:
        return text
    import os

    from archiver.tape.keys import TapeKeys
    from formats.crypt import format_fingerprint

    return format_fingerprint(TapeKeys.default(os.environ).find(text).fingerprint)


def _described(each: Pool) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in each.as_json().items()}
