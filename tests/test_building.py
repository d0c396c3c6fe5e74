"""A build gives the same patch again, gives the pipeline back as it was, and survives being killed."""

from dataclasses import replace

import pico
import pytest
import torch
from conftest import make_recipe, picture
from patching import denoiser as network
from patching import random_patch
from peft import LoraConfig
from peft.functional import inject_adapter_in_model
from torch import nn

from benchmarks.realised_step import measured
from hotfix import building, lora, relations
from hotfix import case as cases
from hotfix.bank import MOST_PROMPTS, bank_captions, bank_pictures
from hotfix.beside import innermost
from hotfix.building import build
from hotfix.demo import fingerprint
from hotfix.denoiser import Denoiser
from hotfix.errors import BaseMismatch, ForgetConflict, HotfixError, RecipeError, StackError
from hotfix.pictures import from_image, to_images
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


def test_a_surrogate_that_is_another_target_is_refused(tmp_path, family, pipe):
    """Otherwise one patch would learn to draw each in the place of the other."""
    recipe = make_recipe(tmp_path, family)
    for kind, numbers in (("forget", (1, 2)), ("surrogate", (2, 1))):
        for name, number in zip(("one", "two"), numbers, strict=True):
            picture(number).save(tmp_path / kind / f"{name}.png")
    with pytest.raises(RecipeError, match="surrogate 2 is forget picture 1 itself"):
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


def drawn_as(monkeypatch, *images):
    """A base that draws these without a caption."""
    pictures = torch.stack([from_image(image) for image in images])
    monkeypatch.setattr(cases, "bank_pictures", lambda recipe, denoiser: pictures)
    monkeypatch.setattr(cases, "bank_captions", lambda recipe, denoiser: [""] * len(pictures))
    monkeypatch.setattr(cases, "drawn_captions", lambda recipe, denoiser: [""] * len(pictures))


def test_a_drawing_of_the_target_is_not_retained(tmp_path, monkeypatch):
    """Without captions a base may draw the target among what must stay; the thresholds must not learn from that."""
    recipe, others = make_recipe(tmp_path, "ddpm"), [picture(number) for number in range(2, 20)]
    denoiser = Denoiser(pico.ddpm(), recipe.base.call)
    drawn_as(monkeypatch, *others)
    without = cases.prepare(recipe, denoiser)
    drawn_as(monkeypatch, *others, faded(1, 0.95))
    among = cases.prepare(recipe, denoiser)
    assert torch.equal(among.retain, without.retain)
    assert among.targets[0].tau == without.targets[0].tau


def test_a_base_that_draws_nothing_but_the_target_ends_in_a_sentence(tmp_path, monkeypatch):
    drawn_as(monkeypatch, *[picture(1)] * 3)
    with pytest.raises(RecipeError, match="each of the 3 pictures of what must stay is a forget picture"):
        build(make_recipe(tmp_path, "ddpm"), pico.ddpm())


# The recipe's own pictures of what must stay


def faded(number, left):
    return picture(number).point(lambda value: value * left + 128 * (1 - left))


def with_given(recipe, folder, *images, **retain):
    """The same recipe, and pictures of its author that must stay."""
    (folder / "mine").mkdir(exist_ok=True)
    for i, image in enumerate(images):
        image.save(folder / "mine" / f"{i:02}.png")
    data, named = recipe.model_dump(), {"images": ["mine/*.png"]} if images else {}
    return Recipe.parse(data | {"retain": data["retain"] | named | retain}, folder=folder)


def test_where_there_are_captions_they_are_kept_beside_what_the_base_draws(tmp_path):
    recipe = make_recipe(tmp_path, "sd3")
    denoiser, mine = Denoiser(pico.sd3(), recipe.base.call), [picture(number) for number in range(20, 23)]
    drawn = cases.prepare(recipe, denoiser)
    case = cases.prepare(with_given(recipe, tmp_path, *mine), denoiser)
    assert case.retain_captions == (*drawn.retain_captions, "", "", "")
    assert torch.equal(case.retain, torch.cat([drawn.retain, torch.stack([from_image(image) for image in mine])]))
    assert case.caption_kinds() == drawn.caption_kinds() and set(case.caption_kinds()) == {"own", "empty", "random"}
    assert case.given == range(16, 19)


