"""InvokeAI's layer patcher, from its wheel, without the application around it.

pip download --no-deps invokeai==VERSION; unzip -d FOLDER invokeai-*.whl; pip install --no-deps --target FOLDER gguf
python benchmarks/clients/read_invokeai.py FOLDER
"""

import sys
from types import SimpleNamespace

import torch
from client import UNETS, folder, hollow, measured, released, row

where = folder(__doc__)
backend = where / "invokeai/backend"
for name, path in (
    ("invokeai", where / "invokeai"),
    ("invokeai.backend", backend),
    ("invokeai.backend.util", backend / "util"),
    ("invokeai.backend.util.logging", None),
    ("invokeai.backend.util.devices", None),
    ("invokeai.backend.model_manager", backend / "model_manager"),
    ("invokeai.backend.model_manager.load", backend / "model_manager/load"),
    ("invokeai.backend.model_manager.load.model_cache", backend / "model_manager/load/model_cache"),
    ("invokeai.backend.model_manager.load.model_cache.model_cache", None),
):
    hollow(name, path)
sys.modules["invokeai.backend.util.devices"].TorchDevice = SimpleNamespace(CPU_DEVICE=torch.device("cpu"))
from invokeai.backend.model_manager.load.model_cache.torch_module_autocast.torch_module_autocast import (  # noqa: E402
    apply_custom_layers_to_model,
    remove_custom_layers_from_model,
)
from invokeai.backend.patches.layer_patcher import LayerPatcher  # noqa: E402
from invokeai.backend.patches.lora_conversions.sd_lora_conversion_utils import (  # noqa: E402
    lora_model_from_sd_state_dict,
)
from safetensors.torch import load_file  # noqa: E402

entered = []


def through(**how):
    def put_on(pipe, model, paths):
        patch = lora_model_from_sd_state_dict(load_file(paths[0]))
        apply_custom_layers_to_model(model)
        context = LayerPatcher.apply_smart_model_patches(
            model=model, patches=[(patch, 1.0)], prefix="lora_unet_", dtype=torch.float32, **how
        )
        context.__enter__()
        entered.append((context, model))

    return put_on


def take_off(pipe, put):
    context, model = entered.pop()
    context.__exit__(None, None, None)
    remove_custom_layers_from_model(model)


for how, options in (("beside", {"force_sidecar_patching": True}), ("merged", {"force_direct_patching": True})):
    numbers = measured(UNETS, "kohya", through(**options), take_off)
    row("InvokeAI", released(where, "invokeai"), "kohya", how, **numbers)
