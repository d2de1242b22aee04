"""formats.masterkey: the golden master key and its wrapped key, what is refused."""

from __future__ import annotations

import base64
import json
import time
from functools import cache

import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from formats import blob, masterkey
from formats.crypt import CryptConfig
from formats.errors import FormatError, KeyMissing, LimitExceeded, WrongKey
from formats.keyfile import KeyFile, KeyTime
from tests.golden_data import GOLDEN
from tests.hostile.limits import bounded

KEYS = GOLDEN / "keys"
FACTS = json.loads((KEYS / "keys.json").read_bytes())
PEM = {name: base64.b64decode(text) for name, text in json.loads((KEYS / "master-pem.json").read_bytes()).items()}
PUBLIC, PRIVATE, PROTECTED = PEM["master-public.pem"], PEM["master-private.pem"], PEM["master-private-enc.pem"]
PASSPHRASE = FACTS["master_private_enc_password"].encode()
WRAPPED = blob.decode((KEYS / "rsa-encrypted.key.blob").read_bytes())
KEY = CryptConfig(bytes.fromhex(FACTS["key"]))


@cache
def other(bits: int = 2136) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def public_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    how = s.BestAvailableEncryption(passphrase) if passphrase else s.NoEncryption()
    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.TraditionalOpenSSL, how)


@pytest.mark.parametrize(("pem", "passphrase"), [(PRIVATE, None), (PRIVATE, b"ignored"), (PROTECTED, PASSPHRASE)])
def test_golden_wrapped_key(pem: bytes, passphrase: bytes | None) -> None:
    file = masterkey.unwrap(masterkey.load_private_key(pem, passphrase), WRAPPED)
    expected = FACTS["rsa_blob"]
    assert file.unlock(None).enc_key.hex() == expected["key"]
    assert file.fingerprint is not None and file.fingerprint.hex(":") == expected["fingerprint"]
    assert file.created == KeyTime(expected["created"], 0)
    assert (file.kdf, file.hint) == (None, None)
    assert file.encode() == (KEYS / "key-none.json").read_bytes()


def test_what_is_wrapped_is_what_the_reference_wraps() -> None:
    """Byte for byte, but for the random padding, which must be random."""
    private = masterkey.load_private_key(PRIVATE, None)
    numbers = private.private_numbers()
    file = KeyFile.decode((KEYS / "key-none.json").read_bytes())
    blocks = [WRAPPED]
    blocks += [masterkey.wrap(masterkey.load_public_key(PUBLIC), KEY, file.created, file.modified) for _ in range(2)]
    padded = [
        pow(int.from_bytes(block, "big"), numbers.d, numbers.public_numbers.n).to_bytes(512, "big") for block in blocks
    ]
    assert [block[:2] for block in padded] == [b"\0\2"] * 3
    assert {block[-256:] for block in padded} == {b"\0" + file.encode()}
    assert len(set(blocks)) == 3


def test_own_master_key() -> None:
    public, private = masterkey.generate(b"a passphrase")
    assert private.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert public.startswith(b"-----BEGIN PUBLIC KEY-----\n")
    assert b"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x01\x2a" in base64.b64decode(b"".join(private.split(b"\n")[1:-2]))
    loaded = masterkey.load_public_key(public)
    assert loaded.key_size == 4096
    wrapped = masterkey.wrap(loaded, KEY, KeyTime(1, None), KeyTime(2, 60))
    assert len(wrapped) == 512
    file = masterkey.unwrap(masterkey.load_private_key(private, b"a passphrase"), wrapped)
    assert (file.created, file.modified) == (KeyTime(1, None), KeyTime(2, 60))
    assert file.unlock(None).enc_key == KEY.enc_key
    with pytest.raises(WrongKey):
        masterkey.unwrap(masterkey.load_private_key(PRIVATE, None), wrapped)
    for passphrase, error in ((None, KeyMissing), (b"", WrongKey), (b"a passphras", WrongKey)):
        with pytest.raises(error):
            masterkey.load_private_key(private, passphrase)


