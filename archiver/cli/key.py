"""key create, show, change-passphrase, paper, test; the master key's commands are in master.py"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from archiver.cli.context import Context, global_options, prompt
from archiver.cli.master import KDFS, create_master_key, drill, import_master_pubkey, recover
from archiver.cli.output import Output, printable
from archiver.errors import EXIT_DAMAGED, EXIT_OK, KeyProblem, UsageError

if TYPE_CHECKING:
    from archiver.store.store import Store
    from formats.crypt import CryptConfig
    from formats.keyfile import KeyFile

_KDF = click.option(
    "--kdf",
    type=KDFS,
    default="scrypt",
    show_default=True,
    help="How the passphrase protects the key; none: there is no passphrase.",
)
_HINT = click.option("--hint", metavar="TEXT", help="What helps you remember the passphrase. Anybody can read it.")


@click.group()
@global_options
def key() -> None:
    """The encryption key: make it, keep it, prove that it works.

    PATH is a key file. Default: --keyfile, ARCHIVER_KEYFILE, else encryption-key.json in your configuration directory.
    """


for command in (create_master_key, import_master_pubkey, recover, drill):
    key.add_command(command)


def _place(context: Context, path: str | None) -> str:
    from archiver.keys.places import KEY_NAME, configuration

    if path == "":
        raise UsageError("the path of the key file is empty")
    return path or context.chosen_keyfile() or configuration(os.environ, KEY_NAME)


@key.command()
@click.argument("path", required=False)
@_KDF
@_HINT
@click.option("--force", is_flag=True, help="Overwrite a file that is there: backups made with that key are lost.")
@global_options
def create(context: Context, path: str | None, kdf: str, hint: str | None, force: bool) -> None:
    """Make a new encryption key, protected by a passphrase.

    The passphrase is asked for, or comes from ARCHIVER_PASSWORD, ARCHIVER_PASSWORD_FD, ARCHIVER_PASSWORD_FILE or
    ARCHIVER_PASSWORD_COMMAND.
    """
    from archiver.keys.make import check_free, new_key, protect, write_file
    from archiver.keys.ring import NEW_PASSWORD, PASSWORD

    place = _place(context, path)
    check_free(place, force)
    made = protect(new_key(), place, kdf, hint, None, os.environ, prompt, PASSWORD, NEW_PASSWORD)
    write_file(place, made.encode(), force=force)
    output = context.output
    _tell(output, place, made)
    output.message("Without this key the backups made with it are lost. Do now:")
    output.message(f"  archiver key paper {place} | lpr     and keep the paper in a safe place")
    output.message("  archiver key create-master-key DIR     another way back, for example on a stick in a drawer")
    if kdf == "none":
        output.message("The key is not protected by a passphrase: whoever reads the file can read the backups.")


@key.command()
@click.argument("path", required=False)
@global_options
def show(context: Context, path: str | None) -> None:
    """Tell about a key file what can be told without its passphrase."""
    from archiver.keys.ring import read_key_file

    place = _place(context, path)
    _tell(context.output, place, read_key_file(place))


@key.command("change-passphrase")
@click.argument("path", required=False)
@_KDF
@_HINT
@global_options
def change_passphrase(context: Context, path: str | None, kdf: str, hint: str | None) -> None:
    """Protect the same key with another passphrase; copies of the old file still open with the old one.

    The old passphrase comes from where it always does, the new one from ARCHIVER_NEW_PASSWORD, or _FD, _FILE, _COMMAND
    behind that name, or both are asked for.
    """
    from archiver.keys.make import check_hint, protect, write_file
    from archiver.keys.ring import NEW_PASSWORD, read_key_file, unlock

    place = _place(context, path)
    check_hint(kdf, hint)
    old = unlock(read_key_file(place), place, os.environ, prompt)
    made = protect(old.crypt, place, kdf, hint, old.file.created, os.environ, prompt, NEW_PASSWORD)
    if read_key_file(place) != old.file:  # a prompt can stand there for hours
        raise KeyProblem(f"somebody else has changed {place} meanwhile", hint="nothing was written")
    write_file(place, made.encode(), force=True)
    _tell(context.output, place, made)


@key.command()
@click.argument("path", required=False)
@click.option("--format", "form", type=click.Choice(["text", "html"]), default="text", show_default=True)
@click.option("--subject", metavar="TEXT", help="What stands above the key, for example whose it is.")
@global_options
def paper(context: Context, path: str | None, form: str, subject: str | None) -> None:
    """Write a page to print to stdout, with the key as text and QR code and a checksum.

    PATH is a key file, or a private master key. A key file stays protected by its passphrase on paper too.
    """
    from archiver.keys.ring import read_file
    from formats.errors import FormatError
    from formats.keyfile import MAX_KEY_FILE
    from formats.paperkey import PaperKey

    if context.as_json:
        raise UsageError("paper writes a page, it has no JSON form")
    place = _place(context, path)
    subject = None if subject is None else printable(subject)
    try:
        page = PaperKey.of(read_file(place, "key file", MAX_KEY_FILE))
        text = page.html(subject) if form == "html" else page.text(subject)
    except FormatError as error:
        raise KeyProblem(f"{place} cannot be printed: {error}") from error
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


@key.command()
@click.argument("path", required=False)
@global_options
@click.pass_context
def test(ctx: click.Context, context: Context, path: str | None) -> None:
    """Prove a key file and its passphrase; with a store also that its snapshots were made with this key."""
    from archiver.cli.context import default_store
    from archiver.keys.ring import read_key_file, unlock
    from formats.crypt import short_fingerprint

    place, output = _place(context, path), context.output
    unlocked = unlock(read_key_file(place), place, os.environ, prompt)
    document = {"schema": 1, **_described(place, unlocked.file), "fingerprint": unlocked.crypt.fingerprint.hex(":")}
    document |= {"unlocked": True, "fingerprint_compared": unlocked.file.fingerprint is not None, "store": None}
    _summarize(output, "unlocked", place, unlocked.crypt, unlocked.file.fingerprint is not None)
    damaged = False
    if not context.uses_default_store() or os.path.exists(default_store()):
        with context.open_store(output) as store:
            found = _made_with(store, context.namespace, unlocked.crypt)
            document["store"] = {"path": store.layout.base, **found}
        output.summary(
            f"{found['with_this_key']} of {found['with_keys']} encrypted or signed snapshots were made with this key"
            f" ({found['plain']} are plain)"
        )
        for other in found["other_keys"]:
            output.summary(f"  other snapshots need the key {other}")
        for text in found["problems"]:
            output.line(f"  {text}")
        if found["other_keys"] and not found["with_this_key"]:
            raise KeyProblem(
                f"no snapshot of this store was made with the key {short_fingerprint(unlocked.crypt.fingerprint)}",
                hint="the key itself is good; the snapshots need: " + ", ".join(found["other_keys"]),
            )
        damaged = bool(found["problems"])
    if output.as_json:
        output.document(document)
    ctx.exit(EXIT_DAMAGED if damaged else EXIT_OK)


def _made_with(store: Store, namespace: str, crypt: CryptConfig) -> dict[str, Any]:
    """Which snapshots open with the key: the signature of each is checked."""
    from archiver.browse.snapshot import Snapshot
    from archiver.errors import Damaged, NotFound
    from formats.crypt import short_fingerprint

    numbers = {"plain": 0, "with_keys": 0, "with_this_key": 0}
    others: set[str] = set()
    problems: list[str] = []
    for ref in store.snapshots(namespace):
        try:
            snapshot = Snapshot(store, ref)
            if not snapshot.made_with_key:
                numbers["plain"] += 1
                continue
            numbers["with_keys"] += 1
            snapshot.unlock(crypt)
            numbers["with_this_key"] += 1
        except NotFound:
            continue  # unfinished
        except KeyProblem:
            fingerprint = snapshot.manifest.fingerprint
            others.add("of an unknown fingerprint" if fingerprint is None else short_fingerprint(fingerprint))
        except Damaged as error:
            problems.append(str(error))
    return {**numbers, "other_keys": sorted(others), "problems": problems}


def _described(place: str, file: KeyFile) -> dict[str, Any]:
    from archiver.keys.make import kdf_name
    from formats.crypt import format_fingerprint

    return {
        "path": os.path.abspath(place),
        "kdf": kdf_name(file.kdf),
        "created": file.created.format(),
        "modified": file.modified.format(),
        "fingerprint": None if file.fingerprint is None else format_fingerprint(file.fingerprint),
        "hint": file.hint,
    }


def _tell(output: Output, place: str, file: KeyFile) -> None:
    described = _described(place, file)
    if output.as_json:
        output.document({"schema": 1, **described})
    for name, value in described.items():
        if value is not None:
            output.summary(f"{name + ':':12} {value}")


def _summarize(output: Output, done: str, place: str, crypt: CryptConfig, compared: bool) -> None:
    from formats.crypt import format_fingerprint

    proof = "as the file says" if compared else "the file names none to compare with"
    output.summary(f"{done} {place}")
    output.summary(f"fingerprint {format_fingerprint(crypt.fingerprint)} ({proof})")
