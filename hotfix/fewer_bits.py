"""A base whose denoiser is loaded in fewer bits: a patch can be built where the whole would not fit.

Eight bits are torchao's, of weights alone. Four are bitsandbytes' NF4 (QLoRA, arXiv:2305.14314), on a GPU only: on
some CPUs its layers carry no gradient. Linear layers are quantised; convolutions, text encoders and VAE are not.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from hotfix.errors import HotfixError

if TYPE_CHECKING:
    import torch
    from diffusers import PipelineQuantizationConfig

DENOISERS = ("transformer", "unet")
LIBRARY = {8: "torchao", 4: "bitsandbytes"}


def config(bits: int, dtype: "torch.dtype", device: "torch.device") -> "PipelineQuantizationConfig":
    """What diffusers is told for a denoiser in `bits` bits that computes in `dtype`.

    Raises:
        HotfixError: the library that does it is not installed, or there is no GPU where one is needed.
    """
    library = LIBRARY[bits]
    if find_spec(library) is None:
        hint = "pip install 'diffusion-hotfix[quantised]'"
        raise HotfixError(f"{library} is not installed, which base.bits = {bits} needs", hint=hint)
    if bits == 4 and device.type == "cpu":
        raise HotfixError("base.bits = 4 without a GPU", wanted="a GPU", hint="base.bits = 8 needs none")
    from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, TorchAoConfig

    said: BitsAndBytesConfig | TorchAoConfig
    if bits == 4:
        said = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    else:
        from torchao.quantization import Int8WeightOnlyConfig

        said = TorchAoConfig(Int8WeightOnlyConfig())
    return PipelineQuantizationConfig(quant_mapping=dict.fromkeys(DENOISERS, said))
