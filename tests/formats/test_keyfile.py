"""formats.keyfile: golden key files, the vectors of the spec, refusals, hostile files."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import blob
from formats.crypt import CryptConfig, parse_fingerprint
from formats.errors import FormatError, KeyMissing, LimitExceeded, WrongKey
from formats.keyfile import KeyFile, KeyTime, Pbkdf2, Scrypt
from tests.golden_data import GOLDEN

KEYS = GOLDEN / "keys"
GOLDEN_KEYS = json.loads((KEYS / "keys.json").read_bytes())
PASSPHRASE = GOLDEN_KEYS["password"].encode()
KEY = bytes(range(32))
FINGERPRINT = "0e:ab:d4:46:0b:6e:b9:ca:34:50:23:de:e2:b7:78:c7:90:e5:4a:16:83:b9:65:9c:0a:57:ae:19:90:90:15:9b"
SPEC_EXAMPLE = (
    '{"kdf":null,"created":"2026-01-02T03:04:05+01:00","modified":"2026-01-02T03:04:05+01:00",'
    '"data":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","fingerprint":"' + FINGERPRINT + '"}'
).encode()
SALT = bytes(range(0x40, 0x60))
IV = bytes(range(0x20, 0x30))
CHEAP = Pbkdf2(2, b"salt")
T0 = KeyTime(1_700_000_000)


def changed(**members: Any) -> bytes:
    """The spec's example with some members replaced, or left out where the value is ``...``."""
    parsed = json.loads(SPEC_EXAMPLE) | members
    return json.dumps({name: value for name, value in parsed.items() if value is not ...}).encode()


@pytest.mark.parametrize("name", sorted(GOLDEN_KEYS["files"]))
def test_golden_files(name: str) -> None:
    raw = (KEYS / name).read_bytes()
    expected = GOLDEN_KEYS["files"][name]
    file = KeyFile.decode(raw)
    assert file.encode() == raw
    assert file.created == KeyTime(expected["created"], 0) == file.modified
    assert file.fingerprint == parse_fingerprint(expected["fingerprint"])
    crypt = file.unlock(PASSPHRASE)
    assert crypt.enc_key.hex() == expected["key"]
    assert crypt.fingerprint == file.fingerprint
    assert (file.hint == "the hint") == (name == "key-scrypt.json")
    if file.kdf is None:
        assert file.unlock(None).enc_key == crypt.enc_key
        return
    with pytest.raises(KeyMissing, match="passphrase"):
        file.unlock(None)
    with pytest.raises(WrongKey, match="'the hint'" if file.hint else "wrong passphrase"):
        file.unlock(PASSPHRASE + b"x")


def test_golden_rsa_key_is_a_plain_blob() -> None:
    data = (KEYS / "rsa-encrypted.key.blob").read_bytes()
    info = blob.inspect(data)
    assert not info.encrypted and not info.compressed
    assert blob.decode(data, encrypted=False) == data[12:]
    assert len(data) == 12 + 512


def test_spec_example() -> None:
    file = KeyFile.decode(SPEC_EXAMPLE)
    assert file.unlock(None).enc_key == KEY
    assert file.created == KeyTime(1767319445, 60)
    assert file.encode() == SPEC_EXAMPLE
    assert len(SPEC_EXAMPLE) == 255


def test_spec_wrapping_vectors() -> None:
    scrypt = Scrypt(65536, 8, 1, SALT)
    assert scrypt.derive(b"secret").hex() == "bbd77787b932efcb61783f7af45bbcca6389272e5d13155cf2417662ad27aa7e"
    wrapped = KeyFile.wrap(CryptConfig(KEY), b"secret", scrypt, IV, T0, T0, "a hint")
    expected = "ICEiIyQlJicoKSorLC0uL4xE/GGqU0XeXYJPtKFP7GZMKMP+WWmXXZ3iyFmBhPsjOmXnHJGuOJQf9KT3a4gkCw=="
    assert base64.b64encode(wrapped.data).decode() == expected
    assert KeyFile.decode(wrapped.encode()) == wrapped
    assert wrapped.unlock(b"secret").enc_key == KEY
    pbkdf2 = KeyFile.wrap(CryptConfig(KEY), b"secret", Pbkdf2(65535, SALT), IV, T0, T0)
    expected = "ICEiIyQlJicoKSorLC0uL3gt0Wsfh9QVRHQ8N8Tru4l6TbFDcpkRny8j716wv3wVkL1ED2LHmm162ZY106bS2w=="
    assert base64.b64encode(pbkdf2.data).decode() == expected


