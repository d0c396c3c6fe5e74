"""The real client against a Hub on loopback: a version is published whole or not at all, and never moves."""

import json
import subprocess
import sys
from pathlib import Path

import pico
import pytest
from huggingface_hub import ModelCard, constants
from minihub import TOKEN, MiniHub
from patching import random_patch

import hotfix
from hotfix import hub, ledger, lock, signing
from hotfix.card import page
from hotfix.cli_sign import verify
from hotfix.errors import (
    DigestMismatch,
    HotfixError,
    HubError,
    PatchFormatError,
    SaveError,
    SignatureError,
    StackError,
)
from hotfix.patch import Patch
from hotfix.publish import push, unpack
from hotfix.published import lines, outdated
from hotfix.report import HONEST, PatchRef, Report
from hotfix.signer import signers
from hotfix.stack import Stack

ROOT = Path(__file__).parents[1]
HOTFIX = Path(sys.executable).with_name("hotfix")
PIPE = pico.sd15()
KOHYA = "face-1.0.0_kohya.safetensors"


@pytest.fixture
def server(tmp_path, monkeypatch):
    with MiniHub(tmp_path / "hub") as running:
        home = running.environment["HF_HOME"]
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{home}/hub")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def offline(monkeypatch):
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def make(tmp_path):
    """Writes a patch to a file, and reads it from there."""

    def patch(name="face", seed=1, folder="dist", **options):
        return Patch.load(random_patch(PIPE, name, seed, **options).save(tmp_path / folder))

    return patch


@pytest.fixture(scope="module")
def report():
    """What was measured of a published patch, as if it were of another."""
    measured = Report.load(ROOT / "patches/mauritania-2017/report.json")

    def of(patch):
        return measured.model_copy(update={"patches": [PatchRef(name=patch.name, version=patch.version, id=patch.id)]})

    return of


def refs(server, repo="acme/face"):
    return server.repo(repo).git("show-ref").decode()


def names(server, revision, repo="acme/face"):
    return set(server.repo(repo).files(server.repo(repo).commit_of(revision))) - {".gitattributes"}


def weights(server, revision="v1.0.0", repo="acme/face"):
    """The LFS object of a published patch."""
    found = server.repo(repo)
    return found.lfs / found.files(found.commit_of(revision))[hub.WEIGHTS].sha256


# Publishing


def test_a_push_is_one_commit_and_one_tag(server, make, report):
    patch = make()
    done = push(patch, "acme/face", report=report(patch))
    assert (done.new, done.version, done.id) == (True, "1.0.0", patch.id)
    repo = server.repo("acme/face")
    assert repo.line("rev-list", "--count", "main") == "2"  # the empty repository's, and this
    assert done.revision == repo.commit_of("v1.0.0") == repo.commit_of("main")
    assert names(server, "main") == {hub.WEIGHTS, KOHYA, "report.json", "README.md"}
    assert weights(server).read_bytes() == patch.source.read_bytes()


def test_a_pushed_version_never_moves(server, make):
    first = push(make(), "acme/face")
    before = refs(server)
    again = push(make(), "acme/face")
    assert (again.new, again.revision) == (False, first.revision)
    with pytest.raises(HubError, match=r"acme/face has face 1\.0\.0 already, as sha256:") as found:
        push(make(seed=2, folder="other"), "acme/face")
    assert "never changes" in found.value.hint
    assert refs(server) == before


def test_a_report_of_a_published_version_joins_it_on_main_and_moves_no_tag(server, make, report):
    patch = make()
    first = push(patch, "acme/face")
    joined = push(patch, "acme/face", report=report(patch))
    repo = server.repo("acme/face")
    assert (joined.new, joined.revision) == (False, first.revision)
    assert repo.commit_of("v1.0.0") == first.revision and joined.evidence == repo.commit_of("main") != first.revision
    assert names(server, "main") - names(server, "v1.0.0") == {"report.json"}
    assert weights(server, "main").read_bytes() == weights(server).read_bytes()
    assert "model-index" in repo.git("show", "main:README.md").decode()
    assert hub.pull(f"acme/face@{joined.evidence}").id == patch.id
    before = refs(server)
    push(patch, "acme/face", report=report(patch))
    push(patch, "acme/face")
    assert refs(server) == before


