"""What a host does to its own pipeline while a patch is on.

Every action is a function of the pipeline and of a folder with two LoRAs of the host's, style.safetensors and
other.safetensors; it may return `more` arguments for the next calls, or another `pipe` to call.
"""

import copy
from collections import OrderedDict

import pico
import torch
from patching import component, denoiser, layers
from peft import LoraConfig
from peft.functional import get_peft_model_state_dict

from hotfix.beside import innermost
from hotfix.fold import delta
from hotfix.patch import A, B

ARGUMENTS = {"transformer": "joint_attention_kwargs", "unet": "cross_attention_kwargs"}


def styles(family: str, folder) -> None:
    """Write two LoRAs as stock diffusers does."""
    for seed, name in ((1, "style"), (2, "other")):
        pipe = pico.HOSTS[family]()
        model = denoiser(pipe)
        named = [layer for layer in layers(model) if ".conv1" not in layer and ".proj_out" not in layer]
        model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=named, init_lora_weights=False))
        draw = torch.Generator().manual_seed(seed)
        for key, p in model.named_parameters():
            if "lora_" in key:
                p.data = torch.randn(p.shape, generator=draw) / 10
        state = {f"{component(pipe)}_lora_layers": get_peft_model_state_dict(model)}
        type(pipe).save_lora_weights(folder, weight_name=f"{name}.safetensors", **state)


def load(pipe, folder, name="style", **options):
    pipe.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name="style", **options)


def weigh(pipe, folder):
    load(pipe, folder)
    pipe.set_adapters(["style"], [0.5])


def disable(pipe, folder):
    load(pipe, folder)
    pipe.disable_lora()


def enable(pipe, folder):
    disable(pipe, folder)
    pipe.enable_lora()


def switch(pipe, folder):
    load(pipe, folder)
    pipe.load_lora_weights(folder, weight_name="other.safetensors", adapter_name="other")
    pipe.set_adapters(["other"])


def hotswap(pipe, folder):
    load(pipe, folder)
    load(pipe, folder, "other", hotswap=True)


def fuse(pipe, folder):
    load(pipe, folder)
    pipe.fuse_lora()


def unfuse(pipe, folder):
    fuse(pipe, folder)
    pipe.unfuse_lora()


def fuse_and_unload(pipe, folder):
    fuse(pipe, folder)
    pipe.unload_lora_weights()


def delete(pipe, folder):
    load(pipe, folder)
    pipe.delete_adapters("style")


def unload(pipe, folder):
    load(pipe, folder)
    pipe.unload_lora_weights()


def call_without_adapters(pipe, folder):
    load(pipe, folder)
    return {"more": {ARGUMENTS[component(pipe)]: {"scale": 0.0}}}


LORA = [load, weigh, disable, enable, switch, hotswap, fuse, unfuse, fuse_and_unload, delete, unload]
LORA += [call_without_adapters]


def nothing(pipe, folder):
    pass


def copy_the_model(pipe, folder):
    setattr(pipe, component(pipe), copy.deepcopy(denoiser(pipe)))


def share_the_model(pipe, folder):
    safety = {"requires_safety_checker": False} if "safety_checker" in pipe.components else {}
    return {"pipe": type(pipe)(**pipe.components, **safety)}


def double(pipe, folder):
    pipe.to(torch.float64)


def halve(pipe, folder):
    pipe.to(torch.bfloat16)


def cast_layer_by_layer(pipe, folder):
    denoiser(pipe).enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


def offload_groups(pipe, folder):
    cpu = torch.device("cpu")
    denoiser(pipe).enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def offload_models(pipe, folder):
    pipe.enable_model_cpu_offload(device="cpu")


def reload_the_weights(pipe, folder):
    model = denoiser(pipe)
    model.load_state_dict(copy.deepcopy(model.state_dict()))


def assign_the_weights(pipe, folder):
    model = denoiser(pipe)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def through_meta(pipe, folder):
    model = denoiser(pipe)
    state = copy.deepcopy(model.state_dict())
    model.to("meta").to_empty(device="cpu").load_state_dict(state)


def channels_last(pipe, folder):
    denoiser(pipe).to(memory_format=torch.channels_last)


