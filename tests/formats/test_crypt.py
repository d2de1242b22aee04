"""formats.crypt against the golden keys, the vectors of the spec, and damage."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.crypt import (
    CryptConfig,
    chunk_digest,
    format_fingerprint,
    gcm_encryptor,
    parse_fingerprint,
    short_fingerprint,
)
from formats.errors import FormatError, IntegrityError
from tests.golden_data import GOLDEN

KEY = bytes(range(32))
FINGERPRINT = "0e:ab:d4:46:0b:6e:b9:ca:34:50:23:de:e2:b7:78:c7:90:e5:4a:16:83:b9:65:9c:0a:57:ae:19:90:90:15:9b"


def test_vectors() -> None:
    crypt = CryptConfig(KEY)
    assert crypt.id_key.hex() == "7c2c013efd07f3b25717a485263343cd4d292a4b65c200bb3b18ea227abe225c"
    assert format_fingerprint(crypt.fingerprint) == FINGERPRINT
    assert short_fingerprint(crypt.fingerprint) == FINGERPRINT[:23]
    assert crypt.digest(b"hello pbs\n").hex() == "7cbefaa3f86013acc6a1e9224f6c601a93fdaa96670a253bdef9511df6e0b498"
    zeros = bytes(4 << 20)
    assert chunk_digest(zeros, None).hex() == "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8"
    assert chunk_digest(zeros, crypt).hex() == "348571e12bbbedb529def1f1394316e338a01945d871df9ef792617ceb13d636"
    signed = (
        '{"backup-id":"laptop","backup-time":1700000000,"backup-type":"host","files":[{"crypt-mode":"encrypt",'
        '"csum":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","filename":"root.pxar.didx","size":1234}]}'
    )
    assert crypt.auth_tag(signed.encode()).hex() == "17bb9a757d5ae2238a4e77c8e53acb47f6fd733a85b2980c27e0c7020efcfe1c"
    ciphertext, tag = crypt.encrypt(b"hello pbs\n", bytes(range(16, 32)))
    assert tag.hex() + ciphertext.hex() == "0718f768d10424d52069544b89cdffade23f560c88514bcd1801"


def test_golden_key() -> None:
    golden = json.loads((GOLDEN / "keys/keys.json").read_bytes())
    expected = golden["crypt"]
    crypt = CryptConfig(bytes.fromhex(golden["key"]))
    assert crypt.id_key.hex() == expected["id_key"]
    assert crypt.fingerprint.hex() == expected["fingerprint"]
    assert format_fingerprint(crypt.fingerprint) == expected["fingerprint_str"]
    assert short_fingerprint(crypt.fingerprint) == expected["fingerprint_short"]
    assert chunk_digest(bytes(100), crypt).hex() == expected["chunk_digest_of_100_zero_bytes"]
    assert crypt.auth_tag(bytes(100)).hex() == expected["hmac_of_100_zero_bytes"]


def test_digest_takes_parts_and_any_buffer() -> None:
    crypt = CryptConfig(KEY)
    whole = crypt.digest(b"abcdef")
    assert crypt.digest(b"ab", bytearray(b"cd"), memoryview(b"ef")) == whole
    assert whole == hashlib.sha256(b"abcdef" + crypt.id_key).digest()


def test_secrets_are_not_shown() -> None:
    crypt = CryptConfig(KEY)
    for text in (repr(crypt), str(crypt), f"{crypt}"):
        assert KEY.hex() not in text and crypt.id_key.hex() not in text and repr(KEY) not in text
        assert "0e:ab:d4:46:0b:6e:b9:ca" in text
    assert not hasattr(crypt, "__dict__")


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_wrong_key_size(size: int) -> None:
    with pytest.raises(FormatError, match="32 bytes"):
        CryptConfig(bytes(size))


@pytest.mark.parametrize("size", [0, 12, 15, 17])
def test_iv_is_16_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="16"):
        gcm_encryptor(KEY, bytes(size))
    with pytest.raises(FormatError):
        CryptConfig(KEY).decrypt(bytes(size), bytes(16), b"")


@given(st.binary(max_size=200), st.binary(min_size=16, max_size=16), st.data())
@settings(max_examples=60, deadline=None)
def test_any_change_is_refused(plain: bytes, iv: bytes, data: st.DataObject) -> None:
    crypt = CryptConfig(KEY)
    ciphertext, tag = crypt.encrypt(plain, iv)
    assert len(ciphertext) == len(plain)
    assert crypt.decrypt(iv, tag, ciphertext) == plain
    with pytest.raises(IntegrityError):
        CryptConfig(bytes(32)).decrypt(iv, tag, ciphertext)
    sealed = bytearray(iv + tag + ciphertext)
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(IntegrityError):
        crypt.decrypt(bytes(sealed[:16]), bytes(sealed[16:32]), sealed[32:])


def test_truncated_tag_is_refused() -> None:
    crypt = CryptConfig(KEY)
    ciphertext, tag = crypt.encrypt(b"text", bytes(16))
    with pytest.raises(FormatError):
        crypt.decrypt(bytes(16), tag[:4], ciphertext)


def test_parse_fingerprint() -> None:
    expected = bytes.fromhex(FINGERPRINT.replace(":", ""))
    for text in (FINGERPRINT, FINGERPRINT.upper(), FINGERPRINT.replace(":", ""), "::" + FINGERPRINT):
        assert parse_fingerprint(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", FINGERPRINT[:-1], FINGERPRINT + "0", FINGERPRINT.replace(":", " "), "g" * 64, "٣" * 64, "0" * 63 + "\n"],
)
def test_bad_fingerprints(text: str) -> None:
    with pytest.raises(FormatError, match="fingerprint"):
        parse_fingerprint(text)