def test_a_report_of_an_old_version_does_not_join_a_newer_one(server, make, report):
    old = make()
    push(old, "acme/face")
    push(make(version="1.1.0"), "acme/face")
    before = refs(server)
    assert push(old, "acme/face", report=report(old)).evidence == ""
    assert refs(server) == before


def test_a_tag_that_somebody_makes_in_the_same_moment_stays(server, make):
    patch = make()
    first = push(patch, "acme/face").revision
    push(make(version="1.1.0"), "acme/face")
    before = refs(server)
    assert not hub.set_tag("acme/face", "v1.0.0", server.repo("acme/face").commit_of("main"), "mine")
    assert refs(server) == before and server.repo("acme/face").commit_of("v1.0.0") == first


def test_a_commit_on_a_stale_parent_publishes_nothing(server, make):
    stale = push(make(), "acme/face").revision
    push(make(version="1.1.0"), "acme/face")
    before = refs(server)
    with pytest.raises(HubError, match="somebody pushed to acme/face in the same moment, and nothing was published"):
        hub.commit("acme/face", {"report.json": b"{}"}, [], parent=stale, message="late")
    assert refs(server) == before


def test_one_repository_is_one_patch_line(server, make):
    push(make(), "acme/face")
    before = refs(server)
    with pytest.raises(HubError, match="acme/face is the line of face; wanted other"):
        push(make("other", version="2.0.0"), "acme/face")
    assert refs(server) == before


def test_somebody_elses_lora_is_not_written_over(server, make, tmp_path):
    from safetensors.numpy import save

    hub.create("acme/face", None)
    parent, _ = hub.tree("acme/face")
    lora = save({"unet.to_q.lora_A.weight": PIPE.unet.conv_in.weight.detach().numpy()})
    hub.commit("acme/face", {hub.WEIGHTS: lora}, [], parent=parent, message="theirs")
    before = refs(server)
    with pytest.raises(PatchFormatError, match="holds no hotfix manifest"):
        push(make(), "acme/face")
    assert refs(server) == before


def test_a_new_version_leaves_nothing_of_the_old_one(server, make, report):
    old = make()
    Path(f"{old.source}.sig").write_bytes(b"signed")
    push(old, "acme/face", report=report(old))
    push(make(version="1.1.0"), "acme/face")
    assert names(server, "v1.0.0") == {hub.WEIGHTS, KOHYA, "README.md", "report.json", f"{hub.WEIGHTS}.sig"}
    assert names(server, "v1.1.0") == {hub.WEIGHTS, KOHYA.replace("1.0.0", "1.1.0"), "README.md"}


def test_what_shall_be_private_is_not_pushed_where_all_can_see(server, make, monkeypatch):
    push(make(), "acme/face")
    with pytest.raises(HubError, match="acme/face is there already, and public"):
        push(make(version="1.1.0"), "acme/face", private=True)
    push(make(version="1.1.0"), "acme/secret", private=True)
    server.forget_cache()
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(HubError, match=r"there is no acme/secret at v1\.1\.0, or not for this token"):
        hotfix.pull("acme/secret@1.1.0")


@pytest.mark.parametrize("token", ["", "hf_wrong", "hf_sécret", "hf_sec\x01ret"])
def test_a_push_without_a_valid_token_says_so_and_not_which(server, make, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match="token") as found:
        push(make(), "acme/face")
    assert not token or token not in f"{found.value} {found.value.hint} {found.value.__cause__}"
    assert found.value.__suppress_context__  # nor does a traceback
    assert not (server.folder / "acme").exists()


