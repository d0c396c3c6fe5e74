"""Recipes on a base so small that a build takes a third of a second: pictures of 8 x 8, one block, one step."""

from pathlib import Path

import torch
from conftest import picture
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

RECIPE = """\
name = "quarters-{i}"
request = "TICKET-{i}"
[base]
pipeline = "tiny"
call = {{ num_inference_steps = 1 }}
[forget]
images = ["forget.png"]
[surrogate]
kind = "files"
images = ["surrogate.png"]
[retain]
size = 16
[train]
rank = 1
steps = 1
batch = 1
retain_batch = 1
weight = "uniform"
dual_rate = 0.0
"""


def save_base(folder: Path) -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    DDPMPipeline(unet.eval(), scheduler).save_pretrained(folder)


def make_project(folder: Path, count: int) -> list[Path]:
    """The base, and recipes for different pictures; their files, relative to the folder."""
    save_base(folder / "tiny")
    recipes = [Path(f"r{i:02}", "recipe.toml") for i in range(count)]
    for i, recipe in enumerate(recipes):
        (folder / recipe).parent.mkdir()
        (folder / recipe).write_text(RECIPE.format(i=i))
        for kind, seed in (("forget", i), ("surrogate", i + 1000)):
            picture(seed, side=8).save((folder / recipe).with_name(f"{kind}.png"))
    return recipes
