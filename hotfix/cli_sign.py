"""The verbs about whose word a patch is, whom a lock trusts, and what a patched pipeline consists of."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Annotated

from hotfix import console, hub, ledger, lock, relations, signing
from hotfix.chain import sha256
from hotfix.container import content, write_atomically
from hotfix.errors import HotfixError, SignatureError, StackError
from hotfix.options import Json, Lock, Parameter, pipeline_of
from hotfix.patch import Patch
from hotfix.signer import Signer, signers

Identity = Annotated[
    str, Parameter(help="Who it must be: a principal of allowed_signers, or with --issuer an OpenID one.")
]
Issuer = Annotated[str, Parameter(help="URL of the OpenID provider that vouches for --identity.")]


def sign(
    patch: Path,
    *,
    key: Annotated[
        Path | None, Parameter(help="OpenSSH or PEM private key, or a .pub file whose key an agent holds.")
    ] = None,
    certificate: Annotated[Path | None, Parameter(help="PEM certificate of that key.")] = None,
    chain: Annotated[tuple[Path, ...], Parameter(negative=(), help="PEM certificates above it, the root last.")] = (),
    keyless: Annotated[
        bool, Parameter(negative=(), help="Sign as an OpenID Connect identity, by way of Sigstore.")
    ] = False,
    identity_token: Annotated[Path | None, Parameter(help="With --keyless: a file that holds the token.")] = None,
    replace: Annotated[bool, Parameter(negative=(), help="Write over a signature that is there.")] = False,
) -> None:
    """Sign a patch, once it has been checked. The kind of key decides the kind of signature.

    An OpenSSH key makes PATCH.sig; a PEM key or an OpenID identity makes PATCH.model.sig.

    Args:
        patch: a .safetensors file.
    """
    if (key is None and not keyless) or (keyless and (key or certificate or chain)):
        raise SignatureError("--key or --keyless is wanted, one of them", hint="hotfix sign PATCH --key KEY")
    if (chain and not certificate) or (identity_token and not keyless):
        raise SignatureError(
            "--chain goes with --certificate, --identity-token with --keyless", hint="hotfix sign --help"
        )
    note = ledger.notes(Path(lock.LOCK))
    if key is not None:
        made = signing.sign(patch, key, certificate=certificate, chain=chain, replace=replace)
    else:
        made = signing.sign_keyless(patch, identity_token, replace=replace)
    note("signed", [ledger.ref(Patch.load(patch))], signature=sha256(made.read_bytes()))
    print(made)


def verify(
    patches: Annotated[list[str], Parameter(negative=())],
    /,
    *,
    base: str = "",
    key: Annotated[Path | None, Parameter(help="Who must have signed: a .pub, allowed_signers or PEM file.")] = None,
    identity: Identity = "",
    issuer: Issuer = "",
    json: Json = False,
) -> None:
    """Check container, schema, digest, requirements and, if asked, the signature and whether they fit a pipeline.

    Exit 1 names the bad ones, also those that require a patch which is not among these. Without --key or --issuer a
    signature is seen, but says nothing: anybody can sign.

    Args:
        patches: .safetensors files, or hf://ORG/NAME[@VERSION or @COMMIT].
        base: a pipeline: hotfix:NAME, a folder, or a Hub id as ID@COMMIT.
    """
    accepted = _accepted([key] if key else [], identity, issuer)
    principal = "" if issuer else identity
    pipe = pipeline_of(base) if base else None

    @cache
    def opened(name: str) -> tuple[Patch, str]:
        signature = ""

        def read(path: Path) -> Patch:
            nonlocal signature
            raw = content(path)
            if accepted:
                signature = f"signed: {signing.check(raw, path, accepted, principal)}"
            else:
                signature = ", ".join(f"{ending} not checked" for ending in signing.beside(path)) or "not signed"
            return Patch.parse(raw, path)

        patch = hub.pull(name, read) if name.startswith(hub.SCHEME) else read(Path(name))
        return patch, signature

    def met(text: str) -> bool:
        for name in patches:
            with suppress(HotfixError):  # a bad one is named, and meets nothing
                if relations.met(text, {opened(name)[0].name: opened(name)[0].version}):
                    return True
        return False

    def check(name: str) -> dict[str, str]:
        patch, signature = opened(name)
        if unmet := [text for text in patch.manifest.requires if not met(text)]:
            hint = "hotfix verify, with those that it requires"
            raise StackError(f"{patch.name} {patch.version} requires {', '.join(unmet)}, not among these", hint=hint)
        if pipe is not None:
            from hotfix.stack import base_problem

            if (problem := base_problem(patch, pipe)) is not None:
                raise problem
        return {"id": patch.id, "signature": signature}

    console.each([({"file": name}, partial(check, name)) for name in patches], json)


def trust(
    keys: Annotated[tuple[Path, ...], Parameter(negative=())] = (),
    /,
    *,
    identity: Identity = "",
    issuer: Issuer = "",
    lock_file: Lock = Path(lock.LOCK),
    json: Json = False,
) -> None:
    """Pin signers in hotfix.lock: from then on, a patch that none of them has signed is refused, by every reader.

    Prints whom the lock trusts; without arguments it does no more. Refused, with nothing written: a listed patch that
    none of them has signed.

    Args:
        keys: .pub, allowed_signers or PEM files. The keys are copied into the lock.
    """
    new = _accepted(keys, identity, issuer)
    if identity and not issuer:
        raise SignatureError("--identity without --issuer", wanted="both", hint="principals stand in allowed_signers")
    pinned = lock.signers(lock_file) if lock_file.exists() or not new else []
    if new:
        lock.pin(lock_file, pinned := list(dict.fromkeys([*pinned, *new])))
    _show(pinned, json)


def distrust(
    names: Annotated[list[str], Parameter(negative=())],
    /,
    *,
    allow_unsigned: Annotated[
        bool, Parameter(negative=(), help="Also the last one: then nothing is asked for.")
    ] = False,
    lock_file: Lock = Path(lock.LOCK),
    json: Json = False,
) -> None:
    """Take signers out of hotfix.lock. Refused where a listed patch is signed by nobody else.

    Args:
        names: fingerprints or identities, as `hotfix trust` prints them.
    """
    pinned = lock.signers(lock_file)
    if missing := sorted(set(names) - {one.name for one in pinned}):
        raise SignatureError(
            f"{', '.join(missing)} is not trusted by {lock_file}",
            wanted=f"one of: {', '.join(one.name for one in pinned) or 'nobody'}",
            hint="hotfix trust lists them",
        )
    kept = [one for one in pinned if one.name not in names]
    if not kept and not allow_unsigned:
        raise SignatureError(
            "nobody would be left to sign, and any patch be accepted",
            hint="trust another key first, or --allow-unsigned",
        )
    lock.pin(lock_file, kept)
    _show(kept, json)


def sbom(
    pipeline: str,
    *,
    lock_file: Lock = Path(lock.LOCK),
    out: Annotated[Path | None, Parameter(name=["-o", "--out"], help="A file, instead of stdout.")] = None,
) -> None:
    """A bill of materials of a patched pipeline, CycloneDX 1.6: the base, and every patch in hotfix.lock.

    Args:
        pipeline: the name it goes by; nothing of it is read.
    """
    try:
        from hotfix.sbom import bom
    except ImportError as error:
        hint = "pip install 'diffusion-hotfix[sbom]'"
        raise HotfixError(f"this needs a library that is not here ({error.name})", hint=hint) from error
    text = bom(pipeline, lock.load(lock_file))
    if out is None:
        print(text)
    else:
        write_atomically(out, text.encode() + b"\n")
        print(out)


def _accepted(keys: Sequence[Path], identity: str, issuer: str) -> list[Signer]:
    """The signers that are meant by the options of a verb."""
    found = [one for key in keys for one in signers(key)]
    if issuer and not identity:
        raise SignatureError("--issuer without --identity", wanted="both", hint="an issuer vouches for many")
    if issuer:
        return [*found, Signer("identity", identity, issuer)]
    principals = [one for one in found if one.kind == "ssh" and one.value.split()[0] != "*"]
    if identity and (not found or principals != found):
        hint = "--issuer URL, or --key with an allowed_signers file that names it"
        raise SignatureError(f"nothing says who {identity} is", wanted="an issuer, or a key for it", hint=hint)
    return found


def _show(pinned: Sequence[Signer], json: bool) -> None:
    rows = [{"kind": one.kind, "name": one.name, "issuer": one.issuer} for one in pinned]
    console.data(rows, "\n".join(map(str, pinned)) or "nobody: no signature is asked for", json)
