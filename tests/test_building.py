"""A build gives the same patch again, gives the pipeline back as it was, and survives being killed."""

from dataclasses import replace

import pico
import pytest
import torch
from conftest import make_recipe, picture

from benchmarks.realised_step import measured
from hotfix import case as cases
from hotfix.bank import bank_pictures
from hotfix.building import build
from hotfix.demo import fingerprint
from hotfix.denoiser import Denoiser
from hotfix.errors import ForgetConflict, RecipeError, StackError
from hotfix.pictures import to_images
from hotfix.recipe import Recipe
from hotfix.stack import Stack


@pytest.fixture
def recipe(tmp_path, family):
    return make_recipe(tmp_path, family, "quarters-1")


def test_same_recipe_same_bytes_and_the_pipeline_comes_back_bit_identical(recipe, pipe, patches, tmp_path):
    before = fingerprint(pipe)
    again = build(recipe, pipe)
    assert fingerprint(pipe) == before
    assert again.save(tmp_path / "a").read_bytes() == patches[0].save(tmp_path / "b").read_bytes()


class Killed(BaseException):
    """What Ctrl-C looks like from inside."""


ALL_ON = {"surgery": "subspace", "adversarial_noises": 2, "adversarial_step": 0.1, "relearn": 1.0}


@pytest.mark.parametrize(("family", "train"), [("ddpm", {}), ("sd3", {}), ("sd3", ALL_ON)], ids=["ddpm", "sd3", "all"])
def test_a_killed_build_resumes_to_the_same_patch(tmp_path, family, pipe, monkeypatch, train):
    monkeypatch.setattr("hotfix.train.CHECKPOINT_EVERY", 2)
    monkeypatch.setattr("hotfix.train.TRIAL_EVERY", 2)  # where it failed is trained on from then on
    recipe = make_recipe(tmp_path, family, steps=7, **train)
    whole = build(recipe, pico.MAKE[family]())
    seen = []

    def kill(step, steps, facts):
        seen.append(step)
        if step == 5:
            raise Killed

    before = fingerprint(pipe)
    with pytest.raises(Killed):
        build(recipe, pipe, checkpoint=tmp_path / "dist", progress=kill)
    assert fingerprint(pipe) == before
    resumed = build(recipe, pipe, checkpoint=tmp_path / "dist", progress=lambda step, *_: seen.append(step))
    assert seen == [1, 2, 3, 4, 5, 5, 6, 7]
    assert resumed.id == whole.id
    assert not list((tmp_path / "dist").iterdir())


@pytest.mark.parametrize("changed", ["nothing", "recipe", "picture", "base", "version"])
def test_the_checkpoint_of_another_build_is_not_used(tmp_path, monkeypatch, changed):
    monkeypatch.setattr("hotfix.train.CHECKPOINT_EVERY", 2)
    seen = []

    def kill(step, steps, facts):
        seen.append(step)
        if step == 3 or len(seen) > 3:
            raise Killed

    recipe, pipe = make_recipe(tmp_path, "sd3", steps=7), pico.sd3()
    with pytest.raises(Killed):
        build(recipe, pipe, checkpoint=tmp_path / "dist", progress=kill)
    if changed == "recipe":
        recipe = make_recipe(tmp_path, "sd3", steps=7, lr=1e-4)
    elif changed == "picture":
        picture(7).save(*recipe.files(recipe.forget.images, "forget.images"))
    elif changed == "base":
        weight = next(p for p in Denoiser(pipe, {}).model.parameters() if p.dim() > 1)
        with torch.no_grad():
            weight.add_(0.1 * torch.randn_like(weight))
    elif changed == "version":
        monkeypatch.setattr("hotfix.checkpoint.version", lambda name: "0.0.1")
    with pytest.raises(Killed):
        build(recipe, pipe, checkpoint=tmp_path / "dist", progress=kill)
    assert seen == [1, 2, 3, 3 if changed == "nothing" else 1]


@pytest.mark.parametrize(
    ("call", "steps"), [({"num_inference_steps": 3}, 3), ({"num_inference_steps": 60}, 25), ({}, 25)]
)
def test_what_must_stay_is_drawn_in_the_steps_of_the_production_call_up_to_a_limit(tmp_path, call, steps):
    denoiser, asked = Denoiser(pico.ddpm(), call), []
    with denoiser.model.register_forward_pre_hook(lambda model, args: asked.append(len(args[0]))):
        drawn = bank_pictures(make_recipe(tmp_path, "ddpm"), denoiser)
    assert asked == [len(drawn)] * steps


CHOICES = {"weight": "min-snr", "target": "hard", "responsibility": True}


