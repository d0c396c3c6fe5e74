"""A patch in other readers' layouts: the same ΔW·x from each of them as they come; and their LoRAs as patches."""

import json
import shutil
from pathlib import Path

import pico
import pytest
import torch
from diffusers.utils import convert_state_dict_to_kohya
from lycoris import create_lycoris_from_weights
from patching import component, denoiser, effect, random_patch, two_ranks
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_cli import assert_one_sentence

from hotfix import container, export
from hotfix.errors import BaseMismatch, HotfixError, PatchFormatError, SaveError, StackError
from hotfix.importing import check, wrap
from hotfix.merge import merge
from hotfix.patch import A, B, Patch, from_torch
from hotfix.ranks import even
from hotfix.stack import Stack

UNETS = ("sd15", "sdxl")
STOCK = (*UNETS, "sd3", "flux")  # a LoRA loader in diffusers
HAS = {
    family: ["peft", *(["diffusers"] * (family in STOCK)), *(["kohya"] * (family in UNETS))] for family in pico.HOSTS
}
ALL = [(family, form) for family, forms in sorted(HAS.items()) for form in forms]


def uneven(family: str) -> Patch:
    return two_ranks(pico.HOSTS[family](), "uneven")


def evened(patch) -> dict[str, container.Entry]:
    return from_torch(even(patch.tensors))


def ours(family, patch):
    pipe = pico.HOSTS[family]()
    return effect(pipe, patch, lambda: Stack.of(patch).apply(pipe))


def exported(patch, form, folder):
    return export.write(export.export(patch, form), folder)


def assert_same_effect(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-5)
    assert min(float(change.abs().max()) for change in wanted.values()) > 1e-3


@pytest.fixture(params=ALL, ids="-".join)
def case(request, tmp_path):
    """A patch of two ranks, and its files in one form."""
    family, form = request.param
    patch = uneven(family)
    return family, form, patch, exported(patch, form, tmp_path / "out")


def test_the_reader_of_every_form_computes_our_change(case):
    family, form, patch, paths = case
    pipe = pico.HOSTS[family]()

    def read():
        if form == "peft":
            return PeftModel.from_pretrained(denoiser(pipe), paths[0].parent).base_model.model
        return pipe.load_lora_weights(paths[0].parent, weight_name=paths[0].name)

    assert_same_effect(effect(pipe, patch, read), ours(family, patch))


@pytest.mark.parametrize("family", UNETS)
def test_lycoris_computes_our_change_and_gives_the_weights_back(family, tmp_path):
    patch, pipe = uneven(family), pico.HOSTS[family]()
    (path,) = exported(patch, "kohya", tmp_path)
    model = denoiser(pipe)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    state = {key.replace("lora_unet_", "lycoris_"): tensor for key, tensor in load_file(path).items()}
    network, _ = create_lycoris_from_weights(1.0, "", model, weights_sd=state)
    assert_same_effect(effect(pipe, patch, lambda: network.apply_to()), ours(family, patch))
    network.restore()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize("family", UNETS)
def test_the_reason_for_one_rank_in_kohya_files_still_stands(family, tmp_path):
    """Where ranks differ, stock diffusers reads one alpha for all attention layers out of the many in the file."""
    patch, pipe = uneven(family), pico.HOSTS[family]()
    save_file(convert_state_dict_to_kohya(dict(patch.tensors)), tmp_path / "mixed.safetensors")
    wanted = ours(family, patch)
    found = effect(pipe, patch, lambda: pipe.load_lora_weights(tmp_path, weight_name="mixed.safetensors"))
    wrong = [name for name in wanted if not torch.allclose(found[name], wanted[name], atol=1e-5)]
    assert wrong and all(".attn" in name for name in wrong)


