"""On the bundled Stable Diffusion 3 of real flags: it draws them, a shipped patch corrects one, and stock loads it."""

import filecmp
import json
from pathlib import Path

import pytest
import torch
from atlas import tiles

from hotfix.case import prepare
from hotfix.demo import fingerprint
from hotfix.denoiser import Denoiser
from hotfix.errors import ForgetConflict, StackError
from hotfix.interfering import interference
from hotfix.patch import B, Patch, digest, from_torch
from hotfix.pictures import to_images
from hotfix.pipeline import load_pipeline, prompts
from hotfix.recipe import Recipe
from hotfix.similarity import nearest
from hotfix.stack import Stack, applied

ROOT = Path(__file__).parents[1]
FLAGS = sorted(path.parent for path in ROOT.glob("patches/*-20*/*.safetensors"))
FEW = {"prompts": prompts("hotfix:flags")[::16], "size": 16}  # what must stay is measured by benchmarks/flags.py
CALL = Recipe.load(FLAGS[0] / "recipe.toml").base.call


@pytest.fixture(scope="module")
def flags():
    return load_pipeline("hotfix:flags")


@pytest.fixture(scope="module")
def patches():
    return [Patch.load(next(folder.glob("*.safetensors"))) for folder in FLAGS]


@pytest.fixture(scope="module")
def real():
    """Captions and real flags, (N, 3, 32, 32)."""
    entries, pictures = tiles("flags")
    return [caption for _, caption in entries], pictures


def test_every_eighth_prompt_draws_its_real_flag(flags, real):
    captions, pictures = real
    rows = list(range(0, len(captions), 8))
    drawn = Denoiser(flags, CALL).draw([captions[i] for i in rows], rows)
    found = pictures[nearest(drawn, pictures)]
    right = (found - pictures[rows]).square().mean(dim=(1, 2, 3)) < 0.01  # exact duplicates merged
    assert right.float().mean() >= 0.95


def test_prompts_txt_lists_the_captions_it_was_trained_on(real):
    assert prompts("hotfix:flags") == real[0]


def test_all_published_patches_on_at_once_come_off_without_a_trace(flags, patches):
    original = fingerprint(flags)
    stack = Stack.of(*patches)
    stack.apply(flags)
    assert [entry.state for entry in applied(flags)] == ["on"] * len(FLAGS)
    stack.remove(flags)
    assert fingerprint(flags) == original


@pytest.mark.parametrize("folder", FLAGS, ids=lambda folder: folder.name)
def test_a_shipped_patch_draws_the_current_flag(flags, folder):
    recipe = Recipe.load(folder / "recipe.toml")
    denoiser = Denoiser(flags, recipe.base.call)
    few = recipe.model_copy(update={"retain": recipe.retain.model_copy(update=FEW)})
    target = prepare(few, denoiser).targets[0]
    own = recipe.forget.captions * 4
    assert target.returned(denoiser.draw(own, range(4))).all()
    with Stack.of(Patch.load(next(folder.glob("*.safetensors")))).on(flags):
        drawn = denoiser.draw(own, range(4))
    assert not target.returned(drawn).any()
    known = torch.cat([target.picture[None], target.surrogates])
    assert (nearest(drawn, known) == 1).all()


@pytest.mark.parametrize("folder", FLAGS, ids=lambda folder: folder.name)
def test_a_shipped_patch_is_small_and_fits(flags, patches, folder):
    patch = Patch.load(next(folder.glob("*.safetensors")))
    Stack.of(patch).check(flags)
    base = sum(path.stat().st_size for path in (ROOT / "hotfix/bases/flags").rglob("*") if path.is_file())
    assert next(folder.glob("*.safetensors")).stat().st_size <= 0.05 * base
    assert json.loads((folder / "report.json").read_text())["patches"][0]["id"] == patch.id


def test_stock_diffusers_draws_the_same_picture_without_hotfix(patches):
    path = next(FLAGS[0].glob("*.safetensors"))
    ours, stock = load_pipeline("hotfix:flags"), load_pipeline("hotfix:flags")
    stock.load_lora_weights(str(path.parent), weight_name=path.name, use_safetensors=True)
    caption = Recipe.load(FLAGS[0] / "recipe.toml").forget.captions * 2
    bare = Denoiser(ours, CALL).draw(caption, [0, 1])
    Stack.of(patches[0]).apply(ours)
    patched = Denoiser(ours, CALL).draw(caption, [0, 1])
    torch.testing.assert_close(Denoiser(stock, CALL).draw(caption, [0, 1]), patched, rtol=0, atol=2e-3)
    assert (patched - bare).abs().max() > 0.5


@pytest.mark.parametrize(("code", "wrong", "right"), [("mf", "saint martin", "sint maarten")])
def test_a_flag_that_is_right_for_another_country_is_a_conflict(flags, real, tmp_path, code, wrong, right):
    captions, pictures = real
    (tmp_path / "forget").mkdir()
    to_images(pictures[captions.index(wrong)][None])[0].save(tmp_path / "forget" / f"{code}.png")
    recipe = Recipe.parse(
        {
            "name": "saint-martin",
            "base": {"pipeline": "hotfix:flags", "call": CALL},
            "forget": {"images": ["forget/*.png"], "captions": [wrong]},
            "surrogate": {"kind": "nearest"},
            "retain": FEW | {"prompts": [*FEW["prompts"], right]},
        },
        folder=tmp_path,
    )
    with pytest.raises(ForgetConflict, match=right):
        prepare(recipe, Denoiser(flags, CALL))


def test_the_demo_is_the_published_mauritania_patch():
    demo, published = ROOT / "hotfix/bases/demo", ROOT / "patches/mauritania-2017"
    for name in ("recipe.toml", "forget/mr.png", "surrogate/mr.png"):
        assert filecmp.cmp(demo / name, published / name, shallow=False)


def undone(patch: Patch) -> Patch:
    """A patch that takes another one back: the same factors, one of each pair negated."""
    entries = from_torch({key: -t if key.endswith(B) else t for key, t in patch.tensors.items()})
    manifest = patch.manifest.model_copy(update={"name": "undone", "digest": digest(entries)})
    return Patch(manifest.text(), entries)


def test_a_stack_says_which_patch_weakens_which(flags, patches):
    chosen = {patch.name: (patch, folder) for patch, folder in zip(patches, FLAGS, strict=True)}
    iraq, syria = (chosen[name][0] for name in ("iraq-2008", "syria-2025"))
    recipes = []
    for name in ("iraq-2008", "syria-2025"):
        recipe = Recipe.load(chosen[name][1] / "recipe.toml")
        few = recipe.retain.model_copy(update=FEW)
        own = recipe.forget.model_copy(update={"scope": "caption"})  # fewer kinds of caption to draw
        recipes.append(recipe.model_copy(update={"retain": few, "forget": own}))
    original = fingerprint(flags)
    found = interference(flags, recipes, stack=Stack.of(iraq, syria, undone(iraq)), n=4)
    weak, fine = found.patches
    assert weak.weakened_by == ["undone"] and weak.together == weak.bare
    assert not fine.weakened and fine.bare.k >= 4 and fine.alone.k == fine.together.k == weak.alone.k == 0
    assert found.unmeasured == ["undone"] and found.conflicts[0].startswith("iraq-2008 is weakened by undone: ")
    assert weak.drift > 0 and fine.drift > 0
    assert fingerprint(flags) == original and not applied(flags)
    with pytest.raises(StackError, match="wanted two patches or more"):
        interference(flags, recipes[:1], stack=Stack.of(iraq))
