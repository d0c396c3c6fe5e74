"""OpenSSH signatures, made and checked by ssh-keygen: it is on every server, and never asks anything here."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hotfix.container import private_files
from hotfix.errors import SignatureError

NAMESPACE = "hotfix-patch"  # what was signed as something else, a commit or a mail, is no signature of a patch
KIND = r"(?:ssh|ecdsa|sk)-[\w.@-]+"
KEY = rf"({KIND})[ \t]+(AAAA[0-9A-Za-z+/]+=*)(?![^ \t])"
# Principals, options that may be quoted, a key and a comment: ssh-keygen, too, goes by their order.
LINE = re.compile(rf"([^ \t\"\\]+)[ \t]+(?:(?:[^ \t\"\\]|\"[^\"\\]*\")+[ \t]+)?{KEY}(.*)", re.ASCII)


def allowed(text: str, name: str) -> list[str]:
    """The lines of an allowed_signers file; a line of a .pub file becomes one that holds for any principal.

    Raises:
        SignatureError: a line that names no public key.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    lines = [f"* {line}" if re.match(KEY, line) else line for line in lines]
    try:
        keys = [" ".join(_parts(line)[1:3]) for line in lines or [""]]
        if any(_run("-l", "-f", "-", content=key.encode()).returncode for key in keys):
            raise ValueError
    except ValueError as error:
        raise SignatureError(
            f"{name} holds no public key, or a line that hides one",
            wanted="a .pub or allowed_signers file of OpenSSH, or a PEM public key or certificate",
            hint="ssh-keygen -y -f KEY prints the public half of a key",
        ) from error
    return lines


def _parts(line: str) -> tuple[str, str, str, str]:
    """The principals, kind, key and comment of a line; ValueError where others might read another key out of it."""
    found = LINE.fullmatch(line)
    if not found or not line.replace("\t", " ").isprintable() or len(re.findall(rf"{KIND}[ \t]+AAAA", line)) > 1:
        raise ValueError("a line without an ssh key, or with more than one")
    who, kind, key, comment = found.groups()
    return who, kind, key, comment


def fingerprint(line: str) -> str:
    """`SHA256:…` of the key in a line, as ssh-keygen -l prints it."""
    digest = hashlib.sha256(base64.b64decode(_parts(line)[2])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def owner(line: str) -> str:
    """The principals that a line names, or else the comment after its key."""
    principals, *_, comment = _parts(line)
    return comment.strip() if principals == "*" else principals


def sign(content: bytes, key: Path) -> bytes:
    """Sign with a private key, or with the one that an agent holds for a public key.

    Raises:
        SignatureError: no such key, or one behind a passphrase: nothing is ever asked.
    """
    done = _run("-Y", "sign", "-q", "-P", "", "-f", str(key), "-n", NAMESPACE, content=content)
    if done.returncode:
        raise SignatureError(
            f"ssh-keygen cannot sign with {key}: {_reason(done)}",
            hint=f"behind a passphrase, or in hardware: ssh-add {key}, then sign with its .pub file",
        )
    return done.stdout


def verify(content: bytes, signature: bytes, lines: Sequence[str], identity: str = "") -> str:
    """Check a signature of these bytes, and say whose it is.

    Args:
        content: the file.
        signature: what `sign` returned.
        lines: of an allowed_signers file.
        identity: the principal that it must be; otherwise any of those that the lines name.

    Raises:
        SignatureError: the signature is not of these bytes, or of none of the signers.
    """
    with private_files(signature, "\n".join(lines).encode() + b"\n") as files:
        signed, signers = map(str, files)
        checked = _run("-Y", "check-novalidate", "-n", NAMESPACE, "-s", signed, content=content)
        if checked.returncode:
            raise SignatureError(f"its ssh signature does not hold ({_reason(checked)})", hint="fetch both files again")
        key = checked.stdout.decode().strip().partition(" with ")[2]
        tried = _run("-Y", "find-principals", "-s", signed, "-f", signers)
        for name in [identity] if identity else tried.stdout.decode().splitlines():
            tried = _run("-Y", "verify", "-n", NAMESPACE, "-s", signed, "-f", signers, "-I", name, content=content)
            if not tried.returncode:
                return key if name == "*" else f"{name}, {key}"
    why = f" ({_reason(tried)})" if lines else ""
    raise SignatureError(f"it is signed with {key}{why}", hint="is this the signer that you meant?")


def _run(*arguments: str, content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise SignatureError("there is no ssh-keygen here", hint="install OpenSSH: apt install openssh-client")
    # In a session of its own it has no terminal to ask for a passphrase on.
    environment = {**os.environ, "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"}
    return subprocess.run(
        [program, *arguments], input=content, capture_output=True, env=environment, start_new_session=True, check=False
    )


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    words = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
    return re.sub(r"^/\S+:\d+: ", "", words[0].strip()).rstrip(".")
