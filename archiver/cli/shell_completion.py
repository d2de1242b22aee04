"""Completion in the catalog shell: commands, options, paths in the archive, directories of this machine."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import islice

from archiver.cli.shell_commands import COMMANDS, Shell
from archiver.cli.shell_words import last_word, quote
from archiver.errors import ArchiverError

_MOST = 1000  # candidates


class Completer:
    """For readline, with no delimiters: every candidate is the whole line as it would be."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._found: list[str] = []
        self._start = 0

    def __call__(self, line: str, number: int) -> str | None:
        if number == 0:
            self._found = self.candidates(line)
        return self._found[number] if number < len(self._found) else None

    def candidates(self, line: str) -> list[str]:
        """What ``line`` can be completed to; nothing where its path leads nowhere."""
        self._start, word, before = last_word(line)
        head = line[: self._start]
        try:
            return [head + candidate for candidate in islice(self._words(head, word, before), _MOST)]
        except (ArchiverError, OSError):
            return []

    def _words(self, head: str, word: str, before: int) -> Iterator[str]:
        if before == 0:
            yield from (f"{name} " for name in COMMANDS if name.startswith(word))
            return
        command = COMMANDS.get(head.split()[0])
        if command is None:
            return
        if word.startswith("-"):
            yield from (f"{option} " for option in command.options if option.startswith(word))
        elif command.takes == "path":
            yield from self._paths(os.fsencode(word))
        elif command.takes == "file":
            yield from _directories(word)

    def _paths(self, word: bytes) -> Iterator[str]:
        """Names in the directory that ``word`` leads to, not in that of a symbolic link."""
        above, slash, begin = word.rpartition(b"/")
        navigator = self._shell.navigator
        way = navigator.resolve(above + slash)
        if way[-1].kind != "dir":
            return
        for entry in navigator.entries(way):
            if entry.name.startswith(begin):
                end = "/" if entry.kind == "dir" else " "
                yield quote(above + slash) * bool(above + slash) + quote(entry.name) + end

    def show(self, substitution: str, matches: Sequence[str], longest: int) -> None:
        """Print the candidates without what they have in common with the line: readline would repeat all of it."""
        import readline

        names = [match[self._start :].rstrip() for match in matches]
        shown = [name.rstrip("/").rpartition("/")[2] + "/" * name.endswith("/") for name in names]
        width = max(map(len, shown)) + 2
        columns = max(1, shutil.get_terminal_size().columns // width)
        lines = [shown[at : at + columns] for at in range(0, len(shown), columns)]
        text = "\n".join("".join(f"{name:<{width}}" for name in line).rstrip() for line in lines)
        sys.stdout.write(f"\n{text}\n{self._shell.prompt}{readline.get_line_buffer()}")
        sys.stdout.flush()


def _directories(word: str) -> Iterator[str]:
    above, slash, begin = word.rpartition("/")
    base = above + slash
    with os.scandir(base or ".") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(begin) and entry.is_dir(follow_symlinks=True):
                yield quote(os.fsencode(base)) * bool(base) + quote(os.fsencode(entry.name)) + "/"