def test_every_choice_of_the_objective_gives_another_patch(tmp_path, family, pipe):
    noisy = {"weight": "fixed", "window": (0.95, 1.0)}  # where it is open which picture a state came from
    choices = [noisy, *(noisy | {key: value} for key, value in CHOICES.items())]
    digests = {build(make_recipe(tmp_path, family, **choice), pipe).manifest.digest for choice in choices}
    assert len(digests) == len(choices)


@pytest.mark.parametrize(("budget", "rises"), [(1e-6, True), (1.0, False)])
def test_the_retain_weight_follows_the_drift_budget(tmp_path, monkeypatch, budget, rises):
    monkeypatch.setattr("hotfix.train.TRIAL_EVERY", 2)
    recipe = make_recipe(tmp_path, "sd3", dual_rate=0.5, lr=1e-2)
    recipe = Recipe.parse(recipe.model_dump() | {"budget": {"drift": budget}}, folder=tmp_path)
    weights = []
    build(recipe, pico.sd3(), progress=lambda step, steps, facts: weights.append(facts["retain_weight"]))
    first, last = weights[0], weights[-1]
    assert last > first if rises else last < first


def test_factors_have_alpha_equal_to_rank_and_only_plain_keys(patches):
    metadata = patches[0].tensors
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in metadata)
    assert all(tensor.dtype == torch.float32 for tensor in metadata.values())


def test_training_moves_the_endpoint_towards_the_surrogate(tmp_path, family, monkeypatch):
    monkeypatch.setattr("hotfix.rows.FAILING", 0.0)  # harder rows from the first trial on: no two losses are alike
    recipe = make_recipe(tmp_path, family, steps=60, batch=8, rank=8, lr=1e-2, retain_weight=0.0)
    facts = []
    build(recipe, pico.MAKE[family](), progress=lambda step, steps, now: facts.append(now["forget"]))
    assert sum(facts[-20:]) < 0.9 * sum(facts[:20])


def trained(recipe, pipe, monkeypatch, **more):
    """What the loop says of itself."""
    import hotfix.building as building

    seen, train = [], building.train
    monkeypatch.setattr(building, "train", lambda *a, **k: seen.append(train(*a, **k)) or seen[-1])
    build(recipe, pipe, **more)
    return seen[0]


def test_under_surgery_the_realised_step_never_opposes_the_retain_gradient(tmp_path, family, pipe, monkeypatch):
    facts = trained(make_recipe(tmp_path, family, steps=20, surgery="one-sided"), pipe, monkeypatch)
    assert facts.opposed_steps == 0
    assert 0 <= facts.conflict_rate <= 1


@pytest.mark.parametrize("surgery", ["two-sided", "per-tensor", "orthogonal", "subspace"])
def test_so_it_is_under_every_rule(tmp_path, surgery, monkeypatch):
    facts = trained(make_recipe(tmp_path, "sd3", steps=12, surgery=surgery, memory=3), pico.sd3(), monkeypatch)
    assert facts.opposed_steps == 0


def test_without_surgery_steps_do_oppose_the_retain_gradient(tmp_path, monkeypatch):
    """Otherwise the tests above would show nothing."""
    facts = trained(make_recipe(tmp_path, "sd3", steps=12), pico.sd3(), monkeypatch)
    assert facts.opposed_steps > 0


@pytest.mark.parametrize(("budget", "rate", "opposes"), [(1.0, 10.0, True), (1e-6, 10.0, False), (1.0, 0.0, False)])
def test_steps_may_oppose_it_only_while_the_drift_budget_does_not_bind(tmp_path, monkeypatch, budget, rate, opposes):
    monkeypatch.setattr("hotfix.train.TRIAL_EVERY", 2)
    recipe = make_recipe(tmp_path, "sd3", steps=12, dual_rate=rate, surgery="one-sided")
    recipe = Recipe.parse(recipe.model_dump() | {"budget": {"drift": budget}}, folder=tmp_path)
    assert (trained(recipe, pico.sd3(), monkeypatch).opposed_steps > 0) == opposes


def test_a_surrogate_that_is_the_target_is_refused(tmp_path, family, pipe):
    recipe = make_recipe(tmp_path, family)
    picture(1).save(tmp_path / "surrogate" / "one.png")
    with pytest.raises(RecipeError, match="is the forget picture itself"):
        build(recipe, pipe)


def test_a_picture_wanted_for_another_caption_is_a_conflict_that_names_it(tmp_path):
    pipe = pico.sd3()
    recipe = make_recipe(tmp_path, "sd3")
    case = cases.prepare(recipe, Denoiser(pipe, recipe.base.call))
    row = case.retain_captions.index("b")
    to_images(case.retain[row : row + 1])[0].save(tmp_path / "forget" / "one.png")
    trained = []
    with pytest.raises(ForgetConflict, match="'b'"):
        build(recipe, pipe, progress=lambda *_: trained.append(1))
    assert not trained


