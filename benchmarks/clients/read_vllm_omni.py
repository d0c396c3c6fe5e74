"""vLLM-Omni's `LoraLoaderMixin`, from its wheel, on a transformer of diffusers. Its server is not run.

pip download --no-deps vllm-omni==VERSION; unzip -d FOLDER vllm_omni-*.whl
python benchmarks/clients/read_vllm_omni.py FOLDER

The mixin writes ΔW into the weights and cannot take it out again. The server's other way, a PEFT folder for each
request, needs vllm itself.
"""

from client import DITS, folder, hollow, measured, released, row

where = folder(__doc__)
top = where / "vllm_omni"
for name, path in (
    ("vllm", None),
    ("vllm.logger", None),
    ("vllm_omni", top),
    ("vllm_omni.diffusion", top / "diffusion"),
    ("vllm_omni.diffusion.lora", top / "diffusion/lora"),
    ("vllm_omni.diffusion.distributed", None),
    ("vllm_omni.diffusion.distributed.utils", None),
    ("vllm_omni.diffusion.utils", None),
    ("vllm_omni.diffusion.utils.tf_utils", None),
    ("vllm_omni.transformers_utils", None),
    ("vllm_omni.transformers_utils.repo_utils", None),
):
    hollow(name, path)
from safetensors.torch import load_file  # noqa: E402
from vllm_omni.diffusion.lora.loader import LoraLoaderMixin  # noqa: E402


def put_on(pipe, model, paths):
    used = LoraLoaderMixin.load_lora_into_module(load_file(paths[0]), model, "transformer")
    assert len(used) == len(load_file(paths[0])), "some keys were passed over"


numbers = measured(DITS, "diffusers", put_on)
row("vLLM-Omni", released(where, "vllm-omni"), "diffusers", "its loader, merged", **numbers)
