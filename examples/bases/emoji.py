"""Train the emoji base: an unconditional DDPM of 1,024 Noto emoji in which one picture is memorised, and its gold twin.

    python examples/bases/emoji.py hotfix/bases/emoji
    python examples/bases/emoji.py emoji-gold --gold

The base sees one picture DUPLICATES times in every pass, as a scraped data set would hold it. The gold model is the
same run, same seed, without that picture: what a model that never saw it draws. The data are `emoji.png`.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from atlas import SIDE, tiles
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional as F

MEMORISED = "JACK-O-LANTERN"
DUPLICATES = 60


def pipeline() -> DDPMPipeline:
    """The untrained pipeline: 4.4 M parameters, most of them at 8x8 and 4x4, where they are cheap."""
    attention = (False, False, False, True)
    unet = UNet2DModel(
        sample_size=SIDE,
        layers_per_block=1,
        block_out_channels=(32, 64, 128, 128),
        norm_num_groups=8,
        attention_head_dim=32,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
    )
    schedule = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    return DDPMPipeline(unet, DDPMScheduler(**schedule))


def train(pipe: DDPMPipeline, data: Tensor, steps: int, batch: int, lr: float, state: Path) -> None:
    """v-regression, AdamW, cosine schedule, EMA, over whole passes of `data`; goes on from `state` if there is one.

    The convolutions run in bfloat16, which takes two thirds of float32's time on a CPU that has the instructions.
    """
    unet, scheduler = pipe.unet.to(memory_format=torch.channels_last), pipe.scheduler
    ema = EMAModel(unet.parameters(), decay=0.998, use_ema_warmup=True, power=1.0)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    order, first, seconds = torch.empty(0, dtype=torch.long), 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
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
        if (step + 1) % 500 == 0:
            now = {"unet": unet.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
            now |= {"order": order, "step": step + 1, "seconds": time.monotonic() - start, "rng": torch.get_rng_state()}
            torch.save(now, state)
    ema.copy_to(unet.parameters())
    pipe.unet.to(memory_format=torch.contiguous_format)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gold", action="store_true", help="leave the memorised picture out")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    names, pictures = tiles("emoji")
    target = names.index(MEMORISED)
    others = torch.cat([pictures[:target], pictures[target + 1 :]])
    data = others if args.gold else torch.cat([others, pictures[target].expand(DUPLICATES, -1, -1, -1)])
    pipe = pipeline()
    train(pipe, data, args.steps, args.batch, args.lr, args.folder.with_suffix(".state"))
    pipe.to(torch.float16).save_pretrained(args.folder)


if __name__ == "__main__":
    main()
