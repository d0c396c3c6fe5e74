"""What a build takes is known before it begins, refused where it cannot fit, and said at its end."""

import json
import weakref
from dataclasses import replace

import pico
import pytest
import torch
from conftest import make_recipe
from patching import random_patch
from torch.utils._python_dispatch import TorchDispatchMode

from hotfix import building, cost, denoiser, membership, offload, trial
from hotfix.aside import aside
from hotfix.bank import bank_captions
from hotfix.building import build
from hotfix.calibrate import GRID, NOISES, chosen
from hotfix.captions import encode
from hotfix.case import BLENDED, prepare
from hotfix.cli import main
from hotfix.demo import fingerprint
from hotfix.denoiser import Denoiser
from hotfix.errors import HotfixError, RecipeError
from hotfix.lora import attached
from hotfix.pipeline import load_pipeline, size
from hotfix.planning import KEPT, before, kept, plan, trials
from hotfix.recipe import Recipe
from hotfix.rows import Bank
from hotfix.scoring import score
from hotfix.stack import Stack
from hotfix.train import PASSES, TRIAL_EVERY
from hotfix.weights import stored
from hotfix.windows import windows

TINY = 1000  # bytes


@pytest.fixture
def recipe(tmp_path, family):
    return make_recipe(tmp_path, family, "quarters-1")


@pytest.fixture
def saved(tmp_path):
    """A recipe file, its pictures and a base in a folder."""
    pico.ddpm().save_pretrained(tmp_path / "base")
    make_recipe(tmp_path, "ddpm")
    (tmp_path / "recipe.toml").write_text(
        f"""
name = "quarters"
base = {{ pipeline = "{tmp_path}/base", call = {{ num_inference_steps = 3 }} }}
forget = {{ images = ["forget/*.png"] }}
surrogate = {{ kind = "files", images = ["surrogate/*.png"] }}
retain = {{ size = 16 }}
train = {{ rank = 2, steps = 6, batch = 2, retain_batch = 2 }}
"""
    )
    return tmp_path


def run(*arguments):
    """The exit code of the command line."""
    with pytest.raises(SystemExit) as left:
        main(list(map(str, arguments)))
    return left.value.code


# Before


def test_the_plan_counts_what_the_build_trains_and_the_build_says_what_it_took(recipe, pipe):
    found, said, spent = plan(recipe, pipe), [], []
    patch = build(recipe, pipe, stage=said.append, spent=spent.append)
    assert found.parameters == sum(tensor.numel() for tensor in patch.tensors.values())
    assert found.layers == len(patch.layers)
    assert found.steps == spent[0].steps == 6
    assert found.seconds_of_step > 0 and spent[0].seconds > 0 and spent[0].host_bytes > found.weights
    assert said[-1].startswith(f"the build took {spent[0].seconds:.0f} s, 6 steps, at most ")
    assert spent[0].gpu_joules is None or torch.cuda.is_available()


def test_a_plan_leaves_the_pipeline_bit_identical_and_writes_nothing(recipe, pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, state, random = sorted(tmp_path.rglob("*")), fingerprint(pipe), torch.get_rng_state()
    plan(recipe, pipe)
    assert fingerprint(pipe) == state and torch.equal(torch.get_rng_state(), random)
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("name", ["flux", "dit"])
def test_other_families_can_be_planned(tmp_path, name):
    assert plan(make_recipe(tmp_path, name), pico.FAMILIES[name]()).need.there[KEPT] > 0


def test_the_plan_counts_the_passes_that_are_made_before_training(recipe, pipe):
    ready, counted = Denoiser(pipe, recipe.base.call), []
    ready.model.register_forward_pre_hook(lambda model, args, kwargs: counted.append(len(args[0])), with_kwargs=True)
    case = prepare(recipe, ready)
    windows(ready, case, recipe.train)
    most, _ = before(recipe, ready, list(case.forget_kinds()))
    assert most - GRID * NOISES < sum(counted) <= most  # t_lo is found on the way up


def test_the_plan_counts_the_passes_of_a_trial_that_is_just_passed(recipe, pipe, monkeypatch):
    monkeypatch.setattr(trial, "CLOSE", 2.0)  # similarity is below 1: everything is close
    ready, counted = Denoiser(pipe, recipe.base.call), []
    case = prepare(recipe, ready)
    easy, kinds = replace(case.targets[0], null=1.5, tau=2.0), case.forget_kinds()
    conditions = {kind: ready.embed(captions) for kind, captions in kinds.items() if kind != "own"}
    window = chosen(ready, kinds, "uniform", (0.25, 0.75), 0.0)
    ready.model.register_forward_pre_hook(lambda model, args, kwargs: counted.append(len(args[0])), with_kwargs=True)
    assert trial.failure(ready, easy, case, conditions, window, 0) is None
    once = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": 1, "dual_rate": 0.0})})
    assert trials(once, ready, list(conditions))[0] == PASSES * (1 + trial.BISECTIONS) * sum(counted)


def test_what_cannot_fit_is_refused_before_anything_is_drawn(recipe, pipe, monkeypatch):
    monkeypatch.setattr(cost, "free", lambda device=None: TINY)
    state, said = fingerprint(pipe), []
    for refused in (lambda: build(recipe, pipe, stage=said.append), lambda: plan(recipe, pipe)):
        with pytest.raises(HotfixError, match=r"building quarters-1 1\.0\.0 takes .* of host memory") as error:
            refused()
        assert "train.rank" in error.value.hint
    assert not said and fingerprint(pipe) == state


def test_a_base_that_cannot_fit_is_refused_before_it_is_loaded(saved, monkeypatch, capsys):
    numbers = sum(p.numel() for p in load_pipeline(str(saved / "base")).unet.parameters())
    assert size(saved / "base", 4) == 4 * numbers
    monkeypatch.setattr(cost, "free", lambda device=None: 4 * numbers - 1)
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("was loaded"))
    assert run("build", saved / "recipe.toml", "-o", saved / "dist") == 1
    said = capsys.readouterr().err
    assert "of host memory" in said and "\n\nhint: " in said
    assert not (saved / "dist").exists()


