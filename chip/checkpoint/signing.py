"""Signatures of folders and files, by OpenSSF model signing: https://github.com/sigstore/model-transparency.

A signature vouches for every file of a folder, the receipt among them, and lies beside them. Keys and certificates
only: an entry in a public transparency log would tell when somebody was erased. Nothing here goes over the network.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

from chip.checkpoint.hashing import digest
from chip.checkpoint.json_file import parse_json_object, read_json
from chip.checkpoint.paths import resolve_inside
from chip.errors import InputError, foreign_code, one_line, printable, reason
from chip.regular_file import check_regular_file

SIGNATURE = "model.sig"
"""As the tools of model signing call it."""
PASSWORD = "CHIP_KEY_PASSWORD"
"""Environment variable with the password of an encrypted private key, or the PIN of the token that holds it."""
_PKCS11 = "pkcs11:"
_LONGEST = 1 << 20
"""Bytes of a file with keys or certificates."""
_PEM_HINT = f"give a PEM file of a P-256, P-384 or P-521 key; {PASSWORD} is its password"
_TOKEN_HINT = (
    "give pkcs11:token=NAME;object=KEY?module-path=LIBRARY (RFC 7512) of a P-256, P-384 or P-521 key; "
    f"{PASSWORD} is the PIN"
)


@dataclass(frozen=True)
class SigningKey:
    """A private key, and who vouches for it."""

    key: str
    """PEM file of a key on the curve P-256, P-384 or P-521; or a PKCS #11 URI (RFC 7512): no file holds the key."""
    certificates: tuple[Path, ...] = ()
    """PEM files: the key's own certificate, then those between it and a root."""

    @property
    def files(self) -> tuple[Path, ...]:
        return self.certificates if self.key.startswith(_PKCS11) else (Path(self.key), *self.certificates)


@dataclass(frozen=True)
class TrustedKeys:
    """Whose signature is accepted; one of the two is given."""

    public_key: Path | None = None
    """PEM file."""
    roots: tuple[Path, ...] = ()
    """PEM files of certificates: a signature by a key that one of them vouches for."""

    def __str__(self) -> str:
        return str(self.public_key or self.roots[0])


def signature_of(path: Path) -> Path:
    """Where the signature of a folder lies, or of a file."""
    return path / SIGNATURE if path.is_dir() else path.with_name(f"{path.name}.sig")


class Signer:
    """Signs folders and files with a key, which is read here and now.

    Raises:
        InputError: the key or a certificate cannot be used, or a library is missing.
    """

    def __init__(self, key: SigningKey) -> None:
        config, password = _library("signing", "sign").Config(), os.environ.get(PASSWORD)
        certificates: dict[str, Any] = {}
        if key.certificates:
            chain = key.certificates[1:] or key.certificates  # the library takes no empty chain
            certificates = {"signing_certificate": key.certificates[0], "certificate_chain": chain}
        in_token = key.key.startswith(_PKCS11)
        if in_token and certificates:  # its own signer for that makes bundles which sigstore's models refuse
            message = "model-signing 1.1 does not sign with a token and a certificate; sign with the token's key alone"
            raise InputError(message, argument="sign_certificate", value=key.certificates[0])
        for file in key.files:
            _check_pem("sign_certificate" if file in key.certificates else "sign", file)
        shown = key.key.partition("?")[0] if in_token else key.key  # what follows may be the token's PIN
        with _refused("sign", shown, _TOKEN_HINT if in_token else _PEM_HINT):
            if in_token:
                config.use_pkcs11_signer(pkcs11_uri=_with_pin(key.key, password))
            elif certificates:
                config.use_certificate_signer(private_key=key.key, **certificates)
            else:
                encoded = None if password is None else password.encode()
                config.use_elliptic_key_signer(private_key=key.key, password=encoded)
        self._config = config

    def sign(self, path: Path) -> Path:
        """Sign a folder, or a file, as it is now; the signature, at `signature_of` it."""
        signature = signature_of(path)
        with foreign_code(path, "cannot be signed", "try again, or leave the signature out"):
            self._config.sign(path, signature)
        return signature


def _with_pin(uri: str, pin: str | None) -> str:
    """A PKCS #11 URI with the token's PIN, where it has none of its own: a command line can be read by others."""
    if pin is None or "pin-value=" in uri or "pin-source=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}pin-value={quote(pin, safe='')}"


