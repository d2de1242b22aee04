r"""Patterns that exclude or include paths (spec pxar.md 13).

    pattern      = ["!"] text *"/"         "!": include instead of exclude;  "/": directories only
    text         = component *("/" component)
    component    = "**"                    any number of components (at the end of the text: one or more)
                 | *( "?"                  one byte
                    | "*"                  any run of bytes, also an empty one ("**" too, next to anything else)
                    | "[" ["!" | "^"] *( byte | byte "-" byte | "[:alpha:]" ...) "]"     one byte of a set, or not of it
                    | "\" byte             that byte
                    | byte )

None of these but "**" matches a "/". Bytes are compared, case matters. "[]" matches nothing, "z-a" is "a-z".

A path is "/" and its names from the root of the archive on. A pattern matches if it matches the whole path or any tail
of it that starts right after a "/"; so one that starts with "/" stands for the whole path alone (it is anchored). Of a
list the last pattern that matches decides. Nothing is inherited from the directory above.

Differences to the original, where it would crash or surprise: "!" negates a set like "^", a set never matches "/", an
unclosed set is an error, and the directory of an exclude file is taken literally.

Every pattern becomes a regular expression that never goes back behind what a "*" or "**" stepped over: the first place
where the bytes up to the next "*" (the components up to the next "**") match is as good as any later one. So the time
grows with the product of the lengths of pattern and path at most.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from formats.errors import FormatError, LimitExceeded

MAX_PATTERN = 16 * 1024  # bytes, with the directory of the exclude file; a path in the kernel has at most 4096

IsDirectory = bool | Callable[[], bool]

_BLANKS = b" \t\n\f\r"
_ANY_COMPONENTS = rb"(?:[^/]*+/)*?"
_NAMED_SETS = {
    b"alnum": rb"0-9A-Za-z",
    b"alpha": rb"A-Za-z",
    b"blank": rb"\t\x20",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9",
    b"graph": rb"\x21-\x7e",
    b"lower": rb"a-z",
    b"print": rb"\x20-\x7e",
    b"punct": rb"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    b"space": rb"\x09-\x0d\x20",
    b"upper": rb"A-Z",
    b"xdigit": rb"0-9A-Fa-f",
}


class Pattern(NamedTuple):
    """One pattern; its ``text`` is without the "!" (``include``) and the "/" at the end (``directories_only``)."""

    text: bytes
    include: bool
    directories_only: bool
    anchored: bool

    @classmethod
    def parse(cls, text: bytes) -> Pattern:
        """A pattern as it is stored (see ``line``). FormatError if it breaks a rule, LimitExceeded if too long."""
        return cls._checked(text.removeprefix(b"!"), text.startswith(b"!"))

    @classmethod
    def _checked(cls, text: bytes, include: bool) -> Pattern:
        if not text:
            raise FormatError("pattern is empty")
        if len(text) > MAX_PATTERN:
            raise LimitExceeded("pattern is too long", expected=f"at most {MAX_PATTERN} bytes", got=len(text))
        if (zero := text.find(b"\0")) >= 0:
            raise FormatError("pattern holds a zero byte", offset=zero)
        bare = text.rstrip(b"/")
        _components(bare)
        return cls(bare or b"/", include, len(bare) < len(text), text.startswith(b"/"))

    def line(self) -> bytes:
        """The form in which it is stored in an archive, with a newline at the end."""
        mark = b"!" if self.include else b"\\" if self.text.startswith(b"!") else b""
        return mark + self.text + (b"/\n" if self.directories_only else b"\n")

    def below(self, directory: bytes) -> Pattern:
        """The same for paths from further above: one that is anchored is so at ``directory`` (b"/a/b")."""
        return self._replace(text=_literal(directory) + self.text) if self.anchored else self


def parse_exclude_option(text: bytes) -> Pattern:
    """The pattern of a command line: "." and ".." components and repeated slashes are resolved before it is parsed.

    Errors as Pattern.parse.
    """
    return Pattern._checked(_normalised(text.removeprefix(b"!")), text.startswith(b"!"))


def parse_exclude_file(data: bytes, directory: bytes, problem: Callable[[int, str], None]) -> list[Pattern]:
    """The patterns of the exclude file ``data`` found in ``directory`` (its path in the archive: b"/" or b"/a/b").

    A pattern that starts with "/" stands for a path below that directory. A line that is no pattern is left out, and
    told to ``problem`` with its number (from 1) and what is wrong.
    """
    base = _literal(directory)
    patterns = []
    for number, raw in enumerate(data.split(b"\n"), 1):
        line = raw.strip(_BLANKS)
        if not line or line.startswith(b"#"):
            continue
        text = line.removeprefix(b"!").removeprefix(b"!")  # a second mark takes the first one back
        include = len(line) - len(text) == 1
        try:
            patterns.append(Pattern._checked(_normalised(base + text if text.startswith(b"/") else text), include))
        except FormatError as error:
            problem(number, str(error))
    return patterns


class PatternList:
    """Patterns in the order in which they were given; the last one that matches a path decides. Falsy when empty."""

    __slots__ = ("_layers",)

    def __init__(self, patterns: Iterable[Pattern] = ()) -> None:
        """FormatError for a pattern with a text that Pattern.parse would not accept."""
        layer = _Layer(patterns)
        self._layers: tuple[_Layer, ...] = (layer,) if layer.rules else ()

    def __bool__(self) -> bool:
        return bool(self._layers)

    def text(self) -> bytes:
        """The lines of all patterns: what two lists of equal effect have in common."""
        return b"".join(pattern.line() for layer in self._layers for pattern, _, _ in reversed(layer.rules))

    def extended(self, patterns: Iterable[Pattern]) -> PatternList:
        """This list with ``patterns`` after its own; the cost is that of the new ones."""
        longer = PatternList(patterns)
        longer._layers = self._layers + longer._layers
        return longer

    def match(self, path: bytes, is_directory: IsDirectory) -> Literal["exclude", "include"] | None:
        """What the list says about ``path`` (as b"/etc/passwd", not the root), None if no pattern matches.

        ``is_directory`` as a function is called only if a pattern for directories alone matches, and only once.
        """
        decisive = self.rule(path, is_directory)
        if decisive is None:
            return None
        return "include" if decisive.include else "exclude"

    def rule(self, path: bytes, is_directory: IsDirectory) -> Pattern | None:
        """The pattern that decides about ``path``."""
        name = path.rfind(b"/") + 1
        for layer in reversed(self._layers):
            if layer.match_name(path, name) is None and layer.match_path(path) is None:
                continue
            for pattern, by_name, expression in layer.rules:
                if expression.match(path, name if by_name else 0) is None:
                    continue
                if pattern.directories_only:
                    if not isinstance(is_directory, bool):
                        is_directory = is_directory()
                    if not is_directory:
                        continue
                return pattern
        return None


class _Layer:
    """Patterns compiled together: two expressions tell whether any of them matches, which is rare."""

    __slots__ = ("match_name", "match_path", "rules")

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        sources = [(pattern, *_expression(pattern)) for pattern in patterns]
        #: last pattern first: the pattern, whether it looks at the name alone, its expression
        self.rules = [(pattern, by_name, re.compile(source)) for pattern, by_name, source in reversed(sources)]
        self.match_name = _any_of(source for _, by_name, source in sources if by_name)
        self.match_path = _any_of(source for _, by_name, source in sources if not by_name)


def _any_of(sources: Iterable[bytes]) -> Callable[..., re.Match[bytes] | None]:
    return re.compile(b"|".join(sources) or b"(?!)").match


def _literal(path: bytes) -> bytes:
    """A pattern's text that matches ``path`` alone."""
    return re.sub(rb"([\\*?\[])", rb"\\\1", path)


