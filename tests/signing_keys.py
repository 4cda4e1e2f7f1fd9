"""Private keys to sign with, and their public ones."""

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

Keys = dict[str, tuple[Path, Path]]
"""Name -> private and public key, as PEM files."""


def write_key(path: Path, password: bytes | None = None) -> tuple[Path, Path]:
    """A new private key, and its public one, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    public = path.with_suffix(".pub")
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return path, public
