"""The loader of SGLang-Diffusion, from its wheel: what it makes of a file before its own layers take it.

pip download --no-deps sglang==VERSION; unzip -d FOLDER sglang-*.whl
python benchmarks/clients/read_sglang.py FOLDER

Only the loader is run: ΔW is B·A of the factors that it hands on, times alpha / rank as its layers would.
"""

from client import DITS, folder, hollow, measured, released, row

where = folder(__doc__)
name, path = "sglang", where / "sglang"
for part in ("multimodal_gen", "runtime", "pipelines_core", "lora"):
    hollow(name, path)
    name, path = f"{name}.{part}", path / part
hollow(name, path)
from patching import component  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from sglang.multimodal_gen.runtime.pipelines_core.lora.format_adapter import normalize_lora_state_dict  # noqa: E402
from sglang.multimodal_gen.runtime.pipelines_core.lora.peft_adapter import (  # noqa: E402
    get_peft_lora_alpha,
    load_peft_config,
)

kept = {}


def put_on(pipe, model, paths):
    config = load_peft_config(str(paths[0]))
    state = normalize_lora_state_dict(load_file(paths[0]), adapter_config=config)
    for key in [key for key in state if key.endswith(".lora_A.weight")]:
        layer = key.removesuffix(".lora_A.weight")
        a, b = state[key], state[f"{layer}.lora_B.weight"]
        alpha = float(state.get(f"{layer}.alpha", get_peft_lora_alpha(config) or len(a)))
        weight = model.get_parameter(f"{layer.removeprefix(f'{component(pipe)}.')}.weight")
        kept[weight] = weight.data.clone()
        weight.data += alpha / len(a) * b @ a


def take_off(pipe, put):
    for weight, original in kept.items():
        weight.data.copy_(original)
    kept.clear()


for form in ("diffusers", "peft"):
    numbers = measured(DITS, form, put_on, take_off) | {"restored": None}
    row("SGLang", released(where, "sglang"), form, "its loader, our product", **numbers)