def test_spec_signature_with_a_derived_key() -> None:
    """The reference's own case: a key derived from "test" with an empty salt signs a manifest."""
    crypt = CryptConfig(Scrypt(65536, 8, 1, b"").derive(b"test"))
    files = [
        {"crypt-mode": "encrypt", "csum": "01" * 32, "filename": "test1.img.fidx", "size": 200},
        {"crypt-mode": "none", "csum": "02" * 32, "filename": "abc.blob", "size": 200},
    ]
    manifest = {"backup-id": "elsa", "backup-time": 1593179765, "backup-type": "host", "files": files}
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    assert crypt.auth_tag(canonical).hex() == "d7b446fb7db081662081d4b40fedd858a1d6307a5aff4ecff7d5bf4fd35679e9"


def test_wrap_without_kdf_is_the_raw_key() -> None:
    time_ = KeyTime(1767319445, 60)
    assert KeyFile.wrap(CryptConfig(KEY), None, None, None, time_, time_).encode() == SPEC_EXAMPLE


@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=5, max_size=40),
    st.binary(max_size=40),
    st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=64),
    st.integers(-60_000_000_000, 250_000_000_000),
    st.none() | st.integers(-1439, 1439),
)
@settings(max_examples=80, deadline=None)
def test_round_trip(
    key: bytes, passphrase: bytes, salt: bytes, hint: str | None, epoch: int, offset: int | None
) -> None:
    created = KeyTime(epoch, offset)
    file = KeyFile.wrap(CryptConfig(key), passphrase, Pbkdf2(2, salt), IV, created, T0, hint)
    again = KeyFile.decode(file.encode())
    assert again == file
    assert again.encode() == file.encode()
    assert again.unlock(passphrase).enc_key == key
    with pytest.raises(WrongKey):
        again.unlock(passphrase[:-1] + bytes([passphrase[-1] ^ 1]))


def test_wrap_refuses() -> None:
    crypt = CryptConfig(KEY)
    for passphrase in (None, b"", b"four"):
        with pytest.raises(FormatError, match="passphrase"):
            KeyFile.wrap(crypt, passphrase, CHEAP, IV, T0, T0)
    for hint in ("", "x" * 65, "a\nb", "\x7f", "\ud800"):
        with pytest.raises(FormatError, match="hint"):
            KeyFile.wrap(crypt, b"secret", CHEAP, IV, T0, T0, hint)
    with pytest.raises(ValueError, match="IV"):
        KeyFile.wrap(crypt, b"secret", CHEAP, None, T0, T0)


def test_short_passphrase_is_refused_before_deriving() -> None:
    file = KeyFile(Scrypt(2**60, 8, 1, SALT), T0, T0, bytes(64))
    with pytest.raises(WrongKey, match="5 bytes"):
        file.unlock(b"four")


@pytest.mark.parametrize(
    "kdf",
    [
        Scrypt(2**21, 8, 1, SALT),
        Scrypt(2**20, 8, 2, SALT),
        Scrypt(2**62, 2**62, 2**62, SALT),
        Scrypt(2, 1, 2**30, SALT),
        Scrypt(0, 8, 1, SALT),
        Scrypt(-4, -8, 1, SALT),
        Scrypt(65535, 8, 1, SALT),
        Scrypt(1, 8, 1, SALT),
        Pbkdf2(0, SALT),
        Pbkdf2(10**9, SALT),
        Pbkdf2(2**64, SALT),
    ],
)
def test_absurd_kdf_parameters(kdf: Scrypt | Pbkdf2) -> None:
    raw = KeyFile(kdf, T0, T0, bytes(64)).encode()
    started = time.process_time()
    with pytest.raises(FormatError, match=r"scrypt parameters|PBKDF2 iterations"):
        KeyFile.decode(raw).unlock(b"secret")
    assert time.process_time() - started < 10


