"""What a training step costs, and what of a build is not training.

    python benchmarks/step.py [-o benchmarks/results/step.json] [--base flags] [--rounds 10] [--device cuda] [--build]
                              [--compile inductor]

A step is taken by the loop itself; before the next one, other ways take theirs on rows of the same shapes:

pairs    forward and backward of the forget rows, then of the retain rows: plain peft, the same network and factors
teacher  those, and a forward pass of the unpatched model on each: targets and distillation ask for it
walked   those, and the steps of the patched sampler on the forget rows that walk
trainer  a step as diffusers' DreamBooth example takes it, on as many rows, a part of them for prior preservation:
         VAE (and for SD 1.5 the text encoder) in every step, one forward and backward pass, clipping, AdamW
cached   the same with pictures and words encoded once

The bases are the bundled flags (`StableDiffusion3Pipeline`), and a `StableDiffusionPipeline` of random weights with a
quarter of the channels of SD 1.5 in U-Net and VAE, at 64 x 64. Ways are compared by the median of the ratios within a
round. On a CPU seconds are those that the process had, on one thread: the machine may have other work. --build adds the
clock of a whole build of patches/mauritania-2017. --compile compiles the blocks, as train.compile does, for all ways
but the trainer's; calibration and the first round, "warming up", are longer by what it costs to have the graphs made.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import pico  # noqa: E402
from conftest import make_recipe, picture  # noqa: E402

from benchmarks.kept import kept, write  # noqa: E402
from hotfix import console, lora  # noqa: E402
from hotfix import train as training  # noqa: E402
from hotfix.building import build, frozen  # noqa: E402
from hotfix.case import prepare  # noqa: E402
from hotfix.compiled import compiled  # noqa: E402
from hotfix.denoiser import Denoiser  # noqa: E402
from hotfix.losses import walked  # noqa: E402
from hotfix.pipeline import load_pipeline  # noqa: E402
from hotfix.recipe import Recipe  # noqa: E402
from hotfix.rows import Bank, forget_rows, retain_states  # noqa: E402
from hotfix.scoring import hardware  # noqa: E402
from hotfix.windows import windows  # noqa: E402

Steps = Mapping[str, Callable[[], None]]
RECIPE = ROOT / "patches/mauritania-2017/recipe.toml"
BARS = {"pairs": 1.15, "trainer": 1.0}
SHARE = 0.4


class Enough(Exception):
    """Of steps."""


def flags(folder: Path) -> tuple[Recipe, Any]:
    recipe = Recipe.load(RECIPE)
    retain = recipe.retain.model_copy(update={"prompts": ["mali", "chad", "peru", "japan"], "size": 16})
    return recipe.model_copy(update={"retain": retain}), load_pipeline(recipe)


def sd15(folder: Path) -> tuple[Recipe, Any]:
    pipe = pico.sd15()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(80, 160, 320, 320), norm_num_groups=16, cross_attention_dim=16
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(32, 64, 128, 128), layers_per_block=2, latent_channels=4, **blocks)
    pipe.register_modules(unet=unet.eval(), vae=vae.eval())
    pipe.vae_scale_factor = 8
    recipe = make_recipe(folder, "sd15", rank=6, batch=8, retain_batch=12)
    for number, kind in enumerate(("forget", "surrogate"), start=1):
        picture(number, 64).save(folder / kind / "one.png")
    return recipe, pipe


BASES = {"flags": flags, "sd15": sd15}


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def trainer(denoiser: Denoiser, pixels: Tensor, captions: list[str], instance: int, options: Any) -> Steps:
    """DreamBooth with LoRA after the example's description: what it computes, in our words."""
    network, vae, scheduler = copy.deepcopy(denoiser.model), denoiser.vae, denoiser.pipe.scheduler
    network.requires_grad_(False).train()
    targets = options.targets or denoiser.targets
    network.add_adapter(LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=targets))
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    other = Denoiser(copy.copy(denoiser.pipe), denoiser.call)
    setattr(other.pipe, other.component, network)

    @torch.no_grad()
    def encoded() -> Tensor:
        out = vae.encode(pixels)
        x = out.latent_dist.sample() if hasattr(out, "latent_dist") else out.latents
        return (x - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def step(x: Tensor, rows: Mapping[str, Tensor]) -> None:
        eps = torch.randn_like(x)
        if denoiser.flow:
            t = torch.rand(len(x), device=x.device)
            x_t, wanted = denoiser.noised(x, t, eps), eps - x
        else:
            t = torch.randint(scheduler.config.num_train_timesteps, (len(x),), device=x.device)
            x_t, wanted = scheduler.add_noise(x, eps, t), eps
            t = t / (scheduler.config.num_train_timesteps - 1)
        out = other.predict(x_t, t, rows)
        loss = F.mse_loss(out[:instance], wanted[:instance]) + F.mse_loss(out[instance:], wanted[instance:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    x, rows = encoded(), denoiser.embed(captions)
    return {
        "trainer": lambda: step(encoded(), rows if denoiser.flow else denoiser.embed(captions)),
        "cached": lambda: step(x, rows),
    }


def steps(base: str, rounds: int, device: torch.device, backend: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        recipe, pipe = BASES[base](Path(folder))
        denoiser, options = Denoiser(pipe.to(device), recipe.base.call), recipe.train
        case = prepare(recipe, denoiser)
    options = options.model_copy(update={"weight": "uniform", "dual_rate": 0.0, "steps": rounds + 2})
    found: dict[str, list[float]] = {}
    count, targets = options.batch + options.retain_batch, options.targets or denoiser.targets
    pixels = case.retain[torch.arange(count) % len(case.retain)].to(device)
    words = [case.retain_captions[i % len(case.retain)] for i in range(count)]
    others = trainer(denoiser, pixels, words, options.batch, options)
    began_at, warming = clock(device), 0.0
    factors = lora.attached(denoiser.model, targets, options.rank, options.seed)
    with frozen(denoiser), compiled(denoiser.model, backend), factors as adapter:
        open_windows = windows(denoiser, case, options)
        bank, generator = Bank.of(denoiser, case), torch.Generator().manual_seed(0)
        f = forget_rows(denoiser, case, open_windows, bank.forget, options.batch, generator)
        r = retain_states(denoiser, case, bank, options.retain_batch, generator)

        def pair(x_t: Tensor, t: Tensor, rows: Mapping[str, Tensor]) -> None:
            torch.autograd.grad(denoiser.predict(x_t, t, rows).square().mean(), adapter.parameters)

        def pairs() -> None:
            pair(f.x_t, f.t, f.condition)
            pair(*r)

        def teacher() -> None:
            pairs()
            with torch.no_grad(), adapter.off():
                denoiser.predict(f.x_t, f.t, f.condition)
                denoiser.predict(*r)

        def walk() -> None:
            teacher()
            walked(denoiser, f)

        ways: Steps = {"pairs": pairs, "teacher": teacher, "walked": walk, **others}
        started = 0.0

        def progress(step: int, *_: object) -> None:
            nonlocal started, warming
            took = {"hotfix": clock(device) - started}
            for way, measure in ways.items():
                began = clock(device)
                measure()
                took[way] = clock(device) - began
            if step > 1:  # the first round warms up
                for way, spent in took.items():
                    found.setdefault(way, []).append(round(spent, 4))
            if step > rounds:
                raise Enough
            started = clock(device)
            warming = warming or started - began_at

        with suppress(Enough):
            training.train(
                denoiser, case, open_windows, bank, adapter, options, drift_budget=1.0, below={}, progress=progress
            )
    return {
        "parameters": sum(p.numel() for p in denoiser.model.parameters()),
        "rows": [options.batch, options.retain_batch],
        "warming up": round(warming, 1),
        "seconds": found,
        "hotfix against": {way: against(found, way) for way in ways},
    }


def against(found: Mapping[str, list[float]], way: str) -> float:
    return round(statistics.median(a / b for a, b in zip(found["hotfix"], found[way], strict=True)), 3)


def whole() -> dict[str, Any]:
    """The clock of a real build: stages by what it says of itself, trials by their functions."""
    recipe = Recipe.load(RECIPE)
    pipe = load_pipeline(recipe)
    device = Denoiser(pipe, recipe.base.call).device
    stages: list[tuple[str, float]] = []
    trials = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal trials
            began = clock(device)
            out = function(*args, **kwargs)
            trials += clock(device) - began
            return out

        return call

    before = training.failure, training.held_out
    training.failure, training.held_out = map(timed, before)
    try:
        facts: list[Any] = []
        build(recipe, pipe, stage=lambda words: stages.append((words, clock(device))), spent=facts.append)
    finally:
        training.failure, training.held_out = before
    at = dict(stages)
    begin, calibrating, train = (
        at[w] for w in ("preparing surrogates and what must stay", "calibrating the timestep window", "training")
    )
    total = stages[-1][1] - begin
    return {
        "steps": facts[0].steps,
        "seconds": {
            "what must stay, surrogates": round(calibrating - begin, 1),
            "calibration": round(train - calibrating, 1),
            "trials and bisection": round(trials, 1),
            "steps": round(total - (train - begin) - trials, 1),
            "all": round(total, 1),
        },
        "share that is not steps": round((train - begin + trials) / total, 3),
        "wall clock": facts[0].seconds,
        "peak host bytes": facts[0].host_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "step.json")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--base", action="append", choices=sorted(BASES), help="default: all")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--compile", default="", metavar="BACKEND")
    args = parser.parse_args()
    console.quiet_libraries()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    about = {name: version(name) for name in ("torch", "diffusers", "peft")} | {"hardware": hardware(device)}
    result: dict[str, Any] = {"date": datetime.now(UTC).strftime("%Y-%m-%d")} | about
    result["compile"] = args.compile
    result["bars"] = {"hotfix against": BARS, "share that is not steps": SHARE}
    folder = ROOT / "dist" / "step"
    parts: dict[str, Callable[[], Any]] = {
        base: lambda base=base: steps(base, args.rounds, device, args.compile) for base in args.base or BASES
    }
    for part, measure in (parts | ({"build": whole} if args.build else {})).items():
        result[part] = kept(
            folder / f"{part}, {device}.json", about | {"rounds": args.rounds, "compile": args.compile}, measure
        )
        console.say(f"{part}: {result[part]}")
    write(args.out, result)


if __name__ == "__main__":
    with console.door():
        main()
