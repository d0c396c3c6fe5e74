"""A small unconditional DDPM, trained on a CPU from a few hundred pictures: the emoji base, the benchmark's faces.

A run goes on from its state file after a kill and comes to the same weights as if it had not been stopped.
"""

import hashlib
import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional as F

SAVE_EVERY = 500


def pipeline(side: int, channels: Sequence[int]) -> DDPMPipeline:
    """The untrained pipeline: one level of the U-Net for every entry of `channels`, attention at the smallest alone."""
    attention = [False] * (len(channels) - 1) + [True]
    unet = UNet2DModel(
        sample_size=side,
        layers_per_block=1,
        block_out_channels=tuple(channels),
        norm_num_groups=8,
        attention_head_dim=32,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
    )
    schedule = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    return DDPMPipeline(unet, DDPMScheduler(**schedule))


def shown(names: Sequence[str], pictures: Tensor, copies: Mapping[str, int], without: Collection[str] = ()) -> Tensor:
    """What one pass shows: every picture once, and after them those of `copies` as often as it says.

    Args:
        names: of the pictures.
        pictures: (N, 3, H, W).
        copies: name -> how often it stands in the data.
        without: names that are left out, copies and all: what is trained then is the gold model of these pictures.

    Raises:
        SystemExit: a name of no picture.
    """
    if missing := sorted({*copies, *without} - set(names)):
        raise SystemExit(f"error: there is no picture {', '.join(missing)} in the data")
    once = [i for i, name in enumerate(names) if name not in copies and name not in without]
    often = [pictures[names.index(name)].expand(n, -1, -1, -1) for name, n in copies.items() if name not in without]
    return torch.cat([pictures[once], *often])


def train(
    pipe: DDPMPipeline, data: Tensor, steps: int, batch: int, lr: float, state: Path, save_every: int = SAVE_EVERY
) -> float:
    """v-regression, AdamW, cosine schedule, EMA, over whole passes of `data`; goes on from `state` if there is one.

    The convolutions run in bfloat16, which takes two thirds of float32's time on a CPU that has the instructions.

    Args:
        pipe: its U-Net comes back averaged.
        data: pictures (N, 3, H, W) in [-1, 1].
        steps: of this run and of its schedule.
        batch: rows of a step.
        lr: the highest rate.
        state: written every `save_every` steps.
        save_every: steps.

    Returns:
        Seconds of training, those before a stop among them.

    Raises:
        SystemExit: `state` belongs to a run on other data or with other settings.
    """
    unet, scheduler = pipe.unet.to(memory_format=torch.channels_last), pipe.scheduler
    ema = EMAModel(unet.parameters(), decay=0.998, use_ema_warmup=True, power=1.0)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    order, first, seconds = torch.empty(0, dtype=torch.long), 0, 0.0
    run = {"data": hashlib.sha256(data.numpy().tobytes()).hexdigest(), "steps": steps, "batch": batch, "lr": lr}
    if state.exists():
        saved = torch.load(state, weights_only=True)
        if (found := saved.get("run")) != run:
            raise SystemExit(f"error: {state} is of another run\n\nfound {found}, wanted {run}\n\nhint: name another")
        unet.load_state_dict(saved["unet"])
        ema.load_state_dict(saved["ema"])
        optimizer.load_state_dict(saved["optimizer"])
        order, first, seconds = saved["order"], saved["step"], saved["seconds"]
        torch.set_rng_state(saved["rng"])
    start = time.monotonic() - seconds
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 200) * max(0.01, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(data))])
        rows, order = order[:batch], order[batch:]
        x, eps = data[rows], torch.randn(batch, *data.shape[1:])
        t = torch.randint(scheduler.config.num_train_timesteps, (batch,))
        x_t = scheduler.add_noise(x, eps, t).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            v = unet(x_t, t).sample
        loss = F.mse_loss(v.float(), scheduler.get_velocity(x, eps, t))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ema.step(unet.parameters())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {loss.item():.4f} {(time.monotonic() - start) / 60:.1f} min", flush=True)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            now = {"unet": unet.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
            now |= {"order": order, "step": step + 1, "seconds": time.monotonic() - start, "rng": torch.get_rng_state()}
            part = state.with_name(f"{state.name}.part")
            torch.save(now | {"run": run}, part)
            part.replace(state)
    ema.copy_to(unet.parameters())
    pipe.unet.to(memory_format=torch.contiguous_format)
    return time.monotonic() - start
