"""The scanner of the leak tests finds what it is made for: a test that looks for nothing finds nothing."""

from __future__ import annotations

import base64
import os
import tempfile
import zlib
from pathlib import Path

import pytest
import zstandard

from tests.encryption.leaks import Scanner
from tests.random_trees import noise

WORD = b"a-Word-to-be-f0und"
SCANNER = Scanner({"word": WORD})
NOISE = noise(1, 5000)


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("plain", WORD),
        ("utf-16-le", WORD.decode().encode("utf-16-le")),
        ("utf-16-be", WORD.decode().encode("utf-16-be")),
        ("hex", WORD.hex().encode()),
        ("HEX", WORD.hex().upper().encode()),
        *((f"base64 +{n}", base64.b64encode(b"xyz"[:n] + WORD + b"more")) for n in range(3)),
        ("zstd plain", zstandard.compress(NOISE + WORD)),
        ("zstd plain", zstandard.compress(WORD + bytes(1 << 20))[:-5]),  # a frame that is cut
        ("zstd zstd hex", zstandard.compress(zstandard.compress(WORD.hex().encode() * 9))),
        ("zlib plain", zlib.compress(NOISE + WORD)),
    ],
)
def test_form(form: str, data: bytes) -> None:
    assert (("word", form)) in list(SCANNER.data(NOISE + data + NOISE))
    assert list(SCANNER.data(NOISE + data.swapcase()[:-1:2] + NOISE)) == []


def test_tree(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / ".hidden").write_bytes(b"x" + WORD)
    (tmp_path / f"file-{WORD.decode()}").touch()
    (tmp_path / "link").symlink_to(f"../{WORD.decode()}")
    (tmp_path / "other").write_bytes(NOISE)
    found = {(path.name, form) for path, _, form in SCANNER.tree(tmp_path)}
    assert found == {(".hidden", "plain"), (f"file-{WORD.decode()}", "name plain"), ("link", "name plain")}


def test_nameless(tmp_path: Path) -> None:
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        assert list(SCANNER.nameless([tmp_path])) == []
        os.write(file.fileno(), zstandard.compress(bytes(100) + 2 * WORD))
        found = list(SCANNER.nameless([tmp_path]))
        assert ("word", "zstd plain") in {hit[1:] for hit in found} and all(str(tmp_path) in hit[0] for hit in found)
        assert list(SCANNER.nameless([tmp_path / "elsewhere"])) == []
    assert list(SCANNER.nameless([tmp_path])) == []