def test_scrypt_limit_is_1025_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    derived = []

    def derive(*_: bytes, n: int, r: int, p: int, **__: Any) -> bytes:
        derived.append((n, r, p))
        return KEY

    monkeypatch.setattr(hashlib, "scrypt", derive)
    assert Scrypt(2**20, 8, 1, b"").derive(b"secret") == KEY  # 1 GiB: the reference reads it, so it must be read
    for n, r, p in ((2**20, 9, 1), (2**20, 8, 2), (2**21, 8, 1)):
        with pytest.raises(LimitExceeded, match="1025 MiB"):
            Scrypt(n, r, p, b"").derive(b"secret")
    assert derived == [(2**20, 8, 1)]


def test_other_fingerprint_is_a_wrong_key() -> None:
    other = ":".join(["00"] * 32)
    with pytest.raises(WrongKey, match="00:00:00:00:00:00:00:00, got 0e:ab:d4:46:0b:6e:b9:ca"):
        KeyFile.decode(changed(fingerprint=other)).unlock(None)


def test_old_files_have_no_fingerprint() -> None:
    file = KeyFile.decode(changed(fingerprint=...))
    assert file.fingerprint is None and file.hint is None
    assert file.unlock(None).enc_key == KEY
    assert b"fingerprint" not in file.encode()
    assert KeyFile.decode(changed(fingerprint=None, hint=None)).encode() == file.encode()


def test_secrets_are_not_shown() -> None:
    file = KeyFile.decode(SPEC_EXAMPLE)
    assert repr(KEY) not in repr(file) and "AAECAwQ" not in repr(file) and "data" not in repr(file)


def test_terminal_codes_in_a_hint_are_harmless() -> None:
    file = KeyFile(CHEAP, T0, T0, bytes(64), None, "\x1b[2J\nall is well")
    with pytest.raises(WrongKey) as caught:
        KeyFile.decode(file.encode()).unlock(b"secret")
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value) and "all is well" in str(caught.value)


def test_base64_padding_is_optional() -> None:
    text = base64.b64encode(KEY).decode()
    assert KeyFile.decode(changed(data=text.rstrip("="))).data == KEY


@pytest.mark.parametrize(
    ("text", "epoch", "offset"),
    [
        ("1970-01-01T00:00:00Z", 0, None),
        ("1970-01-01T00:00:00+00:00", 0, 0),
        ("2026-03-01T10:11:12+01:00", 1772356272, 60),
        ("2026-03-01T10:11:12-09:30", 1772356272 + 10 * 3600 + 1800, -570),
        ("1969-12-31T23:59:59Z", -1, None),
        ("0001-01-01T00:00:00+14:00", -62135596800 - 14 * 3600, 840),
        ("9999-12-31T23:59:59-23:59", 253402300799 + 86340, -1439),
    ],
)
def test_times(text: str, epoch: int, offset: int | None) -> None:
    assert KeyTime.parse(text) == (epoch, offset)
    assert KeyTime(epoch, offset).format() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-03-01",
        "2026-03-01T10:11:12",
        "2026-03-01 10:11:12Z",
        "2026-03-01T10:11:12.5Z",
        "2026-03-01T10:11:12+0100",
        "2026-03-01T10:11:12+24:00",
        "2026-03-01T10:11:12+01:60",
        "2026-02-30T10:11:12Z",
        "2026-03-01T25:11:12Z",
        "0000-03-01T10:11:12Z",
        "\uff12026-03-01T10:11:12Z",
        "2026-03-01T10:11:12Z\n",
    ],
)
def test_bad_times(text: str) -> None:
    with pytest.raises(FormatError, match="time"):
        KeyFile.decode(changed(created=text))