def _normalised(text: bytes) -> bytes:
    """``text`` without "." components and repeated slashes, each ".." taken away with the component before it."""
    parts: list[bytes] = []
    for part in text.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    root = b"/" if text.startswith(b"/") else b""
    end = b"/" if parts and text.endswith(b"/") else b""
    return root + b"/".join(parts) + end


# From a pattern to a regular expression.


def _expression(pattern: Pattern) -> tuple[bool, bytes]:
    """Whether the pattern is matched from the start of the last name on (else of the path), and its expression."""
    components = _components(pattern.text)
    if not pattern.anchored:
        while len(components) > 1 and components[0] is None:  # says no more than that any tail will do
            del components[0]
        if len(components) == 1:
            return True, rb"(?s:.)" if components[0] is None else components[0] + rb"\Z"
    runs: list[list[bytes]] = [[]]  # of components between two "**"
    for component in components:
        if component is None:
            runs.append([])
        else:
            runs[-1].append(component)
    source = b""
    skip = b"" if pattern.anchored else _ANY_COMPONENTS
    for run in runs[:-1]:
        if run:
            source += b"(?>" + skip + b"/".join(run) + b"/)"
        skip = _ANY_COMPONENTS
    if runs[-1]:
        return False, source + skip + b"/".join(runs[-1]) + rb"\Z"
    return False, source + rb"(?s:.)"


