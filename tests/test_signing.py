"""Who signed a folder, and that it is what they signed: whatever else happens to it is found, without any network."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.overwrite import check_replaceable
from chip.checkpoint.receipt import RECEIPT, read_receipt, write_receipt
from chip.checkpoint.signing import PASSWORD, SIGNATURE, SignatureCheck, Signer, SigningKey, TrustedKeys
from chip.checkpoint.statement import read_statement
from chip.checkpoint.verify import verify
from chip.errors import InputError
from chip.evaluation.rows import Evaluation, ResultRow
from chip.report.attestation import PendingStatement
from tests.folders import SHARDS
from tests.signing_keys import Keys, write_key
from tests.test_receipt import NEW, edit_folder

SOFTHSM = [Path(folder) / "softhsm" / "libsofthsm2.so" for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib")]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something wants to go over the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def signed(source: Checkpoint, tmp_path: Path, keys: Keys) -> Path:
    edit_folder(source, tmp_path / "out")
    Signer(SigningKey(str(keys["ours"][0]))).sign(tmp_path / "out")
    return tmp_path / "out"


def test_what_was_signed_verifies_with_the_public_key(signed: Path, keys: Keys) -> None:
    verification = verify(signed, public_key=keys["ours"][1])
    assert verification.faults == ()
    assert (verification.signed, verification.signed_by) == (True, str(keys["ours"][1]))
    assert verify(signed).signed_by is None


def test_a_signature_names_no_folder(signed: Path) -> None:
    """A folder may be named after somebody; it is signed where it is made, under another name."""
    payload = json.loads(base64.b64decode(json.loads((signed / SIGNATURE).read_text())["dsseEnvelope"]["payload"]))
    assert str(signed.parent) not in json.dumps(payload)
    names = {resource["name"] for resource in payload["predicate"]["resources"]}
    assert names == {*read_receipt(signed).files, RECEIPT} - {".gitattributes"}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def _link_out(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _resign(folder: Path, key: Path) -> None:
    (folder / SIGNATURE).unlink()
    Signer(SigningKey(str(key))).sign(folder)


def _change_and_resign(folder: Path, key: Path) -> None:
    _flip(folder / SHARDS[0])
    _resign(folder, key)


def _relabel(folder: Path) -> None:
    """A receipt that is right in itself."""
    write_receipt(folder, replace(read_receipt(folder), label="another request"))


def _borrow(folder: Path, keys: Keys) -> None:
    """Signed with another key, and ours named as the one that did."""
    ours = json.loads((folder / SIGNATURE).read_text())
    _resign(folder, keys["theirs"][0])
    theirs = json.loads((folder / SIGNATURE).read_text())
    (folder / SIGNATURE).write_text(json.dumps({**theirs, "verificationMaterial": ours["verificationMaterial"]}))


def _of_another_folder(folder: Path, key: Path) -> None:
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    _relabel(other)
    _resign(other, key)
    shutil.copy(other / SIGNATURE, folder / SIGNATURE)


def _of_the_card_alone(folder: Path, key: Path) -> None:
    """By the right key: of a folder that holds nothing else."""
    other = folder.with_name("other")
    other.mkdir()
    shutil.copy(folder / "README.md", other)
    shutil.copy(Signer(SigningKey(str(key))).sign(other), folder / SIGNATURE)
    _relabel(folder)


Forgery = Callable[[Path, Keys], object]
FORGERIES: dict[str, tuple[Forgery, str]] = {
    "a flipped bit in the weights": (
        lambda folder, _: _flip(folder / SHARDS[0]),
        f"^{SHARDS[0]}: not the file that was",
    ),
    "a flipped bit in the card": (lambda folder, _: _flip(folder / "README.md"), "^README.md: not the file that was"),
    "another receipt": (lambda folder, _: _relabel(folder), f"^{RECEIPT}: not the file that was signed"),
    "signed again by another": (lambda folder, keys: _resign(folder, keys["theirs"][0]), "made with another key than"),
    "changed, and signed again by another": (
        lambda folder, keys: _change_and_resign(folder, keys["theirs"][0]),
        "made with another key than",
    ),
    "changed, and signed again by whoever has our key": (
        lambda folder, keys: _change_and_resign(folder, keys["ours"][0]),
        f"^{SHARDS[0]}: has another hash than the receipt's",
    ),
    "by another in our name": (_borrow, "does not hold"),
    "of another folder": (
        lambda folder, keys: _of_another_folder(folder, keys["ours"][0]),
        f"^{RECEIPT}: not the file",
    ),
    "of a part of it": (
        lambda folder, keys: _of_the_card_alone(folder, keys["ours"][0]),
        f"of other files, {RECEIPT} is not among them",
    ),
    "no signature": (lambda folder, _: (folder / SIGNATURE).unlink(), "missing; this was not signed, or"),
    "an empty signature": (lambda folder, _: (folder / SIGNATURE).write_text("{}"), "is no signature"),
    "a file less": (lambda folder, _: (folder / "config.json").unlink(), "is missing; fetch the checkpoint again"),
    "a file more": (lambda folder, _: (folder / "notes.txt").write_text("x"), "notes.txt: not in the receipt"),
    "a link out": (lambda folder, _: _link_out(folder / "README.md"), "outside"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_every_forgery_is_found_and_named(signed: Path, keys: Keys, forgery: str) -> None:
    forge, message = FORGERIES[forgery]
    forge(signed, keys)
    faults = verify(signed, public_key=keys["ours"][1]).faults
    assert any(re.search(message, fault) for fault in faults), faults
    assert all("\n" not in fault for fault in faults)


def test_every_flipped_bit_of_a_signature_is_found(signed: Path, keys: Keys) -> None:
    check, content = SignatureCheck(TrustedKeys(keys["ours"][1])), (signed / SIGNATURE).read_bytes()
    draw, missed = random.Random(0), []
    for position in draw.sample(range(len(content)), 200):
        damaged = bytearray(content)
        damaged[position] ^= 1 << draw.randrange(8)
        (signed / SIGNATURE).write_bytes(damaged)
        if not list(check.faults(signed)):
            missed.append(position)
    assert missed == []


def test_another_key_does_not_verify_it(signed: Path, keys: Keys) -> None:
    (fault,) = verify(signed, public_key=keys["theirs"][1]).faults
    assert fault == f"{SIGNATURE}: made with another key than {keys['theirs'][1]}"


def test_an_edit_of_a_signed_folder_drops_its_signature(signed: Path, tmp_path: Path) -> None:
    """And the signed folder is its original as it would be without the signature; an edit may take its place."""
    edit_folder(Checkpoint.open(signed), tmp_path / "second", {name: new + 1 for name, new in NEW.items()})
    assert not (tmp_path / "second" / SIGNATURE).exists()
    assert verify(tmp_path / "second", signed).faults == ()
    check_replaceable(signed)
    (signed / SIGNATURE).write_text("somebody's work")
    with pytest.raises(InputError, match=f"holds {SIGNATURE}, which chip did not write"):
        check_replaceable(signed)


def test_a_key_with_a_password(source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, public = write_key(tmp_path / "key.pem", b"secret")
    edit_folder(source, tmp_path / "out")
    with pytest.raises(InputError, match=f"{PASSWORD} is its password"):
        Signer(SigningKey(str(key)))
    monkeypatch.setenv(PASSWORD, "secret")
    Signer(SigningKey(str(key))).sign(tmp_path / "out")
    assert verify(tmp_path / "out", public_key=public).faults == ()


def write_certificate(key: Path, name: str, issuer: tuple[Path, Path] | None = None) -> Path:
    """Of a key, by itself or by `issuer`: key and certificate."""

    def private(path: Path) -> Any:
        return serialization.load_pem_private_key(path.read_bytes(), None)

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    by = subject if issuer is None else x509.load_pem_x509_certificate(issuer[1].read_bytes()).subject
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only"),
        False,
    )
    now, root = datetime.now(UTC), issuer is None
    certificate = (
        x509.CertificateBuilder(by, subject, private(key).public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not root, key_cert_sign=root, decipher_only=False, **usage), critical=True
        )
        .sign(private(key if issuer is None else issuer[0]), hashes.SHA256())
    )
    file = key.with_suffix(".crt")
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return file


def test_certificates(source: Checkpoint, tmp_path: Path) -> None:
    """A root vouches for the key that signs; another root does not."""
    names = ("root", "other", "signer")
    root, other, signer = (write_key(tmp_path / f"{name}.pem")[0] for name in names)
    roots = {name: write_certificate(key, name) for name, key in (("root", root), ("other", other))}
    certificate = write_certificate(signer, "signer", (root, roots["root"]))
    edit_folder(source, tmp_path / "out")
    Signer(SigningKey(str(signer), (certificate,))).sign(tmp_path / "out")
    assert verify(tmp_path / "out", trust=[roots["root"]]).faults == ()
    (fault,) = verify(tmp_path / "out", trust=[roots["other"]]).faults
    assert "does not hold" in fault
    (fault,) = verify(tmp_path / "out", public_key=signer.with_suffix(".pub")).faults
    assert fault == f"{SIGNATURE}: made with a certificate, and not with a key alone"
    _flip(tmp_path / "out" / "README.md")
    assert "README.md: not the file that was signed" in verify(tmp_path / "out", trust=[roots["root"]]).faults


def test_a_key_in_a_token_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PyKCS11", None)
    with pytest.raises(InputError, match=r"sign='pkcs11:object=key': cannot be used \(PKCS #11 functionality requires"):
        Signer(SigningKey("pkcs11:object=key?pin-value=1234"))


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """Address of a key in a software token, its PIN in the environment; and the same key's PEM file."""
    pytest.importorskip("PyKCS11", reason="PyKCS11 is missing: pip install 'model-signing[pkcs11]'")
    library = next((path for path in SOFTHSM if path.exists()), None)
    if library is None or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM2 is missing: apt-get install softhsm2")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv(PASSWORD, "12 34&")
    key, (pin, of_token) = write_key(tmp_path / "token.pem")[0], (("--pin", "12 34&"), ("--token", "chip"))
    for command in (
        ("--init-token", "--free", "--label", "chip", "--so-pin", "1234", *pin),
        ("--import", str(key), *of_token, "--label", "signer", "--id", "01", *pin),
    ):
        subprocess.run(("softhsm2-util", *command), check=True, capture_output=True)
    return f"pkcs11:token=chip;object=signer?module-path={library}", key