def test_a_plan_is_printed_and_nothing_is_built(saved, capsys):
    assert not run("build", saved / "recipe.toml", "-o", saved / "dist", "--plan", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["steps_at_most"] == 6 and facts["bytes"]["base weights"] == size(saved / "base", 4)
    assert not (saved / "dist").exists()


class Vectors(TorchDispatchMode):
    """The most tensors of one size in bytes that were alive at once, of those made here."""

    def __init__(self, size):
        super().__init__()
        self.size, self.alive, self.most = size, set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        if isinstance(out, torch.Tensor) and (storage := out.untyped_storage()).nbytes() == self.size:
            if storage._cdata not in self.alive:
                weakref.finalize(storage, self.alive.discard, storage._cdata)
            self.alive.add(storage._cdata)
            self.most = max(self.most, len(self.alive))
        return out


def test_the_vectors_that_are_planned_for_are_those_that_the_loop_holds(tmp_path, family, pipe, monkeypatch):
    recipe = make_recipe(tmp_path, family, rank=64, steps=2)
    found = plan(recipe, pipe)
    vectors, loop = Vectors(4 * found.parameters), building.train
    monkeypatch.setattr(building, "train", lambda *args, **kwargs: _under(vectors, lambda: loop(*args, **kwargs)))
    build(recipe, pipe)
    names = ("factors and their average", "gradients and the step", "moments of AdamW", "retained gradients")
    assert vectors.most == sum(found.need.there[name] for name in names) / vectors.size


def _under(mode, work):
    with mode:
        return work()


def test_what_is_remembered_of_the_retain_gradient_is_planned_for(tmp_path):
    plain, held = (
        plan(make_recipe(tmp_path, "sd3", **train), pico.sd3()).need.there["retained gradients"]
        for train in ({}, {"surgery": "orthogonal", "memory": 8})
    )
    assert held == 17 * plain


@pytest.mark.parametrize("prompts", [["b"], ["b", "a b"]])
def test_conditions_that_a_build_keeps_are_planned_for(tmp_path, prompts):
    recipe, pipe = make_recipe(tmp_path, "sd3"), pico.sd3()
    recipe = recipe.model_copy(update={"retain": recipe.retain.model_copy(update={"prompts": prompts})})
    denoiser = Denoiser(pipe, recipe.base.call)
    bank = Bank.of(denoiser, prepare(recipe, denoiser))
    tensors = [tensor for rows in (bank.rows, bank.empty, *bank.forget.values()) for tensor in rows.values()]
    there = {place: size for tensor in tensors for place, size in stored(tensor).items()}
    assert sum(there.values()) == plan(recipe, pipe).need.there["encoded prompts"]


def test_a_posterior_mean_is_planned_for_with_all_its_pictures(tmp_path, family, pipe):
    data = make_recipe(tmp_path, family).model_dump()
    four, usual = (
        plan(Recipe.parse(data | {"surrogate": {"kind": "posterior"} | count}, folder=tmp_path), pipe).need
        for count in ({"count": BLENDED}, {})
    )
    assert usual == four


def test_captions_of_what_must_stay_are_encoded_once_to_draw_them_and_once_for_the_loop(recipe, pipe, monkeypatch):
    asked = []

    def noted(family, pipe, captions, size, call):
        asked.extend(set(captions))
        return encode(family, pipe, captions, size, call)

    monkeypatch.setattr("hotfix.denoiser.encoded", noted)
    build(recipe, pipe)
    ready = Denoiser(pipe, recipe.base.call)
    others = set(bank_captions(recipe, ready)) - {""}
    assert bool(others) == ready.captioned
    assert all(asked.count(caption) == 2 for caption in others)


# In a step


def test_states_that_are_computed_again_are_not_kept_and_the_patch_is_the_same(tmp_path, family, pipe):
    recipe = make_recipe(tmp_path, family)
    thrifty = recipe.model_copy(update={"train": recipe.train.model_copy(update={"gradient_checkpointing": True})})
    kept = [plan(one, pipe).need.there[KEPT] for one in (recipe, thrifty)]
    assert kept[1] < 0.8 * kept[0]
    one, other = build(recipe, pipe), build(thrifty, pipe)
    torch.testing.assert_close(dict(other.tensors), dict(one.tensors), rtol=1e-4, atol=1e-7)
    assert not Denoiser(pipe, recipe.base.call).model.is_gradient_checkpointing


@pytest.mark.parametrize("robust", [{}, {"adversarial_noises": 2, "adversarial_step": 0.1, "relearn": 1.0}], ids=str)
def test_rows_that_are_learnt_from_a_few_at_a_time_keep_less_and_the_patch_is_the_same(tmp_path, family, pipe, robust):
    at_once = make_recipe(tmp_path, family, steps=2, batch=4, retain_batch=4, lr=1e-3, **robust)
    few = at_once.model_copy(update={"train": at_once.train.model_copy(update={"micro_batch": 1})})
    kept = [plan(one, pipe).need.there[KEPT] for one in (at_once, few)]
    assert kept[1] < 0.3 * kept[0]
    one, other = build(at_once, pipe), build(few, pipe)
    torch.testing.assert_close(dict(other.tensors), dict(one.tensors), rtol=1e-3, atol=1e-6)


def test_an_offloaded_pipeline_is_built_on_as_any_other_and_is_offloaded_afterwards(tmp_path, family, pipe):
    recipe = make_recipe(tmp_path, family, steps=TRIAL_EVERY)
    wanted, bytes_there = build(recipe, pipe), plan(recipe, pipe).need.there
    pipe.enable_model_cpu_offload(device="cpu")
    assert build(recipe, pipe).manifest.digest == wanted.manifest.digest
    moved = plan(recipe, pipe).need.there
    assert moved.keys() - bytes_there.keys() == {"the denoiser and the VAE, from host memory"}
    assert offload.is_on(pipe) and hasattr(Denoiser(pipe, recipe.base.call).model, "_hf_hook")
    with pytest.raises(HotfixError, match="attacks on an offloaded pipeline"):
        score(pipe, recipe, stack=Stack.of(wanted), n=2, attacks=["all"])


def test_memory_that_runs_out_is_a_sentence_and_the_pipeline_is_as_it_was(recipe, pipe):
    before, patch, left = fingerprint(pipe), build(recipe, pipe), []

    def full(*_):
        if not left:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        left.pop()

    network = Denoiser(pipe, recipe.base.call).model
    hook = network.register_forward_pre_hook(full)
    for what, work in {
        "the build does": lambda: build(recipe, pipe),
        "one step does": lambda: plan(recipe, pipe),
        "the score does": lambda: score(pipe, recipe, stack=Stack.of(patch), n=2),
    }.items():
        for passes in (0, 6):
            left[:] = range(passes)
            with pytest.raises(HotfixError, match=f"{what} not fit in the GPU memory") as told:
                work()
            assert "base.offload" in told.value.hint
    hook.remove()
    assert fingerprint(pipe) == before


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_a_network_whose_weights_are_moved_in_groups_is_no_base_for_a_build(tmp_path, kind):
    pipe, cpu = pico.sd3(), torch.device("cpu")
    pipe.transformer.enable_group_offload(cpu, cpu, offload_type=kind, num_blocks_per_group=1)
    for work in (build, plan):
        with pytest.raises(HotfixError, match="offloaded in pieces"):
            work(make_recipe(tmp_path, "sd3"), pipe)


@pytest.fixture(scope="module")
def noted():
    """What a compiler was given: the backend "noting" runs it as it is."""
    found = []

    @torch._dynamo.register_backend
    def noting(graph, _):
        found.append(graph)
        return graph

    return found


@pytest.fixture
def graphs(noted):
    noted.clear()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield noted
    torch._dynamo.reset()


@pytest.mark.parametrize(("family", "over"), [("sd3", False), ("flux", False), ("sd3", True)])
def test_a_build_through_compiled_blocks_is_the_build_and_leaves_none_compiled(tmp_path, graphs, family, over):
    recipe, pipe = make_recipe(tmp_path, family), pico.FAMILIES[family]()
    quick = recipe.model_copy(update={"train": recipe.train.model_copy(update={"compile": "noting"})})
    stack = Stack.of(*([random_patch(pipe, "below", 1, size=0.01)] if over else []))
    one = build(recipe, pipe, stack=stack)
    assert not graphs
    state, other = fingerprint(pipe), build(quick, pipe, stack=stack)
    assert graphs and fingerprint(pipe) == state
    torch.testing.assert_close(dict(other.tensors), dict(one.tensors), rtol=1e-4, atol=1e-7)
    assert all(part._compiled_call_impl is None for part in Denoiser(pipe, recipe.base.call).model.modules())


def test_gradients_through_a_compiled_patched_network_are_those_without_a_compiler(graphs):
    pipe = pico.ddpm()
    x = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = {}
    with Stack.of(random_patch(pipe, "convolutions-and-matrices", 1)).on(pipe):
        for name, net in {"plain": pipe.unet, "compiled": torch.compile(pipe.unet, backend="noting")}.items():
            out = net(x, torch.tensor([3, 7])).sample
            found[name] = torch.autograd.grad(out.square().mean(), x)[0]
    assert graphs and found["plain"].norm() > 0
    torch.testing.assert_close(found["compiled"], found["plain"], rtol=1e-4, atol=1e-7)


def test_a_compiler_that_fails_is_named_and_leaves_the_pipeline_as_it_was(tmp_path):
    @torch._dynamo.register_backend
    def failing(graph, _):
        raise OSError("no such compiler")

    pipe = pico.sd3()
    state = fingerprint(pipe)
    with pytest.raises(RecipeError, match="'failing' failed: no such compiler"):
        build(make_recipe(tmp_path, "sd3", compile="failing"), pipe)
    assert fingerprint(pipe) == state
    assert all(part._compiled_call_impl is None for part in pipe.transformer.modules())


@pytest.mark.parametrize(
    ("family", "compile", "words"), [("sd3", "gcc", "train.compile = 'gcc'"), ("ddpm", "eager", "names no blocks")]
)
def test_what_cannot_be_compiled_is_refused_before_anything_is_drawn(tmp_path, family, compile, words):
    recipe, said = make_recipe(tmp_path, family, compile=compile), []
    with pytest.raises(RecipeError, match=words):
        build(recipe, pico.FAMILIES[family](), stage=said.append)
    assert not said


def test_a_backend_that_is_none_is_refused_before_the_base_is_loaded(saved, monkeypatch):
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", None)
    text = (saved / "recipe.toml").read_text().replace("rank = 2", 'rank = 2, compile = "gcc"')
    (saved / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError, match="'gcc' is no backend"):
        load_pipeline(Recipe.load(saved / "recipe.toml"))


def test_no_graph_is_kept_below_the_first_layer_that_is_trained(tmp_path):
    recipe, pipe = make_recipe(tmp_path, "sd3"), pico.sd3()
    ready, needs, size = Denoiser(pipe, recipe.base.call), {}, {}
    for i, block in enumerate(ready.model.transformer_blocks):
        block.register_forward_hook(lambda block, args, out, i=i: needs.update({i: out[1].requires_grad}))
    x, t, rows = torch.randn(2, *ready.latent_shape), torch.rand(2), ready.embed(["a", "b"])
    ready.model.requires_grad_(False)
    for where in (r".*\.to_q", r"transformer_blocks\.1\.attn\.to_q"):
        with attached(ready.model, where, 2, 0):
            size[where] = kept(ready.model, lambda: ready.predict(x, t, rows).sum())
            first = needs[0]
        assert needs[1] and first == (where == r".*\.to_q")
    every, last = size.values()
    assert 0 < last < every


def test_a_step_asks_no_encoder_and_no_vae_and_a_trial_only_the_vae(tmp_path):
    pipe, words, pictures, at = pico.sd3(), [], [], []
    for part in (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3):
        part.register_forward_pre_hook(lambda *_: words.append(len(at)))
    for part in (pipe.vae.encoder, pipe.vae.decoder):
        part.register_forward_pre_hook(lambda *_: pictures.append(len(at)))
    recipe = make_recipe(tmp_path, "sd3", steps=TRIAL_EVERY + 5)
    build(recipe, pipe, progress=lambda *_: at.append(1))
    assert recipe.base.call["guidance_scale"] > 1 and set(words) == {0}
    assert set(pictures) == {0, TRIAL_EVERY - 1, TRIAL_EVERY + 5}


def test_a_guided_drawing_asks_no_encoder_that_was_put_aside():
    pipe, asked = pico.sd3(), []
    ready = Denoiser(pipe, pico.CALLS["sd3"])
    x, rows = torch.randn(1, *ready.latent_shape), ready.embed(["a"])
    with aside(ready):
        pipe.text_encoder.register_forward_pre_hook(lambda *_: asked.append(1))
        ready.denoise(x, 1.0, rows, steps=1, guidance=ready.guidance)
    assert ready.guidance > 1 and not asked


@pytest.mark.gpu
def test_text_encoders_are_off_the_gpu_while_a_patch_is_learned(tmp_path):
    pipe, seen = pico.sd3().to("cuda"), []
    state = fingerprint(pipe)
    build(make_recipe(tmp_path, "sd3"), pipe, progress=lambda *_: seen.append(pipe.text_encoder_3.device.type))
    assert set(seen) == {"cpu"} and pipe.text_encoder_3.device.type == "cuda" and fingerprint(pipe) == state


def test_where_a_trial_begins_changes_nothing_but_what_it_costs(recipe, pipe):
    ready = Denoiser(pipe, recipe.base.call)
    case = prepare(recipe, ready)
    conditions = {kind: ready.embed(captions) for kind, captions in case.forget_kinds().items()}
    window = chosen(ready, conditions, "uniform", (0.25, 0.75), 0.3)

    turned = -case.targets[0].picture[None]
    target = replace(case.targets[0], surrogates=turned)  # like which the bare base draws nothing

    def failure(suspect=None):
        return trial.failure(ready, target, case, conditions, window, 0, suspect)

    found = failure()
    assert found is not None
    assert all(failure((kind, level)) is not None for kind in conditions for level in (1.0, 0.9, 0.6, 0.3))
    assert failure(found) == found


def test_the_vae_is_given_few_pictures_at_once(monkeypatch):
    ready, sizes = Denoiser(pico.sd3(), pico.CALLS["sd3"]), []
    x = torch.randn(5, *ready.latent_shape)
    whole, back = ready.decode(x), ready.encode(ready.decode(x))
    ready.vae.decoder.register_forward_pre_hook(lambda part, args: sizes.append(len(args[0])))
    monkeypatch.setattr(denoiser, "PIXELS", 2 * pico.SIDE**2)
    assert torch.allclose(ready.decode(x), whole, atol=1e-6) and sizes == [2, 2, 1]
    assert torch.allclose(ready.encode(whole), back, atol=1e-5)


def test_a_build_and_a_score_ask_for_no_more_pictures_at_once_than_fit(recipe, pipe, monkeypatch):
    monkeypatch.setattr(denoiser, "PIXELS", 4 * pico.SIDE**2)
    monkeypatch.setattr(membership, "SMALL", 0)  # a likelihood is integrated of small pictures alone
    ready, asked = Denoiser(pipe, recipe.base.call), []
    fit = len(range(100)[ready.parts(100)[0]])
    hooks = [ready.model.register_forward_pre_hook(lambda _, args, kw: asked.append(rows(args, kw)), with_kwargs=True)]
    if ready.vae is not None:
        for part in (ready.vae.encoder, ready.vae.decoder):
            hooks.append(part.register_forward_pre_hook(lambda _, args: asked.append(len(args[0]))))
    patch = build(recipe, pipe)
    score(pipe, recipe, stack=Stack.of(patch), n=2 * fit + 1)
    for hook in hooks:
        hook.remove()
    assert fit in (1, 4) and max(asked) <= 2 * fit  # a pipeline asks with and without a caption in one pass


def rows(args, kw):
    return len(args[0] if args else kw["hidden_states"])


# Afterwards


def test_the_report_of_the_same_run_says_what_the_build_cost(saved, capsys):
    assert run("build", saved / "recipe.toml", "-o", saved / "dist", "-n", 2) == 3  # 0 of 2 is no proof of 1%
    facts = json.loads((saved / "dist/quarters-1.0.0.report.json").read_text())["build"]
    assert f"the build took {facts['seconds']:.0f} s, 6 steps, " in capsys.readouterr().err