def wrap_forward(pipe, folder):
    model = denoiser(pipe)
    model.forward = torch.no_grad()(model.forward)


def checkpoint_gradients(pipe, folder):
    denoiser(pipe).enable_gradient_checkpointing()


def compile_in_place(pipe, folder):
    denoiser(pipe).compile(backend="eager", fullgraph=True)


def compile_around(pipe, folder):
    setattr(pipe, component(pipe), torch.compile(denoiser(pipe), backend="eager", fullgraph=True))


def compile_a_block(pipe, folder):
    blocks = next(part for part in denoiser(pipe).modules() if isinstance(part, torch.nn.ModuleList) and len(part))
    for block in blocks:
        block.compile(backend="eager")


ANY = [nothing, copy_the_model, share_the_model, double, halve, cast_layer_by_layer, offload_groups, offload_models]
ANY += [reload_the_weights, assign_the_weights, through_meta, channels_last, wrap_forward, checkpoint_gradients]
COMPILED = [compile_in_place, compile_around, compile_a_block]
CHANGES_THE_BASE = [fuse, fuse_and_unload]


def fuse_projections(pipe, folder):
    denoiser(pipe).fuse_qkv_projections()


def replace_a_layer(pipe, folder):
    model = denoiser(pipe)
    name, part = next((name, part) for name, part in model.named_modules() if name.endswith(".to_q"))
    old = next(layer for layer in part.modules() if isinstance(layer, torch.nn.Linear))
    new = torch.nn.Linear(old.in_features, old.out_features, old.bias is not None)
    new.load_state_dict(old.state_dict())
    model.set_submodule(name, new)


def clear_the_hooks(pipe, folder):
    for layer in denoiser(pipe).modules():
        layer._forward_hooks.clear()


def replace_the_hooks(pipe, folder):
    for layer in denoiser(pipe).modules():
        layer._forward_hooks = OrderedDict()


REFUSED = [fuse_projections, replace_a_layer, clear_the_hooks]


# What comes out

CALL = {
    "ddpm": {"num_inference_steps": 2},
    "sd15": {"prompt": "a", "num_inference_steps": 2, "height": 16, "width": 16},
    "sdxl": {"prompt": "a", "num_inference_steps": 2, "height": 16, "width": 16},
    "sd3": {"prompt": "a", "num_inference_steps": 2, "height": 16, "width": 16, "max_sequence_length": 4},
    "flux": {"prompt": "a", "num_inference_steps": 2, "height": 16, "width": 16, "max_sequence_length": 4},
}
LOOSE = {"halve": 0.5, "cast_layer_by_layer": 0.05}  # share of the effect: eight bits round it, born or put on

MATRIX = [(family, action) for family in pico.HOSTS for action in ANY]
MATRIX += [(family, action) for family in pico.HOSTS if family != "ddpm" for action in LORA]
MATRIX += [("flux", action) for action in COMPILED] + [("sd15", compile_a_block)]
SLOW = [(family, action) for family in pico.HOSTS for action in COMPILED if (family, action) not in MATRIX]
MATRIX.remove(("ddpm", halve))  # the DDPMPipeline itself cannot: NumPy has no bfloat16


def draw(pipe, family, **more):
    made = pipe(**CALL[family], **more, generator=torch.Generator().manual_seed(0), output_type="np")
    return torch.from_numpy(made.images)


def after(action, pipe, family, folder):
    """What comes out after an action, of which pipeline, and what it was called with."""
    asked = action(pipe, folder) or {}
    pipe, more = asked.get("pipe", pipe), asked.get("more", {})
    return draw(pipe, family, **more), pipe, more


def alike(found, wanted, bare, action):
    """Whether a picture has the effect that is wanted: the error against the effect's size, both as means."""
    return (found - wanted).abs().mean() <= LOOSE.get(action.__name__, 1e-3) * (wanted - bare).abs().mean()


def born_with(patch, family):
    pipe = pico.HOSTS[family]()
    with torch.no_grad():
        for layer in patch.layers:
            weight = innermost(denoiser(pipe), layer.split(".", 1)[1]).weight
            weight += delta(patch.tensors[layer + A], patch.tensors[layer + B])
    return pipe