def test_a_key_in_a_token_signs(source: Checkpoint, tmp_path: Path, token: tuple[str, Path]) -> None:
    """What is wrong with its address is said, and never the PIN."""
    address, key = token
    edit_folder(source, tmp_path / "out")
    Signer(SigningKey(address)).sign(tmp_path / "out")
    assert verify(tmp_path / "out", public_key=key.with_suffix(".pub")).faults == ()
    for wrong, message in (
        (f"{address}&pin-value=4321", "CKR_PIN_INCORRECT"),
        (address.replace("signer", "other"), "Could not find any object with label other"),
        (address.partition("?")[0], "module-name attribute is not set"),
    ):
        with pytest.raises(InputError, match=message) as error:
            Signer(SigningKey(wrong))
        assert "give pkcs11:token=NAME;object=KEY?module-path=LIBRARY" in str(error.value)
        assert "4321" not in str(error.value)
    with pytest.raises(InputError, match="does not sign with a token and a certificate"):
        Signer(SigningKey(address, (key,)))


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key.pem"
    for write in (lambda: None, lambda: file.write_bytes(content)):
        write()
        with pytest.raises(InputError, match=f"sign='{re.escape(str(file))}': cannot be used") as error:
            Signer(SigningKey(str(file)))
        assert "\n" not in str(error.value)
        with pytest.raises(InputError, match=f"public_key='{re.escape(str(file))}': cannot be used"):
            SignatureCheck(TrustedKeys(file))