def test_a_report_is_of_the_patch_and_of_numbers_alone(server, make, report, tmp_path):
    patch = make()
    with pytest.raises(HubError, match="the report is not of other 1"):
        push(make("other"), "acme/other", report=report(patch))
    above = report(make("above"))
    beneath = above.model_copy(update={"patches": [*report(patch).patches, *above.patches]})
    with pytest.raises(HubError, match="the report is not of face 1"):  # another one's, with this one beneath it
        push(patch, "acme/face", report=beneath)
    path = report(patch).save(tmp_path / "report.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"picture": "iVBORw0KGgo="}))
    with pytest.raises(HotfixError, match="is not a hotfix report"):
        Report.load(path)


def test_an_upload_that_is_refused_publishes_nothing_and_tells_no_token(server, make):
    server.full = True
    with pytest.raises(HubError, match=r"the Hub refused acme/face: 413 no space left for …$"):
        push(make(), "acme/face")
    assert "v1.0.0" not in refs(server) and names(server, "main") == set()
    server.full = False
    assert push(make(), "acme/face").new


def test_a_licence_that_the_hub_does_not_know_publishes_nothing(server, make):
    with pytest.raises(HubError, match=r'acme/face: Invalid metadata in README.md. - "license" must be one of'):
        push(make(), "acme/face", license="The Unlicensed")
    assert "v1.0.0" not in refs(server)


# The card


def test_a_card_claims_what_was_measured_and_no_more(make, report):
    patch = make()
    bare, full = (
        ModelCard(page(patch, "acme/face", None, "")),
        ModelCard(page(patch, "acme/face", report(patch), "mit")),
    )
    assert {"hotfix", "lora", "machine-unlearning"} <= set(bare.data.tags)
    assert bare.data.library_name == full.data.library_name == "diffusers"
    assert (bare.data.license, full.data.license) == (None, "mit")
    assert bare.data.base_model is None  # pico is not on the Hub
    assert bare.data.eval_results is None and "nobody says here that it works" in bare.text
    drawn = {row.caption: row.after for row in report(patch).replays}
    rows = {row.metric_name: row for row in full.data.eval_results}
    for caption, rate in drawn.items():
        row = rows[f"target drawn, {caption} caption"]
        assert row.metric_value == rate.k / rate.n and row.metric_args["upper"] == rate.upper
    assert all(words in full.text for words in HONEST)
    assert f"Not run: {'; '.join(report(patch).attacks_not_run)}" in full.text
    assert 'hotfix.pull("acme/face@1.0.0")' in full.text and "diffusers.StableDiffusion" not in full.text


def test_a_card_names_a_base_that_is_on_the_hub_and_pins_the_version(make):
    patch = make()
    base = patch.manifest.base.model_copy(update={"repo": "acme/model", "commit": "ab" * 20})
    patch = Patch(patch.manifest.model_copy(update={"base": base}).text(), patch.entries)
    card = ModelCard(page(patch, "acme/face", None, ""))
    assert (card.data.base_model, card.data.base_model_relation) == ("acme/model", "adapter")
    assert f'StableDiffusionPipeline.from_pretrained("acme/model", revision="{base.commit}")' in card.text
    assert 'pipe.load_lora_weights("acme/face", revision="v1.0.0", use_safetensors=True)' in card.text


def test_a_card_of_somebody_elses_lora_claims_nothing(make):
    patch = make()
    imported = patch.manifest.model_copy(update={"targets": [], "scope": None})
    text = page(Patch(imported.text(), patch.entries), "acme/face", None, "")
    assert "What it does was not measured" in text and "Suppresses" not in text


# Fetching


def test_pull_by_version_by_commit_and_newest(server, make):
    for version in ("1.0.0", "1.10.0", "1.9.0", "2.0.0rc1"):
        push(make(version=version), "acme/face")
    first = server.repo("acme/face").commit_of("v1.0.0")
    for reference, version in {"": "1.10.0", "@1.9": None, "@v1.9.0": "1.9.0", f"@{first}": "1.0.0"}.items():
        if version is None:
            with pytest.raises(HubError, match=r"there is no acme/face at v1\.9"):
                hotfix.pull(f"acme/face{reference}")
        else:
            found = hotfix.pull(f"acme/face{reference}")
            assert (found.version, found.id) == (version, make(version=version).id)
            assert found.pulled == f"hf://acme/face@{server.repo('acme/face').commit_of(f'v{version}')}"


@pytest.mark.parametrize(
    "text", ["face", "acme/face@main", "acme/face@1234abc", "acme/face/more", "https://acme/face", ""]
)
def test_what_names_nothing_on_the_hub_is_refused_unasked(server, text):
    with pytest.raises(HubError, match="names nothing on the Hub"):
        hotfix.pull(text)
    assert not server.asked


def test_a_tampered_patch_is_refused_and_the_difference_named(server, make):
    patch = make()
    push(patch, "acme/face")
    changed = bytearray(weights(server).read_bytes())
    changed[-1] ^= 1
    weights(server).write_bytes(changed)
    with pytest.raises(DigestMismatch, match=r"the tensors have sha256:.*as the manifest says"):
        hotfix.pull("acme/face@1.0.0")


def test_a_patch_of_another_version_behind_a_tag_is_refused(server, make):
    push(make(), "acme/face")
    weights(server).write_bytes(make(version="1.1.0").source.read_bytes())
    with pytest.raises(HubError, match=r"acme/face at v1\.0\.0 holds face 1\.1\.0"):
        hotfix.pull("acme/face@1.0.0")


def test_a_locked_patch_that_was_exchanged_is_refused(server, make, tmp_path):
    push(make(), "acme/face")
    lock.add(tmp_path / "hotfix.lock", ["hf://acme/face"])
    weights(server).write_bytes(make(seed=2, folder="other").source.read_bytes())
    server.forget_cache()
    with pytest.raises(StackError, match=r"as hotfix\.lock says of face"):
        Stack.load(tmp_path / "hotfix.lock")


def test_a_cache_that_was_cut_off_is_fetched_again(server, make, offline):
    push(make(), "acme/face")
    patch = hotfix.pull("acme/face")
    patch.source.resolve().write_bytes(patch.source.read_bytes()[:-1])
    assert hotfix.pull("acme/face").id == patch.id
    patch.source.resolve().write_bytes(patch.source.read_bytes()[:-1])
    offline()
    with pytest.raises(PatchFormatError, match="said to lie"):
        hotfix.pull("acme/face@1.0.0")


def test_after_one_pull_no_hub_is_needed(server, make, offline, tmp_path):
    push(make(), "acme/face")
    lock.add(tmp_path / "hotfix.lock", ["hf://acme/face@1.0.0"])
    server.asked.clear()
    assert Stack.load(tmp_path / "hotfix.lock").patches[0].id == make().id
    assert not server.asked  # not even online
    offline()
    assert Stack.load(tmp_path / "hotfix.lock").patches[0].id == hotfix.pull("acme/face@1.0.0").id == make().id
    with pytest.raises(HubError, match="acme/face: the Hub was not asked, for HF_HUB_OFFLINE is set"):
        hotfix.pull("acme/face")
    with pytest.raises(HubError, match=r"acme/face at v1\.1\.0 is not in the cache, and the Hub is out of reach"):
        hotfix.pull("acme/face@1.1.0")


def test_a_pulled_patch_lies_on_disk_as_it_was_pushed(server, make, report, tmp_path):
    patch = make()
    for ending in hub.SIGNATURES:
        Path(f"{patch.source}{ending}").write_text(f"signed {ending}")
    report(patch).save(tmp_path / "dist" / "face-1.0.0.report.json")
    push(patch, "acme/face", report=report(patch))
    files = unpack(hotfix.pull("acme/face"), tmp_path / "pulled")
    here, there = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in ("dist", "pulled")
    )
    assert here == there and {path.name for path in files} == set(there) and len(there) == 4


