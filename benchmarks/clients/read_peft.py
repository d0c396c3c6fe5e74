"""peft on the denoiser itself, through `PeftModel.from_pretrained`.

pip install --no-deps --target FOLDER peft==VERSION
python benchmarks/clients/read_peft.py FOLDER
"""

from client import DITS, UNETS, folder, measured, row

folder(__doc__)
import peft  # noqa: E402


def put_on(pipe, model, paths):
    return peft.PeftModel.from_pretrained(model, paths[0].parent).base_model.model


def take_off(pipe, model):
    from diffusers.utils import recurse_remove_peft_layers

    recurse_remove_peft_layers(model)


row("peft", peft.__version__, "peft", "beside", **measured((*UNETS, *DITS, "ddpm"), "peft", put_on, take_off))