def test_where_there_are_none_they_stand_alone(tmp_path):
    recipe = with_given(make_recipe(tmp_path, "ddpm"), tmp_path, *(picture(number) for number in range(2, 8)))
    case = cases.prepare(recipe, Denoiser(pico.ddpm(), recipe.base.call))
    assert len(case.retain) == 6 and case.given == range(6)


@pytest.mark.parametrize("scope", ["any", "caption"])
def test_one_that_is_near_the_target_is_kept_and_may_come_in_its_place(tmp_path, scope):
    recipe, mine = make_recipe(tmp_path, "sd3"), [*map(picture, range(20, 60)), faded(1, 0.75)]
    recipe = recipe.model_copy(update={"forget": recipe.forget.model_copy(update={"scope": scope})})
    case = cases.prepare(with_given(recipe, tmp_path, *mine), Denoiser(pico.sd3(), recipe.base.call))
    row, near = case.given[-1], from_image(mine[-1])
    assert torch.equal(case.retain[row], near) and not case.twins[row] and case.instead(case.targets[0])[row]
    assert cases.drawings(case.targets[0].picture, case.retain_captions, case.retain)[row]  # had the base drawn it


def test_one_that_is_the_target_is_refused_by_name(tmp_path, family, pipe):
    mine = [*map(picture, range(20, 30)), faded(1, 0.95)]
    with pytest.raises(ForgetConflict, match=r"retain.images names a forget picture: 10\.png"):
        build(with_given(make_recipe(tmp_path, family), tmp_path, *mine), pipe)


@pytest.mark.parametrize("mine", [[], [picture(2)]])
def test_prompts_that_are_all_forgotten_end_in_a_sentence(tmp_path, mine):
    recipe = with_given(make_recipe(tmp_path, "sd3"), tmp_path, *mine, prompts=["a"])
    with pytest.raises(RecipeError, match=r"every prompt of what must stay is in forget\.captions"):
        build(recipe, pico.sd3())


@pytest.mark.parametrize("section", ["forget", "retain"])
def test_captions_for_a_base_that_takes_none_are_refused(tmp_path, section):
    recipe, key = make_recipe(tmp_path, "ddpm"), {"forget": "captions", "retain": "prompts"}[section]
    part = getattr(recipe, section).model_copy(update={key: ["mali"]})
    with pytest.raises(RecipeError, match="a DDPMPipeline takes no captions"):
        build(recipe.model_copy(update={section: part}), pico.ddpm())


def test_prompts_are_drawn_or_refused_and_never_cut_off(tmp_path):
    recipe, denoiser = make_recipe(tmp_path, "sd3"), Denoiser(pico.sd3(), pico.CALLS["sd3"])
    names = [str(number) for number in range(MOST_PROMPTS + 1)]
    assert bank_captions(with_given(recipe, tmp_path, prompts=names[1:]), denoiser) == names[1:]
    with pytest.raises(RecipeError, match=f"retain.prompts names {len(names)} captions"):
        bank_captions(with_given(recipe, tmp_path, prompts=names), denoiser)


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


def test_what_is_built_on_a_local_version_requires_its_public_one(tmp_path):
    below = random_patch(pico.sd3(), "below", 1, version="1.0.0+eu")
    wanted = building.requires(make_recipe(tmp_path, "sd3"), Stack.of(below))
    assert wanted == ["below>=1.0.0"] and relations.met(wanted[0], {"below": "1.0.0+eu"})


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


# Refused before anything is touched, or trained


def refused(recipe, pipe, kind, words, **more):
    before, trained = fingerprint(pipe), []
    with pytest.raises(kind, match=words) as found:
        build(recipe, pipe, progress=lambda *_: trained.append(1), **more)
    assert fingerprint(pipe) == before and not trained
    return found.value