class SignatureCheck:
    """Looks whether a folder, or a file, is as somebody signed it.

    Raises:
        InputError: the key or a certificate cannot be used, or a library is missing.
    """

    def __init__(self, keys: TrustedKeys) -> None:
        argument = "public_key" if keys.public_key is not None else "trust"
        config, self.keys = _library("verifying", argument).Config(), keys
        for file in keys.roots or filter(None, [keys.public_key]):
            _check_pem(argument, file)
        with _refused(argument, str(keys), "give a PEM file"):
            if keys.public_key is not None:
                config.use_elliptic_key_verifier(public_key=keys.public_key)
            else:
                config.use_certificate_verifier(certificate_chain=keys.roots)
        # What is not signed, such as the notes of a download, is for the receipt to find: it lists all files.
        hashing = _library("hashing", argument).Config().set_allow_symlinks(True)
        self._config = config.set_ignore_unsigned_files(True).set_hashing_config(hashing)

    def faults(self, path: Path, listing: str | None = None) -> Iterator[str]:
        """A line for each thing that is not as it was signed; none: all of it is, and by one of the keys.

        Args:
            listing: the file of a folder that lists all others with their hashes: a signature of other files alone,
                by the same key, says nothing of the folder.
        """
        signature = signature_of(path)
        folder, name = signature.parent, signature.name
        if not signature.exists():
            yield f"{name}: missing; this was not signed, or the signature was removed"
            return
        try:
            bundle, _ = read_json(folder, name)
            _check_form(signature, bundle)
            if (trouble := self._other_key(bundle)) is not None:
                yield f"{name}: {trouble}"
                return
            with foreign_code(signature, "does not hold", "take the folder again from who signed it"):
                self._config.verify(path, signature)
            if listing is not None and listing not in _signed_digests(signature):
                yield f"{name}: of other files, {listing} is not among them"
        except InputError as error:
            yield from _differing(path, signature) or [str(error)]

    def _other_key(self, bundle: Mapping[str, Any]) -> str | None:
        """What the signature says of who made it, where that is somebody else. It may lie: then it does not hold."""
        material = bundle["verificationMaterial"]
        if (self.keys.public_key is None) != ("x509CertificateChain" in material):
            kinds = "a key alone", "a certificate"
            by, want = kinds if self.keys.public_key is None else reversed(kinds)
            return f"made with {by}, and not with {want}"
        if self.keys.public_key is None:
            return None
        hint = (material.get("publicKey") or {}).get("hint")
        known = hint is None or hint == fingerprint(self.keys.public_key)
        return None if known else f"made with another key than {printable(str(self.keys.public_key))}"


def fingerprint(public_key: Path) -> str:
    """SHA-256 of a public key in PEM, as signatures name it; the file may be written otherwise."""
    serialization = import_module("cryptography.hazmat.primitives.serialization")
    key = serialization.load_pem_public_key(public_key.read_bytes())
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.PEM, form)).hexdigest()


def is_signature(path: Path) -> bool:
    """Whether the file is a signature of model signing, of whatever and by whomever."""
    try:
        return "dsseEnvelope" in read_json(path.parent, path.name)[0]
    except InputError:
        return False


def _check_form(path: Path, bundle: Mapping[str, Any]) -> None:
    """Raise `InputError` where the file holds anything beside a signature: that nobody would have vouched for."""
    model = import_module("sigstore_models.bundle.v1").Bundle
    with foreign_code(path, "is no signature", "take the folder again from who signed it"):
        whole = model.from_dict(bundle).to_json()
    if parse_json_object(path, whole.encode()) != bundle:
        raise InputError(f"{path}: is not as it was written; take the folder again from who signed it")


def _differing(path: Path, signature: Path) -> list[str]:
    """The signed files that are no longer what they were, by a signature that does not hold as a whole."""
    faults = []
    for name, signed in _signed_digests(signature).items():
        try:
            file = resolve_inside(path, name) if path.is_dir() else path
        except InputError as error:
            faults.append(f"{error}; it was signed")
        else:
            faults += [] if digest(file).whole == signed else [f"{printable(name)}: not the file that was signed"]
    return faults


def _signed_digests(signature: Path) -> dict[str, str]:
    """File -> SHA-256, by a signature that may be of any form: none, where it does not say."""
    try:
        with foreign_code(signature, "is no signature", "take the folder again from who signed it"):
            bundle, _ = read_json(signature.parent, signature.name)
            payload = parse_json_object(signature, base64.b64decode(bundle["dsseEnvelope"]["payload"]))
            return {str(each["name"]): str(each["digest"]) for each in payload["predicate"]["resources"]}
    except InputError:
        return {}


def _library(module: str, argument: str) -> Any:
    try:
        return import_module(f"model_signing.{module}")
    except ImportError as error:
        message = f"needs model-signing ({reason(error)}): pip install 'chip-unlearning[sign]'"
        raise InputError(message, argument=argument) from error


def _check_pem(argument: str, file: Path) -> None:
    """Raise `InputError` for what is no regular file, or too long for one of a key."""
    what = "no file of a key or a certificate"
    try:
        size = check_regular_file(file).st_size
    except (FileNotFoundError, ValueError):  # that it is not there is for the library to say
        return
    except OSError as error:
        message = f"{what} ({one_line(error)}); give a PEM file"
        raise InputError(message, argument=argument, value=file) from error
    if size > _LONGEST:
        raise InputError(f"{what}; give a PEM file", argument=argument, value=file)


@contextmanager
def _refused(argument: str, value: str, hint: str) -> Iterator[None]:
    """Whatever a library finds wrong with a key becomes an error about the argument."""
    try:
        with foreign_code(value, "cannot be used", hint):
            yield
    except InputError as error:
        message = error.message.removeprefix(f"{value}: ")
        raise InputError(message, argument=argument, value=value) from error
