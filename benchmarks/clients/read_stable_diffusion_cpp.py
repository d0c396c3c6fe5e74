"""stable-diffusion.cpp, through its Python package, in both of its ways of applying a LoRA. Takes minutes and 3 GB.

pip install --target FOLDER stable-diffusion-cpp-python==VERSION     # compiles
python benchmarks/clients/read_stable_diffusion_cpp.py FOLDER

It shows pictures only, of 8 bits a channel: `difference` is the largest one in a picture, in 1/255, to the picture of a
model into whose weights hotfix has added ΔW. The model is a random SD1 of the smallest kind that it recognises.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from client import folder, released, row

where = folder(__doc__)
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: E402
from patching import two_ranks  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

from hotfix import export  # noqa: E402
from hotfix.fold import delta  # noqa: E402
from hotfix.patch import A, B  # noqa: E402


def networks() -> SimpleNamespace:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280),
        layers_per_block=1,
        mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=768,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768)
    )
    return SimpleNamespace(unet=unet, vae=vae, text=text)


def write(nets: SimpleNamespace, at: Path) -> Path:
    nets.unet.half().save_pretrained(at / "unet")
    nets.vae.half().save_pretrained(at / "vae")
    state = {f"text_model.{k.removeprefix('text_model.')}": v.half() for k, v in nets.text.state_dict().items()}
    (at / "text_encoder").mkdir()
    save_file(state, at / "text_encoder/model.safetensors")
    (at / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return at


def pictures(model: Path, loras: Path, how: str, prompts: list[str]) -> list[np.ndarray]:
    from stable_diffusion_cpp import StableDiffusion

    running = StableDiffusion(
        model_path=str(model), lora_model_dir=str(loras), lora_apply_mode=how, n_threads=2, verbose=False
    )
    options = {"width": 64, "height": 64, "sample_steps": 1, "cfg_scale": 1.0, "seed": 1, "sample_method": "euler"}
    return [np.asarray(running.generate_image(prompt=prompt, **options)[0]).astype(int) for prompt in prompts]


def apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a - b).max())


with tempfile.TemporaryDirectory() as temporary:
    at = Path(temporary)
    nets = networks()
    pipe = StableDiffusionPipeline.__new__(StableDiffusionPipeline)
    pipe.__dict__.update(unet=nets.unet, scheduler=DDIMScheduler())
    patch = two_ranks(pipe, "uneven")
    loras = at / "loras"
    for form, name in (("kohya", "kohya"), ("diffusers", "diffusers")):
        (path,) = export.write(export.export(patch, form), loras)
        path.rename(loras / f"{name}.safetensors")
    model = write(nets, at / "model")
    nets.unet.float()
    with torch.no_grad():
        for layer in patch.layers:
            weight = nets.unet.get_parameter(f"{layer.removeprefix('unet.')}.weight")
            weight += delta(patch.tensors[layer + A], patch.tensors[layer + B])
    merged = write(nets, at / "merged")
    (wanted,) = pictures(merged, loras, "at_runtime", ["a cat"])
    print("merged picture spans", wanted.min(), wanted.max(), file=sys.stderr)
    for how in ("at_runtime", "immediately"):
        for form in ("kohya", "diffusers"):
            base, on, off = pictures(model, loras, how, ["a cat", f"a cat <lora:{form}:1>", "a cat"])
            numbers = {
                "families": ["a random SD1"],
                "difference of pictures": apart(on, wanted),
                "effect on the picture": apart(base, wanted),
                "restored": apart(base, off) == 0,
            }
            row("stable-diffusion.cpp", released(where, "stable-diffusion-cpp-python"), form, how, **numbers)
