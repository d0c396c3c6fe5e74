"""The command line, through real processes: exit codes, sentences, and nothing half-written."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pico
import pytest
import tiny
import torch
from conftest import interruptible, picture
from safetensors.torch import save_file

from hotfix import scoring
from hotfix.errors import HotfixError
from hotfix.options import pipeline_of
from hotfix.patch import Patch
from hotfix.pipeline import load_pipeline, named
from hotfix.published import Line
from hotfix.stack import Stack

HOTFIX = Path(sys.executable).with_name("hotfix")

RECIPE = """\
name = "quarters"
[base]
pipeline = "{base}"
call = {{ num_inference_steps = 1 }}
[forget]
images = ["forget/*.png"]
[surrogate]
kind = "files"
images = ["surrogate/*.png"]
[retain]
size = 16
[train]
rank = 2
steps = {steps}
batch = 2
retain_batch = 2
weight = "uniform"
"""


def hotfix(*arguments, cwd, **options):
    return subprocess.run(
        [HOTFIX, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300, **options
    )


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny.save_base(folder)
    return folder


@pytest.fixture
def project(tmp_path, base):
    """A folder with a recipe, its pictures and a base."""
    for kind, seed in (("forget", 1), ("surrogate", 101)):
        (tmp_path / kind).mkdir()
        picture(seed, side=8).save(tmp_path / kind / "one.png")
    (tmp_path / "recipe.toml").write_text(RECIPE.format(base=base, steps=6))
    return tmp_path


@pytest.fixture(scope="session")
def shop(tmp_path_factory, built):
    """A folder with three good patches for the pico base."""
    folder = tmp_path_factory.mktemp("shop")
    for patch in built["ddpm"]:
        patch.save(folder)
    return folder


def assert_one_sentence(done, words, code=1):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert words in done.stderr
    assert done.stderr.splitlines()[-1].startswith("hint: ") or "\n\nhint: " in done.stderr


def test_help_show_and_locks_import_no_torch(shop, tmp_path):
    code = (
        "import sys; from hotfix.cli import main\n"
        "for words in (['--help'], ['show', sys.argv[1]], ['show', sys.argv[1], '--json'],\n"
        "              ['add', *sys.argv[1:]], ['verify', *sys.argv[1:]], ['status'], ['log']):\n"
        "    try: main(words)\n"
        "    except SystemExit as done: assert not done.code, done.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'scipy', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    command = [sys.executable, "-c", code, *shop.glob("*.safetensors")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_from_recipe_to_patched_copy_and_back(project, base, inline):
    built = hotfix("build", "recipe.toml", "-o", "dist", "-n", 2, "--html", cwd=project)
    assert built.returncode == 3, built.stderr  # 0 of 2 is no proof of 1%, and it says so
    assert "over budget" in built.stderr
    patch, report, page = map(Path, built.stdout.split())
    assert [p.name for p in (patch, report, page)] == [
        "quarters-1.0.0.safetensors",
        "quarters-1.0.0.report.json",
        "quarters-1.0.0.report.html",
    ]
    shown = json.loads(hotfix("show", patch, "--json", cwd=project).stdout)
    (subject,) = json.loads((project / "dist/quarters-1.0.0.provenance.json").read_text())["subject"]
    assert subject["digest"]["sha256"] == hashlib.sha256((project / patch).read_bytes()).hexdigest()
    assert json.loads((project / report).read_text())["patches"][0]["id"] == shown["id"]
    assert inline("verify", patch, "--base", base, cwd=project).returncode == 0
    assert hotfix("add", patch, cwd=project).returncode == 0
    assert json.loads(hotfix("status", "--json", cwd=project).stdout)[0]["id"] == shown["id"]
    assert hotfix("apply", base, "-o", "patched", cwd=project).returncode == 0
    folded, beside = load_pipeline(str(project / "patched")), load_pipeline(str(base))
    x = torch.randn(2, 3, 8, 8)
    bare = beside.unet(x, 500).sample
    Stack.of(Patch.load(project / patch)).apply(beside)
    torch.testing.assert_close(folded.unet(x, 500).sample, beside.unet(x, 500).sample, rtol=0, atol=1e-4)
    assert not torch.equal(folded.unet(x, 500).sample, bare)
    scored = hotfix("score", base, "recipe.toml", "--stack", "hotfix.lock", "--n", 2, "--json", cwd=project)
    assert scored.returncode == 3
    assert json.loads(scored.stdout)["patches"][0]["id"] == shown["id"]
    assert hotfix("rm", "quarters", cwd=project).returncode == 0
    assert hotfix("status", cwd=project).stdout == "no patches\n"


def test_a_score_is_of_the_pipeline_it_was_given_loaded_as_the_recipe_says(project, base, inline, monkeypatch):
    derived = shutil.copytree(base, project / "alice" / "derived")
    edit(project, "call = ", 'dtype = "bfloat16"\ncall = ')
    seen, prepare = [], scoring.prepare
    monkeypatch.setattr(scoring, "prepare", lambda recipe, denoiser: seen.append(denoiser) or prepare(recipe, denoiser))
    done = inline("score", derived, "recipe.toml", "-n", 1, "--json", cwd=project)
    assert json.loads(done.stdout)["pipeline"] == "derived" and str(project) not in done.stdout
    (denoiser,) = seen
    assert denoiser.dtype == torch.bfloat16 and Path(denoiser.pipe.config["_name_or_path"]) == derived


def test_a_score_loads_bits_and_offload_as_the_recipe_says(project, inline, monkeypatch):
    edit(project, "call = ", "bits = 8\noffload = true\ncall = ")
    asked = []

    def loaded(source, **options):
        asked.append(source)
        raise SystemExit(0)

    monkeypatch.setattr("hotfix.pipeline.load_pipeline", loaded)
    inline("score", f"acme/model@{'0' * 40}", "recipe.toml", cwd=project)
    (source,) = asked
    assert (source.bits, source.offload, source.pipeline, source.revision) == (8, True, "acme/model", "0" * 40)


@pytest.mark.parametrize("change", ['dtype = "bfloat16"\n', "bits = 8\n", "offload = true\n"])
def test_recipes_that_are_loaded_differently_are_not_scored_together(project, base, inline, change):
    (project / "other.toml").write_text((project / "recipe.toml").read_text())
    edit(project, "call = ", f"{change}call = ")
    key = change.split()[0]
    done = inline("score", base, "recipe.toml", "other.toml", cwd=project)
    assert_one_sentence(done, f"the recipes do not agree on base.{key}")


@pytest.mark.parametrize(("verb", "n"), [("build", -5), ("score", 0), ("score", -5)])
def test_fewer_pictures_than_none_are_refused_before_anything_is_loaded(project, base, inline, monkeypatch, verb, n):
    monkeypatch.setattr("hotfix.pipeline.load_pipeline", None)
    words = [verb, *([base] if verb == "score" else []), "recipe.toml", f"-n={n}"]
    assert_one_sentence(inline(*words, cwd=project), f"-n {n}; wanted ")
    assert not (project / "dist").exists()


def test_a_lock_that_does_not_fit_is_refused_before_anything_is_written(project, shop, tmp_path, inline):
    other = tmp_path / "other"
    pico.ddpm(seed=7).save_pretrained(other)
    hotfix("add", *shop.glob("*.safetensors"), cwd=project)
    assert_one_sentence(inline("apply", other, "-o", "patched", cwd=project), "these weights are others")
    assert not (project / "patched").exists()


def test_a_patched_copy_never_overwrites(project, base, shop):
    hotfix("add", next(shop.glob("*.safetensors")), cwd=project)
    assert_one_sentence(hotfix("apply", base, "-o", ".", cwd=project), "is not an empty folder")
    (project / "file").write_text("mine")
    assert_one_sentence(hotfix("apply", base, "-o", "file", cwd=project), "is not an empty folder")
    assert (project / "file").read_text() == "mine"


def test_what_a_killed_copy_left_is_in_no_other(tmp_path, shop, inline):
    pico.ddpm().save_pretrained(tmp_path / "pico")
    inline("add", next(shop.glob("*.safetensors")), cwd=tmp_path)
    (tmp_path / ".patched.partial").mkdir()
    (tmp_path / ".patched.partial" / "stale.json").write_text("{}")
    assert inline("apply", "pico", "-o", "patched", cwd=tmp_path).returncode == 0
    names = [sorted(file.name for file in (tmp_path / folder).iterdir()) for folder in ("pico", "patched")]
    assert names[0] == names[1] and not (tmp_path / ".patched.partial").exists()


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda p: edit(p, "rank = 2", "rnak = 2"), "train.rnak: there is no such key"),
        (lambda p: edit(p, "rank = 2", "rank = "), "is not TOML"),
        (lambda p: (p / "forget" / "one.png").unlink(), "nothing matches"),
        (lambda p: picture(1, side=4).save(p / "forget" / "one.png"), "is 4x4"),
        (lambda p: picture(1, side=8).save(p / "surrogate" / "one.png"), "is the forget picture itself"),
        (lambda p: edit(p, "pipeline = ", 'pipeline = "hotfix:nothing" #'), "no bundled base"),
        (lambda p: edit(p, "pipeline = ", 'pipeline = "acme/model" #'), "needs a commit"),
    ],
    ids=["typo", "no-toml", "missing", "size", "same", "no-base", "no-commit"],
)
def test_bad_recipes_end_in_one_sentence(project, break_it, words, inline):
    break_it(project)
    assert_one_sentence(inline("build", "recipe.toml", cwd=project), words)
    assert not (project / "dist").exists()


def edit(project, old, new):
    text = (project / "recipe.toml").read_text()
    assert old in text
    (project / "recipe.toml").write_text(text.replace(old, new))


@pytest.mark.parametrize("kind", ["truncated", "foreign", "pickle", "schema", "absent"])
def test_bad_patches_end_in_one_sentence(tmp_path, shop, kind, inline):
    good = next(shop.glob("*.safetensors")).read_bytes()
    path = tmp_path / "bad.safetensors"
    words = {"truncated": "said to lie", "foreign": "no hotfix manifest", "pickle": "pickle", "absent": "cannot read"}
    match kind:
        case "truncated":
            path.write_bytes(good[:-10])
        case "foreign":
            save_file({"a": torch.zeros(1)}, path)
        case "pickle":
            torch.save({"a": torch.zeros(1)}, path)
        case "schema":
            path.write_bytes(good.replace(rb"\"schema_version\":1", rb"\"schema_version\":9"))
            words["schema"] = "schema 9"
    run = hotfix if kind == "truncated" else inline
    for verb in ("show", "verify", "add"):
        assert_one_sentence(run(verb, path, cwd=tmp_path), words[kind])
    assert not (tmp_path / "hotfix.lock").exists()


@pytest.mark.parametrize("arguments", [["show", "--json"], ["verify", "absent.safetensors"]], ids=["show", "verify"])
def test_a_stdout_that_takes_no_more_is_no_traceback(tmp_path, shop, arguments):
    """As `head` leaves it, nothing is said of it; where a disk is full, one sentence. The exit code is never 0."""
    command = [HOTFIX, *arguments, next(shop.glob("*.safetensors"))]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed, Path("/dev/full").open("w") as disk:
        pipe, full = (
            subprocess.run(command, cwd=tmp_path, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60)
            for out in (closed, disk)
        )
    assert (pipe.returncode, full.returncode) == (1, 1)
    assert "Traceback" not in pipe.stderr + full.stderr and "stdout" not in pipe.stderr
    assert_one_sentence(full, "cannot write to stdout: No space left on device")


def test_words_that_stdout_has_no_letters_for_are_no_traceback(tmp_path, shop):
    hotfix("add", next(shop.glob("*.safetensors")), cwd=tmp_path)
    done = hotfix("log", cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert_one_sentence(done, "stdout is ascii, which has no '\\u2026'")


DEEP = f"a = {'[' * 3000}{']' * 3000}\n"
ROW = 'lock-version = 1\n[[patches]]\nname = "a"\nversion = "1"\nid = "x"\nsource = "a\\u0000b"\n'


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["status", "--lock", "deep.toml"], "deep.toml is not a hotfix lock"),
        (["build", "deep.toml"], "deep.toml is not TOML"),
        (["status", "--lock", "nul.toml"], "embedded null byte"),
        (["sync", "http://127.0.0.1:1", "--every", "nan"], "--every is nan; wanted seconds"),
        (["sync", "http://127.0.0.1:1", "--every", "inf"], "--every is inf; wanted seconds"),
    ],
    ids=" ".join,
)
def test_what_no_user_means_ends_in_one_sentence(tmp_path, inline, words, found):
    (tmp_path / "deep.toml").write_text(DEEP)
    (tmp_path / "nul.toml").write_text(ROW)
    assert_one_sentence(inline(*words, cwd=tmp_path), found)


@pytest.mark.parametrize("epoch", ["abc", "1e9", str(10**30)])
def test_a_time_that_is_none_is_refused_and_nothing_written(tmp_path, shop, inline, monkeypatch, epoch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    done = inline("add", next(shop.glob("*.safetensors")), cwd=tmp_path)
    assert_one_sentence(done, f"SOURCE_DATE_EPOCH is '{epoch}'; wanted whole seconds since 1970")
    assert not (tmp_path / "hotfix.lock").exists()


FORGED = "\x1b[2K\nok   evil.safetensors  signed: root"


def test_no_words_of_a_patch_reach_the_terminal_raw(tmp_path, base, shop, inline, monkeypatch):
    """Neither as an error of its own, nor in a row, nor in a list of what others have published."""
    good = Patch.load(next(shop.glob("*.safetensors")))
    said = good.manifest.base.model_copy(update={"repo": f"acme{FORGED}"})
    bad = Patch(good.manifest.model_copy(update={"base": said}).text(), good.entries).save(tmp_path)
    done = inline("verify", bad, "--base", base, cwd=tmp_path)
    row = Line("acme/face", ("1.0.0",), "1.0.0", "face", f"acme{FORGED}", (f"mouth{FORGED}",))
    monkeypatch.setattr("hotfix.published.lines", lambda *_: [row, Line("acme/b", problem=f"bad{FORGED}")])
    (tmp_path / f"a{FORGED}").write_bytes(b"nothing")
    listed, verified = inline("list", "acme"), inline("verify", tmp_path / f"a{FORGED}", cwd=tmp_path)
    assert_one_sentence(done, "was made for acme [2K ok   evil.safetensors  signed: root")
    for out, lines in ((done.stdout, 1), (done.stderr, 3), (listed.stdout, 2), (verified.stdout, 1)):
        assert "\x1b" not in out and len(out.splitlines()) == lines


def test_what_follows_an_at_is_a_commit_and_of_the_hub(tmp_path, monkeypatch):
    for source in ("acme/base@main", f"acme/base@{'a' * 41}", "acme/base@", "acme/base"):
        with pytest.raises(HotfixError, match="as a Hub id it needs a commit"):
            pipeline_of(source)
    with pytest.raises(HotfixError, match="has no revision 'main'"):
        pipeline_of("hotfix:flags@main")
    pico.ddpm().save_pretrained(tmp_path / f"mine@{'b' * 40}")
    monkeypatch.chdir(tmp_path)
    assert str(pipeline_of(f"mine@{'b' * 40}").config["_name_or_path"]) == f"mine@{'b' * 40}"
    assert named(str(tmp_path / "no@folder")) == (str(tmp_path / "no@folder"), "")
    with pytest.raises(HotfixError, match="has no revision"):
        load_pipeline(f"mine@{'b' * 40}", revision="c" * 40)


def test_verify_names_the_bad_one_among_good_ones(tmp_path, shop):
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    good = sorted(shop.glob("*.safetensors"))
    done = hotfix("verify", *good, "bad.safetensors", "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert [row["ok"] for row in json.loads(done.stdout)] == [True] * len(good) + [False]


def test_removing_what_is_not_there_changes_nothing(tmp_path, shop):
    hotfix("add", *shop.glob("*.safetensors"), cwd=tmp_path)
    before = (tmp_path / "hotfix.lock").read_bytes()
    assert_one_sentence(hotfix("rm", "quarters-1", "nothing", cwd=tmp_path), "nothing is not in")
    assert (tmp_path / "hotfix.lock").read_bytes() == before


def test_a_file_swapped_under_a_lock_is_noticed(tmp_path, shop):
    one, two = sorted(shop.glob("*.safetensors"))[:2]
    (tmp_path / "p.safetensors").write_bytes(one.read_bytes())
    hotfix("add", "p.safetensors", two, cwd=tmp_path)
    (tmp_path / "p.safetensors").write_bytes(two.read_bytes())
    done = hotfix("status", "--json", cwd=tmp_path)
    assert_one_sentence(done, "as hotfix.lock says")
    assert [row["ok"] for row in json.loads(done.stdout)] == [False, True]


def test_usage_errors_exit_with_2(tmp_path):
    assert hotfix("frobnicate", cwd=tmp_path).returncode == 2
    assert hotfix("build", cwd=tmp_path).returncode == 2


def test_a_full_disk_leaves_nothing(project):
    """A quota of one page for every file stands in for a full disk: the write itself fails, not a mock."""
    limited = ["prlimit", "--fsize=4096", str(HOTFIX), "build", "recipe.toml", "--n", "0"]
    done = subprocess.run(limited, cwd=project, capture_output=True, text=True, timeout=300)
    assert_one_sentence(done, "cannot write")
    assert not list((project / "dist").iterdir())


def test_a_full_disk_leaves_no_copy(tmp_path, shop, inline):
    pico.ddpm().save_pretrained(tmp_path / "pico")
    inline("add", next(shop.glob("*.safetensors")), cwd=tmp_path)
    before = sorted(tmp_path.iterdir())
    limited = ["prlimit", "--fsize=20000", str(HOTFIX), "apply", "pico", "-o", "patched"]
    done = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert_one_sentence(done, "cannot write patched")
    assert sorted(tmp_path.iterdir()) == before


def test_ctrl_c_in_a_build_leaves_only_a_checkpoint(project, base):
    (project / "recipe.toml").write_text(RECIPE.format(base=base, steps=4000))
    running = subprocess.Popen(
        [HOTFIX, "build", "recipe.toml", "--n", "0"],
        cwd=project,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    deadline = time.monotonic() + 120
    while not list((project / "dist").glob("*.state")) and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, words = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in words and "error: interrupted" in words
    assert [path.suffix for path in (project / "dist").iterdir()] == [".state"]
