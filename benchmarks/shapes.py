"""Pipelines as large as the published ones, with random weights: nothing is downloaded.

The real classes of diffusers and transformers with the published models' configurations, but for the tokenizers, which
know six words. What a build takes in time and memory depends on shapes alone; what it suppresses does not, and is
measured elsewhere.

    python benchmarks/shapes.py      what a patch of rank 6 and a step are on each, counted without any numbers in them
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import pico  # noqa: E402

from hotfix import lora  # noqa: E402
from hotfix.denoiser import Denoiser  # noqa: E402
from hotfix.losses import WALK  # noqa: E402
from hotfix.recipe import Train  # noqa: E402
from hotfix.rows import WALKING  # noqa: E402

WORDS = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
LARGE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
HUGE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


def sd15() -> Any:
    """Stable Diffusion 1.5, 512 x 512."""
    return _filled(
        pico.sd15(),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        vae=_vae(4),
        text_encoder=CLIPTextModel(_clip(LARGE)),
    )


def sdxl() -> Any:
    """Stable Diffusion XL, 1024 x 1024."""
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    encoders = {"text_encoder": CLIPTextModel(_clip(LARGE)), "text_encoder_2": CLIPTextModelWithProjection(_clip(HUGE))}
    return _filled(pico.sdxl(), unet=unet, vae=_vae(4), **encoders)


def sd3() -> Any:
    """Stable Diffusion 3 medium, 1024 x 1024."""
    transformer = SD3Transformer2DModel(
        sample_size=128, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
    )
    encoders = {
        "text_encoder": CLIPTextModelWithProjection(_clip(LARGE)),
        "text_encoder_2": CLIPTextModelWithProjection(_clip(HUGE)),
        "text_encoder_3": _t5(),
    }
    return _filled(pico.sd3(), transformer=transformer, vae=_vae(16), **encoders)


def flux() -> Any:
    """FLUX.1 dev, 1024 x 1024."""
    transformer = FluxTransformer2DModel(guidance_embeds=True)
    encoders = {"text_encoder": CLIPTextModel(_clip(LARGE)), "text_encoder_2": _t5()}
    return _filled(pico.flux(), transformer=transformer, vae=_vae(16), **encoders)


CALLS = {"sd3": {"max_sequence_length": 256}, "flux": {"max_sequence_length": 512}}  # what their pipelines do unasked
SHAPES = {"sd15": sd15, "sdxl": sdxl, "sd3": sd3, "flux": flux}


def made(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """One of them, its weights drawn where it is to lie."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return SHAPES[name]()
    finally:
        torch.set_default_dtype(before)


def _filled(pipe: Any, **parts: nn.Module) -> Any:
    """A small pipeline with these parts instead of its own, and captions as long as the published models take them."""
    pipe.register_modules(**{name: part.eval().requires_grad_(False) for name, part in parts.items()})
    for name, tokenizer in pipe.components.items():
        if name.startswith("tokenizer"):
            tokenizer.model_max_length = WORDS["max_position_embeddings"]
    pipe.tokenizer_max_length = WORDS["max_position_embeddings"]  # both as a pipeline finds them when it is loaded
    pipe.vae_scale_factor = 8
    return pipe


def _clip(size: dict[str, int]) -> CLIPTextConfig:
    return CLIPTextConfig(**WORDS, **size, projection_dim=size["hidden_size"])


def _t5() -> T5EncoderModel:
    """XXL, version 1.1."""
    size = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    return T5EncoderModel(T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", decoder_start_token_id=0, **size))


def _vae(channels: int) -> AutoencoderKL:
    """The first version's with 4 latent channels, the later one with 16."""
    later = {"use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5, "shift_factor": 0.06}
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **(later if channels == 16 else {}),
    )


def counted(name: str) -> dict[str, float]:
    """Of a patch with default settings: its layers and numbers, and FLOPs of the network for a row and for a step.

    A step asks the unpatched network once for every row, learns from every row, and takes the forget rows that walk two
    steps on. FLOPs are those of matrix products, convolutions and attention.
    """
    options, device = Train(), torch.device("meta")
    denoiser = Denoiser(made(name, device, torch.bfloat16), CALLS.get(name, {}))
    denoiser.model.requires_grad_(False)
    rows, x = denoiser.embed(["a"]), torch.empty(1, *denoiser.latent_shape, device=device)
    t = torch.ones(1, device=device)
    with lora.attached(denoiser.model, denoiser.targets, options.rank, 0) as adapter:
        with FlopCounterMode(display=False) as asked, torch.no_grad(), adapter.off():
            denoiser.predict(x, t, rows)
        with FlopCounterMode(display=False) as learnt:
            adapter.gradient(denoiser.predict(x, t, rows).mean())
        forward, both = asked.get_total_flops(), learnt.get_total_flops()
        count = options.batch + options.retain_batch
        return {
            "layers": len(adapter.places()),
            "parameters": sum(p.numel() for p in adapter.parameters),
            "forward": forward,
            "learnt": both,
            "step": (count + WALK * WALKING * options.batch) * forward + count * both,
        }


def main() -> None:
    for name, shape in SHAPES.items():
        found = counted(name)
        teraflops = [f"{found[key] / 1e12:,.1f}" for key in ("forward", "learnt", "step")]
        cells = [(shape.__doc__ or name).rstrip("."), str(found["layers"]), f"{found['parameters'] / 1e6:.1f} M"]
        print(f"| {' | '.join([*cells, *teraflops])} |")


if __name__ == "__main__":
    main()
