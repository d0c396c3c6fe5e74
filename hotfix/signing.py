"""Signatures: whose word a patch is. They lie beside the file, and are checked before anything in it is parsed."""

from collections.abc import Sequence
from pathlib import Path

from hotfix import openssf, signer, ssh
from hotfix.container import content, write_atomically
from hotfix.errors import HotfixError, SignatureError, joined
from hotfix.patch import Patch
from hotfix.signer import Signer

SSH, OPENSSF = ".sig", ".model.sig"  # after the whole name of the file, whichever it has
STANDARD = "model.sig"  # what model-signing itself calls one, and what it is called on the Hub
MAX_SIGNATURE = 1 << 20  # bytes


def sign(
    path: Path, key: Path, *, certificate: Path | None = None, chain: Sequence[Path] = (), replace: bool = False
) -> Path:
    """Sign a patch, once it has been read and found to be one. The kind of the key decides the kind of signature.

    Args:
        path: a patch file; its signature is written beside it.
        key: an OpenSSH private key, an OpenSSH public key whose private half an agent holds, or a PEM private key.
        certificate: of a PEM key.
        chain: certificates above it, the root last.
        replace: write over a signature that is there.

    Raises:
        PatchFormatError: nobody signs a broken file.
        SignatureError: the key cannot be used, or there is a signature already.
    """
    raw = _patch(path)
    text = signer.read(key)
    if "PRIVATE KEY-----" in text and "OPENSSH PRIVATE KEY-----" not in text:
        return _write(path, OPENSSF, openssf.sign(raw, path.name, key, certificate, chain), replace)
    if certificate is not None:
        raise SignatureError(f"{key} is an OpenSSH key", wanted=openssf.CURVES, hint="or leave --certificate out")
    return _write(path, SSH, ssh.sign(raw, key), replace)


def sign_keyless(path: Path, token: Path | None = None, *, replace: bool = False) -> Path:
    """Sign a patch as an OpenID Connect identity, by way of Sigstore.

    Args:
        path: a patch file.
        token: a file that holds the identity's token; without one, that of the CI service that this runs in.
        replace: write over a signature that is there.

    Raises:
        PatchFormatError: nobody signs a broken file.
        SignatureError: no identity, no network, or there is a signature already.
    """
    raw = _patch(path)
    bundle = openssf.sign_keyless(raw, path.name, signer.read(token).strip() if token else "")
    return _write(path, OPENSSF, bundle, replace)


def load(path: Path, accepted: Sequence[Signer], identity: str = "") -> Patch:
    """Read a patch that one of the signers has signed; without signers, any patch.

    Raises:
        SignatureError: unsigned, or by none of these. Nothing in the file was parsed then.
        PatchFormatError: not a patch.
    """
    raw = content(path)
    if accepted:
        check(raw, path, accepted, identity)
    return Patch.parse(raw, path)


def check(raw: bytes, path: Path, accepted: Sequence[Signer], identity: str = "") -> str:
    """Say who has signed these bytes.

    Args:
        raw: what was read from the file, and is used afterwards.
        path: the file, for its name and for what lies beside it.
        accepted: whose signature counts; one is enough.
        identity: the principal it must be, of an allowed_signers file that names several.

    Raises:
        SignatureError: none of them.
    """
    wanted = f"a signature by {identity or ' or '.join(map(str, accepted))}"
    signatures = beside(path)
    if not signatures:
        raise SignatureError(f"{path} is not signed", wanted=wanted, hint=f"hotfix sign {path} --key KEY")
    problems: list[HotfixError] = []
    for suffix, signature in signatures.items():
        try:
            if suffix == SSH:
                return ssh.verify(raw, signature, [one.value for one in accepted if one.kind == "ssh"], identity)
            return _of_bundle(raw, signature, [one for one in accepted if one.kind != "ssh"])
        except SignatureError as problem:
            problems.append(problem)
    found = joined(problems, SignatureError)
    raise SignatureError(f"{path}: {found}", wanted=wanted, hint=found.hint)


def beside(path: Path) -> dict[str, bytes]:
    """The signatures that lie beside a patch, by the ending of their names.

    Raises:
        SignatureError: one that cannot be read.
    """
    found = {}
    for suffix, name in ((SSH, path.name + SSH), (OPENSSF, STANDARD), (OPENSSF, path.name + OPENSSF)):
        try:
            with path.with_name(name).open("rb") as file:
                found[suffix] = file.read(MAX_SIGNATURE)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SignatureError(f"cannot read {name}: {error.strerror}", hint="check the path") from error
    return found


def _of_bundle(raw: bytes, bundle: bytes, accepted: Sequence[Signer]) -> str:
    problems: list[HotfixError] = []
    for one in accepted:
        try:
            openssf.verify(raw, bundle, **{one.kind: one.value}, issuer=one.issuer)
            return str(one)
        except SignatureError as problem:
            problems.append(problem)
    if not problems:
        problems = [SignatureError("its OpenSSF signature is by none of them", hint="is this the signer you meant?")]
    raise joined(problems, SignatureError)


def _patch(path: Path) -> bytes:
    """The bytes of a file that is a patch."""
    raw = content(path)
    Patch.parse(raw, path)
    return raw


def _write(path: Path, suffix: str, signature: bytes, replace: bool) -> Path:
    file = path.with_name(path.name + suffix)
    if file.exists() and not replace and beside(path)[suffix] != signature:
        raise SignatureError(
            f"{file.name} is there already, and is another", hint="--replace writes the new one over it"
        )
    write_atomically(file, signature)
    return file
