"""key create-master-key, import-master-pubkey, recover, drill"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from archiver.cli.context import Context, global_options, prompt
from archiver.cli.output import Output, size_text
from archiver.errors import ArchiverError, KeyProblem, NotFound, UsageError

if TYPE_CHECKING:
    from archiver.browse.snapshot import Snapshot
    from archiver.keys.ring import UnlockedKey
    from archiver.store.layout import SnapshotRef
    from archiver.store.store import Store
    from formats.paperkey import PaperKey

KDFS = click.Choice(["scrypt", "pbkdf2", "none"])

_FORCE = click.option("--force", is_flag=True, help="Overwrite files that are there.")
_MASTER = click.option("--master-keyfile", metavar="PEM", help="The private master key; also typed in from paper.")
_PAPER = click.option("--paper", "paper_file", metavar="FILE", help="A paper key that was typed in (- for stdin).")


@click.command("create-master-key")
@click.argument("directory", default=".")
@_FORCE
@global_options
def create_master_key(context: Context, directory: str, force: bool) -> None:
    """Make an RSA master key: master-public.pem and master-private.pem in DIRECTORY (default: here).

    The passphrase of the private key is asked for, or comes from ARCHIVER_MASTER_PASSWORD, or _FD, _FILE, _COMMAND
    behind that name.
    """
    from archiver.keys.master import create_pair

    public, private = create_pair(directory, os.environ, prompt, force=force)
    output = context.output
    if output.as_json:
        output.document({"schema": 1, "public": os.path.abspath(public), "private": os.path.abspath(private)})
    output.summary(f"made {public} and {private}")
    output.message(f"Now: archiver key import-master-pubkey {public}")
    output.message(f"and take {private} away from this machine: with its passphrase it opens every backup.")


@click.command("import-master-pubkey")
@click.argument("file")
@_FORCE
@global_options
def import_master_pubkey(context: Context, file: str, force: bool) -> None:
    """From now on keep the encryption key in each snapshot for the owner of the public master key in FILE."""
    from archiver.keys.master import import_public

    place = import_public(file, os.environ, force=force)
    output = context.output
    if output.as_json:
        output.document({"schema": 1, "public": place})
    output.summary(f"imported {file} to {place}")


@click.command()
@click.argument("snapshot", required=False)
@click.option("--encrypted-keyfile", metavar="FILE", help="rsa-encrypted.key, restored from a snapshot before.")
@_MASTER
@_PAPER
@click.option("--output", "-o", "target", metavar="PATH", help="The key file to write. Default: your own one.")
@click.option("--kdf", type=KDFS, help="As for create; default: scrypt.")
@click.option("--hint", metavar="TEXT", help="What helps you remember the new passphrase.")
@_FORCE
@global_options
def recover(
    context: Context,
    snapshot: str | None,
    encrypted_keyfile: str | None,
    master_keyfile: str | None,
    paper_file: str | None,
    target: str | None,
    kdf: str | None,
    hint: str | None,
    force: bool,
) -> None:
    """Write a key file again: from a SNAPSHOT (default: latest) and the private master key, or from a paper key.

    The new passphrase is asked for, or comes from ARCHIVER_PASSWORD as for "key create"; that of the master key from
    ARCHIVER_MASTER_PASSWORD. A paper key keeps its passphrase.
    """
    from archiver.keys.make import check_free, check_hint, protect, write_file
    from archiver.keys.master import load_private, read_wrapped
    from archiver.keys.master import recover as unwrap
    from archiver.keys.places import KEY_NAME, configuration
    from archiver.keys.ring import NEW_PASSWORD, PASSWORD
    from formats.keyfile import KeyFile

    if (master_keyfile is None) == (paper_file is None):
        raise UsageError("one of --master-keyfile and --paper is needed")
    if snapshot is not None and (encrypted_keyfile is not None or paper_file is not None):
        raise UsageError("the key comes from one place: SNAPSHOT, --encrypted-keyfile or --paper")
    if paper_file is not None and (kdf or hint):
        raise UsageError("a paper key keeps its passphrase and hint", hint="afterwards: archiver key change-passphrase")
    if target == "":
        raise UsageError("the path of the key file is empty")
    output, place = context.output, target or configuration(os.environ, KEY_NAME)
    check_free(place, force)
    kdf = kdf or "scrypt"
    check_hint(kdf, hint)
    if paper_file is not None:
        typed = _typed(paper_file)
        if typed.is_pem:
            raise UsageError("this is a private master key", hint="give it as --master-keyfile")
        _tell_checksum(output, typed)
        made = KeyFile.decode(typed.data)
    else:
        assert master_keyfile is not None
        private = load_private(master_keyfile, os.environ, prompt)
        if encrypted_keyfile is not None:
            found = unwrap(private, read_wrapped(encrypted_keyfile), encrypted_keyfile)
        else:
            with context.open_store(output) as store:
                ref = store.find(snapshot or "latest", context.namespace)
                found = unwrap(private, _wrapped(store, ref), str(ref))
                _opened(store, ref, found)
                _tell_other_keys(output, store, ref, found)
        made = protect(found.crypt, place, kdf, hint, found.file.created, os.environ, prompt, PASSWORD, NEW_PASSWORD)
    write_file(place, made.encode(), force=force)
    fingerprint = None if made.fingerprint is None else made.fingerprint.hex(":")
    if output.as_json:
        output.document({"schema": 1, "path": os.path.abspath(place), "fingerprint": fingerprint})
    output.summary(f"recovered the key {fingerprint or 'without a fingerprint'} to {place}")


@click.command()
@click.argument("snapshot", required=False)
@_MASTER
@_PAPER
@global_options
def drill(context: Context, snapshot: str | None, master_keyfile: str | None, paper_file: str | None) -> None:
    """Prove that a backup comes back with nothing but the private master key, or a paper key typed in.

    One file of SNAPSHOT (default: the newest encrypted one) is restored to a temporary directory, compared bit for bit
    and removed. The key is never written to a disk.
    """
    from archiver.keys.master import open_private
    from archiver.keys.master import recover as unwrap
    from archiver.keys.ring import read_file, unlock
    from archiver.restore.drill import drill as run
    from formats.crypt import format_fingerprint
    from formats.keyfile import KeyFile
    from formats.paperkey import MAX_TEXT

    if (master_keyfile is None) == (paper_file is None):
        raise UsageError("one of --master-keyfile and --paper is needed")
    output = context.output
    with context.open_store(output) as store:
        ref = store.find(snapshot, context.namespace) if snapshot else _newest_encrypted(store, context.namespace)
        typed, source = None, master_keyfile or paper_file or ""
        if paper_file is not None:
            typed = _typed(paper_file)
            _tell_checksum(output, typed)
            data = typed.data
        else:
            data = read_file(source, "private master key", MAX_TEXT)
        if typed is not None and not typed.is_pem:
            found = unlock(KeyFile.decode(data), "stdin" if source == "-" else source, os.environ, prompt)
            way = "a paper key"
        else:
            private = open_private(data, source, os.environ, prompt)
            found = unwrap(private, _wrapped(store, ref), str(ref))
            way = "the master key"
        fingerprint = format_fingerprint(found.crypt.fingerprint)
        output.summary(f"the key {fingerprint} comes back from {way}")
        opened = _opened(store, ref, found)
        output.summary(f"it is the key of {ref}, whose signature is right")
        _tell_other_keys(output, store, ref, found)
        restored = run(opened, output.hear)
    output.summary(
        f"{restored.path} of {restored.archive} ({size_text(restored.size)}) was restored with it, read again and"
        " compared bit for bit, and removed"
    )
    if output.as_json:
        output.document(
            {
                "schema": 1,
                "snapshot": str(ref),
                "way": way,
                "fingerprint": fingerprint,
                "archive": restored.archive,
                "path": restored.path,
                "size": restored.size,
            }
        )


def _typed(path: str) -> PaperKey:
    from archiver.keys.master import read_paper
    from archiver.keys.ring import read_file
    from formats.paperkey import MAX_TEXT

    if path == "-":
        return read_paper(sys.stdin.buffer.read(MAX_TEXT + 1).decode("utf-8", "replace"), "stdin")
    return read_paper(read_file(path, "paper key", MAX_TEXT).decode("utf-8", "replace"), path)


def _tell_checksum(output: Output, typed: PaperKey) -> None:
    if typed.is_checked:
        output.message(f"the checksum of the paper key is right: {typed.checksum}")
    else:
        output.message(f"compare the checksum with the one on the paper: {typed.checksum}")


def _newest_encrypted(store: Store, namespace: str) -> SnapshotRef:
    """Raises NotFound; Damaged where a newer one cannot be read: finding that out is what a drill is for."""
    for ref in sorted(store.snapshots(namespace), key=lambda ref: ref.time, reverse=True):
        with suppress(NotFound):  # unfinished
            if any(file.crypt_mode == "encrypt" for file in store.manifest(ref).files):
                return ref
    raise NotFound("there is no encrypted snapshot in this store", hint="name a signed one, or back up with a key")


def _wrapped(store: Store, ref: SnapshotRef) -> bytes:
    """The wrapped key that is kept with a snapshot; it is read without the key."""
    from archiver.browse.snapshot import Snapshot
    from archiver.store.layout import WRAPPED_KEY

    snapshot = Snapshot(store, ref)
    file = snapshot.manifest.file(WRAPPED_KEY)
    if file is None:
        raise KeyProblem(
            f"{ref} does not have its key wrapped for a master key",
            hint="it was made without one; see: archiver key import-master-pubkey --help",
        )
    return snapshot.blob(file)


def _tell_other_keys(output: Output, store: Store, ref: SnapshotRef, key: UnlockedKey) -> None:
    """Whoever has the store and the public master key can put a snapshot there, with the wrapped key of their own."""
    from archiver.store.layout import SnapshotRef
    from formats.crypt import short_fingerprint

    others = set()
    for when in store.times(ref.group):
        with suppress(ArchiverError):  # unfinished or damaged
            fingerprint = store.manifest(SnapshotRef(ref.group, when)).fingerprint
            if fingerprint not in (None, key.crypt.fingerprint):
                others.add(short_fingerprint(fingerprint))
    if others:
        output.message(f"warning: other snapshots of {ref.group} were made with the key {', '.join(sorted(others))}")
        output.message(f"  If you have not changed keys, {ref} is not yours: recover the key from another one.")


def _opened(store: Store, ref: SnapshotRef, key: UnlockedKey) -> Snapshot:
    """The snapshot with its signature checked. Raises KeyProblem, Damaged."""
    from archiver.browse.snapshot import Snapshot

    return Snapshot(store, ref, key.crypt)