def test_an_imported_export_is_the_same_change(case, tmp_path):
    family, form, patch, paths = case
    if form == "diffusers":  # that is the patch itself
        assert Patch.load(paths[0]) == patch
        with pytest.raises(PatchFormatError, match=r"uneven 1\.0\.0, a patch already"):
            check(paths[0], "again", "1.0.0")
        return
    pipe = pico.HOSTS[family]()
    again = wrap(paths[0], pipe, "again", "1.0.0", repo="pico")
    assert again.entries == evened(patch)
    assert_same_effect(ours(family, Patch.load(again.save(tmp_path))), ours(family, patch))


def test_the_same_patch_gives_the_same_bytes_and_says_which_it_is(case, tmp_path):
    _, form, patch, paths = case
    again = exported(Patch.load(patch.save(tmp_path)), form, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    metadata, _ = container.read(paths[0])
    assert (metadata["hotfix.id"], metadata["hotfix.manifest"]) == (patch.id, patch.raw)
    assert not {"alpha", "lora_alpha", "network_alpha"} & metadata.keys(), "SGLang would parse them"
    assert paths[0].stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("family", UNETS)
def test_kohya_alphas_are_floats_and_the_ranks(family, tmp_path):
    patch = uneven(family)
    state = load_file(exported(patch, "kohya", tmp_path)[0])
    alphas = {key: tensor for key, tensor in state.items() if key.endswith(".alpha")}
    assert len(alphas) == len(patch.layers) and {float(alpha) for alpha in alphas.values()} == {3}
    for key, alpha in alphas.items():
        assert (alpha.dtype, alpha.shape) == (torch.float32, ())
        assert alpha == len(state[key.replace(".alpha", ".lora_down.weight")])


@pytest.mark.parametrize(
    ("family", "form", "words", "hint"),
    [
        ("flux", "kohya", "no kohya keys for a FluxTransformer2DModel", "--to diffusers"),
        ("ddpm", "kohya", "no kohya keys for a UNet2DModel", "--to peft"),
        ("ddpm", "diffusers", "no LoRA loader for a DDPMPipeline", "--to peft"),
        ("sd15", "merged", "takes its base", "hotfix apply PIPELINE"),
        ("sd15", "ckpt", "no form 'ckpt'; wanted kohya, peft, diffusers", "clients"),
    ],
)
def test_a_form_that_nothing_reads_is_refused_with_one_that_is(family, form, words, hint):
    patch = uneven(family)
    with pytest.raises(HotfixError, match=words) as caught:
        export.export(patch, form)
    assert hint in caught.value.hint
    assert (export.kohya(patch) is None) == (family not in UNETS)


def test_an_export_overwrites_nothing_and_leaves_no_half(tmp_path):
    files = export.export(uneven("sd15"), "peft")
    (tmp_path / "adapter_config.json").write_text("somebody else's")
    with pytest.raises(SaveError, match="is something else"):
        export.write(files, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]
    folder = tmp_path / "new"
    assert export.write(files, folder) == export.write(files, folder), "the same files may be written again"
    with pytest.raises(SaveError, match="cannot write"):
        export.write(files, tmp_path / "adapter_config.json")
    assert (tmp_path / "adapter_config.json").read_text() == "somebody else's"


# Import


def foreign(family: str, folder, alpha: float | None = None, dtype=torch.float32, layout: str = "kohya"):
    """An ordinary LoRA file with what it does to the weights, layer by layer."""
    pipe = pico.HOSTS[family]()
    patch, folder = random_patch(pipe, "style", 3, rank=4), folder / "loras"
    folder.mkdir(exist_ok=True)
    state = {key: tensor.to(dtype) for key, tensor in patch.tensors.items()}
    if layout == "kohya":
        state = convert_state_dict_to_kohya(state)
        for key in state:
            if alpha is not None and key.endswith(".alpha"):
                state[key] = torch.tensor(alpha)
    metadata = None
    if layout == "peft" and alpha is not None:
        names = [layer.removeprefix(f"{component(pipe)}.") for layer in patch.layers]
        config = {"r": 4, "lora_alpha": alpha, "target_modules": names}
        metadata = {"lora_adapter_metadata": json.dumps({f"{component(pipe)}.{k}": v for k, v in config.items()})}
    save_file(state, folder / "style.safetensors", metadata)
    return folder / "style.safetensors"


@pytest.mark.parametrize(("family", "layout"), [*((f, "kohya") for f in UNETS), *((f, "peft") for f in STOCK)])
@pytest.mark.parametrize("alpha", [1.5, None])
def test_an_imported_lora_does_what_diffusers_makes_of_its_file(family, layout, alpha, tmp_path):
    path = foreign(family, tmp_path, alpha, layout=layout)
    pipe = pico.HOSTS[family]()
    before = {name: p.clone() for name, p in denoiser(pipe).state_dict().items()}
    made = wrap(path, pipe, "style", "1.0.0", repo="pico", request="TICKET-2")
    assert all(torch.equal(p, before[name]) for name, p in denoiser(pipe).state_dict().items())
    assert denoiser(pipe).state_dict().keys() == before.keys(), "the pipeline is not touched"
    patch = Patch.load(made.save(tmp_path))
    stock = pico.HOSTS[family]()
    wanted = effect(stock, patch, lambda: stock.load_lora_weights(path.parent, weight_name=path.name))
    assert_same_effect(ours(family, patch), wanted)


@pytest.mark.parametrize("family", UNETS)
def test_alphas_and_ranks_that_differ_between_layers_keep_their_meaning(family, tmp_path):
    """alpha / rank, as kohya means it; stock diffusers takes one alpha for all attention layers."""
    pipe, truth = pico.HOSTS[family](), uneven(family)
    state = convert_state_dict_to_kohya(dict(truth.tensors))
    for i, key in enumerate(sorted(key for key in state if key.endswith(".alpha"))):
        up = key.replace(".alpha", ".lora_up.weight")
        state[up] = state[up] / 2 ** (i % 3)
        state[key] = state[key] * 2.0 ** (i % 3)
    save_file(state, tmp_path / "style.safetensors")
    made = wrap(tmp_path / "style.safetensors", pipe, "style", "1.0.0", repo="pico")
    assert made.entries == truth.entries


@pytest.mark.parametrize("sparse", [False, True])
def test_kohya_layers_that_fuse_queries_keys_and_values_are_taken_apart(sparse, tmp_path):
    pipe, draw = pico.flux(), torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 32, generator=draw), torch.randn(96, 6, generator=draw)
    if sparse:  # each of the three reads its own third of A
        b *= torch.block_diag(*[torch.ones(32, 2)] * 3)
    fused = "lora_unet_double_blocks_0_img_attn_qkv"
    state = {f"{fused}.lora_down.weight": a, f"{fused}.lora_up.weight": b, f"{fused}.alpha": torch.tensor(3.0)}
    save_file(state, tmp_path / "style.safetensors")
    made = wrap(tmp_path / "style.safetensors", pipe, "style", "1.0.0", repo="pico")
    found = effect(pipe, made, lambda: Stack.of(made).apply(pipe))
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    for part, name in zip((0.5 * b @ a).split(32), ("to_q", "to_k", "to_v"), strict=True):
        torch.testing.assert_close(found[f"transformer_blocks.0.attn.{name}"], x @ part.T, rtol=0, atol=1e-5)