@pytest.mark.parametrize("passphrase", [b"", b"four", b"x" * 1024])
def test_passphrase_of_a_new_master_key(passphrase: bytes) -> None:
    with pytest.raises(FormatError, match="5 to 1023 bytes"):
        masterkey.generate(passphrase)


def test_old_forms_of_pem() -> None:
    """PKCS#1, with the encryption of old versions of OpenSSL too."""
    key = other()
    wrapped = masterkey.wrap(masterkey.load_public_key(public_pem(key)), KEY, KeyTime(0), KeyTime(0))
    assert len(wrapped) == 267
    for pem, passphrase in ((private_pem(key), None), (private_pem(key, b"secret"), b"secret")):
        assert pem.startswith(b"-----BEGIN RSA PRIVATE KEY-----")
        assert masterkey.unwrap(masterkey.load_private_key(pem, passphrase), wrapped).data == KEY.enc_key
    pkcs1 = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.PKCS1)
    assert masterkey.load_public_key(pkcs1).key_size == 2136


def test_key_for_another_master_key() -> None:
    private = masterkey.load_private_key(private_pem(other(4096)), None)
    with pytest.raises(WrongKey, match="another master key"):
        masterkey.unwrap(private, WRAPPED)
    for wrapped in (b"", WRAPPED[:-1], WRAPPED + b"\0", bytes(267)):
        with pytest.raises(WrongKey, match="512 bytes"):
            masterkey.unwrap(masterkey.load_private_key(PRIVATE, None), wrapped)
    for wrapped in (bytes(512), b"\xff" * 512, WRAPPED[:100] + bytes([WRAPPED[100] ^ 1]) + WRAPPED[101:]):
        with pytest.raises(WrongKey, match="damaged"):
            masterkey.unwrap(masterkey.load_private_key(PRIVATE, None), wrapped)


@pytest.mark.parametrize("bits", [1024, 2048, 2120])
def test_modulus_that_is_too_small(bits: int) -> None:
    key = other(bits)
    with pytest.raises(FormatError, match=f"at least 2128 bits .4096 are usual., got {bits}"):
        masterkey.load_public_key(public_pem(key))
    with pytest.raises(FormatError, match=f"got {bits}"):
        masterkey.load_private_key(private_pem(key), None)


def test_smallest_modulus_holds_the_longest_key_file() -> None:
    public = masterkey.load_public_key(public_pem(other(2128)))
    assert len(masterkey.wrap(public, KEY, KeyTime(0, -1439), KeyTime(250_000_000_000, 1439))) == 266


def test_huge_modulus() -> None:
    n = (1 << 16400) + 1
    pem = rsa.RSAPublicNumbers(65537, n).public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.PKCS1)
    with pytest.raises(LimitExceeded, match="16384 bits"):
        masterkey.load_public_key(pem)
    started = time.process_time()
    with pytest.raises(LimitExceeded, match="at most 16384 bytes"):
        masterkey.load_private_key(b"-----BEGIN PRIVATE KEY-----\n" + b"A" * 1_000_000, None)
    assert time.process_time() - started < 5