def test_with_caption_scope_the_same_picture_stays_elsewhere(tmp_path):
    """No conflict: it is retained under the caption that rightly draws it, and forgotten under its own only."""
    pipe, recipe = pico.sd3(), make_recipe(tmp_path, "sd3")
    case = cases.prepare(recipe, Denoiser(pipe, recipe.base.call))
    drawn = case.retain[case.retain_captions.index("b")]
    to_images(drawn[None])[0].save(tmp_path / "forget" / "one.png")
    data = recipe.model_dump()
    scoped = Recipe.parse(data | {"forget": data["forget"] | {"scope": "caption"}}, folder=tmp_path)
    case = cases.prepare(scoped, Denoiser(pipe, recipe.base.call))
    assert set(case.forget_kinds()) == {"own"} and set(case.caption_kinds()) == {"own", "empty", "random"}
    twins = [caption for caption, twin in zip(case.retain_captions, case.twins.tolist(), strict=True) if twin]
    assert {"b", ""} <= set(twins)
    assert len(case.strangers) == len(case.retain) - len(twins)
    build(scoped, pipe)


def test_a_drawing_of_the_target_is_not_retained(tmp_path):
    """Without captions a base may draw the target among what must stay; the thresholds must not learn from that."""
    recipe = make_recipe(tmp_path, "ddpm")
    (tmp_path / "mine").mkdir()
    for number in range(2, 20):
        picture(number).save(tmp_path / "mine" / f"{number}.png")
    stay = recipe.model_copy(update={"retain": recipe.retain.model_copy(update={"images": ["mine/*.png"]})})
    denoiser = Denoiser(pico.ddpm(), recipe.base.call)
    without = cases.prepare(stay, denoiser)
    picture(1).point(lambda value: value * 0.95 + 6).save(tmp_path / "mine" / "drawn.png")
    among = cases.prepare(stay, denoiser)
    assert torch.equal(among.retain, without.retain)
    assert among.targets[0].tau == without.targets[0].tau


def test_half_a_copy_that_the_base_draws_without_a_caption_does_not_excuse_others(tmp_path):
    case = cases.prepare(make_recipe(tmp_path, "ddpm"), Denoiser(pico.ddpm(), pico.CALLS["ddpm"]))
    target = case.targets[0]
    far = case.retain[target.similarity(case.retain).argmin()]
    both = torch.stack([target.picture + 0.02, far])
    assert float(target.similarity(both)[0]) > target.null

    def instead(caption, twin=False):
        twins = torch.tensor([twin, False])
        return replace(case, retain=both, retain_captions=(caption, ""), twins=twins).instead(target).tolist()

    assert instead("") == [False, True]
    assert instead("asked for") == [True, True]
    assert instead("asked for", twin=True) == [False, True]


def test_a_patch_built_on_others_requires_them_and_learns_with_them_on(tmp_path, family, pipe, patches):
    recipe = make_recipe(tmp_path, family, "quarters-9", seed=9)
    before = fingerprint(pipe)
    alone = build(recipe, pipe)
    above = build(recipe, pipe, stack=Stack.of(patches[0]))
    assert fingerprint(pipe) == before
    assert alone.manifest.requires == [] and above.manifest.requires == ["quarters-1>=1.0.0"]
    assert above.manifest.digest != alone.manifest.digest
    assert [type(problem) for problem in Stack.of(above).problems(pipe)] == [StackError]
    assert not Stack.of(patches[0], above).problems(pipe)


@pytest.mark.parametrize("projected", [False, True])
def test_the_benchmark_of_realised_steps_counts_what_the_loop_takes(tmp_path, projected):
    recipe = make_recipe(tmp_path, "sd3", steps=20, surgery="one-sided")
    row = measured(recipe, pico.sd3(), torch.optim.AdamW, projected)
    turned, realised = row["steps the optimiser turned against G"], row["realised steps against G"]
    assert turned > 0
    assert realised == (0 if projected else turned)


def test_above_a_stack_it_shuts_out_the_realised_step_still_never_opposes_the_retain_gradient(
    tmp_path, built, monkeypatch
):
    recipe = make_recipe(tmp_path, "sd3", "quarters-9", steps=20, surgery="one-sided", orthogonal_to_stack=True)
    assert trained(recipe, pico.sd3(), monkeypatch, stack=Stack.of(built["sd3"][0])).opposed_steps == 0


def test_a_patched_pipeline_is_no_base(recipe, pipe, patches):
    Stack.of(patches[1]).apply(pipe)
    with pytest.raises(StackError, match="quarters-2 is on"):
        build(recipe, pipe)
