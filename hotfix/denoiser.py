r"""Denoiser: any supported pipeline as x_hat(x_t, t, caption); `families` has what differs between them.

Time t lies in (0, 1], 1 is pure noise. x_t = a_t x + s_t eps; what the network predicts (ε, v or a velocity) is turned
into the endpoint x_hat it implies. Noise levels are sampled as such, never as scheduler indices: flow schedulers count
them downwards, and an index there is an easy way to train at the wrong end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hotfix import latents, offload, processes, production
from hotfix.captions import encode as encoded
from hotfix.families import FAMILIES, FLOW, Rows, known
from hotfix.objective import ddim
from hotfix.shapes import Latents, Pictures

USUAL = 1024  # pixels to a side, where neither network nor pipeline says
BATCH = 64  # rows per forward pass when nothing is learned, and no more than of
PIXELS = 2**21  # pixels: of 8 pictures of 512 x 512 one layer of a VAE alone makes 1 GiB in float32

Keep = tuple[Latents, Tensor] | None  # a known latent, and where it need not stay


@dataclass(frozen=True)
class Denoiser:
    """A view of a pipeline; it holds no state of its own and changes none of the pipeline's."""

    pipe: Any
    call: Mapping[str, Any]  # how the pipeline is called in production
    shared: bool = False  # with the other processes of a launch: each draws some of the pictures, and gets all
    other_size: tuple[int, int] | None = None  # than production's, height and width: of what `denoise` draws

    def __post_init__(self) -> None:
        known(self.pipe)
        production.check(self.pipe, self.call, self.token)

    @property
    def family(self) -> str:
        """The pipeline's class name."""
        return type(self.pipe).__name__

    @property
    def component(self) -> str:
        """The denoiser's name in the pipeline: `unet` or `transformer`."""
        return FAMILIES[self.family].component

    @property
    def captioned(self) -> bool:
        """Whether the pipeline takes prompts, or names of classes."""
        return FAMILIES[self.family].captioned

    @property
    def targets(self) -> str:
        """Pattern of the layers that a patch adapts unless the recipe names others."""
        return FAMILIES[self.family].layers

    @property
    def model(self) -> Any:
        """The network that predicts: an nn.Module with a diffusers config."""
        return getattr(self.pipe, self.component)

    @property
    def flow(self) -> bool:
        """Rectified flow (a_t = 1 - t) rather than a variance-preserving schedule."""
        return self.pipe.scheduler.config.get("prediction_type", FLOW) == FLOW

    @cached_property
    def factor(self) -> int:
        """Pixels to a side of a latent."""
        if self.vae is None:
            return 1
        found = getattr(self.pipe, "vae_scale_factor", None)
        return found or 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def token(self) -> int:
        """Pixels to a side of the least that the network takes: height and width are multiples of it."""
        config = self.model.config
        patch = config.get("patch_size") or max(config.get("all_patch_size") or [1])
        return self.factor * max(patch, 2 if hasattr(self.pipe, "_pack_latents") else 1)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of a drawn picture, in pixels."""
        if self.other_size is not None:
            return self.other_size
        cells = getattr(self.model.config, "sample_size", None) or getattr(self.pipe, "default_sample_size", None)
        side = cells * self.factor if cells else USUAL
        return int(self.call.get("height", side)), int(self.call.get("width", side))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one latent."""
        channels, factor = self.model.config.in_channels, self.factor
        if hasattr(self.pipe, "_patchify_latents"):  # 2x2 of the VAE's are one
            factor *= 2
        elif hasattr(self.pipe, "_pack_latents"):  # 2x2 of them are a token
            channels //= 4
        return channels, self.size[0] // factor, self.size[1] // factor

    @property
    def vae(self) -> Any:
        """What turns pictures into latents; None for a model of pixels."""
        return getattr(self.pipe, "vae", None)

    @property
    def guidance(self) -> float:
        """Classifier-free guidance of the production call; 1 where the network is asked once."""
        plain = FAMILIES[self.family].plain
        if not self.captioned or plain is None or self.pipe.config.get("is_distilled"):
            return 1.0
        usual = production.usual(self.pipe, "guidance_scale")
        return max(1.0, float(self.call.get("guidance_scale", usual)) + (1 - plain))

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise scale (a_t, s_t), each (B, 1, 1, 1), for times (B,)."""
        if self.flow:
            a = 1 - t
            s = t
        else:
            abar = self.pipe.scheduler.alphas_cumprod.to(t.device, torch.float32)[self._index(t)]
            a, s = abar.sqrt(), (1 - abar).sqrt()
        return a[:, None, None, None], s[:, None, None, None]

    def weight(self, t: Tensor) -> Tensor:
        """The weight w_t at which an endpoint error is s_t² times the squared error of the prediction, (B,).

        Bounded at both ends whatever the network predicts: a_t² for ε, 1 for v and velocities, s_t² for samples.
        """
        a, s = (scale.flatten() for scale in self.schedule(t))
        match "flow" if self.flow else self.pipe.scheduler.config.prediction_type:
            case "epsilon":
                return a.square().clamp_min(1e-8)
            case "sample":
                return s.square().clamp_min(1e-8)
            case _:
                return torch.ones_like(t)

    def _index(self, t: Tensor) -> Tensor:
        last = self.pipe.scheduler.config.num_train_timesteps - 1
        return (t * last).round().long().clamp(0, last)

    def noised(self, x: Latents, t: Tensor, eps: Latents) -> Latents:
        """x_t = a_t x + s_t eps."""
        a, s = self.schedule(t)
        return a * x + s * eps

    def predict(self, x_t: Latents, t: Tensor, condition: Rows) -> Latents:
        """What the network itself puts out (ε, v, a velocity or a sample), in float32; no guidance."""
        steps = self.pipe.scheduler.config.num_train_timesteps
        timestep = t * steps if self.flow else self._index(t)
        out = FAMILIES[self.family].put_out(self.pipe, self.model, x_t.to(self.dtype), timestep, condition)
        return out[:, : x_t.shape[1]].float()  # some predict a variance too

    def x_hat(self, x_t: Latents, t: Tensor, condition: Rows) -> Latents:
        """The endpoint that the network's prediction implies, in float32; no guidance."""
        a, s = self.schedule(t)
        out = self.predict(x_t, t, condition)
        if self.flow:
            return x_t - s * out
        match self.pipe.scheduler.config.prediction_type:
            case "epsilon":
                return (x_t - s * out) / a.clamp_min(1e-4)
            case "v_prediction":
                return a * x_t - s * out
            case _:
                return out

    def guided(self, x_t: Latents, t: Tensor, condition: Rows, null: Rows, guidance: float) -> Latents:
        """The endpoint that a sampler heads for: away from the row `null`, if guidance is not 1."""
        x0 = self.x_hat(x_t, t, condition)
        if guidance != 1.0:
            x0_null = self.x_hat(x_t, t, null)
            x0 = x0_null + guidance * (x0 - x0_null)
        return x0.clamp(-1, 1) if self.vae is None else x0  # as DDPM schedulers do (clip_sample)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in; quantised weights are kept in others."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return offload.device(self.model)

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Conditions for the network, one row for every caption, through the pipeline's own encoders."""
        return encoded(FAMILIES[self.family], self.pipe, captions, self.size, self.call)

    @cached_property
    def unguided(self) -> dict[str, Tensor]:
        """The row that guidance leads away from: the negative prompt, the empty one, or zeros (SDXL)."""
        rows = self.embed([self.call.get("negative_prompt", "")])
        if self.pipe.config.get("force_zeros_for_empty_prompt") and "negative_prompt" not in self.call:
            rows |= {key: torch.zeros_like(rows[key]) for key in ("encoder_hidden_states", "text_embeds")}
        return rows

    @torch.no_grad()
    def encode(self, pictures: Pictures) -> Latents:
        """Pixels in [-1, 1] to latents, deterministically."""
        if (vae := self.vae) is None:
            return pictures.to(self.device)
        return torch.cat([latents.encode(vae, pictures[part]) for part in self.parts(len(pictures), len(pictures))])

    @torch.no_grad()
    def decode(self, x: Latents) -> Pictures:
        """Latents to pixels in [-1, 1]."""
        if (vae := self.vae) is None:
            return x.clamp(-1, 1)
        return torch.cat([latents.decode(vae, x[part]) for part in self.parts(len(x), len(x))])

    def parts(self, rows: int, most: int = BATCH) -> list[slice]:
        """Rows that go through a network at once, where nothing is learned."""
        n = max(1, min(most, PIXELS // (self.size[0] * self.size[1])))
        return [slice(first, first + n) for first in range(0, rows, n)]

    @torch.no_grad()
    def denoise(
        self,
        x_t: Latents,
        t: float,
        condition: Rows,
        *,
        steps: int,
        guidance: float = 1.0,
        keep: Keep = None,
    ) -> Latents:
        """From noise level t to a clean latent in `steps` deterministic steps (DDIM; for a flow that is Euler).

        Guidance other than 1 needs twice the forward passes: one for the caption, one without. `keep` is
        a known latent (1, C, H, W) and a mask (1, 1, H, W), 1 where the base may draw: elsewhere every state on the way
        is the known latent at that noise level (after RePaint, Lugmayr et al. 2022, arXiv:2201.09865).
        """
        null = self.unguided if guidance != 1.0 else {}

        def some(rows: Sequence[int]) -> Latents:
            clean = []
            for part in (list(rows[part]) for part in self.parts(len(rows))):
                said = {key: value[part] for key, value in condition.items()}
                clean.append(self._clean(x_t[part], t, said, null, steps, guidance, keep))
            return torch.cat(clean)

        return processes.spread(len(x_t), some) if self.shared else some(range(len(x_t)))

    def _clean(self, x: Latents, t: float, rows: Rows, null: Rows, steps: int, guidance: float, keep: Keep) -> Latents:
        times = torch.linspace(t, 0.0, steps + 1)
        null = {key: value.expand(len(x), *value.shape[1:]) for key, value in null.items()}
        if keep is not None:
            known, mask = keep
            a_t, s_t = self.schedule(times[:1].expand(len(x)).to(x.device))
            eps = (x - a_t * known) / s_t
        for now, then in pairwise(times):
            at, to = (level.expand(len(x)).to(x.device) for level in (now, then))
            x0 = self.guided(x, at, rows, null, guidance)
            x = ddim(x, x0, self.schedule(at), self.schedule(to)) if then > 0 else x0
            if keep is not None:
                x = mask * x + (1 - mask) * (self.noised(known, to, eps) if then > 0 else known)
        return x

    @torch.no_grad()
    def draw(self, captions: Sequence[str], seeds: Sequence[int]) -> Pictures:
        """Pictures as production draws them: the pipeline's own call, one generator for every picture.

        A picture depends on its caption and its seed alone, not on the rows beside it (up to rounding).
        """
        if self.shared:
            alone = replace(self, shared=False)
            return processes.spread(
                len(seeds), lambda rows: alone.draw([captions[row] for row in rows], [seeds[row] for row in rows])
            )
        drawn = []
        with production.quiet(self.pipe):
            for part in self.parts(len(seeds)):
                generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[part]]
                words = captions[part] if self.captioned else [""] * len(generators)
                asked = FAMILIES[self.family].ask(self.pipe, words)
                said = production.said(self.call, len(generators))
                images = self.pipe(**asked, generator=generators, output_type="pt", **said).images
                drawn.append(images.float().cpu() * 2 - 1)
        return torch.cat(drawn)


def sample(condition: Mapping[str, Tensor], n: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """n rows of a condition, drawn by chance, and which: the same of every tensor, as together they are a caption."""
    pick = torch.randint(max(map(len, condition.values()), default=1), (n,), generator=generator)
    return {key: rows[pick.to(rows.device)] for key, rows in condition.items()}, pick