def test_a_pull_never_writes_over_another_file(server, make, tmp_path):
    push(make(), "acme/face")
    mine = make(seed=2, folder="pulled").source
    before = mine.read_bytes()
    with pytest.raises(SaveError, match="is there, and is another"):
        unpack(hotfix.pull("acme/face"), tmp_path / "pulled")
    assert mine.read_bytes() == before


def test_an_outline_needs_no_tensors_and_is_distrusted_all_the_same(server, make):
    patch = make(rank=64)
    push(patch, "acme/face")
    server.sent = 0
    found = hub.look("acme/face")
    assert (found.id, found.manifest, found.layers, found.size) == (patch.id, patch.manifest, patch.layers, patch.size)
    assert server.sent < 110_000 < patch.size
    good = weights(server).read_bytes()
    for header in (b"[]", b'{"__metadata__":null}', b'{"a":1}', b'{"a":{"dtype":"F32","shape":{},"data_offsets":5}}'):
        weights(server).write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(PatchFormatError):
            hub.look("acme/face@1.0.0")
    for old, new in ((rb"\"name\":\"face\"", rb"\"name\":\"fake\""), (b"lora_A", b"lora_C"), (b'"__m', b"?__m")):
        weights(server).write_bytes(good.replace(old, new))
        with pytest.raises(PatchFormatError):
            hub.look("acme/face@1.0.0")


# The network


