"""The commands of the catalog shell (spec change-detection.md 7)."""

from __future__ import annotations

import os
import stat as st
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from archiver.browse.navigator import Navigator, literal, path_of
from archiver.cli.output import printable, size_text
from archiver.cli.shell_words import quote
from archiver.core.events import Listener
from archiver.errors import EXIT_DAMAGED, EXIT_DIFFERENT, EXIT_OK, EXIT_PARTIAL, UsageError

if TYPE_CHECKING:
    from formats.patterns import PatternList
    from formats.pxar.accessor import Node
    from formats.pxar.items import Entry

_LETTERS = {"hardlink": "h", "file": "-", "dir": "d", "symlink": "l", "fifo": "p", "socket": "s"}
_LETTERS |= {"char": "c", "block": "b"}


class Leave(Exception):
    """The shell is to end."""


@dataclass
class Shell:
    """``code``: the exit code that restores ask for, if nothing worse comes."""

    navigator: Navigator
    listener: Listener
    code: int = EXIT_OK

    def __post_init__(self) -> None:
        self.selected: list[str] = []  # patterns, as they are typed

    @property
    def prompt(self) -> str:
        return f"pxar:{quote(self.navigator.here)} > "

    def run(self, words: Sequence[str]) -> Iterator[str]:
        """The lines that a command prints. Raises ArchiverError, Leave."""
        name, *arguments = words
        command = COMMANDS.get(name)
        if command is None:
            raise UsageError(f"there is no command {name}", hint="help lists them")
        options = [word for word in arguments if word in command.options]
        values = [word for word in arguments if word not in command.options]
        if name == "restore" and "--pattern" in options:
            values = arguments  # the option has a value
        elif len(values) > command.most or len(values) < command.least:
            raise UsageError(f"usage: {command.usage}")
        yield from command.function(self, [os.fsencode(value) for value in values], options)

    # -- going about -----------------------------------------------------------------------------------------------

    def pwd(self, paths: list[bytes], options: list[str]) -> Iterator[str]:
        yield quote(self.navigator.here)

    def cd(self, paths: list[bytes], options: list[str]) -> Iterator[str]:
        self.navigator.change(paths[0] if paths else b"/")
        yield from ()

    def ls(self, paths: list[bytes], options: list[str]) -> Iterator[str]:
        way = self.navigator.resolve(paths[0] if paths else b"")
        for entry in self.navigator.entries(way):
            name = quote(entry.name)
            yield self._long(entry, name) if "-l" in options else name

    def _long(self, entry: Node, name: str) -> str:
        file = self.navigator.file_of(entry)
        assert file.metadata is not None
        stat = file.metadata.stat
        size = f"{file.major},{file.minor}" if file.kind in ("char", "block") else str(_size(file))
        target = f" -> {quote(file.target)}" if file.kind == "symlink" else ""
        mode = _LETTERS[entry.kind] + st.filemode(stat.mode)[1:]
        return f"{mode} {stat.uid:>6} {stat.gid:>6} {size:>12} {_when(stat.mtime_secs)} {name}{target}"

    def stat(self, paths: list[bytes], options: list[str]) -> Iterator[str]:
        way = self.navigator.resolve(paths[0])
        entry = way[-1]
        file = self.navigator.file_of(entry)
        metadata = file.metadata
        assert metadata is not None
        stat = metadata.stat
        name = quote(path_of(way))
        yield f"  File: {name} -> {quote(file.target)}" if file.kind == "symlink" else f"  File: {name}"
        yield f"  Size: {_size(file)}  Type: {file.kind}"
        if entry.kind == "hardlink":
            yield f"  Link: to {quote(b'/' + entry.target)}"
        if file.kind in ("char", "block"):
            yield f"Device: {file.major},{file.minor}"
        yield f"Access: ({stat.mode & 0o7777:04o}/{st.filemode(stat.mode)})  Uid: {stat.uid}  Gid: {stat.gid}"
        yield f"Modify: {_when(stat.mtime_secs)}.{stat.mtime_nanos:09d}"
        for attribute, value in metadata.xattrs:
            yield f" Xattr: {quote(attribute)} ({len(value)} bytes)"
        if metadata.fcaps is not None:
            yield f" Xattr: security.capability ({len(metadata.fcaps)} bytes)"
        acl = metadata.acl
        for kind, entries in (("user", acl.users), ("group", acl.groups)):
            yield from (f"   ACL: {kind}:{number}:{_rights(rights)}" for number, rights in entries)
        if acl.default is not None:
            yield "   ACL: and a default one"
        if stat.flags:
            yield f" Flags: {stat.flags:#x}"
        if metadata.quota_project_id:
            yield f"Project: {metadata.quota_project_id}"

    # -- what is selected ------------------------------------------------------------------------------------------

    def select(self, paths: list[bytes], options: list[str]) -> Iterator[str]:
        yield from self._add(os.fsdecode(literal(path_of(self.navigator.resolve(paths[0])))))

    def _add(self, pattern: str) -> Iterator[str]:
        if pattern in self.selected:
            yield f"selected already: {pattern}"
        else:
            self.selected.append(pattern)
            yield f"selected: {pattern}"

    def deselect(self, paths: list[bytes], options: list[str]) -> Iterator[str]:
        pattern = os.fsdecode(paths[0])
        if pattern not in self.selected:
            pattern = os.fsdecode(literal(path_of(self.navigator.resolve(paths[0]))))
        if pattern not in self.selected:
            yield f"not selected: {pattern}"
        else:
            self.selected.remove(pattern)
            yield f"no longer selected: {pattern}"

    def clear_selected(self, paths: list[bytes], options: list[str]) -> Iterator[str]:
        self.selected.clear()
        yield from ()

    def list_selected(self, paths: list[bytes], options: list[str]) -> Iterator[str]:
        if "--patterns" in options:
            yield from self.selected
        elif self.selected:
            yield from map(quote, self._chosen())

    def _chosen(self) -> Iterator[bytes]:
        from archiver.restore.choice import Choice
        from archiver.restore.owners import Owners

        choice = Choice.of(self.selected, (), Owners())
        for path, entry in self.navigator.walk():
            if choice.chooses(path, entry.kind == "dir"):
                yield path

    def find(self, paths: list[bytes], options: list[str]) -> Iterator[str]:
        pattern = os.fsdecode(paths[0])
        patterns, found = _patterns(pattern), False
        for path, entry in self.navigator.walk():
            if patterns.match(path, entry.kind == "dir") == "exclude":  # which is to say: it fits
                found = True
                yield quote(path)
        if found and "--select" in options:
            yield from self._add(pattern)

    # -- getting it out --------------------------------------------------------------------------------------------

    def restore_selected(self, paths: list[bytes], options: list[str]) -> Iterator[str]:
        if not self.selected:
            raise UsageError("nothing is selected", hint="select PATH, or find PATTERN --select")
        yield from self._restore(os.fsdecode(paths[0]), tuple(self.selected))

    def restore(self, paths: list[bytes], options: list[str]) -> Iterator[str]:
        words = [os.fsdecode(path) for path in paths]
        chosen: tuple[str, ...] = ()
        if "--pattern" in words:
            at = words.index("--pattern")
            chosen = tuple(words[at + 1 : at + 2])
            del words[at : at + 2]
        if len(words) != 1 or ("--pattern" in options and not chosen):
            raise UsageError(f"usage: {COMMANDS['restore'].usage}")
        yield from self._restore(words[0], chosen)

    def _restore(self, target: str, patterns: tuple[str, ...]) -> Iterator[str]:
        from archiver.restore.run import RestoreOptions, restore

        tree = self.navigator.tree
        options = RestoreOptions(overwrite="never", include=patterns)
        done = restore(tree.snapshot, [tree.files], target, verify=True, listener=self.listener, options=options)
        yield f"restored {done.entries} entries, {size_text(done.bytes)}, to {target}, verified"
        yield from (f"  {kind}: {count}" for kind, count in sorted(done.kinds.items()))
        code = EXIT_PARTIAL if done.problem_count else EXIT_OK
        if done.kinds.get("different"):
            code = EXIT_DIFFERENT
        if done.kinds.get("damaged"):
            code = EXIT_DAMAGED
        self.code = max(self.code, code)

    # -- the shell itself ------------------------------------------------------------------------------------------

    def help(self, paths: list[bytes], options: list[str]) -> Iterator[str]:
        width = max(len(command.usage) for command in COMMANDS.values())
        for command in COMMANDS.values():
            yield f"{command.usage:<{width}}  {command.does}"

    def exit(self, paths: list[bytes], options: list[str]) -> Iterator[str]:
        raise Leave