def test_its_manifest_says_that_nothing_is_known(tmp_path):
    path = foreign("sd15", tmp_path)
    patch = wrap(path, pico.sd15(), "style", "1.0.0", repo=str(tmp_path), commit="0" * 40)
    said = patch.manifest
    assert (said.targets, said.scope, list(said.recipe)) == ([], None, ["imported"])
    assert said.base.repo == tmp_path.name, "no local path"
    assert said.base.commit == "0" * 40 and said.merge_survival["bfloat16"] > 0
    part = random_patch(pico.sd15(), "part", 1)
    assert merge([patch, part], "whole", "1.0.0").manifest.scope is None, "nor of the whole"


def test_half_precision_factors_stay_as_small_as_they_were(tmp_path):
    made = wrap(foreign("sd15", tmp_path, 4.0, torch.float16), pico.sd15(), "style", "1.0.0", repo="pico")
    assert {entry.dtype for entry in made.entries.values()} == {"F16"}


def test_a_lora_onto_a_base_without_a_loader(tmp_path):
    pipe = pico.ddpm()
    patch = random_patch(pipe, "style", 3, rank=4)
    save_file(dict(patch.tensors), tmp_path / "style.safetensors")
    assert wrap(tmp_path / "style.safetensors", pipe, "style", "1.0.0", repo="pico").entries == patch.entries


