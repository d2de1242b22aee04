"""formats.paperkey: pages hold the key, and what is typed in from them is the same key or says what is wrong."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import random
import re
import string
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import zxingcpp
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.crypt import CryptConfig
from formats.errors import FormatError, IntegrityError, LimitExceeded
from formats.keyfile import KeyFile, KeyTime, Pbkdf2
from formats.paperkey import BEGIN, END, PaperKey
from tests.golden_data import GOLDEN
from tests.hostile.limits import bounded, outcome

KEYS = GOLDEN / "keys"
GOLDEN_KEYS = [(KEYS / name).read_bytes() for name in ("key-none.json", "key-pbkdf2.json", "key-scrypt.json")]
SCRYPT = GOLDEN_KEYS[2]
PEM = {name: base64.b64decode(text) for name, text in json.loads((KEYS / "master-pem.json").read_bytes()).items()}
PRIVATE = [PEM["master-private.pem"], PEM["master-private-enc.pem"]]
BASE64 = string.ascii_letters + string.digits + "+/"


def between_marks(page: str) -> str:
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)]


def scanned(page: str) -> list[str]:
    """What a scanner reads from the QR codes that are drawn in a page."""
    rows: list[list[str]] = [[]]
    for line in page.split("\n"):
        if set(line) & set("▄▀█"):
            rows[-1].append(line)
        elif rows[-1]:
            rows.append([])
    found = []
    for art in filter(None, rows):
        width = max(map(len, art))
        halves = [
            ["▀█".find(char) >= 0 if upper else "▄█".find(char) >= 0 for char in line.ljust(width)]
            for line in art
            for upper in (True, False)
        ]
        modules = np.pad(np.array(halves[:width]), 4)  # the blank paper around it
        image = np.kron(~modules, np.ones((3, 3))).astype(np.uint8) * 255
        (code,) = zxingcpp.read_barcodes(image)
        found.append(code.bytes.decode())
    return found


# Printing.


@pytest.mark.parametrize("data", GOLDEN_KEYS)
def test_text_between_the_marks_is_a_key_file(data: bytes) -> None:
    paper = PaperKey.of(data)
    for page in (paper.text("whose key"), html.unescape(paper.html("whose key"))):
        typed = between_marks(page)
        assert KeyFile.decode(typed.encode()).encode() == data
        assert "whose key" in page
    assert paper.lines == tuple(json.dumps(json.loads(data), indent=2).split("\n"))


@pytest.mark.parametrize("data", GOLDEN_KEYS)
def test_qr_code_of_a_key_file(data: bytes) -> None:
    (code,) = scanned(PaperKey.of(data).text(None))
    assert code == json.dumps(json.loads(data), indent=2)
    assert PaperKey.typed(code).data == data


@pytest.mark.parametrize("pem", PRIVATE)
def test_private_key(pem: bytes) -> None:
    lines = pem.decode().splitlines()
    paper = PaperKey.of(pem)
    text = paper.text(None)
    for number, line in enumerate(lines):
        assert f"\n{number:2}: {line}\n" in f"\n{text}"
    blocks = ["\n".join(lines[at : at + 5]) for at in range(0, len(lines), 5)]
    assert scanned(text) == blocks
    assert text.count("\f\n") == len(blocks)
    assert PaperKey.typed(text).data == pem
    page = html.unescape(paper.html(None))
    assert f"\n00: {lines[0]}\n".strip() in page and f"\n19: {lines[19]}</p>" in page
    assert page.count("<img ") == (len(lines) + 19) // 20


def test_html_is_one_page_that_needs_nothing_else() -> None:
    page = PaperKey.of(SCRYPT).html("<script>&")
    assert "<title>Proxmox Backup Paperkey</title>" in page
    assert "<script>" not in page and "&lt;script&gt;&amp;" in page
    (source,) = re.findall(r'src="([^"]*)"', page)
    assert not re.search(r'(src|href)="(?!data:)', page)
    image = base64.b64decode(source.removeprefix("data:image/svg+xml;base64,"))
    assert image.startswith(b"<svg ") and b"http://www.w3.org/2000/svg" in image
    assert "width:500pt;height:500pt" in page


def test_html_codes_are_those_of_the_text() -> None:
    paper = PaperKey.of(SCRYPT)
    (code,), (other,) = paper.codes("html"), paper.codes("text")
    assert code[1].matrix == other[1].matrix
    assert (code[1].error, code[1].mode) == ("M", "byte")


def test_hint_in_any_script() -> None:
    hint, when = "ключ <ä> \u3000 x", KeyTime(0)
    file = KeyFile.wrap(CryptConfig(bytes(32)), b"secret", Pbkdf2(2, b"salt"), bytes(16), when, when, hint)
    page = PaperKey.of(file.encode()).text(None)
    assert scanned(page)[0] == "\n".join(PaperKey.of(file.encode()).lines)
    assert PaperKey.typed(page).data == file.encode()


def test_checksums_by_hand(tmp_path: Path) -> None:
    """With what every Linux has."""
    for data in (SCRYPT, PRIVATE[1]):
        paper = PaperKey.of(data)
        (tmp_path / "typed").write_text("\n".join(paper.lines))
        command = "tr -d '[:space:]' < typed | sha256sum"
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert paper.checksum.replace("-", "") == done.stdout[:16]
        for line, check in zip(paper.lines, paper.line_checks, strict=True):
            assert check == hashlib.sha256("".join(line.split()).encode()).hexdigest()[:4]
        page = paper.text(None)
        assert f"Checksum: {paper.checksum}\n" in page
        assert all(f"{at}:{check}" in page for at, check in enumerate(paper.line_checks, 0 if paper.is_pem else 1))


# Typing in.


def mess(text: str, rng: random.Random) -> str:
    """The same key as a careless person types it: other line breaks and indentation."""

    def broken(found: re.Match[str]) -> str:
        return "".join(char + ("" if rng.randrange(12) else "\n" + " " * rng.randrange(9)) for char in found[0])

    text = re.sub(r"[A-Za-z0-9+/:=]{30,}", broken, text)
    text = re.sub("\n", lambda _: rng.choice(("\n", "\n\n", "\n   \n\n", "\n\t", "\n      ")), text)
    return text.replace("\n", rng.choice(("\n", "\r\n", "  \n")))


@pytest.mark.parametrize("data", GOLDEN_KEYS)
@pytest.mark.parametrize("seed", range(8))
def test_white_space_does_not_matter(data: bytes, seed: int) -> None:
    rng = random.Random(seed)
    paper = PaperKey.of(data)
    typed = mess(between_marks(paper.text(None)), rng)
    dashes = "-" * rng.randrange(1, 9)
    marked = f"\n{dashes} begin Proxmox backup key {dashes}\n\n\n{typed}\n\n  {END}\n\n"
    marked += f"  checksum {paper.checksum.upper()}\n"
    for text in (typed, marked, f"\ufeff{marked}", typed.replace("\n", "\r")):
        assert PaperKey.typed(text).data == data
    assert PaperKey.typed(marked).is_checked


@pytest.mark.parametrize("pem", PRIVATE)
@pytest.mark.parametrize("seed", range(4))
def test_white_space_of_a_private_key_does_not_matter(pem: bytes, seed: int) -> None:
    first, *body, last = pem.decode().splitlines()
    page = PaperKey.of(pem).text(None)
    for typed in (
        f"\n  {first}\n{mess(chr(10).join(body), random.Random(seed))}\n\n\t{last}",
        page.replace("\n", "\n\n  "),
        re.sub("[▄▀█]", "", page),
        re.sub(r"(?m)^ *\d+: ", "", page),
    ):
        assert PaperKey.typed(typed).data == pem


def test_wrapped_hint_is_kept() -> None:
    typed = between_marks(PaperKey.of(SCRYPT).text(None)).replace("the hint", "the\n      hint")
    assert PaperKey.typed(typed).data == SCRYPT


@given(
    st.binary(min_size=32, max_size=32),
    st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=64),
    st.none() | st.binary(min_size=1, max_size=40),
    st.integers(0, 2**33),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_key_file_comes_back(key: bytes, hint: str | None, salt: bytes | None, when: int, crlf: bool) -> None:
    kdf = None if salt is None else Pbkdf2(2, salt)
    file = KeyFile.wrap(CryptConfig(key), b"secret", kdf, bytes(16), KeyTime(when), KeyTime(when, None), hint)
    page = PaperKey.of(file.encode()).text("a subject")
    typed = PaperKey.typed(page.replace("\n", "\r\n") if crlf else page)
    assert typed.data == file.encode() and typed.is_checked
    assert not PaperKey.typed(between_marks(page)).is_checked


@cache
def scrypt_page() -> str:
    return PaperKey.of(SCRYPT).text(None)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_single_wrong_character_is_missed(data: st.DataObject) -> None:
    """Within the key, with the checksum beside it: a wrong, lost or doubled character, or two neighbours exchanged."""
    page = scrypt_page()
    start, end = page.index("{\n"), page.index(END) - 1
    at = data.draw(st.integers(start, end - 2))
    old = page[at]
    new = data.draw(
        st.sampled_from([char for char in string.printable if not char.isspace() and char != old]).flatmap(
            lambda char: st.sampled_from([char, "", old + char, page[at + 1] + old])
        )
    )
    typed = page[:at] + new + page[at + 1 + (len(new) == 2 and new == page[at + 1] + old) :]
    try:
        found = PaperKey.typed(typed)
    except FormatError as error:
        assert len(str(error)) < 400
    else:  # it was white space
        assert b"".join(found.data.split()) == b"".join(SCRYPT.split())


def test_wrong_line_is_named() -> None:
    page = PaperKey.of(SCRYPT).text(None)
    number = next(at for at, line in enumerate(PaperKey.of(SCRYPT).lines, 1) if '"data"' in line)
    place = page.index('"data"') + 30
    wrong = page[:place] + ("A" if page[place] != "A" else "B") + page[place + 1 :]
    with pytest.raises(IntegrityError, match=rf"look at line {number}.: expected {PaperKey.of(SCRYPT).checksum}"):
        PaperKey.typed(wrong)
    short = re.sub(r"\d+:[0-9a-f]{4}", "", wrong)  # only the checksum was typed in
    with pytest.raises(IntegrityError, match=rf"compare with .* {number}:"):
        PaperKey.typed(short)
    with pytest.raises(IntegrityError, match="the lines are right"):
        PaperKey.typed(re.sub(r"Checksum: ....", "Checksum: 0000", page))
    assert not PaperKey.typed(wrong[: wrong.index("Checksum")]).is_checked


def test_wrong_line_of_a_private_key_is_named() -> None:
    page = PaperKey.of(PRIVATE[1]).text(None)
    place = page.index("\n17: ") + 20
    with pytest.raises(IntegrityError, match="look at line 17"):
        PaperKey.typed(page[:place] + ("A" if page[place] != "A" else "B") + page[place + 1 :])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("d+Yw", "d*Yw", r"data, character 2: expected base64, got '\*'"),
        ("d+Yw", "dßYw", "data, character 2: expected base64"),
        ("Pn7P", "Pn7.", "salt, character 4: expected base64"),
        ('"c5:b4', '"c5:bO', "fingerprint, character 5: expected hex digits, got 'O'"),
        ('"created":', '"created"', "in the line of created, character 11: expecting ':'"),
        ('"data"', '"dala"', "data is missing"),
        ('"n": 65536', '"n": 6553G', "in the line of n"),
        ("2026-11", "2O26-11", "time"),
        ("8w==", "8w", "data"),
        ('"p": 1', '"r": 1', "there twice"),
        ("{\n", "(\n", "extra data"),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, message: str) -> None:
    text = between_marks(PaperKey.of(SCRYPT).text(None)).replace('"hint"', '"hint"')
    assert old in text
    if old == "8w==":
        assert PaperKey.typed(text.replace(old, new, 1)).data == SCRYPT  # padding is not needed
        return
    with pytest.raises(FormatError, match=message):
        PaperKey.typed(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("pem", "message"),
    [
        (b"", "no JSON"),
        (b"-----BEGIN PUBLIC KEY-----\n" + b"A" * 3000, "begins with"),
        (PEM["master-public.pem"], "begins with"),
        (PRIVATE[0][:-40], "as its last line"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "at least 20 lines"),
        (b"-----BEGIN PRIVATE KEY-----\n\xff", "ASCII"),
        (b"-----BEGIN PRIVATE KEY-----\n" + b"A" * 70_000, "at most"),
    ],
)
def test_what_cannot_be_printed(pem: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        PaperKey.of(pem)


def test_key_file_that_fits_no_qr_code() -> None:
    file = KeyFile(Pbkdf2(2, bytes(3000)), KeyTime(0), KeyTime(0), bytes(64))
    with pytest.raises(LimitExceeded, match="at most 2331 bytes"):
        PaperKey.of(file.encode()).text(None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "}{",
        " " * 250_000,
        "-" * 250_000,
        "-" * 120_000 + " " * 120_000,
        '"' * 250_000,
        "{" + '"\\' * 100_000 + "}",
        "checksum" + " " * 240_000,
        "checksum" + "0 " * 120_000,
        "{" * 125_000 + "}" * 125_000,
        "[" * 250_000,
        '{"a":"' + "\n " * 100_000 + '"}',
        '{"kdf":' + "9" * 5000 + "}",
        '{"data":"\ud800"}',
        "A\n" * 100_000,
        "-----BEGIN PRIVATE KEY-----\n" * 9000,
        "-----BEGIN PRIVATE KEY-----\n" + "1:" * 100_000 + "\n-----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n" + "A" * 100_000 + "\n-----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n-----END RSA PRIVATE KEY-----",
        "x" * 10_000_000,
    ],
)
def test_hostile_text(text: str) -> None:
    with bounded(seconds=20):
        found = outcome(lambda: PaperKey.typed(text))
    assert isinstance(found, FormatError) and len(str(found)) < 300


def test_mutated_pages_give_a_key_or_a_format_error() -> None:
    rng = random.Random(3)
    pages = [PaperKey.of(data).text(None) for data in (*GOLDEN_KEYS, PRIVATE[1])]
    keys = 0
    for _ in range(400):
        page = rng.choice(pages)
        at = rng.randrange(len(page))
        page = page[:at] + rng.choice(('"', "{", "}", "\n", "-", ":", "\0", "")) + page[at + rng.randrange(40) :]
        keys += isinstance(outcome(lambda page=page: PaperKey.typed(page).data), bytes)  # type: ignore[misc]
    assert 0 < keys < 400


def test_key_is_not_shown() -> None:
    for data in (*GOLDEN_KEYS, *PRIVATE):
        assert len(repr(PaperKey.of(data))) < 60
