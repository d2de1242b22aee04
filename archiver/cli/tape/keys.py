"""tape key create, list, show, change-passphrase, paperkey, remove, restore"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options, prompt
from archiver.cli.output import printable
from archiver.cli.tape.group import described, drive_option, listed, opened, told
from archiver.errors import Held, KeyProblem, UsageError

if TYPE_CHECKING:
    from archiver.tape.keys import TapeKey
    from formats.keyfile import KeyFile

_KDF = click.option(
    "--kdf",
    type=click.Choice(["scrypt", "pbkdf2"]),
    default="scrypt",
    show_default=True,
    help="How the passphrase protects the key.",
)
_HINT = click.option(
    "--hint", required=True, metavar="TEXT", help="What helps you remember the passphrase; it is on every medium."
)
_FINGERPRINT = click.argument("fingerprint")


@click.group()
@global_options
def key() -> None:
    """Keys of media that a drive's hardware encrypts; each medium carries its key, wrapped with the passphrase.

    FINGERPRINT: of a key, or how it begins. Passphrases come from where those of encryption keys do.
    """


@key.command()
@_KDF
@_HINT
@global_options
def create(context: Context, kdf: str, hint: str) -> None:
    """Make a new key. A pool uses it: archiver tape pool update POOL --encrypt FINGERPRINT."""
    from archiver.keys.make import new_key, protect
    from archiver.keys.ring import NEW_PASSWORD, PASSWORD
    from archiver.tape.keys import TapeKeys

    keys = TapeKeys.default(os.environ)
    crypt = new_key()
    made = protect(crypt, "the tape key", kdf, hint, None, os.environ, prompt, PASSWORD, NEW_PASSWORD)
    keys.put(made, crypt, overwrite=False)
    _tell(context, made)
    context.output.message(
        "Keep the passphrase: with a medium it is enough to read the set. Keep the key on paper too:"
    )
    context.output.message(f"  archiver tape key paperkey {crypt.fingerprint.hex(':')[:23]} | lpr")


@key.command("list")
@global_options
def list_(context: Context) -> None:
    """List the keys."""
    from archiver.tape.keys import TapeKeys
    from formats.crypt import format_fingerprint

    items = [
        {
            "fingerprint": format_fingerprint(each.fingerprint),
            "hint": None if each.file is None else each.file.hint,
            "usable": each.plain is not None,
        }
        for each in TapeKeys.default(os.environ).all()
    ]
    listed(context.output, items, ("fingerprint", "hint", "usable"), "there are no tape keys")


@key.command()
@_FINGERPRINT
@global_options
def show(context: Context, fingerprint: str) -> None:
    """Tell about a key what can be told without its passphrase."""
    _tell(context, _file(_find(fingerprint)))


@key.command("change-passphrase")
@_FINGERPRINT
@_KDF
@_HINT
@click.option("--force", is_flag=True, help="Without the old passphrase, from the key as the drive is given it.")
@global_options
def change_passphrase(context: Context, fingerprint: str, kdf: str, hint: str, force: bool) -> None:
    """Protect a key with another passphrase. Media that were written with it keep the old one."""
    from archiver.keys.make import protect
    from archiver.keys.ring import NEW_PASSWORD, unlock
    from archiver.tape.keys import TapeKeys

    keys, found = TapeKeys.default(os.environ), _find(fingerprint)
    if force:
        if found.plain is None:
            raise KeyProblem(f"only the wrapped form of the tape key {fingerprint} is here", hint="leave out --force")
        crypt = found.plain
    else:
        crypt = unlock(_file(found), "the tape key", os.environ, prompt).crypt
    created = None if found.file is None else found.file.created
    made = protect(crypt, "the tape key", kdf, hint, created, os.environ, prompt, NEW_PASSWORD)
    keys.put(made, crypt, overwrite=True)
    _tell(context, made)


@key.command()
@_FINGERPRINT
@click.option("--format", "form", type=click.Choice(["text", "html"]), default="text", show_default=True)
@click.option("--subject", metavar="TEXT", help="What stands above the key, for example which media it is of.")
@global_options
def paperkey(context: Context, fingerprint: str, form: str, subject: str | None) -> None:
    """Write a page to print to stdout, with the wrapped key as text and QR code."""
    from formats.errors import FormatError
    from formats.paperkey import PaperKey

    if context.as_json:
        raise UsageError("paperkey writes a page, it has no JSON form")
    subject = None if subject is None else printable(subject)
    try:
        page = PaperKey.of(_file(_find(fingerprint)).encode())
        text = page.html(subject) if form == "html" else page.text(subject)
    except FormatError as error:
        raise KeyProblem(f"the tape key {fingerprint} cannot be printed: {error}") from error
    sys.stdout.flush()
    context.output.raw(text.encode())


@key.command()
@_FINGERPRINT
@click.option("--force", is_flag=True, help="Also a key that pools or media use.")
@global_options
def remove(context: Context, fingerprint: str, force: bool) -> None:
    """Forget a key. Media that were written with it still carry it."""
    from archiver.cli.tape.group import tape_place
    from archiver.tape.keys import TapeKeys
    from archiver.tape.state.inventory import InventoryFile
    from archiver.tape.state.pools import Pools
    from formats.crypt import format_fingerprint

    found = _find(fingerprint)
    if not force:
        place = tape_place()
        users = [f"the pool {pool.name}" for pool in Pools(place).all().values() if pool.encrypt == found.fingerprint]
        users += [
            f"the medium {medium.name}"
            for medium in InventoryFile(place).load()
            if medium.in_set is not None and medium.in_set.fingerprint == found.fingerprint
        ]
        if users:
            raise Held(f"the tape key is used by {', '.join(users[:5])}", hint="--force removes it")
    TapeKeys.default(os.environ).remove(found.fingerprint)
    full = format_fingerprint(found.fingerprint)
    told(context.output, {"fingerprint": full}, f"removed the tape key {full}")


@key.command()
@click.option("--key-file", metavar="FILE", help="Take it from a key file, or from what was typed from paper.")
@click.option("--key", "text", metavar="TEXT", help="The same, as text.")
@drive_option
@global_options
def restore(context: Context, key_file: str | None, text: str | None, drive: str | None) -> None:
    """Get a key back: from the labels of the medium in the drive, from a key file, or from paper."""
    from archiver.keys.ring import unlock
    from archiver.tape.keys import TapeKeys

    if sum(value is not None for value in (key_file, text, drive)) > 1:
        raise UsageError("--drive, --key-file and --key exclude each other")
    if key_file is None and text is None:
        found, source, overwrite = *_from_medium(drive), True
    else:
        found, source, overwrite = *_from_text(key_file, text), False
    if found.kdf is None:
        raise KeyProblem(f"the key in {source} has no passphrase: it is no tape key")
    unlocked = unlock(found, source, os.environ, prompt)
    made = found
    if made.fingerprint is None:
        from dataclasses import replace

        made = replace(found, fingerprint=unlocked.crypt.fingerprint)
    TapeKeys.default(os.environ).put(made, unlocked.crypt, overwrite=overwrite)
    _tell(context, made)


def _from_medium(drive: str | None) -> tuple[KeyFile, str]:
    from archiver.tape.labelling import read_medium

    with opened(drive) as access:
        label = read_medium(access).set_label
        source = f"the medium in the drive {access.name}"
    if label is None or label.key is None:
        raise KeyProblem(f"there is no key on {source}", hint="it is not encrypted by the drive")
    if label.fingerprint is not None and label.key.fingerprint not in (None, label.fingerprint):
        raise KeyProblem(f"the key on {source} is another one than its label says")
    return label.key, source


def _from_text(key_file: str | None, text: str | None) -> tuple[KeyFile, str]:
    from archiver.keys.ring import read_file
    from formats.errors import FormatError
    from formats.keyfile import KeyFile
    from formats.paperkey import MAX_TEXT, PaperKey

    source = "--key" if key_file is None else key_file
    data = (
        (text or "").encode("utf-8", "surrogateescape")
        if key_file is None
        else read_file(key_file, "key file", MAX_TEXT)
    )
    try:
        try:
            return KeyFile.decode(data), source
        except FormatError:
            return KeyFile.decode(PaperKey.typed(data.decode("utf-8", "replace")).data), source
    except FormatError as error:
        raise KeyProblem(f"{source} is no usable tape key: {error}") from error


def _find(fingerprint: str) -> TapeKey:
    from archiver.tape.keys import TapeKeys

    return TapeKeys.default(os.environ).find(fingerprint)


def _file(found: TapeKey) -> KeyFile:
    if found.file is None:
        raise KeyProblem(
            "only the plain form of this tape key is here", hint="archiver tape key restore gets the wrapped one back"
        )
    return found.file


def _tell(context: Context, file: KeyFile) -> None:
    from archiver.keys.make import kdf_name
    from formats.crypt import format_fingerprint

    document: dict[str, Any] = {
        "kdf": kdf_name(file.kdf),
        "created": file.created.format(),
        "modified": file.modified.format(),
        "fingerprint": None if file.fingerprint is None else format_fingerprint(file.fingerprint),
        "hint": file.hint,
    }
    described(context.output, document)