def _components(text: bytes) -> list[bytes | None]:
    """The expression of each component, None for "**". FormatError where the text follows no rule."""
    components: list[bytes | None] = []
    tokens: list[bytes] = []  # expressions of one byte each, or b"*"
    position = 0
    while position < len(text):
        byte = text[position : position + 1]
        position += 1
        if byte == b"\\":
            byte = text[position : position + 1]
            position += 1
            if not byte:
                raise FormatError("pattern ends in a backslash", offset=position - 2)
            token = re.escape(byte)
        elif byte == b"[":
            token, position = _set(text, position)
        elif byte == b"?":
            token = b"[^/]"
        else:
            token = byte if byte == b"*" else re.escape(byte)
        if token == b"/":
            components.append(_component(tokens))
            tokens = []
        else:
            tokens.append(token)
    components.append(_component(tokens))
    return components


def _component(tokens: list[bytes]) -> bytes | None:
    if tokens == [b"*", b"*"]:
        return None
    first, *rest = b"".join(b"\0" if token == b"*" else token for token in tokens).split(b"\0")
    if not rest:
        return first
    between = b"".join(b"(?>[^/]*?" + run + b")" for run in rest[:-1] if run)
    return first + between + b"[^/]*" + rest[-1]


def _set(text: bytes, position: int) -> tuple[bytes, int]:
    """The expression of a set whose "[" stands before ``position``, and the position behind its "]"."""
    start = position - 1
    negated = text[position : position + 1] in (b"!", b"^")
    position += negated
    members = []
    while text[position : position + 1] != b"]":
        if text.startswith(b"[:", position):
            end = text.find(b":]", position)
            name = text[position + 2 : max(end, position + 2)]
            if name not in _NAMED_SETS:
                raise FormatError("pattern has an unknown named set", offset=position)
            members.append(_NAMED_SETS[name])
            position = end + 2
            continue
        low, position = _member(text, position, start)
        high = low
        if text[position : position + 1] == b"-" and text[position + 1 : position + 2] not in (b"]", b""):
            high, position = _member(text, position + 1, start)
        members.append(b"\\x%02x-\\x%02x" % (min(low, high), max(low, high)))
    if negated:
        return b"[^/" + b"".join(members) + b"]", position + 1
    return b"(?!/)[" + b"".join(members) + b"]" if members else b"(?!)", position + 1


def _member(text: bytes, position: int, start: int) -> tuple[int, int]:
    """The byte that stands at ``position`` of a set, and the position behind it."""
    if text[position : position + 1] == b"\\":
        position += 1
    if position >= len(text):
        raise FormatError("pattern has a set that is not closed", offset=start)
    return text[position], position + 1