EC = ec.generate_private_key(ec.SECP256R1())
BAD = {
    "empty": b"",
    "text": b"no key",
    "der": base64.b64decode(b"".join(PUBLIC.split(b"\n")[1:-2])),
    "truncated": PUBLIC[:400],
    "truncated private": PRIVATE[:400],
    "half": PUBLIC[:300] + PUBLIC[PUBLIC.index(b"-----END") :],
    "not base64": PUBLIC.replace(b"MII", b"M*I"),
    "labels differ": PUBLIC.replace(b"END PUBLIC", b"END RSA PUBLIC"),
    "elliptic": public_pem(EC),
    "elliptic private": private_pem(EC),
    "edwards": public_pem(ed25519.Ed25519PrivateKey.generate()),
    "certificate": PUBLIC.replace(b"PUBLIC KEY", b"CERTIFICATE"),
    "empty body": b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
    "empty private body": b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
    "nul": b"\0" * 1000,
    "key file": (KEYS / "key-none.json").read_bytes(),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_rsa_key(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        masterkey.load_public_key(BAD[name])
    assert len(str(caught.value)) < 200
    with pytest.raises(FormatError):
        masterkey.load_private_key(BAD[name], None)


def test_halves_are_not_mixed_up() -> None:
    for pem in (PRIVATE, PROTECTED, private_pem(other())):
        with pytest.raises(FormatError, match="got the private one"):
            masterkey.load_public_key(pem)
    with pytest.raises(FormatError, match="expected a PEM private key"):
        masterkey.load_private_key(PUBLIC, None)


def test_truncated_protected_key_is_not_opened() -> None:
    for pem in (PROTECTED[:1000] + PROTECTED[PROTECTED.index(b"-----END") :], PROTECTED.replace(b"\nM", b"\nN")):
        with pytest.raises(FormatError):
            masterkey.load_private_key(pem, PASSPHRASE)


def der(tag: int, *parts: bytes) -> bytes:
    contents = b"".join(parts)
    size = len(contents).to_bytes(3, "big")
    return bytes([tag, 0x83]) + size + contents


def number(value: int) -> bytes:
    return der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def protected_with(kdf: bytes) -> bytes:
    """A private key in PBES2 with any key derivation; what is encrypted is nothing."""
    aes = der(0x30, bytes.fromhex("060960864801650304012a"), der(4, bytes(16)))
    algorithm = der(0x30, bytes.fromhex("06092a864886f70d01050d"), der(0x30, kdf, aes))
    text = base64.b64encode(der(0x30, algorithm, der(4, bytes(2400))))
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + text + b"\n-----END ENCRYPTED PRIVATE KEY-----\n"


def pbkdf2(iterations: int) -> bytes:
    hmac = der(0x30, bytes.fromhex("06082a864886f70d02090500"))
    parameters = der(0x30, der(4, b"salt"), number(iterations), hmac)
    return der(0x30, bytes.fromhex("06092a864886f70d01050c"), parameters)


def scrypt(n: int, r: int, p: int) -> bytes:
    parameters = der(0x30, der(4, b"salt"), number(n), number(r), number(p), number(32))
    return der(0x30, bytes.fromhex("06092b06010401da47040b"), parameters)


@pytest.mark.parametrize(
    "kdf", [pbkdf2(10_000_001), pbkdf2(2**31), pbkdf2(2**70), scrypt(2**24, 8, 1), scrypt(2, 2**30, 2**30)]
)
def test_absurd_kdf_parameters(kdf: bytes) -> None:
    with bounded(seconds=10, memory=64 << 20), pytest.raises(LimitExceeded, match="at most"):
        masterkey.load_private_key(protected_with(kdf), b"passphrase")


@pytest.mark.parametrize("kdf", [pbkdf2(2048), scrypt(16384, 8, 1)])
def test_usual_kdf_parameters(kdf: bytes) -> None:
    with pytest.raises(WrongKey, match="wrong passphrase"):
        masterkey.load_private_key(protected_with(kdf), b"passphrase")


@pytest.mark.parametrize(
    "data", [b"", b"\x30", b"\x30\x84", b"\x30\x80" * 5000, b"\x30\xff" + b"\xff" * 200, b"\x02\x01"]
)
def test_broken_der(data: bytes) -> None:
    text = base64.b64encode(data)
    pem = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + text + b"\n-----END ENCRYPTED PRIVATE KEY-----\n"
    with bounded(seconds=10), pytest.raises(FormatError):
        masterkey.load_private_key(pem, b"passphrase")


def test_deep_der() -> None:
    data = b""
    while len(data) < 9000:
        data = der(0x30, data)
    pem = protected_with(data)
    with bounded(seconds=10), pytest.raises(FormatError):
        masterkey.load_private_key(pem, b"passphrase")