WITHOUT_LOADER = {"ddpm": pico.ddpm, "dit": pico.dit}


def stated(pipe, patch, **config):
    """A header as stock diffusers writes it."""
    names = [layer.removeprefix(f"{component(pipe)}.") for layer in patch.layers]
    config = {f"{component(pipe)}.{key}": value for key, value in ({"target_modules": names} | config).items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(config)}


@pytest.mark.parametrize("way", ["alphas", "header", "patterns", "rslora"])
@pytest.mark.parametrize("family", WITHOUT_LOADER)
def test_without_a_loader_alphas_and_ranks_keep_their_meaning_too(family, way, tmp_path):
    pipe = WITHOUT_LOADER[family]()
    truth = random_patch(pipe, "truth", 1, rank=4) if way in ("header", "rslora") else two_ranks(pipe, "truth")
    state, metadata = dict(truth.tensors), None
    powers = {layer: 1 if way in ("header", "rslora") else 1 + i % 2 for i, layer in enumerate(truth.layers)}
    ranks = {layer: len(state[layer + A]) for layer in truth.layers}
    for layer, power in powers.items():
        state[layer + B] = state[layer + B] / 2**power
    match way:
        case "alphas":
            state |= {f"{layer}.alpha": torch.tensor(ranks[layer] * 2.0**power) for layer, power in powers.items()}
        case "header":
            metadata = stated(pipe, truth, r=4, lora_alpha=8)
        case "rslora":  # alpha over the root of the rank
            metadata = stated(pipe, truth, r=4, lora_alpha=4, use_rslora=True)
        case "patterns":
            short = {layer: layer.removeprefix(f"{component(pipe)}.") for layer in truth.layers}
            alphas = {short[layer]: ranks[layer] * 2**power for layer, power in powers.items()}
            pattern = {short[layer]: rank for layer, rank in ranks.items()}
            metadata = stated(pipe, truth, r=3, lora_alpha=3, rank_pattern=pattern, alpha_pattern=alphas)
    save_file(state, tmp_path / "style.safetensors", metadata)
    made = wrap(tmp_path / "style.safetensors", pipe, "style", "1.0.0", repo="pico")
    assert_same_effect(effect(pipe, made, lambda: Stack.of(made).apply(pipe)), effect_of(family, truth))


def effect_of(family, patch):
    pipe = WITHOUT_LOADER[family]()
    return effect(pipe, patch, lambda: Stack.of(patch).apply(pipe))


@pytest.mark.parametrize(
    "metadata",
    [
        {"lora_adapter_metadata": "{"},
        {"lora_adapter_metadata": "[]"},
        {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 1}'},
        {"lora_adapter_metadata": '{"unet.r": 2}'},
        {"lora_alpha": "1"},
        {"network_alpha": "1"},
        {"ss_network_alpha": "1.0"},
    ],
)
@pytest.mark.parametrize("family", ["ddpm", "sd15"])
def test_an_alpha_that_cannot_be_read_is_not_passed_over(family, metadata, tmp_path):
    pipe = pico.HOSTS[family]()
    save_file(dict(random_patch(pipe, "a", 1, every=4).tensors), tmp_path / "style.safetensors", metadata)
    with pytest.raises(PatchFormatError, match="has an alpha in its header that cannot be read"):
        wrap(tmp_path / "style.safetensors", pipe, "style", "1.0.0", repo="pico")