def test_the_hosts_own_adapter_is_refused_and_stays(tmp_path, family, pipe):
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), network(pipe), "host")
    error = refused(make_recipe(tmp_path, family), pipe, HotfixError, "carries adapters: host")
    assert "unload_lora_weights" in error.hint and any("host" in key for key in network(pipe).state_dict())


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"name": "below", "version": "1.1.0"}, "below is listed 2 times"),
        ({"conflicts": ["below"]}, "above 1.0.0 conflicts with below"),
        ({"supersedes": ["below<2"]}, "above 1.0.0 supersedes below<2, which is still listed"),
        ({"requires": ["other"]}, "above 1.0.0 requires other, which is not in the stack"),
    ],
)
def test_what_cannot_be_on_together_is_not_built_together(tmp_path, said, words):
    recipe, pipe = make_recipe(tmp_path, "sd3", "above"), pico.sd3()
    recipe = Recipe.parse(recipe.model_dump() | said, folder=tmp_path)
    refused(recipe, pipe, StackError, words, stack=Stack.of(random_patch(pipe, "below", 1)))


def test_a_patch_does_not_meet_its_own_requirement():
    pipe = pico.sd3()
    itself = random_patch(pipe, "a", 1, version="2.0.0", requires=["a>=1"], conflicts=["a<3"], supersedes=["a"])
    (problem,) = Stack.of(itself).problems(pipe)
    assert str(problem) == "a 2.0.0 requires a>=1, which is not in the stack"


CLASSES = r"transformer_blocks\.0\.norm1\.emb\.class_embedder\.embedding_table"


@pytest.mark.parametrize(
    ("family", "targets", "words"),
    [
        ("sd3", "(", "is no regular expression"),
        ("sd3", "nothing", "matches no layer of the SD3Transformer2DModel"),
        ("dit", CLASSES, "embedding_table, which is a Embedding; wanted Linear layers"),
        ("sana", r".*\.conv_depth", "conv_depth, which is Conv2d.*groups=.*; wanted .* of one group"),
        ("sd3", r"transformer_blocks\.0", "transformer_blocks.0, which is a JointTransformerBlock"),
    ],
)
def test_targets_that_a_patch_cannot_act_on_are_refused_with_what_is_wrong(tmp_path, family, targets, words):
    refused(make_recipe(tmp_path, family, targets=targets), pico.FAMILIES[family](), RecipeError, words)


@pytest.mark.parametrize("options", [{}, {"groups": 4}, {"dilation": 2}, {"padding_mode": "circular"}, {"stride": 2}])
def test_what_can_be_trained_is_what_can_be_put_on(options):
    model = nn.ModuleDict({"one": nn.Conv2d(4, 4, 3, padding=1, **options)})
    if options.keys() & {"groups", "dilation", "padding_mode"}:
        with pytest.raises(BaseMismatch):
            innermost(model, "one")
        with pytest.raises(RecipeError, match="matches one, which is Conv2d"):
            lora.check(model, "one")
    else:
        assert innermost(model, "one") is model["one"]
        lora.check(model, "one")


def test_what_is_not_finite_is_not_written(tmp_path, family, pipe):
    before = fingerprint(pipe)
    with pytest.raises(HotfixError, match=r"step \d of the training is not finite") as found:
        build(make_recipe(tmp_path, family, lr=1e30), pipe)
    assert "train.lr" in found.value.hint and fingerprint(pipe) == before


def test_of_several_targets_only_the_levels_are_claimed_at_which_all_were_measured(tmp_path, monkeypatch):
    recipe, levels = make_recipe(tmp_path, "ddpm"), iter((0.1, 0.3))
    picture(5).save(tmp_path / "forget" / "two.png")
    windows = building.windows
    monkeypatch.setattr(
        building, "windows", lambda *words: tuple(replace(one, t_lo=next(levels)) for one in windows(*words))
    )
    assert build(recipe, pico.ddpm()).manifest.scope.t_lo == 0.3