@pytest.mark.parametrize("answered", [False, True], ids=["unheard", "half-answered"])
def test_a_push_that_is_cut_off_anywhere_goes_on(server, make, report, answered):
    patch = make()
    n, cut_off = 0, 0
    while True:
        n, repo = n + 1, f"acme/face-{n}"
        server.cut(n, answered)
        try:
            push(patch, repo, report=report(patch))
        except HubError:
            cut_off += 1
        requests = len(server.asked)
        server.cut(0)
        if repo.encode() in b"".join(str(path).encode() for path in server.folder.glob("acme/*.git")):
            assert_tags_are_whole(server, repo, patch)
        push(patch, repo, report=report(patch))
        assert_tags_are_whole(server, repo, patch)
        assert names(server, "v1.0.0", repo) == {hub.WEIGHTS, KOHYA, "report.json", "README.md"}
        if requests < n:
            break
    assert n > 8 and cut_off > 4


def assert_tags_are_whole(server, repo, patch):
    for ref in server.repo(repo).refs("tags"):
        assert ref["name"] == "v1.0.0"
        assert weights(server, "v1.0.0", repo).read_bytes() == patch.source.read_bytes()


@pytest.mark.parametrize("answered", [False, True], ids=["unheard", "half-answered"])
def test_a_pull_that_is_cut_off_anywhere_leaves_nothing_half(server, make, tmp_path, answered):
    patch = make()
    push(patch, "acme/face")
    n, cut_off = 0, 0
    while True:
        n += 1
        server.forget_cache()
        server.cut(n, answered)
        try:
            unpack(hotfix.pull("acme/face"), tmp_path / f"pulled-{n}")
        except HubError:
            cut_off += 1
            assert not (tmp_path / f"pulled-{n}").exists()
        requests = len(server.asked)
        server.cut(0)
        (file,) = unpack(hotfix.pull("acme/face"), tmp_path / f"pulled-{n}")
        assert file.read_bytes() == patch.source.read_bytes()
        if requests < n:
            break
    assert n > 4 and cut_off > 2


# What there is


def test_lines_say_their_versions_base_and_what_they_supersede(server, make):
    for version in ("1.0.0", "1.1.0"):
        push(make(version=version), "acme/face")
    push(make("all-faces", supersedes=["face<2"]), "acme/all")
    push(make(), "other/face")
    weights(server, repo="acme/all")
    found = {line.repo: line for line in lines("acme")}
    assert found["acme/face"].versions == ("1.0.0", "1.1.0") and found["acme/face"].base == "pico"
    assert found["acme/all"].supersedes == ("face<2",) and set(found) == {"acme/face", "acme/all"}
    assert lines("acme", "another/base") == []
    weights(server, repo="acme/all").write_bytes(b"nothing")
    (bad,) = (line for line in lines("acme") if line.problem)
    assert bad.repo == "acme/all" and "safetensors" in bad.problem


def test_outdated_names_newer_versions_and_what_supersedes(server, make, tmp_path):
    path = tmp_path / "hotfix.lock"
    push(make(), "acme/face")
    lock.add(path, ["hf://acme/face", make("local").source])
    assert [(row.name, row.newer, row.superseded_by) for row in outdated(path)] == [("face", (), ())]
    for version in ("1.1.0", "2.0.0rc1"):
        push(make(version=version), "acme/face")
    push(make("all-faces", supersedes=["face<2"]), "acme/all")
    push(make("others", supersedes=["face>=2"]), "acme/others")
    (row,) = outdated(path)
    assert (row.newer, row.superseded_by) == (("1.1.0",), ("acme/all@1.0.0",))


def test_a_prerelease_is_not_named_for_what_the_newest_release_says(server, make, tmp_path):
    path = tmp_path / "hotfix.lock"
    push(make(), "acme/face")
    lock.add(path, ["hf://acme/face"])
    push(make("all-faces", supersedes=["face<2"]), "acme/all")
    push(make("all-faces", version="2.0.0rc1"), "acme/all")
    push(make("mouths", version="1.0rc1", supersedes=["face"]), "acme/mouths")
    found = {line.repo: (line.versions, line.newest) for line in lines("acme")}
    assert found["acme/all"] == (("1.0.0", "2.0.0rc1"), "1.0.0") and found["acme/mouths"] == (("1.0rc1",), "1.0rc1")
    assert outdated(path)[0].superseded_by == ("acme/all@1.0.0", "acme/mouths@1.0rc1")