@pytest.mark.parametrize("family", ["ddpm", "sd15"])
def test_an_alpha_of_no_layer_is_not_passed_over(family, tmp_path):
    pipe = pico.HOSTS[family]()
    state = dict(random_patch(pipe, "a", 1).tensors)
    state |= {key.replace(".weight", ".alpha"): torch.tensor(1.0) for key in state if key.endswith(A)}
    save_file(state, tmp_path / "style.safetensors")
    with pytest.raises(PatchFormatError, match=r"lora_A\.alpha is of no layer here"):
        wrap(tmp_path / "style.safetensors", pipe, "style", "1.0.0", repo="pico")


def test_no_bit_of_a_patch_can_be_changed_by_making_another_patch_of_it(tmp_path):
    raw, path = random_patch(pico.ddpm(), "a", 1, every=4).dump(), tmp_path / "a.safetensors"
    length = 8 + int.from_bytes(raw[:8], "little")
    for bit in [*range(0, 8 * length, 101), *range(8 * length, 8 * len(raw), len(raw) // 8)]:
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(PatchFormatError):
            check(path, "again", "1.0.0")


def test_a_broken_patch_says_what_is_broken_and_nothing_is_imported(tmp_path, inline):
    pico.ddpm().save_pretrained(tmp_path / "pico")
    raw = random_patch(pico.ddpm(), "a", 1).dump()
    (tmp_path / "a.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    words = ("import", "a.safetensors", "--base", "pico", "--name", "again", "--version", "1.0.0")
    assert_one_sentence(inline(*words, cwd=tmp_path), "as the manifest says")
    assert not (tmp_path / "dist").exists()


def first(state, half=A):
    return next(key for key in state if key.endswith(half))


def dora(state):
    key = first(state, ".lora_down.weight")
    return state | {key.replace("lora_down.weight", "dora_scale"): torch.ones(4)}


def bias(state):
    return state | {first(state, ".lora_up.weight").replace("weight", "bias"): torch.ones(4)}


def encoder(state):
    return {f"lora_te_text_model_layer.{key.split('.', 1)[1]}": tensor for key, tensor in state.items()}


def both(state):
    return state | {key: tensor.clone() for key, tensor in encoder(state).items()}


def unknown(state):
    return state | {key.replace("to_q", "to_z"): tensor.clone() for key, tensor in state.items()}


def all_unknown(state):
    return {key.replace("blocks", "rocks"): tensor for key, tensor in state.items()}


def other_shape(state):
    return {key: torch.cat([t, t]) if key.endswith("lora_up.weight") else t for key, t in state.items()}


def half_a_pair(state):
    key = first(state, ".lora_down.weight")
    return {other: tensor for other, tensor in state.items() if other != key}


def two_alphas(state):
    return {key: tensor if tensor.ndim else torch.ones(2) for key, tensor in state.items()}


def not_numbers(state):
    return {key: tensor * float("nan") if tensor.ndim else tensor for key, tensor in state.items()}


def nothing(state):
    return {}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dora, PatchFormatError, "holds DoRA magnitudes"),
        (bias, PatchFormatError, r"\.bias; wanted pairs of LoRA factors"),
        (encoder, PatchFormatError, "changes only a text encoder"),
        (both, PatchFormatError, "changes a text encoder, too"),
        (unknown, BaseMismatch, "numbers in the second factors of style.safetensors reach the UNet2DConditionModel"),
        (all_unknown, BaseMismatch, "UNet2DConditionModel"),
        (other_shape, BaseMismatch, "size mismatch|shape"),
        (half_a_pair, BaseMismatch, "UNet2DConditionModel"),
        (two_alphas, BaseMismatch, "UNet2DConditionModel"),
        (not_numbers, PatchFormatError, "not finite"),
        (nothing, PatchFormatError, "holds no LoRA factors"),
    ],
)
def test_what_cannot_be_kept_exactly_is_refused(change, error, words, tmp_path):
    path, pipe = foreign("sd15", tmp_path), pico.sd15()
    save_file(change(load_file(path)), path)
    with pytest.raises(error, match=words):
        wrap(path, pipe, "style", "1.0.0", repo="pico")
    assert not hasattr(pipe.unet, "peft_config")


