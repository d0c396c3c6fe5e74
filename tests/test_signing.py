"""Whose word a patch is: real keys, made by ssh-keygen and cryptography, and the verifiers that others would use."""

import base64
import fcntl
import json
import os
import pickle
import pty
import re
import shutil
import subprocess
import sys
import termios
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as to
from cryptography.hazmat.primitives.asymmetric import ec

from hotfix import lock, signing, ssh
from hotfix.cli_sign import distrust, trust, verify
from hotfix.errors import HotfixError, PatchFormatError, SignatureError, StackError
from hotfix.patch import Patch
from hotfix.signer import Signer, signers
from hotfix.stack import Stack

PATCHES = Path(__file__).parents[1] / "patches"
HOTFIX = Path(sys.executable).with_name("hotfix")
HUB_NAME = "pytorch_lora_weights.safetensors"
KINDS = {"ssh": "k.pub", "key": "ec.pub.pem", "certificate": "root.pem"}  # what somebody who trusts the signer has
ENDINGS = {"ssh": ".sig", "key": ".model.sig", "certificate": ".model.sig"}


def pem(key):
    return key.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, to.NoEncryption())


def certificate(subject, key, issuer, by, ca):
    name = lambda text: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])  # noqa: E731
    other = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usage = dict.fromkeys([*other, "encipher_only", "decipher_only"], False)
    made = x509.CertificateBuilder(name(issuer), name(subject), key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(datetime.now(UTC) - timedelta(1)).not_valid_after(datetime.now(UTC) + timedelta(1))
    made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    made = made.add_extension(x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **usage), True)
    return made.sign(by, hashes.SHA256()).public_bytes(to.Encoding.PEM)


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """k and other: OpenSSH. locked: behind a passphrase. ec and ec2: PEM. leaf under root."""
    folder = tmp_path_factory.mktemp("keys")
    for name, passphrase in (("k", ""), ("other", ""), ("locked", "open sesame")):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", f"{name}@acme", "-f", folder / name]
        subprocess.run(command, check=True)
    (folder / "allowed").write_text(f"ann@acme,bob@acme {(folder / 'k.pub').read_text()}")
    root = ec.generate_private_key(ec.SECP256R1())
    for name in ("ec", "ec2", "leaf"):
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{name}.pem").write_bytes(pem(key))
        public = key.public_key().public_bytes(to.Encoding.PEM, to.PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub.pem").write_bytes(public)
    (folder / "root.pem").write_bytes(certificate("root", root, "root", root, ca=True))
    (folder / "leaf.crt").write_bytes(certificate("leaf", key, "root", root, ca=False))
    return folder


@pytest.fixture
def file(tmp_path):
    return Path(shutil.copy(next((PATCHES / "syria-2025").glob("*.safetensors")), tmp_path))


@pytest.fixture
def other_file(tmp_path):
    return Path(shutil.copy(next((PATCHES / "iraq-2008").glob("*.safetensors")), tmp_path))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def signed(file, keys, kind="ssh"):
    match kind:
        case "ssh":
            return signing.sign(file, keys / "k")
        case "key":
            return signing.sign(file, keys / "ec.pem")
    return signing.sign(file, keys / "leaf.pem", certificate=keys / "leaf.crt", chain=[keys / "root.pem"])


def accepted(keys, kind="ssh"):
    return signers(keys / KINDS[kind])


def run(*command, **options):
    options = {"capture_output": True, "text": True, "timeout": 100} | options
    return subprocess.run([str(word) for word in command], **options)


def refused(file, by, words=None):
    with pytest.raises(SignatureError, match=words) as found:
        signing.load(file, by)
    assert found.value.hint and str(file) in str(found.value)


def test_a_signature_holds_under_every_name_and_for_other_peoples_verifiers(file, keys, kind):
    signature = signed(file, keys, kind)
    assert signature == file.with_name(file.name + ENDINGS[kind])
    on_the_hub = file.with_name(HUB_NAME)
    shutil.copy(file, on_the_hub)
    shutil.copy(signature, file.with_name(HUB_NAME + ENDINGS[kind]))
    for path in (file, on_the_hub):
        assert signing.load(path, accepted(keys, kind)) == Patch.load(file)
    model_signing = (sys.executable, "-m", "model_signing", "verify")
    theirs = {
        "ssh": ("ssh-keygen", "-Y", "verify", "-n", "hotfix-patch", "-f", keys / "allowed", "-I", "ann@acme"),
        "key": (*model_signing, "key", "--public_key", keys / "ec.pub.pem"),
        "certificate": (*model_signing, "certificate", "--certificate_chain", keys / "root.pem"),
    }[kind]
    with on_the_hub.open() as content:
        words = ("-s", signature) if kind == "ssh" else ("--signature", signature, on_the_hub)
        done = run(*theirs, *words, stdin=content)
    assert done.returncode == 0, done.stderr


def test_one_flipped_bit_is_refused_wherever_it_is(file, keys, kind):
    """But for what signs nothing: line ends, and the copies of certificates that a verifier has of his own."""
    signature = signed(file, keys, kind)
    for path, places in ((file, 12), (signature, 24)):
        good = path.read_bytes()
        first = max(0, good.find(b"dsseEnvelope")) if kind == "certificate" else 0
        for number in range(places):
            at = first + (len(good) - first) * number // places
            at += good[at : at + 1] == b"\n"
            path.write_bytes(good[:at] + bytes([good[at] ^ 1 << number % 8]) + good[at + 1 :])
            refused(file, accepted(keys, kind))
        path.write_bytes(good)
    signing.load(file, accepted(keys, kind))


def test_another_key_is_refused_and_both_are_named(file, keys, kind):
    signed(file, keys, kind)
    other = {"ssh": keys / "other.pub", "key": keys / "ec2.pub.pem", "certificate": keys / "leaf.crt"}[kind]
    (wanted,) = signers(other)
    refused(file, [wanted], f"wanted a signature by .*{re.escape(wanted.name[:20])}")
    for otherwise in KINDS.keys() - {kind}:
        refused(file, accepted(keys, otherwise), "wanted a signature by")
    assert signing.load(file, [wanted, *accepted(keys, kind)])


def test_what_was_signed_as_something_else_is_no_signature_of_a_patch(file, keys):
    with file.open() as content:
        done = run("ssh-keygen", "-q", "-Y", "sign", "-f", keys / "k", "-n", "git", stdin=content)
    file.with_name(f"{file.name}.sig").write_text(done.stdout)
    refused(file, accepted(keys), "namespace does not match")


def test_a_signature_of_another_version_cannot_be_replayed(file, keys, kind, tmp_path):
    patch = Patch.load(file)
    manifest = patch.manifest.model_copy(update={"version": "1.0.1"})
    new = Patch(manifest.text(), patch.entries).save(tmp_path)
    shutil.copy(signed(file, keys, kind), new.with_name(new.name + ENDINGS[kind]))
    refused(new, accepted(keys, kind))


def test_a_statement_that_ignores_the_file_itself_is_refused(file, keys, tmp_path):
    """model-signing takes it: whoever once signed an empty folder so has signed every file."""
    empty = tmp_path / "empty"
    empty.mkdir()
    bundle = file.with_name(f"{file.name}.model.sig")
    model_signing = (sys.executable, "-m", "model_signing")
    key = ("--private_key", keys / "ec.pem")
    assert (
        run(*model_signing, "sign", "key", "--signature", bundle, *key, "--ignore-paths", empty, empty).returncode == 0
    )
    public = ("--public_key", keys / "ec.pub.pem")
    assert run(*model_signing, "verify", "key", "--signature", bundle, *public, file).returncode == 0
    refused(file, accepted(keys, "key"), "of other bytes")


def test_a_bundle_with_a_second_envelope_is_refused(file, keys):
    bundle = signed(file, keys, "key")
    data = json.loads(bundle.read_text())
    bundle.write_text(json.dumps(data | {"dsse_envelope": data["dsseEnvelope"]}))
    refused(file, accepted(keys, "key"), "cannot be read")


@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_parsed_before_the_signature_is_checked(file, keys, kind, there, tmp_path):
    """A pickle is refused as a pickle only by somebody who has looked into it."""
    path = tmp_path / "hotfix.lock"
    signature = signed(file, keys, kind)
    lock.pin(path, accepted(keys, kind))
    lock.add(path, [file])
    (row,) = lock.rows(path)
    file.write_bytes(pickle.dumps({"a": 1}))
    if not there:
        signature.unlink()
    for read in (lambda: Stack.load(path), lambda: lock.locked(path, row), lambda: lock.add(path, [file])):
        with pytest.raises(SignatureError, match="not hold|other bytes" if there else "is not signed"):
            read()
    with pytest.raises(PatchFormatError, match="pickle"):
        Patch.load(file)


def test_what_was_checked_is_what_is_used(file, keys):
    """A named pipe can be read once only."""
    content = file.read_bytes()
    signed(file, keys)
    file.unlink()
    os.mkfifo(file)
    writing = Thread(target=file.write_bytes, args=[content], daemon=True)
    writing.start()
    found = []
    reading = Thread(target=lambda: found.append(signing.load(file, accepted(keys))), daemon=True)
    reading.start()
    reading.join(timeout=30)
    assert found and found[0].name == "syria-2025"


def test_a_lock_keeps_its_policy_whoever_writes_it(file, other_file, keys, tmp_path):
    path = tmp_path / "hotfix.lock"
    signed(file, keys)
    signing.sign(other_file, keys / "other")
    lock.pin(path, accepted(keys))
    lock.add(path, [file])
    before = path.read_bytes()
    stack = Stack.of(Patch.load(file), Patch.load(other_file))
    for write in (lambda: lock.add(path, [other_file]), lambda: stack.save(path)):
        with pytest.raises(SignatureError, match="it is signed with"):
            write()
        assert path.read_bytes() == before
    Stack.of(Patch.load(file)).save(path)
    assert path.read_bytes() == before
    lock.remove(path, ["syria-2025"])
    assert lock.signers(path) == accepted(keys) and lock.rows(path) == []


def test_signers_change_one_by_one_and_the_last_one_goes_only_on_purpose(file, keys, tmp_path, capsys):
    signed(file, keys)
    path = tmp_path / "hotfix.lock"
    (old,), (new,) = accepted(keys, "ssh"), accepted(keys, "key")
    lock.add(path, [file])
    with pytest.raises(SignatureError, match="wanted a signature by ssh key"):
        trust((keys / "other.pub",), lock_file=path)
    assert lock.signers(path) == []
    trust((keys / "k.pub", keys / "ec.pub.pem"), lock_file=path)
    with pytest.raises(SignatureError, match="it is signed with"):
        distrust([old.name], lock_file=path)
    assert lock.signers(path) == [old, new]
    signed(file, keys, "key")
    distrust([old.name], lock_file=path)
    with pytest.raises(SignatureError) as found:
        distrust([new.name], lock_file=path)
    assert "--allow-unsigned" in found.value.hint and lock.signers(path) == [new]
    capsys.readouterr()
    trust(lock_file=path, json=True)
    assert json.loads(capsys.readouterr().out) == [{"kind": "key", "name": new.name, "issuer": ""}]
    distrust([new.name], lock_file=path, allow_unsigned=True)
    assert capsys.readouterr().out == "nobody: no signature is asked for\n"
    assert "signatures" not in path.read_text()


def test_several_roots_in_a_file_are_several_signers(file, keys, tmp_path):
    both = tmp_path / "both.pem"
    both.write_text((keys / "leaf.crt").read_text() + "and\n" + (keys / "root.pem").read_text())
    signed(file, keys, "certificate")
    lock.pin(tmp_path / "hotfix.lock", signers(both))
    assert len({one.name for one in lock.signers(tmp_path / "hotfix.lock")}) == 2
    lock.add(tmp_path / "hotfix.lock", [file])


def test_a_link_to_a_patch_has_its_signature_beside_it(file, keys, tmp_path):
    link = tmp_path / "snapshot" / HUB_NAME  # as the cache of the Hub has them
    link.parent.mkdir()
    link.symlink_to(file)
    signed(link, keys)
    lock.pin(tmp_path / "hotfix.lock", accepted(keys))
    lock.add(tmp_path / "hotfix.lock", [link])
    assert Stack.load(tmp_path / "hotfix.lock").patches[0].source == link


@pytest.mark.parametrize(
    "table",
    [
        "[signature]\nsigners = []",
        "[signatures]",
        "[signatures]\nsigners = []",
        "[signatures]\nsigners = [{}]",
        "[signatures]\nsigner = [{ssh = 'k'}]",
        "[signatures]\nsigners = [{ssh = 'nobody'}]",
        "[signatures]\nsigners = [{key = ''}]",
        "[signatures]\nsigners = [{certificate = 'none'}]",
        "[signatures]\nsigners = [{identity = 'ann@acme'}]",
        "[signatures]\nsigners = [{gpg = 'ann@acme'}]",
        "signatures = true",
    ],
)
def test_a_policy_that_is_not_understood_is_never_passed_over(tmp_path, table):
    path = tmp_path / "hotfix.lock"
    path.write_text(f"lock-version = 1\npatches = []\n{table}\n")
    with pytest.raises(HotfixError, match="is not a hotfix lock"):
        lock.load(path)


def public(name, keys):
    return " ".join((keys / f"{name}.pub").read_text().split()[:2])


HIDING = {  # what hides behind a decoy: ssh-keygen takes k, and a reader would see the other
    "a second line": "* {decoy}\n* {key}",
    "an option": '* namespaces="hotfix-patch, {decoy} " {key}',
    "an option without a space": '* namespaces="hotfix-patch,{decoy}" {key}',
    "an escaped quote": '* namespaces="hotfix-patch,\\" {decoy} " {key}',
    "principals": '"*, {decoy} " {key}',
    "a comment": "* {key} {decoy}",
    "what C does not see": "* {key}\0 {decoy}",
}


@pytest.mark.parametrize("way", HIDING)
def test_one_ssh_signer_is_one_key(file, keys, way, tmp_path):
    signed(file, keys)
    line = HIDING[way].format(decoy=public("other", keys), key=public("k", keys))
    ssh.verify(file.read_bytes(), signing.beside(file)[".sig"], [line])
    path = tmp_path / "hotfix.lock"
    path.write_text(tomli_w.dumps({"lock-version": 1, "signatures": {"signers": [{"ssh": line}]}}))
    with pytest.raises(StackError, match="is not a hotfix lock"):
        lock.signers(path)
    with pytest.raises(ValueError, match="with more than one"):
        signing.load(file, [Signer("ssh", line)])
    (tmp_path / "allowed").write_text(line)
    if "\n" not in line:  # there it is two signers, and both are named
        with pytest.raises(SignatureError, match="a line that hides one"):
            signers(tmp_path / "allowed")


@pytest.mark.parametrize("kind", ["key", "certificate"])
def test_one_pem_signer_is_one_key(keys, kind, tmp_path):
    text = {"key": "{ec.pub.pem}{ec2.pub.pem}", "certificate": "{root.pem}{leaf.crt}"}[kind]
    both = re.sub(r"\{(.*?)\}", lambda name: (keys / name[1]).read_text(), text)
    path = tmp_path / "hotfix.lock"
    path.write_text(tomli_w.dumps({"lock-version": 1, "signatures": {"signers": [{kind: both}]}}))
    with pytest.raises(StackError, match="is not a hotfix lock"):
        lock.signers(path)


def test_an_allowed_signers_file_says_who_may_sign_what_and_until_when(file, keys, tmp_path):
    signed(file, keys)
    raw, key, allowed = file.read_bytes(), (keys / "k.pub").read_text(), tmp_path / "allowed"
    assert signing.check(raw, file, signers(keys / "allowed"), "bob@acme").startswith("bob@acme, ED25519 key SHA256:")
    with pytest.raises(SignatureError, match="wanted a signature by eve@acme"):
        signing.check(raw, file, signers(keys / "allowed"), "eve@acme")
    for options, words in (('namespaces="git"', "not permitted"), ('valid-before="20200101"', "expired")):
        allowed.write_text(f"# ours\nann@acme {options} {key}")
        refused(file, signers(allowed), words)
    allowed.write_text(f'*@acme namespaces="hotfix-*" {key}')
    assert signing.load(file, signers(allowed), "zoe@acme")
    verify([str(file)], key=allowed, identity="zoe@acme")


def test_a_passphrase_is_never_asked_for_even_on_a_terminal(file, keys):
    _, slave = pty.openpty()
    done = run(
        *(HOTFIX, "sign", file, "--key", keys / "locked"),
        stdin=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    assert done.returncode == 1 and "incorrect passphrase" in done.stderr and "ssh-add" in done.stderr
    assert not signing.beside(file)
    locked = keys / "locked.pem"
    key, how = ec.generate_private_key(ec.SECP256R1()), to.BestAvailableEncryption(b"open sesame")
    locked.write_bytes(key.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, how))
    with pytest.raises(SignatureError, match="Password was not given"):
        signing.sign(file, locked)


def test_an_agent_signs_for_a_public_key(file, keys, tmp_path, monkeypatch):
    agent = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", agent], stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
        assert run("ssh-add", "-q", keys / "k").returncode == 0
        shutil.copy(keys / "k.pub", tmp_path)  # without its private half
        signing.sign(file, tmp_path / "k.pub")
        running.terminate()
    assert signing.load(file, accepted(keys))


def test_secrets_go_nowhere(file, keys, kind, tmp_path):
    private = (keys / {"ssh": "k", "key": "ec.pem", "certificate": "leaf.pem"}[kind]).read_text().splitlines()
    done = run(HOTFIX, "trust", keys / "k", keys / "ec.pem", cwd=tmp_path)
    assert done.returncode == 1 and "is a private key" in done.stderr and not (tmp_path / "hotfix.lock").exists()
    signature = signed(file, keys, kind)
    lock.pin(tmp_path / "hotfix.lock", accepted(keys, kind))
    written = [path.read_text() for path in (signature, tmp_path / "hotfix.lock")]
    for text in (done.stdout, done.stderr, *written):
        assert not any(line in text for line in private)


def test_a_signature_that_is_there_is_not_written_over_by_mistake(file, keys):
    signature = signed(file, keys)
    before = signature.read_bytes()
    assert signed(file, keys).read_bytes() == before
    with pytest.raises(SignatureError, match="is there already") as found:
        signing.sign(file, keys / "other")
    assert "--replace" in found.value.hint and signature.read_bytes() == before
    signing.sign(file, keys / "other", replace=True)
    refused(file, accepted(keys))


def test_nobody_signs_a_broken_file_or_with_a_key_that_is_none(file, keys):
    (file.parent / "rsa").write_text("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n")
    for key in (keys / "k.pub.none", keys / "root.pem", file.parent / "rsa"):
        with pytest.raises(SignatureError):
            signing.sign(file, key)
    with pytest.raises(SignatureError, match="cannot sign with"):
        signing.sign(file, keys / "ec.pem", certificate=keys / "leaf.crt", chain=[keys / "root.pem"])
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(PatchFormatError):
        signing.sign(file, keys / "k")
    assert not signing.beside(file)


def test_keyless_signing_fails_early_without_an_identity_or_a_network(file, tmp_path):
    away = {"HTTPS_PROXY": "http://127.0.0.1:9", "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    away |= {key: value for key, value in os.environ.items() if key in ("PYTHONPATH", "SOURCE_DATE_EPOCH")}
    nobody = run(HOTFIX, "sign", file, "--keyless", env=away)
    assert nobody.returncode == 1 and "no identity to sign with" in nobody.stderr
    claims = {"iss": "https://acme", "aud": "sigstore", "sub": "ann", "email": "ann@acme", "iat": 0, "nbf": 0, "exp": 1}
    word = lambda part: base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")  # noqa: E731
    token = f"{word({'alg': 'none'})}.{word(claims)}.c2lnbmF0dXJl"
    (tmp_path / "token").write_text(token)
    done = run(HOTFIX, "sign", file, "--keyless", "--identity-token", tmp_path / "token", env=away)
    assert done.returncode == 1 and "Sigstore cannot sign" in done.stderr and "Traceback" not in done.stderr
    assert token not in done.stderr and not signing.beside(file)
    file.with_name(f"{file.name}.model.sig").write_text("{}")
    refused(file, [Signer("identity", "ann@acme", "https://acme")], "cannot be read")


def test_what_is_not_installed_is_said_in_a_sentence(file, keys, monkeypatch):
    signed(file, keys)
    signed(file, keys, "key")
    by_ssh, by_key = accepted(keys), accepted(keys, "key")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "model_signing.signing", None)
        with pytest.raises(SignatureError, match="a library that is not here") as found:
            signing.sign(file, keys / "ec.pem")
        assert "diffusion-hotfix[sign]" in found.value.hint
        refused(file, by_key, "a library that is not here")
        assert signing.load(file, by_ssh)
    monkeypatch.setenv("PATH", "")
    refused(file, by_ssh, "no ssh-keygen here")
    assert signing.load(file, [*by_ssh, *by_key])


def test_verify_says_of_each_file_what_it_found(file, other_file, keys, capsys):
    signed(file, keys)
    rows = lambda done: [(row["ok"], row.get("signature")) for row in json.loads(done)]  # noqa: E731
    verify([str(file), str(other_file)], json=True)
    assert rows(capsys.readouterr().out) == [(True, ".sig not checked"), (True, "not signed")]
    asked = run(HOTFIX, "verify", file, other_file, "--key", keys / "allowed", "--identity", "ann@acme", "--json")
    assert asked.returncode == 1 and f"{other_file} is not signed" in asked.stderr
    (good, who), (bad, _) = rows(asked.stdout)
    assert good and not bad and who.startswith("signed: ann@acme, ED25519 key SHA256:")
    for words in ({"identity": "ann"}, {"issuer": "https://acme"}, {"key": keys / "k.pub", "identity": "ann"}):
        with pytest.raises(SignatureError):
            verify([str(file)], **words)
