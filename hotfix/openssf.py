"""OpenSSF model signatures: the one door to model-signing, the extra `sign`.

A bundle is an in-toto statement about a file that it calls `.`, so it holds under every name that the file has.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hotfix.container import private_files
from hotfix.errors import HotfixError, SignatureError

CURVES = "an elliptic-curve key on P-256, P-384 or P-521, in PEM, without a passphrase"


def sign(content: bytes, name: str, key: Path, certificate: Path | None = None, chain: Sequence[Path] = ()) -> bytes:
    """A bundle, made with a private key.

    Args:
        content: the file.
        name: the file's, which nothing depends on.
        key: PEM.
        certificate: of that key; it goes into the bundle, and verifiers need only know who issued it.
        chain: certificates from the one that issued it up to the root.

    Raises:
        SignatureError: the key or the certificate cannot be used.
    """
    signing = _library("signing")
    with _refused(f"cannot sign with {certificate or key}", hint=f"the key is {CURVES}; the chain ends at a root"):
        if certificate is None:
            config = signing.Config().use_elliptic_key_signer(private_key=key)
        else:
            config = signing.Config().use_certificate_signer(
                private_key=key, signing_certificate=certificate, certificate_chain=chain
            )
        return _bundle(config, content, name)


def sign_keyless(content: bytes, name: str, token: str) -> bytes:
    """A bundle, made with a certificate that Sigstore issues for an OpenID Connect identity. Needs the network.

    Args:
        content: the file.
        name: the file's.
        token: of the identity; "" for the one that a CI service hands out.

    Raises:
        SignatureError: no identity, or Sigstore did not answer. No browser is ever opened.
    """
    signing = _library("signing")
    from sigstore import oidc

    hint = "--identity-token FILE, or run it where the CI hands one out; Sigstore has to be reachable"
    with _refused("Sigstore cannot sign", hint=hint):
        token = token or oidc.detect_credential() or ""
        if token:
            return _bundle(signing.Config().use_sigstore_signer(identity_token=token), content, name)
    raise SignatureError("there is no identity to sign with", hint=hint)


def verify(
    content: bytes, bundle: bytes, *, key: str = "", certificate: str = "", identity: str = "", issuer: str = ""
) -> None:
    """Check that a bundle is of these bytes, and by a public key, under a root certificate, or of an identity.

    Raises:
        SignatureError: it is not.
    """
    _about(content, bundle)
    verifying = _library("verifying")
    with (
        _refused("its OpenSSF signature does not hold", hint="is this the signer that you meant?"),
        private_files(content, bundle, (key or certificate).encode()) as (file, signature, pem),
        redirect_stdout(sys.stderr),
    ):
        config = verifying.Config()
        if key:
            config.use_elliptic_key_verifier(public_key=pem)
        elif certificate:
            config.use_certificate_verifier(certificate_chain=[pem])
        else:
            config.use_sigstore_verifier(identity=identity, oidc_issuer=issuer)
        config.verify(file, signature)


def public_key(text: str, name: str) -> str:
    """A public key in the one form whose sha256 is the hint in a bundle.

    Raises:
        SignatureError: not a key of the three curves.
    """
    verifying = _library("verifying")
    with (
        _refused(f"{name} is no public key to verify with", hint=f"wanted: {CURVES}"),
        private_files(text.encode()) as (pem,),
    ):
        verifying.Config().use_elliptic_key_verifier(public_key=pem)
        from cryptography.hazmat.primitives import serialization as to

        found = to.load_pem_public_key(text.encode())
        return found.public_bytes(to.Encoding.PEM, to.PublicFormat.SubjectPublicKeyInfo).decode()


def certificates(text: str, name: str) -> list[str]:
    """The root certificates in a file, one by one.

    Raises:
        SignatureError: there are none.
    """
    _library("verifying")
    with _refused(f"{name} holds no certificate", hint="wanted: a root, in PEM"):
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding

        return [one.public_bytes(Encoding.PEM).decode() for one in x509.load_pem_x509_certificates(text.encode())]


def _about(content: bytes, bundle: bytes) -> None:
    """Refuse a bundle that is not of this one file.

    model-signing takes what the signer chose to ignore from the statement: one that ignores `.` holds for every file.
    It also reads keys in snake case, and an envelope under such a key would not be the one that is looked at here.
    """
    what = [{"name": ".", "algorithm": "sha256", "digest": hashlib.sha256(content).hexdigest()}]
    with _refused("its OpenSSF signature cannot be read", hint="fetch both files again"):
        data = json.loads(bundle)
        envelope = data["dsseEnvelope"]
        if {*data} - {"mediaType", "verificationMaterial", "dsseEnvelope"}:
            raise ValueError("keys that a bundle has not")
        found = json.loads(base64.b64decode(envelope["payload"], validate=True))["predicate"]["resources"]
    if found != what:
        raise SignatureError("its OpenSSF signature is of other bytes", hint="fetch both files again")


def _bundle(config: Any, content: bytes, name: str) -> bytes:
    """Sign a private copy: the bytes that were looked at, whatever happens to the file meanwhile."""
    with TemporaryDirectory(prefix="hotfix-") as folder:
        file, bundle = Path(folder, name), Path(folder, "bundle")
        file.write_bytes(content)
        config.sign(file, bundle)
        return bundle.read_bytes()


@contextmanager
def _refused(words: str, *, hint: str) -> Iterator[None]:
    """Whatever a parser of foreign bytes raises, it means no."""
    try:
        yield
    except HotfixError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise SignatureError(f"{words} ({reason})", hint=hint) from error


def _library(part: str) -> Any:
    try:
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise SignatureError(
            f"OpenSSF signatures need a library that is not here ({error.name})",
            hint="pip install 'diffusion-hotfix[sign]'; ssh keys do without",
        ) from error
    return getattr(model_signing, part)