def test_a_base_that_it_was_not_made_for_is_refused(tmp_path):
    for family, words in (
        ("flux", "FluxTransformer2DModel"),
        ("ddpm", "UNet2DModel"),
        ("sdxl", "UNet2DConditionModel"),
    ):
        with pytest.raises(BaseMismatch, match=words):
            wrap(foreign("sd15", tmp_path), pico.HOSTS[family](), "style", "1.0.0", repo="pico")
    pipe = pico.sd15()
    Stack.of(random_patch(pipe, "on", 1)).apply(pipe)
    with pytest.raises(StackError, match="on is on this pipeline"):
        wrap(foreign("sd15", tmp_path), pipe, "style", "1.0.0", repo="pico")


def test_peft_factors_need_their_configuration(tmp_path):
    factors, config = exported(uneven("sd3"), "peft", tmp_path)
    config.unlink()
    with pytest.raises(PatchFormatError, match=r"wanted adapter_config\.json beside it"):
        wrap(factors, pico.sd3(), "style", "1.0.0", repo="pico")


def test_the_command_line_there_and_back(tmp_path, monkeypatch, inline):
    pico.sd15().save_pretrained(tmp_path / "pico", safe_serialization=True)
    patch = uneven("sd15")
    patch.save(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = inline("export", "uneven-1.0.0.safetensors", "--to", "kohya", "--json")
    assert done.returncode == 0, done.stderr
    (path,) = json.loads(done.stdout)["files"]
    assert path == "uneven-1.0.0-kohya/uneven-1.0.0_kohya.safetensors"
    assert_one_sentence(inline("show", path), "more or less than pairs")
    naming = ("--name", "again", "--version", "2.0.0")
    (tmp_path / "hotfix.log.jsonl").touch()
    done = inline("import", path, "--base", "pico", *naming)
    assert done.returncode == 0, done.stderr
    made = "dist/again-2.0.0.safetensors"
    assert done.stdout == f"{made}\n"
    assert Patch.load(made).entries == evened(patch)
    assert f'"id":"{Patch.load(made).id}"' in (tmp_path / "hotfix.log.jsonl").read_text()
    assert inline("verify", made, "--base", "pico").returncode == 0
    before = Path(made).read_bytes()
    assert inline("import", path, "--base", "pico", *naming).returncode == 0, "the very same again is no other"
    other = inline("import", path, "--base", "pico", *naming, "--request", "another")
    assert_one_sentence(other, "is there already")
    assert Path(made).read_bytes() == before
    assert "a LoRA of other tools" in inline("show", made).stdout
    shutil.rmtree("dist")
    (tmp_path / "junk.safetensors").write_bytes(b"\x80\x02junk")
    for words, said in (
        (("export", "uneven-1.0.0.safetensors", "--to", "merged"), "takes its base"),
        (("export", "nowhere.safetensors", "--to", "peft"), "cannot read nowhere"),
        (("import", "nowhere.safetensors", "--base", "pico", *naming), "cannot read nowhere"),
        (("import", "junk.safetensors", "--base", "pico", *naming), "is not safetensors"),
        (("import", "pico/model_index.json", "--base", "pico", *naming), "is not called .safetensors"),
        (("import", path, "--base", "nowhere", *naming), "as a Hub id it needs a commit"),
        (("import", path, "--base", "pico", "--name", "No", "--version", "1"), "'No' cannot be used"),
        (("import", path, "--base", "pico", "--name", "no", "--version", "one"), "'one' cannot be used"),
    ):
        assert_one_sentence(inline(*words), said)
    assert not (tmp_path / "dist").exists()
