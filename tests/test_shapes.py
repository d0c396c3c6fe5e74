"""Bases of full size, without their bytes: as large as the published ones, and asked by hotfix as those are."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import gpu, shapes
from hotfix import lora
from hotfix.denoiser import Denoiser

COST = Path(__file__).parents[1] / "docs/cost.md"
# As the published weights have them.
UNET_15, UNET_XL, MEDIUM, DEV = 859_520_964, 2_567_463_684, 2_028_328_000, 11_901_408_320
CLIP_L, CLIP_L_PROJECTED, CLIP_G, T5_XXL = 123_060_480, 123_650_304, 694_659_840, 4_762_310_656
VAE, VAE_16 = 83_653_863, 83_819_683
WHOLE = {
    "sd15": {"unet": UNET_15, "vae": VAE, "text_encoder": CLIP_L},
    "sdxl": {"unet": UNET_XL, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
    "sd3": {
        "transformer": MEDIUM,
        "vae": VAE_16,
        "text_encoder": CLIP_L_PROJECTED,
        "text_encoder_2": CLIP_G,
        "text_encoder_3": T5_XXL,
    },
    "flux": {"transformer": DEV, "vae": VAE_16, "text_encoder": CLIP_L, "text_encoder_2": T5_XXL},
}
TOKENS = {"sd15": 77, "sdxl": 77, "sd3": 77 + 256, "flux": 512}


@pytest.mark.parametrize("name", sorted(shapes.SHAPES))
def test_they_are_as_large_as_the_published_models_and_answer_in_the_right_shapes(name):
    pipe = shapes.made(name, torch.device("meta"), torch.bfloat16)
    networks = {key: part for key, part in pipe.components.items() if isinstance(part, nn.Module)}
    assert {key: sum(p.numel() for p in part.parameters()) for key, part in networks.items()} == WHOLE[name]
    denoiser = Denoiser(pipe, gpu.WAYS[name]["base"]["call"])
    side = 512 if name == "sd15" else 1024
    pictures = torch.empty(2, 3, side, side, device="meta")
    x = denoiser.encode(pictures.bfloat16())
    rows = denoiser.embed(["a", "b"])
    assert denoiser.size == (side, side) and x.shape[1:] == denoiser.latent_shape
    assert rows["encoder_hidden_states"].shape[:2] == (2, TOKENS[name])
    with lora.attached(denoiser.model, denoiser.targets, 6, 0) as adapter:
        out = denoiser.predict(x, torch.tensor([0.3, 1.0], device="meta"), rows)
        assert out.shape == x.shape and adapter.gradient(out.mean()).shape == adapter.flat().shape
    assert denoiser.decode(x).shape == pictures.shape


@pytest.mark.parametrize("name", sorted(shapes.SHAPES))
def test_what_the_docs_say_of_a_step_is_what_is_counted(name):
    found = shapes.counted(name)
    flops = [f"{found[key] / 1e12:,.1f}" for key in ("forward", "learnt", "step")]
    cells = [
        shapes.SHAPES[name].__doc__.rstrip("."),
        str(found["layers"]),
        f"{found['parameters'] / 1e6:.1f} M",
        *flops,
    ]
    assert f"| {' | '.join(cells)} |" in COST.read_text().splitlines()


def test_the_benchmark_of_whole_builds_runs_on_a_miniature():
    found = gpu.row("sd3", Namespace(device="cpu", steps=6, small=True, scratch=None))
    assert found["steps"] == 6 and found["seconds"]["step"] > 0 and found["FLOPs of a step"] > 0
    assert 0 < found["share of the matmul rate"] < 1