def test_a_key_is_a_file(tmp_path: Path) -> None:
    """Of a pipe and a device, reading would not come to an end."""
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match=r"sign='.*': no file of a key"):
            Signer(SigningKey(str(file)))
        with pytest.raises(InputError, match=r"sign_certificate='.*': no file of a key"):
            Signer(SigningKey("none.pem", (file,)))
        for keys, argument in ((TrustedKeys(file), "public_key"), (TrustedKeys(roots=(file,)), "trust")):
            with pytest.raises(InputError, match=f"{argument}='.*': no file of a key"):
                SignatureCheck(keys)


def test_an_evaluation_is_of_the_files_that_it_was_made_of(signed: Path, tmp_path: Path, keys: Keys) -> None:
    row = ResultRow("target", "trained", "exact_match", "none", 0.25, 0.1, float("nan"), 8)
    evaluation = Evaluation((row,), None, ("wording",), 3, skipped={"trace": "needs an original"}, environment={"a": 1})
    file, (ours, public) = tmp_path / "evaluation.json", keys["ours"]
    PendingStatement.of(file, signed, key=SigningKey(str(ours))).write(evaluation)
    predicate = read_statement(file).predicate
    assert predicate["figures"] == [{**row.to_json(), "high": None}]
    assert (predicate["attacks"], predicate["seed"], predicate["environment"]) == (["wording"], 3, {"a": 1})
    assert verify(signed, evaluation=file, public_key=public).faults == ()
    with pytest.raises(InputError, match="lies in a checkpoint"):
        PendingStatement.of(signed / "evaluation.json", signed)

    other = tmp_path / "other"
    shutil.copytree(signed, other)
    _relabel(other)
    (fault,) = verify(other, evaluation=file).faults
    assert fault == f"{file}: about other files than these, {RECEIPT} among them"
    file.write_text(file.read_text().replace("0.25", "0.05"))
    assert any("damaged, or changed by hand" in fault for fault in verify(signed, evaluation=file).faults)
    PendingStatement.of(file.with_name("forged.json"), signed).write(replace(evaluation, seed=4))
    (fault,) = verify(signed, evaluation=file.with_name("forged.json"), public_key=public).faults
    assert fault == "forged.json.sig: missing; this was not signed, or the signature was removed"
    with pytest.raises(InputError, match="no statement that chip has written"):
        PendingStatement.of(ours, signed)
    PendingStatement.of(file.with_name("again.json"), signed, key=SigningKey(str(ours))).write(evaluation)
    PendingStatement.of(file.with_name("again.json"), signed).write(evaluation)
    assert not file.with_name("again.json.sig").exists()  # it was of the other one
    file.with_name("new.json.sig").write_text("somebody's work")
    with pytest.raises(InputError, match="no signature that chip has written"):
        PendingStatement.of(file.with_name("new.json"), signed)