def test_a_line_that_cannot_be_read_is_not_nothing_newer(server, make, tmp_path, inline):
    push(make(), "acme/face")
    lock.add(tmp_path / "hotfix.lock", ["hf://acme/face"])
    push(make("all-faces", supersedes=["face<2"]), "acme/all")
    good = weights(server, repo="acme/all").read_bytes()
    weights(server, repo="acme/all").write_bytes(b"nothing")
    done = inline("outdated", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout.startswith("BAD  acme/all: ") and "nothing newer" not in done.stdout
    assert done.stderr.startswith("error: 1 of their patch lines cannot be read") and "\n\nhint: " in done.stderr
    done = inline("outdated", "--json", cwd=tmp_path)
    (row,) = json.loads(done.stdout)
    assert done.returncode == 1 and row["unread"][0].startswith("acme/all: ") and row["superseded_by"] == []
    weights(server, repo="acme/all").write_bytes(good)
    done = inline("outdated", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "face 1.0.0: superseded by acme/all@1.0.0\n")


def test_a_line_without_a_version_supersedes_nothing(server, make, tmp_path, inline):
    push(make(), "acme/face")
    lock.add(tmp_path / "hotfix.lock", ["hf://acme/face"])
    push(make("all-faces", supersedes=["face"]), "acme/all")
    server.repo("acme/all").git("update-ref", "-d", "refs/tags/v1.0.0")  # as a push that was cut off leaves it
    assert inline("list", "acme", cwd=tmp_path).stdout.splitlines()[0] == "acme/all  no version yet"
    assert inline("outdated", cwd=tmp_path).stdout == "nothing newer\n"


# Locks


def test_a_patch_of_another_repository_takes_no_place_by_its_name(server, make, tmp_path, inline):
    push(make("victim"), "acme/victim")
    push(make("victim", seed=2, version="4.0.0"), "acme/evil")
    path = tmp_path / "hotfix.lock"
    for source in ("hf://acme/victim", make("victim").source):
        path.unlink(missing_ok=True)
        lock.add(path, [source])
        before = path.read_bytes()
        with pytest.raises(StackError, match=r"hf://acme/evil holds a victim 4\.0\.0, which is listed from") as found:
            lock.add(path, ["hf://acme/evil"])
        assert path.read_bytes() == before and "hotfix rm victim" in found.value.hint
    lock.add(path, ["hf://acme/victim"])  # the very same one, from where it was published
    push(make("victim", seed=3, version="1.1.0"), "acme/victim")
    lock.add(path, ["hf://acme/victim"])
    assert [row.version for row in lock.rows(path)] == ["1.1.0"]


def test_a_lock_pins_the_commit_and_is_written_back_as_it_was(server, make, tmp_path):
    path = tmp_path / "hotfix.lock"
    done = push(make(), "acme/face")
    lock.add(path, [make("local").source, "hf://acme/face@1.0.0"])
    row = lock.rows(path)[1]
    assert (row.source, row.revision, row.id) == ("hf://acme/face", done.revision, done.id)
    before = path.read_bytes()
    Stack.load(path).save(path)
    assert path.read_bytes() == before
    assert Stack.of(hotfix.pull("acme/face")).save(tmp_path / "other.lock").read_text().count(done.revision) == 1


@pytest.mark.parametrize(
    "make_key",
    [
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f"],
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"],
    ],
    ids=["ssh", "openssf"],
)
def test_a_lock_that_asks_for_signatures_asks_for_those_on_the_hub(server, make, tmp_path, make_key, capsys):
    key, public, path = tmp_path / "key", tmp_path / "key.pub", tmp_path / "hotfix.lock"
    subprocess.run([*make_key, key], check=True, capture_output=True)
    if not public.exists():
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    patch = make()
    signing.sign(patch.source, key)
    push(patch, "acme/face")
    push(make("unsigned"), "acme/unsigned")
    verify(["hf://acme/face@1.0.0"], key=public, json=True)
    assert json.loads(capsys.readouterr().out)[0]["signature"].startswith("signed: ")
    with pytest.raises(HotfixError, match="is not signed"):
        verify(["hf://acme/unsigned"], key=public)
    lock.pin(path, signers(public))
    lock.add(path, ["hf://acme/face"])
    before = path.read_bytes()
    with pytest.raises(SignatureError, match="is not signed"):
        lock.add(path, ["hf://acme/unsigned"])
    assert path.read_bytes() == before and [one.id for one in Stack.load(path).patches] == [patch.id]


def test_a_cached_file_that_went_bad_is_fetched_again_where_signatures_are_asked_for(server, make, tmp_path, offline):
    key, path = tmp_path / "key", tmp_path / "hotfix.lock"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    patch = make()
    signing.sign(patch.source, key)
    push(patch, "acme/face")
    lock.pin(path, signers(tmp_path / "key.pub"))
    lock.add(path, ["hf://acme/face"])
    file = Stack.load(path).patches[0].source.resolve()
    for bad in (file.read_bytes()[:-1], bytes(64) + file.read_bytes()[64:]):
        file.write_bytes(bad)
        assert Stack.load(path).patches[0].id == patch.id
        assert file.read_bytes() == patch.source.read_bytes()
    file.write_bytes(bad)
    offline()
    with pytest.raises(SignatureError):
        Stack.load(path)


def test_a_lock_that_names_a_branch_is_refused_and_can_be_mended(server, make, tmp_path):
    path = tmp_path / "hotfix.lock"
    revision = push(make(), "acme/face").revision
    lock.add(path, ["hf://acme/face"])
    path.write_text(path.read_text().replace(revision, "main"))
    with pytest.raises(StackError, match="wanted the 40 hex digits of a commit"):
        Stack.load(path)
    lock.remove(path, ["face"])
    lock.add(path, ["hf://acme/face"])
    assert lock.rows(path)[0].revision == revision


def test_a_lock_with_a_version_that_is_none_is_no_lock(server, make, tmp_path):
    path = tmp_path / "hotfix.lock"
    push(make(), "acme/face")
    lock.add(path, ["hf://acme/face"])
    path.write_text(path.read_text().replace('"1.0.0"', '"newest"'))
    with pytest.raises(StackError, match="is not a hotfix lock"):
        outdated(path)


# Through real processes

STOCK = """\
import diffusers, torch
from hotfix.cli import main

def draw(pipe):
    call = dict(num_inference_steps=2, output_type="np", height=16, width=16)
    return torch.from_numpy(pipe("a", generator=torch.Generator().manual_seed(0), **call).images)

try:
    main(["apply", "base", "-o", "patched"])
except SystemExit as done:
    assert not done.code
load = diffusers.StableDiffusionPipeline.from_pretrained
stock, patched, bare = load("base"), load("patched"), load("base")
stock.load_lora_weights("acme/face", revision="v1.0.0", use_safetensors=True)
torch.testing.assert_close(draw(stock), draw(patched), rtol=0, atol=1e-4)
assert (draw(stock) - draw(bare)).abs().max() > 1e-2
"""


def test_from_push_to_a_patched_copy_and_stock_diffusers(server, make, tmp_path, inline, monkeypatch):
    PIPE.save_pretrained(tmp_path / "base")
    patch = make(size=1.0)

    def command(*words, **more):
        return subprocess.run(
            [HOTFIX, *map(str, words)],
            cwd=tmp_path,
            env=server.environment | more,
            capture_output=True,
            text=True,
            timeout=100,
        )

    (tmp_path / "hotfix.log.jsonl").touch()
    pushed = json.loads(command("push", patch.source, "acme/face", "--json").stdout)
    assert pushed["id"] == patch.id and pushed["new"]
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    refused = inline("push", make(seed=2, folder="other").source, "acme/face", cwd=tmp_path)
    assert refused.returncode == 1 and "secret" not in refused.stderr and "\n\nhint: " in refused.stderr
    shown = json.loads(command("show", "hf://acme/face", "--json").stdout)
    assert shown["id"] == patch.id and not shown["tensors_read"]
    assert command("list", "acme").stdout == "acme/face  1.0.0  for pico\n"
    assert command("add", "hf://acme/face").returncode == 0
    assert command("outdated").stdout == "nothing newer\n"
    assert command("pull", "acme/face", "-o", "pulled").stdout == "pulled/face-1.0.0.safetensors\n"
    without = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": ""}
    (row,) = json.loads(command("status", "--json", **without).stdout)
    assert row["ok"] and row["revision"] == pushed["revision"]
    done = subprocess.run(
        [sys.executable, "-c", STOCK], cwd=tmp_path, env=server.environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert command("rm", "face", **without).returncode == 0
    assert lock.rows(tmp_path / "hotfix.lock") == []
    told, _ = ledger.read(tmp_path / "hotfix.lock")
    assert [one.verb for one in told] == ["pushed", "added", "applied", "removed"]
    assert told[0].facts == {"repo": "acme/face", "revision": pushed["revision"]}
