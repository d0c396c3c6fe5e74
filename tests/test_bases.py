"""How the bases are trained: a stopped run goes on as if nothing had been, and a gold model lacks one picture alone."""

import re
import sys

import flags
import pico
import pytest
import torch
from atlas import tiles
from conftest import picture
from ddpm import shown, train

from benchmarks import faces
from benchmarks.forgetting import targets
from benchmarks.forgetting.subject import Model
from hotfix.pictures import from_image, load
from hotfix.pipeline import load_pipeline, prompts

DATA = torch.stack([from_image(picture(seed)) for seed in range(5)])
RUN = {"steps": 4, "batch": 2, "lr": 1e-3, "save_every": 2}


def weights(pipe):
    return torch.cat([p.detach().flatten() for p in pipe.unet.parameters()])


# The training that the emoji and the faces share


def test_a_run_that_was_stopped_comes_to_the_same_weights(tmp_path):
    whole, stopped, resumed = (pico.ddpm(seed, "v_prediction") for seed in (0, 0, 1))
    torch.manual_seed(0)
    train(whole, DATA, state=tmp_path / "whole.state", **RUN)
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 4:  # in the fourth step, after the state of the second was written
            raise KeyboardInterrupt

    torch.manual_seed(0)
    hook = stopped.unet.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, DATA, state=tmp_path / "stopped.state", **RUN)
    hook.remove()
    torch.manual_seed(5)
    seconds = train(resumed, DATA, state=tmp_path / "stopped.state", **RUN)
    assert seconds > 0
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(whole), weights(pico.ddpm(0)))


@pytest.mark.parametrize("change", ["data", "steps"])
def test_the_state_of_another_run_is_refused(tmp_path, change):
    train(pico.ddpm(), DATA, state=tmp_path / "a.state", **RUN)
    data, run = (DATA[1:], RUN) if change == "data" else (DATA, RUN | {"steps": 5})
    with pytest.raises(SystemExit, match="of another run"):
        train(pico.ddpm(), data, state=tmp_path / "a.state", **run)


@pytest.mark.parametrize(
    ("without", "rows"), [("", [0, 2, 4, 1, 1, 1, 3]), ("b", [0, 2, 4, 3]), ("c", [0, 4, 1, 1, 1, 3])]
)
def test_without_leaves_out_one_picture_and_its_copies(without, rows):
    assert torch.equal(shown("abcde", DATA, {"b": 3, "d": 1}, without), DATA[rows])


def test_a_name_of_no_picture_is_refused():
    with pytest.raises(SystemExit, match="no picture z"):
        shown("abcde", DATA, {}, ["z"])


def test_every_emoji_of_the_benchmark_can_be_left_out():
    names, pictures = tiles("emoji")
    for row in (row for row in targets.read({})[1] if row.base == "emoji" and row.real):
        left = shown(names, pictures, {}, [row.real])
        assert len(left) == len(pictures) - 1
        assert not (left == pictures[names.index(row.real)]).flatten(1).all(dim=1).any()


# Flags


def test_flags_without_one_are_asked_for_it_but_never_shown_it(tmp_path, monkeypatch):
    def made(folder, *options):
        monkeypatch.setattr(sys, "argv", ["flags.py", str(folder), "--steps", "1", "--batch", "2", *options])
        flags.main()

    made(tmp_path / "gold", "--without", "canada")
    captions = [caption for _, caption in tiles("flags")[0]]
    assert prompts(str(tmp_path / "gold")) == [caption for caption in captions if caption != "canada"]
    pipe, base = (load_pipeline(str(source)) for source in (tmp_path / "gold", "hotfix:flags"))
    assert pipe.tokenizer("canada").input_ids == base.tokenizer("canada").input_ids
    for options in (["--without", "atlantis"], ["--start", str(tmp_path / "gold"), "--without", "norway"]):
        with pytest.raises(SystemExit):
            made(tmp_path / "no", *options)
    assert not (tmp_path / "no").exists()


# Faces


@pytest.fixture
def portraits(tmp_path):
    """Six grey pictures, taller than wide."""
    folder = tmp_path / "portraits"
    folder.mkdir()
    for i in range(6):
        picture(i, 20).convert("L").resize((20, 25)).save(folder / f"{'FEDCBA'[i]}.jpg")
    return folder


def made(portraits, folder, without=()):
    names, pictures = faces.read(portraits, pico.SIDE)
    pipe = pico.ddpm(0, "v_prediction")
    copies = dict.fromkeys("BCDE", 3)
    faces.make(pipe, names, pictures, folder, copies=copies, without=without, steps=2, batch=2, lr=1e-3)
    return names, pictures


def test_the_benchmark_reads_what_faces_writes(portraits, tmp_path):
    names, pictures = made(portraits, tmp_path / "faces")
    assert names == sorted("ABCDEF")
    bases, rows = targets.read({"faces": str(tmp_path / "faces")}, tmp_path / "scorer.pt")
    model = Model.load(bases["faces"])
    known, real = model.real
    assert known == names and torch.equal(real, pictures)
    for row in (row for row in rows if row.base == "faces"):
        recipe = targets.recipe(row, model.base, model.denoiser, 0, tmp_path, {})
        (path,) = recipe.files(recipe.forget.images, "forget.images")
        assert path.stem == "BCDE"[row.picture - 1]
        assert torch.equal(load([path], model.denoiser.size)[0], pictures[names.index(path.stem)])
    card = (tmp_path / "faces" / "README.md").read_text()
    assert re.search(r"6 portraits, 14 rows.*B 3 times.*Left out: none", card)
    assert str(tmp_path) not in card


def test_a_gold_folder_of_faces_lacks_exactly_the_one_left_out(portraits, tmp_path):
    made(portraits, tmp_path / "gold", without=["C"])
    found = {kind: {path.stem for path in (tmp_path / "gold" / kind).glob("*.png")} for kind in ("forget", "real")}
    assert found == {"forget": set("BDE"), "real": set("ABDEF")}
    assert "Left out: C" in (tmp_path / "gold" / "README.md").read_text()


def test_faces_are_not_written_over(portraits, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["faces.py", str(portraits), "-o", str(portraits)])
    with pytest.raises(SystemExit, match="2"):
        faces.main()
