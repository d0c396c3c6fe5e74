"""What differs between pipelines: one row of FAMILIES each. docs/families.md says how to write another.

A row names the network that denoises and the layers that a patch adapts, and has three small functions: captions as
arguments of the pipeline's call, captions as rows of conditions, and noisy latents to what the network puts out.
Encoders are the pipeline's own; the schedule and the kind of prediction are its scheduler's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hotfix import offload
from hotfix.errors import RecipeError, UnknownFamily
from hotfix.production import usual
from hotfix.shapes import Latents

Captions = Sequence[str]  # "" is the empty caption
Rows = Mapping[str, Tensor]  # conditions, one row for every picture
Call = Mapping[str, Any]  # how the pipeline is called in production
Size = tuple[int, int]  # height and width in pixels

FLOW = "flow_prediction"  # of rectified flows; schedulers that know nothing else do not say so
LAYERS = r"to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2"


def _prompts(pipe: Any, captions: Captions) -> dict[str, Any]:
    return {"prompt": list(captions)}


def _unasked(pipe: Any, captions: Captions) -> dict[str, Any]:
    return {"batch_size": len(captions)}


def _classes(pipe: Any, captions: Captions) -> dict[str, Any]:
    """A caption is a label of the pipeline; the empty one is the class that stands for none."""
    if unknown := sorted(set(captions) - {"", *pipe.labels}):
        raise RecipeError(
            f"{unknown[0]!r} is no class of this pipeline",
            wanted=f"one of its {len(pipe.labels)} labels, such as {next(iter(pipe.labels), 'none')!r}",
            hint="a DiTPipeline draws classes, not words; pipe.labels has all of them",
        )
    none = pipe.transformer.config.num_embeds_ada_norm
    return {"class_labels": [pipe.labels[caption] if caption else none for caption in captions]}


def _no_rows(pipe: Any, captions: Captions, size: Size, call: Call) -> dict[str, Tensor]:
    return {}


def _class_rows(pipe: Any, captions: Captions, size: Size, call: Call) -> dict[str, Tensor]:
    labels = _classes(pipe, captions)["class_labels"]
    return {"class_labels": torch.tensor(labels, device=offload.device(pipe.transformer))}


def _sd(pipe: Any, captions: Captions, size: Size, call: Call) -> dict[str, Tensor]:
    skip = call.get("clip_skip")
    states, _ = pipe.encode_prompt(list(captions), offload.device(pipe.unet), 1, False, clip_skip=skip)
    return {"encoder_hidden_states": states}


def _sdxl(pipe: Any, captions: Captions, size: Size, call: Call) -> dict[str, Tensor]:
    skip = call.get("clip_skip")
    states, _, pooled, _ = pipe.encode_prompt(list(captions), do_classifier_free_guidance=False, clip_skip=skip)
    ids = pipe._get_add_time_ids(size, (0, 0), size, states.dtype, pooled.shape[-1]).to(states.device)
    return {"encoder_hidden_states": states, "text_embeds": pooled, "time_ids": ids.expand(len(states), -1)}


def _sd3(pipe: Any, captions: Captions, size: Size, call: Call) -> dict[str, Tensor]:
    prompts = list(captions)
    options = {"do_classifier_free_guidance": False, "clip_skip": call.get("clip_skip")} | _length(call)
    states, _, pooled, _ = pipe.encode_prompt(prompts, prompts, prompts, **options)
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


def _flux(pipe: Any, captions: Captions, size: Size, call: Call) -> dict[str, Tensor]:
    states, pooled, _ = pipe.encode_prompt(list(captions), **_length(call))
    rows = {"encoder_hidden_states": states, "pooled_projections": pooled}
    if pipe.transformer.config.guidance_embeds:  # distilled: the network is told the scale, and is asked once
        rows["guidance"] = states.new_full((len(states),), call.get("guidance_scale", usual(pipe, "guidance_scale")))
    return rows


def _flux2(pipe: Any, captions: Captions, size: Size, call: Call) -> dict[str, Tensor]:
    states, places = pipe.encode_prompt(list(captions), **_length(call))
    rows = {"encoder_hidden_states": states, "txt_ids": places}
    if pipe.transformer.config.guidance_embeds:
        rows["guidance"] = states.new_full((len(states),), call.get("guidance_scale", usual(pipe, "guidance_scale")))
    return rows


def _pixart(pipe: Any, captions: Captions, size: Size, call: Call) -> dict[str, Tensor]:
    options = {"do_classifier_free_guidance": False, "clean_caption": call.get("clean_caption", True)} | _length(call)
    states, mask, _, _ = pipe.encode_prompt(list(captions), **options)
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


def _sana(pipe: Any, captions: Captions, size: Size, call: Call) -> dict[str, Tensor]:
    """Captions come after an instruction, nothing does not: both end up equally long."""
    instruction = call.get("complex_human_instruction", usual(pipe, "complex_human_instruction"))
    options = {"do_classifier_free_guidance": False, "clean_caption": call.get("clean_caption", False)} | _length(call)
    rows = []
    for caption in captions:
        said = instruction if caption else None
        rows.append(pipe.encode_prompt([caption], complex_human_instruction=said, **options)[:2])
    states, masks = (torch.cat(part) for part in zip(*rows, strict=True))
    return {"encoder_hidden_states": states, "encoder_attention_mask": masks}


def _z_image(pipe: Any, captions: Captions, size: Size, call: Call) -> dict[str, Tensor]:
    states, _ = pipe.encode_prompt(list(captions), do_classifier_free_guidance=False, **_length(call))
    return _filled(pipe, states, call)


def _qwen_image(pipe: Any, captions: Captions, size: Size, call: Call) -> dict[str, Tensor]:
    return _filled(pipe, [pipe.encode_prompt([caption], **_length(call))[0][0] for caption in captions], call)


def _filled(pipe: Any, states: Sequence[Tensor], call: Call) -> dict[str, Tensor]:
    """As many states as a caption has words, filled up with zeros to the same length, and how many there are."""
    length = call.get("max_sequence_length", usual(pipe, "max_sequence_length"))
    filled = torch.stack([nn.functional.pad(one, (0, 0, 0, length - len(one))) for one in states])
    return {"encoder_hidden_states": filled, "words": torch.tensor(list(map(len, states)), device=filled.device)}


def _length(call: Call) -> dict[str, Any]:
    return {key: call[key] for key in ("max_sequence_length",) if key in call}


def _plain(pipe: Any, model: Any, x_t: Latents, timestep: Tensor, rows: Rows) -> Latents:
    return model(x_t, timestep=timestep, return_dict=False, **rows)[0]


def _with_sizes(pipe: Any, model: Any, x_t: Latents, timestep: Tensor, rows: Rows) -> Latents:
    added = {key: rows[key] for key in ("text_embeds", "time_ids")}
    return model(x_t, timestep, rows["encoder_hidden_states"], added_cond_kwargs=added, return_dict=False)[0]


def _packed(pipe: Any, model: Any, x_t: Latents, timestep: Tensor, rows: Rows) -> Latents:
    """2x2 patches of latents as tokens, with their places."""
    height, width = x_t.shape[2:]
    places = pipe._prepare_latent_image_ids(len(x_t), height // 2, width // 2, x_t.device, x_t.dtype)
    words = torch.zeros(rows["encoder_hidden_states"].shape[1], 3, device=x_t.device, dtype=x_t.dtype)
    tokens = pipe._pack_latents(x_t, *x_t.shape)
    timestep = (timestep / pipe.scheduler.config.num_train_timesteps).to(x_t.dtype)
    out = model(tokens, timestep=timestep, txt_ids=words, img_ids=places, return_dict=False, **rows)[0]
    factor = pipe.vae_scale_factor
    return pipe._unpack_latents(out, height * factor, width * factor, factor)


def _without_sizes(pipe: Any, model: Any, x_t: Latents, timestep: Tensor, rows: Rows) -> Latents:
    sizes = {"resolution": None, "aspect_ratio": None}
    return model(x_t, timestep=timestep, added_cond_kwargs=sizes, return_dict=False, **rows)[0]


def _scaled_time(pipe: Any, model: Any, x_t: Latents, timestep: Tensor, rows: Rows) -> Latents:
    return _plain(pipe, model, x_t, timestep * model.config.timestep_scale, rows)


def _tokens(pipe: Any, model: Any, x_t: Latents, timestep: Tensor, rows: Rows) -> Latents:
    """Latents are tokens as they are; words and tokens have places in four dimensions."""
    places = pipe._prepare_latent_ids(x_t).to(x_t.device)
    timestep = (timestep / pipe.scheduler.config.num_train_timesteps).to(x_t.dtype)
    out = model(pipe._pack_latents(x_t), timestep=timestep, img_ids=places, return_dict=False, **rows)[0]
    return out.transpose(1, 2).unflatten(2, x_t.shape[2:])


def _packed_film(pipe: Any, model: Any, x_t: Latents, timestep: Tensor, rows: Rows) -> Latents:
    """2x2 patches of latents as tokens of one frame, and no more words than the longest caption has."""
    height, width = x_t.shape[2:]
    longest = int(rows["words"].max())
    said = torch.arange(longest, device=x_t.device) < rows["words"][:, None]
    out = model(
        pipe._pack_latents(x_t, *x_t.shape),
        timestep=(timestep / pipe.scheduler.config.num_train_timesteps).to(x_t.dtype),
        encoder_hidden_states=rows["encoder_hidden_states"][:, :longest],
        encoder_hidden_states_mask=None if bool(said.all()) else said.long(),
        img_shapes=[[(1, height // 2, width // 2)]] * len(x_t),
        return_dict=False,
    )[0]
    factor = pipe.vae_scale_factor
    return pipe._unpack_latents(out, height * factor, width * factor, factor).squeeze(2)


def _as_lists(pipe: Any, model: Any, x_t: Latents, timestep: Tensor, rows: Rows) -> Latents:
    """One frame a picture; time counts the other way, and the velocity points there."""
    states = [one[:words] for one, words in zip(rows["encoder_hidden_states"], rows["words"].tolist(), strict=True)]
    t = 1 - timestep / pipe.scheduler.config.num_train_timesteps
    out = model(list(x_t.unsqueeze(2)), t, states, return_dict=False)[0]
    return -torch.stack(out).squeeze(2)


@dataclass(frozen=True)
class Family:
    """How one pipeline class is denoised with."""

    component: str  # the network's name in the pipeline
    layers: str  # pattern of the layers that a patch adapts unless the recipe names others
    ask: Callable[[Any, Captions], dict[str, Any]]  # arguments of the pipeline's call
    rows: Callable[[Any, Captions, Size, Call], dict[str, Tensor]]
    put_out: Callable[[Any, Any, Latents, Tensor, Rows], Latents]
    plain: float | None = 1.0  # guidance_scale at which only the caption counts; None: the network is asked once
    square: bool = False  # the network draws nothing else

    @property
    def captioned(self) -> bool:
        """Whether it takes words, or names of classes."""
        return self.rows is not _no_rows


FLUX2 = (
    rf"transformer_blocks\..*\.({LAYERS}|add_[kv]_proj|ff\.linear_(in|out))"
    r"|single_transformer_blocks\..*\.attn\.(to_qkv_mlp_proj|to_out)"
)

FAMILIES: Mapping[str, Family] = {
    "DDPMPipeline": Family("unet", r".*\.(to_q|to_k|to_v|to_out\.0|conv1|conv2)", _unasked, _no_rows, _plain),
    "DiTPipeline": Family(
        "transformer", rf"transformer_blocks\..*\.({LAYERS})", _classes, _class_rows, _plain, square=True
    ),
    "Flux2Pipeline": Family("transformer", FLUX2, _prompts, _flux2, _tokens, plain=None),
    "Flux2KleinPipeline": Family("transformer", FLUX2, _prompts, _flux2, _tokens),
    "FluxPipeline": Family(
        "transformer",
        rf"(single_)?transformer_blocks\..*\.({LAYERS}|add_[kv]_proj|proj_mlp)",
        _prompts,
        _flux,
        _packed,
        plain=None,
    ),
    "PixArtSigmaPipeline": Family(
        "transformer", rf"transformer_blocks\..*\.({LAYERS})", _prompts, _pixart, _without_sizes
    ),
    "QwenImagePipeline": Family(
        "transformer",
        rf"transformer_blocks\..*\.({LAYERS}|add_[kv]_proj|img_mlp\.net\.(0\.proj|2))",
        _prompts,
        _qwen_image,
        _packed_film,
        plain=None,
    ),
    "SanaPipeline": Family("transformer", rf"transformer_blocks\..*\.({LAYERS})", _prompts, _sana, _scaled_time),
    "StableDiffusionPipeline": Family("unet", rf".*\.attentions\..*\.({LAYERS})", _prompts, _sd, _plain),
    "StableDiffusionXLPipeline": Family("unet", rf".*\.attentions\..*\.({LAYERS})", _prompts, _sdxl, _with_sizes),
    "StableDiffusion3Pipeline": Family(
        "transformer", rf"transformer_blocks\..*\.({LAYERS}|add_[kv]_proj)", _prompts, _sd3, _plain
    ),
    "ZImagePipeline": Family(
        "transformer", rf"layers\..*\.({LAYERS}|feed_forward\.w[123])", _prompts, _z_image, _as_lists, plain=0.0
    ),
}


def known(pipe: Any) -> Family:
    """The family of a pipeline.

    Raises:
        UnknownFamily: it has none, or what its network predicts is not known.
    """
    name, hint = type(pipe).__name__, "docs/families.md says how to add one"
    if name not in FAMILIES:
        raise UnknownFamily(f"the pipeline is a {name}", wanted=f"one of {', '.join(sorted(FAMILIES))}", hint=hint)
    family = FAMILIES[name]
    if getattr(getattr(pipe, family.component).config, "time_cond_proj_dim", None) is not None:
        raise UnknownFamily(
            "the network was distilled to consistency, and takes its guidance with the time",
            wanted="the model that it was distilled from, or one that takes no guidance",
            hint=hint,
        )
    kind = pipe.scheduler.config.get("prediction_type", FLOW)
    if kind not in ("epsilon", "v_prediction", "sample", FLOW):
        raise UnknownFamily(
            f"the scheduler's prediction_type is {kind}", wanted="epsilon, v_prediction or sample", hint=hint
        )
    scheduler = type(pipe.scheduler).__name__
    levels = "FlowMatch" in scheduler if "prediction_type" not in pipe.scheduler.config else kind == FLOW
    if not (levels or hasattr(pipe.scheduler, "alphas_cumprod")):
        raise UnknownFamily(
            f"the scheduler is a {scheduler}, whose noise levels are not known here",
            wanted="one of a rectified flow (FlowMatch...), or one with alphas_cumprod",
            hint=hint,
        )
    return family
