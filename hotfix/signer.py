"""Signer: somebody whose signatures count. Kept by value, a key and not a path to one, which others might change."""

import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hotfix import openssf, ssh
from hotfix.errors import SignatureError

MAX_KEY = 1 << 20  # bytes


@dataclass(frozen=True)
class Signer:
    """A line of an allowed_signers file, a PEM public key, a PEM root certificate, or an OpenID Connect identity."""

    kind: Literal["ssh", "key", "certificate", "identity"]
    value: str
    issuer: str = ""  # who vouches for an identity

    @property
    def name(self) -> str:
        """The fingerprint that ssh-keygen or openssl prints of a key or certificate; an identity itself."""
        match self.kind:
            case "ssh":
                return ssh.fingerprint(self.value)
            case "key":  # of the PEM text: the hint in a bundle
                return f"sha256:{hashlib.sha256(self.value.encode()).hexdigest()}"
            case "certificate":
                return f"sha256:{hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.value)).hexdigest()}"
        return self.value

    def __str__(self) -> str:
        match self.kind:
            case "ssh":
                return f"ssh key {self.name} {ssh.owner(self.value)}".rstrip()
            case "key":
                return f"key {self.name}"
            case "certificate":
                return f"a certificate under {self.name}"
        return f"{self.name}, says {self.issuer}"


def signers(path: Path) -> list[Signer]:
    """The signers in a file: a .pub or allowed_signers file of OpenSSH, a PEM public key, or a PEM root certificate.

    Raises:
        SignatureError: none of these, or a private key.
    """
    text = read(path)
    if "PRIVATE KEY-----" in text:
        hint = "ssh-keygen -y -f KEY, or openssl pkey -in KEY -pubout, prints it"
        raise SignatureError(f"{path} is a private key", wanted="its public half", hint=hint)
    if "BEGIN CERTIFICATE-----" in text:
        return [Signer("certificate", pem) for pem in openssf.certificates(text, str(path))]
    if "BEGIN PUBLIC KEY-----" in text:
        return [Signer("key", openssf.public_key(text, str(path)))]
    return [Signer("ssh", line) for line in ssh.allowed(text, str(path))]


def read(path: Path) -> str:
    """The text of a key, a certificate or a token.

    Raises:
        SignatureError: unreadable. What stands in it never enters a message.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY).decode()
    except OSError as error:
        raise SignatureError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except UnicodeDecodeError as error:
        raise SignatureError(f"{path} is not text", wanted="OpenSSH or PEM", hint="check the path") from error


def table(signers: Sequence[Signer]) -> dict[str, Any]:
    """Signers as a lock pins them."""
    return {"signers": [{one.kind: one.value} | ({"issuer": one.issuer} if one.issuer else {}) for one in signers]}


def parsed(table: Any) -> list[Signer]:
    """The signers that a lock pins; what is not understood is never passed over.

    Raises:
        ValueError: a broken table, or one that pins nobody.
    """
    match table:
        case {"signers": [_, *_] as rows, **rest} if not rest:
            return [_signer(row) for row in rows]
    raise ValueError("[signatures] holds anything but signers")


def _signer(row: Any) -> Signer:
    match row:
        case {"ssh": str(value)} | {"key": str(value)} | {"certificate": str(value)} if len(row) == 1:
            (kind,) = row
            one = Signer(kind, value)
        case {"identity": str(identity), "issuer": str(issuer)} if len(row) == 2 and identity and issuer:
            one = Signer("identity", identity, issuer)
        case _:
            raise ValueError("a signer is an ssh line, a key, a certificate, or an identity and its issuer")
    if one.kind == "key" and not value.startswith("-----BEGIN PUBLIC KEY-----"):
        raise ValueError("a key that is not in PEM")
    if one.kind in ("key", "certificate") and value.count("-----BEGIN ") != 1:
        raise ValueError("a signer that hides another one")
    _ = one.name  # a ValueError, where a line or a certificate is none
    return one
