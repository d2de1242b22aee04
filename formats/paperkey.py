"""Paper keys: a key file or a PEM private key for the printer, and read back as somebody typed it in (spec
blob-index-crypto.md 6).

| part     | key file                                                  | PEM private key                               |
|----------|-----------------------------------------------------------|-----------------------------------------------|
| text     | its JSON with an indent of 2, between BEGIN and END lines | its lines, numbered from 0                    |
| QR codes | one: the JSON                                             | one for 20 lines each (HTML), for 5 (text)    |
| checksum | SHA-256 of the JSON without white space: 16 hex digits    | the same of its lines without their numbers   |
| check    | SHA-256 of one line without white space: 4 hex digits, so that a wrong line is found                      |

The checksums stand apart from the text: what is between the BEGIN and END lines is a valid key file. A person can
compute them with ``tr -d '[:space:]' < FILE | sha256sum``.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from base64 import b64encode
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING

from formats.errors import FormatError, IntegrityError, LimitExceeded
from formats.keyfile import MAX_KEY_FILE, KeyFile

if TYPE_CHECKING:
    from segno import QRCode

BEGIN = "-----BEGIN PROXMOX BACKUP KEY-----"
END = "-----END PROXMOX BACKUP KEY-----"
MAX_TEXT = 256 << 10  # a printed page with its QR codes has 20 KiB

_PEM_KINDS = ("ENCRYPTED PRIVATE KEY", "RSA PRIVATE KEY", "PRIVATE KEY")
_PEM_LINES = 20  # the least
_PEM_WIDTH = 64
_PER_CODE = {"html": 20, "text": 5}  # lines of a PEM
_QR_SIZE = "500pt"
_BLOCKS = " ▄▀█"  # by 2 * upper + lower

_WHITE = re.compile(rb"[ \t\n\r\v\f]+")  # what [:space:] is to tr
_DASHES = "[-\u2013\u2014_]+"
_KEY_MARK = re.compile(rf"^[ \t]*{_DASHES}[ \t]*(BEGIN|END)[ \t]+PROXMOX[ \t]+BACKUP[ \t]+KEY\b.*$", re.I | re.M)
_PEM_MARK = re.compile(
    rf"^[ \t]*(?:\d+[ \t]*:[ \t]*)?{_DASHES}[ \t]*(BEGIN|END)[ \t]+((?:[A-Z]+[ \t]+)?PRIVATE[ \t]+KEY)\b.*$",
    re.I | re.M,
)
_NUMBER = re.compile(r"[ \t]*\d+[ \t]*:")
_PEM_HEADER = re.compile(r"(Proc-Type|DEK-Info):")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=]")
_NOT_HEX = re.compile(r"[^0-9a-fA-F:]")
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.S)  # also one that does not end, so that time stays linear
_CHECKSUM = re.compile(r"^[ \t]*checksum[ \t:]*((?:[0-9a-f][ \t-]*){16})$", re.I | re.M)
_LINE_CHECK = re.compile(r"\b(\d{1,3}):([0-9a-f]{4})\b", re.I)


@dataclass(frozen=True, slots=True)
class PaperKey:
    """``lines`` as they are printed, without BEGIN, END and numbers where those are not part of the key;
    ``is_checked``: it was typed in, and the checksum beside it is right."""

    lines: tuple[str, ...] = field(repr=False)
    is_pem: bool
    is_checked: bool = False

    @staticmethod
    def of(data: bytes) -> PaperKey:
        """Of a key file or a PEM private key. Raises FormatError."""
        if data.lstrip()[:5] != b"-----":
            return PaperKey(_json_lines(KeyFile.decode(data)), False)
        if len(data) > MAX_KEY_FILE:
            raise LimitExceeded("PEM file", expected=f"at most {MAX_KEY_FILE} bytes")
        try:
            lines = tuple(line.strip() for line in data.decode("ascii").splitlines() if line.strip())
        except UnicodeDecodeError as error:
            raise FormatError("PEM file is not ASCII", offset=error.start) from None
        kinds = [kind for kind in _PEM_KINDS if lines[0] == f"-----BEGIN {kind}-----"]
        if not kinds:
            raise FormatError("PEM file", expected=f"one that begins with {_PEM_KINDS[0]} or another private key")
        if lines[-1] != f"-----END {kinds[0]}-----":
            raise FormatError("PEM file", expected=f"-----END {kinds[0]}----- as its last line")
        if len(lines) < _PEM_LINES:
            raise FormatError("PEM file", expected=f"at least {_PEM_LINES} lines", got=len(lines))
        return PaperKey(lines, True)

    @staticmethod
    def typed(text: str) -> PaperKey:
        """From a page that was typed in, or from what QR codes said. Line breaks, indentation, blank lines, line
        numbers and what stands around the key do not matter; a checksum beside it is compared.

        Raises FormatError, which says what was expected where; IntegrityError when the checksum differs.
        """
        if len(text) > MAX_TEXT:
            raise LimitExceeded("paper key", expected=f"at most {MAX_TEXT} characters", got=len(text))
        text = text.replace("\r", "\n").removeprefix("\ufeff")
        paper = _typed_pem(text) if _PEM_MARK.search(text) else _typed_key(text)
        printed = _CHECKSUM.search(text)
        if printed is None:
            return paper
        checksum = _grouped(_only_digits(printed[1]))
        if checksum != paper.checksum:
            where = paper._suspects(text[printed.end() :])
            raise IntegrityError(f"paper key: checksum ({where})", expected=checksum, got=paper.checksum)
        return replace(paper, is_checked=True)

    @property
    def data(self) -> bytes:
        """The key file or PEM file."""
        if not self.is_pem:
            return KeyFile.decode("\n".join(self.lines).encode()).encode()
        lines = list(self.lines)
        last_header = max((at for at, line in enumerate(lines) if _PEM_HEADER.match(line)), default=0)
        if last_header:
            lines.insert(last_header + 1, "")
        return ("\n".join(lines) + "\n").encode()

    @property
    def checksum(self) -> str:
        """Four groups of four hex digits."""
        return _grouped(_digits("\n".join(self.lines))[:16])

    @property
    def line_checks(self) -> list[str]:
        """Four hex digits for each line."""
        return [_digits(line)[:4] for line in self.lines]

    def codes(self, form: str) -> list[tuple[range, QRCode]]:
        """The QR codes of ``form`` (html or text), each with the lines in it. Raises LimitExceeded."""
        step = _PER_CODE[form] if self.is_pem else len(self.lines)
        spans = [range(start, min(start + step, len(self.lines))) for start in range(0, len(self.lines), step)]
        return [(span, _qr_code("\n".join(self.lines[at] for at in span))) for span in spans]

    # -- printing ----------------------------------------------------------------------------------------------------

    def text(self, subject: str | None) -> str:
        """Pages for a printer that prints plain text."""
        pages = []
        for span, code in self.codes("text"):
            body = [f"{at:2}: {self.lines[at]}" for at in span] if self.is_pem else [BEGIN, *self.lines, END]
            pages.append("\n".join([*body, "", *_block_art(code), ""]))
        head = f"Subject: {subject}\n\n" if subject else ""
        return head + "\f\n".join([*pages, "\n".join(self._explanation())]) + "\n"

    def html(self, subject: str | None) -> str:
        """One page that needs nothing else."""
        parts = [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"><title>Proxmox Backup Paperkey</title><style>',
            "body { margin: 1em; } p, pre { font-family: monospace; font-size: 12pt; }",
            "p { white-space: pre-wrap; overflow-wrap: anywhere; } .page { break-after: page; }",
            "</style></head><body>",
        ]
        if subject:
            parts.append(f"<p>Subject: {html.escape(subject)}</p>")
        for span, code in self.codes("html"):
            body = [f"{at:02}: {self.lines[at]}" for at in span] if self.is_pem else [BEGIN, *self.lines, END]
            image = BytesIO()
            code.save(image, kind="svg", border=0, xmldecl=False)
            source = f"data:image/svg+xml;base64,{b64encode(image.getvalue()).decode()}"
            text = html.escape("\n".join(body))
            size = f'style="width:{_QR_SIZE};height:{_QR_SIZE}"'
            parts.append(f'<div class="page"><p>{text}</p><img alt="QR code" {size} src="{source}"></div>')
        parts.append("<p>" + html.escape("\n".join(self._explanation())) + "</p></body></html>")
        return "\n".join(parts) + "\n"

    def _explanation(self) -> list[str]:
        checks = [f"{at}:{check}" for at, check in enumerate(self.line_checks, 0 if self.is_pem else 1)]
        rows = ["  ".join(checks[at : at + 8]) for at in range(0, len(checks), 8)]
        what = "the lines above without their numbers" if self.is_pem else "the lines between BEGIN and END"
        return [
            f"Checksum: {self.checksum}",
            *rows,
            "",
            f"The checksum is that of {what}, the numbers below it are for one line each:",
            "the first digits of: tr -d '[:space:]' < FILE | sha256sum",
        ]

    def _suspects(self, behind: str) -> str:
        """Which lines are wrong, from checks of lines in the text ``behind`` the checksum that were typed in too."""
        first = 0 if self.is_pem else 1
        printed = {int(number) - first: check.lower() for number, check in _LINE_CHECK.findall(behind)}
        ours = self.line_checks
        if set(printed) != set(range(len(ours))):
            shown = " ".join(f"{at}:{check}" for at, check in enumerate(ours, first))
            return f"compare with the numbers of the lines on the paper: {shown}"
        wrong = [str(at + first) for at, check in enumerate(ours) if printed[at] != check]
        return f"look at line {', '.join(wrong)}" if wrong else "the lines are right, is the checksum?"


def _json_lines(file: KeyFile) -> tuple[str, ...]:
    return tuple(json.dumps(json.loads(file.encode()), indent=2, ensure_ascii=False).split("\n"))


def _digits(text: str) -> str:
    return hashlib.sha256(_WHITE.sub(b"", text.encode())).hexdigest()


def _only_digits(text: str) -> str:
    return re.sub(r"[^0-9a-f]", "", text.lower())


def _grouped(digits: str) -> str:
    return "-".join(digits[at : at + 4] for at in range(0, len(digits), 4))


# -- what was typed in -------------------------------------------------------------------------------------------------


def _typed_key(text: str) -> PaperKey:
    marks = list(_KEY_MARK.finditer(text))
    if marks and marks[0][1].upper() == "BEGIN":
        text = text[marks[0].end() : marks[1].start() if len(marks) > 1 else len(text)]
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise FormatError("paper key", expected="a key that begins with { and ends with }")
    members = _parse_typed(text[start : end + 1])
    kdf = members.get("kdf")
    for values in (members, *(kdf.values() if isinstance(kdf, dict) else ())):
        if not isinstance(values, dict):
            continue
        for name, value in values.items():
            if not isinstance(value, str) or name == "hint":
                continue
            value = values[name] = "".join(value.split())
            if name in ("data", "salt"):
                _check_characters(f"paper key: {name}", value, _NOT_BASE64, "base64")
            elif name == "fingerprint":
                _check_characters(f"paper key: {name}", value, _NOT_HEX, "hex digits")
    return PaperKey(_json_lines(KeyFile.decode(json.dumps(members).encode("utf-8", "surrogatepass"))), False)


def _parse_typed(text: str) -> dict[str, object]:
    """The JSON object, in whose strings line breaks may stand: the page was not wide enough for them."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise FormatError("paper key: a line is there twice")
        return members

    stripped = "\n".join(line.strip() for line in text.split("\n"))
    joined = _STRING.sub(lambda found: re.sub("\n+", " ", found[0]), stripped)
    try:
        parsed = json.loads(joined, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        line = joined.split("\n")[error.lineno - 1]
        name = re.match(r'"(\w{1,20})"', line)
        place = f"in the line of {name[1]}" if name else f"line {error.lineno}"
        raise FormatError(f"paper key: {place}, character {error.colno}: {error.msg.lower()}") from None
    except FormatError:
        raise
    except (ValueError, RecursionError):
        raise FormatError("paper key is no JSON") from None
    if not isinstance(parsed, dict):
        raise FormatError("paper key", expected="a JSON object")
    return parsed


def _typed_pem(text: str) -> PaperKey:
    marks = list(_PEM_MARK.finditer(text))
    if len(marks) < 2 or (marks[0][1].upper(), marks[1][1].upper()) != ("BEGIN", "END"):
        raise FormatError("paper key", expected="a BEGIN and an END line")
    kinds = [" ".join(mark[2].upper().split()) for mark in marks[:2]]
    if kinds[0] != kinds[1]:
        raise FormatError("paper key: END line", expected=kinds[0], got=kinds[1])
    headers, body = [], []
    for number, line in enumerate(text[marks[0].end() : marks[1].start()].split("\n")):
        content = "".join(_NUMBER.sub("", line, count=1).split())
        if _PEM_HEADER.match(content):
            headers.append(re.sub(r"^([^:]+):", r"\1: ", content))
        elif not set(content) & set(_BLOCKS[1:]):  # a QR code in between
            _check_characters(f"paper key: line {number} behind BEGIN", content, _NOT_BASE64, "base64")
            body.append(content)
    joined = "".join(body)
    wrapped = [joined[at : at + _PEM_WIDTH] for at in range(0, len(joined), _PEM_WIDTH)]
    whole = "\n".join([f"-----BEGIN {kinds[0]}-----", *headers, *wrapped, f"-----END {kinds[0]}-----"])
    return PaperKey.of(whole.encode())


def _check_characters(what: str, text: str, wrong: re.Pattern[str], alphabet: str) -> None:
    found = wrong.search(text)
    if found is not None:
        raise FormatError(f"{what}, character {found.start() + 1}", expected=alphabet, got=ascii(found[0]))


# -- QR codes ----------------------------------------------------------------------------------------------------------


def _qr_code(content: str) -> QRCode:
    import segno
    from segno.encoder import DataOverflowError

    try:
        return segno.make_qr(content, error="m", mode="byte", encoding="utf-8", boost_error=False)
    except DataOverflowError:
        raise LimitExceeded("paper key: QR code", expected="at most 2331 bytes", got=len(content.encode())) from None


def _block_art(code: QRCode) -> list[str]:
    """Two rows of modules a line; dark ones are drawn, for paper."""
    rows = [list(row) for row in code.matrix]
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return ["".join(_BLOCKS[2 * a + b] for a, b in zip(upper, lower, strict=True)) for upper, lower in pairs]
