"""The RSA master key: with its public half each snapshot gets the wrapped encryption key, the private half gives it
back (spec blob-index-crypto.md 5)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from archiver.errors import KeyProblem
from archiver.keys.make import check_free, key_time, write_file
from archiver.keys.places import PUBLIC_NAME, default_public
from archiver.keys.ring import (
    MASTER_PASSWORD,
    Prompt,
    UnlockedKey,
    new_passphrase,
    passphrase_from,
    read_file,
)
from formats import blob, masterkey
from formats.errors import FormatError, KeyMissing, WrongKey
from formats.keyfile import KeyFile
from formats.paperkey import MAX_TEXT, PaperKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

PRIVATE_NAME = "master-private.pem"

_LARGEST_WRAPPED = masterkey.LARGEST_MODULUS + blob.ENCRYPTED_HEADER


def create_pair(directory: str, environment: Mapping[str, str], prompt: Prompt, *, force: bool) -> tuple[str, str]:
    """Write a new master key into ``directory``; the paths of its public and private half.

    Raises UsageError where a file is there already, KeyProblem without a passphrase, ArchiverError.
    """
    public, private = (os.path.join(directory, name) for name in (PUBLIC_NAME, PRIVATE_NAME))
    for path in (public, private):
        check_free(path, force)
    passphrase = new_passphrase(environment, prompt, private, MASTER_PASSWORD)
    try:
        pems = masterkey.generate(passphrase)
    except FormatError as error:
        raise KeyProblem(f"the master key cannot be made: {error}") from error
    write_file(private, pems[1], force=force)
    write_file(public, pems[0], force=force)
    return public, private


def import_public(path: str, environment: Mapping[str, str], *, force: bool) -> str:
    """Copy the public master key at ``path`` to where backups look for it; the new path. Raises KeyProblem and
    ArchiverError, UsageError where there is one already."""
    data = read_file(path, "public master key", masterkey.MAX_PEM)
    _parse_public(path, data)
    place = default_public(environment)
    write_file(place, data, force=force)
    return place


def wrap_for(path: str, key: UnlockedKey) -> bytes:
    """The wrapped key for the public master key at ``path``. Raises KeyProblem."""
    public = _parse_public(path, read_file(path, "public master key", masterkey.MAX_PEM))
    return masterkey.wrap(public, key.crypt, key.file.created, key_time())


def _parse_public(path: str, data: bytes) -> RSAPublicKey:
    try:
        return masterkey.load_public_key(data)
    except FormatError as error:
        hint = None
        if b"PRIVATE KEY" in data:
            hint = "keep the private key away from this machine, the public one was made together with it"
        raise KeyProblem(f"{path} is not a usable public master key: {error}", hint=hint) from error


def load_private(path: str, environment: Mapping[str, str], prompt: Prompt) -> RSAPrivateKey:
    """The private master key from a PEM file, or from the text of a paper key. Raises KeyProblem."""
    return open_private(read_file(path, "private master key", MAX_TEXT), path, environment, prompt)


def open_private(data: bytes, path: str, environment: Mapping[str, str], prompt: Prompt) -> RSAPrivateKey:
    """The same of the contents of ``path``."""
    try:
        if not data.startswith(b"-----BEGIN"):
            data = PaperKey.typed(data.decode("utf-8", "replace")).data
        passphrase = None
        if masterkey.needs_passphrase(data):
            passphrase = passphrase_from(environment, MASTER_PASSWORD)
            if passphrase is None:
                passphrase = prompt(f"Passphrase of {path}: ")
        return masterkey.load_private_key(data, passphrase)
    except KeyMissing as error:
        hint = f"set {MASTER_PASSWORD}_FILE or {MASTER_PASSWORD}_COMMAND, or run in a terminal"
        raise KeyProblem(f"the private master key {path} is protected by a passphrase", hint=hint) from error
    except WrongKey as error:
        raise KeyProblem(f"the private master key {path} cannot be unlocked: {error}") from error
    except FormatError as error:
        raise KeyProblem(f"{path} is not a usable private master key: {error}") from error


def read_wrapped(path: str) -> bytes:
    """A wrapped key as it was restored from a snapshot, or as it is stored in one. Raises KeyProblem."""
    data = read_file(path, "wrapped key", _LARGEST_WRAPPED)
    if len(data) > _LARGEST_WRAPPED or not data:
        raise KeyProblem(f"{path} is no wrapped key", hint="restore it with: --archive rsa-encrypted.key")
    try:
        return bytes(blob.decode(data)) if data.startswith(blob.PLAIN_MAGIC) else data
    except FormatError as error:
        raise KeyProblem(f"the wrapped key {path} is damaged: {error}") from error


def recover(private: RSAPrivateKey, wrapped: bytes, source: str) -> UnlockedKey:
    """The key that was wrapped; ``source`` says where it comes from. Raises KeyProblem."""
    try:
        file: KeyFile = masterkey.unwrap(private, wrapped)
    except FormatError as error:
        raise KeyProblem(f"the key in {source} cannot be recovered: {error}") from error
    return UnlockedKey(file, file.unlock(None))


def read_paper(text: str, source: str) -> PaperKey:
    """What was typed in. Raises KeyProblem."""
    try:
        return PaperKey.typed(text)
    except FormatError as error:
        raise KeyProblem(f"the paper key of {source} cannot be read: {error}") from error
