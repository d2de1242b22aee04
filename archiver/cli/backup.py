"""backup, import"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import click

from archiver.cli.context import Context, global_options
from archiver.cli.entries import change_line
from archiver.cli.output import Output, size_text
from archiver.errors import EXIT_OK, EXIT_PARTIAL, NotFound, TargetAbsent, UsageError

if TYPE_CHECKING:
    from archiver.backup.archive import Compare
    from archiver.backup.rehearsal import Rehearsed
    from archiver.backup.run import BackupOptions, BackupResult, CryptMode, Mode
    from archiver.backup.specification import ArchiveSpec
    from archiver.browse.diff import Change
    from archiver.keys.ring import UnlockedKey
    from archiver.source.problem import Problem
    from archiver.store.store import Store

_KIB = ("64", "128", "256", "512", "1024", "2048", "4096")

_SNAPSHOT_OPTIONS = (
    click.option(
        "--id", "--backup-id", "backup_id", metavar="ID", help="Name of the group. Default: this machine's name."
    ),
    click.option("--type", "--backup-type", "backup_type", type=click.Choice(["host", "ct", "vm"]), default="host"),
    click.option("--time", "--backup-time", "backup_time", metavar="SECONDS|TIME", help="Snapshot time. Default: now."),
    click.option(
        "--crypt",
        "--crypt-mode",
        "crypt_mode",
        type=click.Choice(["none", "encrypt", "sign-only"]),
        help="Default: encrypt when there is a key, else none.",
    ),
    click.option(
        "--master-pubkey-file",
        metavar="FILE",
        help="Keep the key in the snapshot for the owner of this master key. Default: the imported one.",
    ),
    click.option(
        "--chunk-size",
        type=click.Choice(_KIB),
        default="4096",
        metavar="KIB",
        help="Size of a chunk, of trees on average.",
    ),
    click.option("--note", help="A note for the snapshot."),
    click.option("--owner", default="root@pam", help="Owner of a group that is new.", show_default=True),
)


class _Named(TypedDict):
    """The values of these options."""

    backup_id: str | None
    backup_type: str
    backup_time: str | None
    crypt_mode: CryptMode | None
    master_pubkey_file: str | None
    chunk_size: str
    note: str | None
    owner: str


def snapshot_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a snapshot is called, how it is stored, and who may read it."""
    for option in reversed(_SNAPSHOT_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@click.option(
    "--mode",
    "--change-detection-mode",
    "mode",
    type=click.Choice(["metadata", "data", "legacy"]),
    default="metadata",
    show_default=True,
    help="metadata: read changed files only; data: read all; legacy: one archive with a catalog.",
)
@click.option(
    "--compare",
    type=click.Choice(["auto", "inode", "metadata"]),
    default="auto",
    show_default=True,
    help="How unchanged files are known. inode: by inode number, change time and size; metadata: by all that is stored"
    " of them; auto: inode on local file systems, else metadata.",
)
@click.option(
    "--audit",
    type=click.FloatRange(0, 100),
    default=0,
    metavar="PERCENT",
    help="Read this share of the unchanged files all the same, another share in every run.",
)
@click.option("--exclude", "excludes", multiple=True, metavar="PATTERN", help="Leave out what matches (repeatable).")
@click.option("--exclude-caches", is_flag=True, help="Of directories with a CACHEDIR.TAG keep the tag only.")
@click.option("--include-dev", multiple=True, metavar="PATH", help="Enter the file system of PATH too (repeatable).")
@click.option("--all-file-systems", is_flag=True, help="Enter every mount point but virtual file systems.")
@click.option("--skip-lost-and-found", is_flag=True, help="Leave out lost+found directories.")
@click.option("--skip-e2big-xattr", is_flag=True, help="Do not count attributes too large to be read as errors.")
@click.option(
    "--stdin-from-command",
    "command",
    metavar="COMMAND",
    help="NAME.img:- is what this command prints, run in a shell. When it fails nothing is saved.",
)
@click.option(
    "-n", "--dry-run", is_flag=True, help="Only say what would be saved; with -v name what is new or changed."
)
@snapshot_options
@global_options
@click.pass_context
def backup(
    ctx: click.Context,
    context: Context,
    specs: tuple[str, ...],
    mode: Mode,
    compare: Compare,
    audit: float,
    excludes: tuple[str, ...],
    exclude_caches: bool,
    include_dev: tuple[str, ...],
    all_file_systems: bool,
    skip_lost_and_found: bool,
    skip_e2big_xattr: bool,
    command: str | None,
    dry_run: bool,
    **named: Unpack[_Named],
) -> None:
    """Save directories, images and small files as one snapshot.

    SPEC is a directory, archived under its own name, NAME.pxar:DIRECTORY, NAME.img:FILE or NAME.img:DEVICE for an
    image (- is standard input), NAME.conf:FILE or NAME.log:FILE for a small file.
    """
    from archiver.backup.specification import parse_specifications
    from archiver.source.walk import WalkOptions
    from formats.errors import FormatError
    from formats.patterns import parse_exclude_option

    if include_dev and all_file_systems:
        raise UsageError("--include-dev and --all-file-systems exclude each other")
    try:
        patterns = [parse_exclude_option(os.fsencode(text)) for text in excludes]
    except FormatError as error:
        raise UsageError(f"--exclude: {error}") from error
    sources = parse_specifications(specs, command)
    walk = WalkOptions(
        excludes=patterns,
        all_file_systems=all_file_systems,
        include_dev=frozenset(_device(path) for path in include_dev),
        skip_lost_and_found=skip_lost_and_found,
        skip_e2big_xattr=skip_e2big_xattr,
        exclude_caches=exclude_caches,
    )
    options = _options(context, **named)._replace(mode=mode, compare=compare, audit=audit, walk=walk)
    if dry_run:
        ctx.exit(_rehearse(context, sources, options))
    _run(ctx, context, sources, options)


@click.command("import")
@click.argument("file")
@click.option("--payload", metavar="FILE", help="Contents of an .mpxar. Default: the .ppxar beside it.")
@click.option("--name", metavar="NAME", help="What the archive is called. Default: like the file.")
@snapshot_options
@global_options
@click.pass_context
def import_file(
    ctx: click.Context,
    context: Context,
    file: str,
    payload: str | None,
    name: str | None,
    **named: Unpack[_Named],
) -> None:
    """Make a snapshot of FILE, a .pxar archive, or an .mpxar with its .ppxar.

    The archive is checked completely, and stored byte for byte.
    """
    from archiver.backup.specification import pxar_file

    _run(ctx, context, [pxar_file(file, payload, name)], _options(context, **named))


def _options(context: Context, **named: Unpack[_Named]) -> BackupOptions:
    """What the options say that are not about sources."""
    from archiver.backup.run import BackupOptions, default_backup_id
    from archiver.keys.ring import wrapped_for_backup
    from archiver.store.layout import GroupRef

    backup_id, crypt_mode = named["backup_id"], named["crypt_mode"]
    key = _key(context, crypt_mode)
    crypt = key.crypt if key is not None else None
    return BackupOptions(
        group=GroupRef(
            context.namespace, named["backup_type"], default_backup_id() if backup_id is None else backup_id
        ),
        time=_time(named["backup_time"]),
        crypt_mode=crypt_mode or ("encrypt" if crypt is not None else "none"),
        crypt=crypt,
        wrapped_key=wrapped_for_backup(key, named["master_pubkey_file"], os.environ),
        chunk_size=int(named["chunk_size"]) << 10,
        owner=named["owner"],
        note=named["note"],
    )


def _run(ctx: click.Context, context: Context, sources: Sequence[ArchiveSpec], options: BackupOptions) -> None:
    from archiver.backup.run import backup as run
    from archiver.backup.run import check_options

    output = context.output
    check_options(options)
    with _open_store(context, output) as store:
        output.message(f"encryption: {_crypt_text(options)}")
        result = run(store, sources, options, output.hear)
    _print(output, result)
    ctx.exit(EXIT_PARTIAL if result.errors else EXIT_OK)


def _rehearse(context: Context, sources: Sequence[ArchiveSpec], options: BackupOptions) -> int:
    """The exit code."""
    from archiver.backup.rehearsal import rehearse
    from archiver.backup.run import check_options
    from archiver.core.events import FileProblem

    output, errors = context.output, list[FileProblem]()
    check_options(options)

    def told(archive: str, change: Change) -> None:
        if output.verbose:
            output.line(change_line(archive, change, several=len(sources) > 1))

    def problem(found: Problem) -> None:
        event = FileProblem(*found)
        output.hear(event)
        if found.kind == "unreadable":
            errors.append(event)

    with _store_if_any(context, output) as store:
        archives = rehearse(store, sources, options, told, problem)
    if output.as_json:
        output.document(
            {
                "schema": 1,
                "dry_run": True,
                "archives": [archive.as_json() for archive in archives],
                "errors": [{"path": os.fsdecode(error.path), "reason": error.reason} for error in errors],
            }
        )
    for archive in archives:
        output.summary(_rehearsed_text(archive))
    output.summary("nothing was saved")
    return EXIT_PARTIAL if errors else EXIT_OK


def _rehearsed_text(archive: Rehearsed) -> str:
    if archive.bytes is None or archive.bytes_to_read is None:
        return f"{archive.name}: of unknown size"
    if archive.kind != "tree":
        return f"{archive.name}: {size_text(archive.bytes)}"
    against = "no earlier snapshot" if archive.since is None else f"since {archive.since}"
    return (
        f"{archive.name}: {archive.files} files, {size_text(archive.bytes)}; {against}: {archive.added} new,"
        f" {archive.changed} changed, {archive.removed} gone; {size_text(archive.bytes_to_read)} to read"
    )


@contextmanager
def _store_if_any(context: Context, output: Output) -> Iterator[Store | None]:
    """The default one need not be there yet."""
    try:
        store = context.open_store(output)
    except (NotFound, TargetAbsent):
        if not context.uses_default_store():
            raise
        yield None
        return
    with store:
        yield store


def _open_store(context: Context, output: Output) -> Store:
    """The store; the default one is made on first use."""
    from archiver.store.store import Store

    try:
        return context.open_store(output)
    except (NotFound, TargetAbsent):
        if context.read_only or not context.uses_default_store():
            raise
    Store.create(context.store_path())
    output.message(f"made a store in {context.store_path()}")
    return context.open_store(output)


def _key(context: Context, crypt_mode: str | None) -> UnlockedKey | None:
    if crypt_mode == "none":
        if context.keyfile:
            raise UsageError("--crypt none and --keyfile exclude each other")
        return None
    key = context.unlocked()
    if key is None and crypt_mode is not None:
        raise UsageError(f"--crypt {crypt_mode} needs a key", hint="name one with --keyfile")
    return key


def _crypt_text(options: BackupOptions) -> str:
    from formats.crypt import short_fingerprint

    if options.crypt is None:
        return options.crypt_mode
    wrapped = ", which the master key can recover" if options.wrapped_key is not None else ""
    return f"{options.crypt_mode} with the key {short_fingerprint(options.crypt.fingerprint)}{wrapped}"


def _time(text: str | None) -> int | None:
    from formats.naming import check_backup_time, parse_time

    if text is None:
        return None
    try:
        when = int(text) if text.isdecimal() else parse_time(text)
        check_backup_time(when)
    except ValueError as error:  # a FormatError, or thousands of digits
        raise UsageError(f"--time {text!r} is no time", hint="write 2026-11-21T20:00:00Z or Unix seconds") from error
    return when


def _device(path: str) -> int:
    try:
        return os.stat(path).st_dev
    except OSError as error:
        raise UsageError(f"--include-dev {path}: {(error.strerror or str(error)).lower()}") from error


def _print(output: Output, result: BackupResult) -> None:
    if output.as_json:
        output.document(result.as_json())
        return
    for archive in result.archives:
        counters = archive.counters
        if not counters.chunks:
            output.summary(f"{archive.name}: {size_text(counters.size)}, {size_text(counters.stored_bytes)} on disk")
            continue
        output.summary(
            f"{archive.name}: {size_text(counters.size)} in {counters.chunks} chunks,"
            f" {counters.new_chunks} new ({size_text(counters.new_bytes)}, {size_text(counters.stored_bytes)} on disk)"
        )
    files = result.files
    known = f", {files.unchanged} unchanged" if files.unchanged else ""
    known += f", {files.audited} audited" if files.audited else ""
    bad = f", {files.read_errors} unreadable, {files.torn} torn" if files.read_errors or files.torn else ""
    output.summary(f"{files.total} files{known}{bad}, {result.duration:.1f} s")
    output.summary(f"snapshot {result.snapshot}")