def test_years_out_of_range() -> None:
    for epoch in (-(10**12), 10**12, 10**30):
        with pytest.raises(FormatError, match="year"):
            KeyTime(epoch).format()


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "no JSON"),
        (b"\xff{}", "no JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b"{}", "kdf is missing"),
        (b"[" * 60_000, "no JSON"),
        (b'{"a":' * 10_000, "no JSON"),
        (b'{"n":' + b"9" * 50_000 + b"}", "no JSON"),
        (b" " * 100_000, "at most"),
        (SPEC_EXAMPLE[:-1] + b',"data":"AAAA"}', "twice"),
        (SPEC_EXAMPLE + b"{}", "no JSON"),
        (changed(kdf=...), "kdf is missing"),
        (changed(data=...), "data is missing"),
        (changed(created=...), "created is missing"),
        (changed(modified=7), "modified has the wrong type"),
        (changed(kdf=1), "kdf has the wrong type"),
        (changed(kdf={}), "kdf"),
        (changed(kdf={"Argon2": {}}), "Argon2"),
        (changed(kdf={"Scrypt": None}), "scrypt"),
        (changed(kdf={"Scrypt": {"n": 2, "r": 8, "salt": ""}}), "p is missing"),
        (changed(kdf={"Scrypt": {"n": 2.0, "r": 8, "p": 1, "salt": ""}}), "n has the wrong type"),
        (changed(kdf={"Scrypt": {"n": True, "r": 8, "p": 1, "salt": ""}}), "n has the wrong type"),
        (changed(kdf={"PBKDF2": {"iter": "5", "salt": ""}}), "iter has the wrong type"),
        (changed(kdf={"PBKDF2": {"iter": 5, "salt": "*"}}), "salt is no base64"),
        (changed(kdf={"PBKDF2": {"iter": 5, "salt": ""}}), "64 bytes, got 32"),
        (changed(data=""), "32 bytes, got 0"),
        (changed(data="AAAA AAAA"), "base64"),
        (changed(data="AAAAA"), "base64"),
        (changed(data="ä"), "base64"),
        (changed(data="AA=AA"), "base64"),
        (changed(data=base64.b64encode(bytes(33)).decode()), "32 bytes, got 33"),
        (changed(fingerprint="00"), "fingerprint"),
        (changed(fingerprint=5), "fingerprint has the wrong type"),
        (changed(hint=["x"]), "hint has the wrong type"),
        (SPEC_EXAMPLE[:-1] + b',"hint":"\\ud800"}', "hint is no valid text"),
    ],
)
def test_bad_files(raw: bytes, match: str) -> None:
    with pytest.raises(FormatError, match=match) as caught:
        KeyFile.decode(raw)
    assert len(str(caught.value)) < 300


def test_unknown_members_are_ignored() -> None:
    assert KeyFile.decode(changed(later={"a": [1, 2]})).encode() == SPEC_EXAMPLE


def test_mutated_golden_files_give_a_value_or_a_format_error() -> None:
    rng = random.Random(1)
    sources = [(KEYS / name).read_bytes() for name in GOLDEN_KEYS["files"]]
    tracemalloc.start()
    values = 0
    for _ in range(3000):
        raw = bytearray(rng.choice(sources))
        for _ in range(rng.choice((1, 1, 2, 5))):
            pos = rng.randrange(len(raw))
            match rng.randrange(4):
                case 0:
                    raw[pos] ^= 1 << rng.randrange(8)
                case 1:
                    raw[pos] = rng.choice(b'"{}[]:,0129\\-.eE \x00\xff')
                case 2:
                    del raw[pos : pos + rng.randrange(1, 20)]
                case 3:
                    raw[pos:pos] = raw[pos : pos + rng.randrange(1, 40)]
        try:
            file = KeyFile.decode(bytes(raw))
            file.encode()
            if file.kdf is None:
                file.unlock(None)
            values += 1
        except FormatError:
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < values < 3000
    assert peak < 1 << 20