class Command(NamedTuple):
    """``takes``: what its arguments are, for completion: "path" in the archive, "file" of this machine, or nothing."""

    function: Callable[[Shell, list[bytes], list[str]], Iterator[str]]
    usage: str
    does: str
    least: int = 0
    most: int = 0
    options: tuple[str, ...] = ()
    takes: str = ""


COMMANDS = {
    "pwd": Command(Shell.pwd, "pwd", "the current directory"),
    "cd": Command(Shell.cd, "cd [PATH]", "go to a directory, or to the root", most=1, takes="path"),
    "ls": Command(Shell.ls, "ls [-l] [PATH]", "list a directory", most=1, options=("-l",), takes="path"),
    "stat": Command(Shell.stat, "stat PATH", "everything that is known of an entry", 1, 1, takes="path"),
    "find": Command(
        *(Shell.find, "find PATTERN [--select]", "what fits, in the whole archive; and select it", 1, 1, ("--select",)),
    ),
    "select": Command(Shell.select, "select PATH", "select an entry, and what is below", 1, 1, takes="path"),
    "deselect": Command(Shell.deselect, "deselect PATH", "take it from the selection", 1, 1, takes="path"),
    "clear-selected": Command(Shell.clear_selected, "clear-selected", "select nothing any more"),
    "list-selected": Command(
        *(Shell.list_selected, "list-selected [--patterns]", "what is selected, or by which patterns"),
        options=("--patterns",),
    ),
    "restore-selected": Command(
        Shell.restore_selected, "restore-selected TARGET", "restore it; what is there already stays", 1, 1, takes="file"
    ),
    "restore": Command(
        *(
            Shell.restore,
            "restore TARGET [--pattern PATTERN]",
            "restore everything, or what fits",
            1,
            3,
            ("--pattern",),
        ),
        takes="file",
    ),
    "help": Command(Shell.help, "help", "this list"),
    "exit": Command(Shell.exit, "exit", "leave"),
}


def _patterns(text: str) -> PatternList:
    from formats.errors import FormatError
    from formats.patterns import PatternList, parse_exclude_option

    try:
        return PatternList([parse_exclude_option(os.fsencode(text))])
    except FormatError as error:
        raise UsageError(f"{printable(text)}: {error}") from error


def _size(entry: Entry) -> int:
    return len(entry.target) if entry.kind == "symlink" else entry.size


def _rights(bits: int) -> str:
    return "".join(letter if bits & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))


def _when(seconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)
