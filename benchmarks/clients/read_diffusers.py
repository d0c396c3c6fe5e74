"""Stock diffusers, through `load_lora_weights`.

pip install --no-deps --target FOLDER diffusers==VERSION
python benchmarks/clients/read_diffusers.py FOLDER
"""

from client import DITS, UNETS, folder, measured, row

folder(__doc__)
import diffusers  # noqa: E402


def put_on(pipe, model, paths):
    pipe.load_lora_weights(paths[0].parent, weight_name=paths[0].name, use_safetensors=True)


def take_off(pipe, put):
    pipe.unload_lora_weights()


for form, families in (("diffusers", (*UNETS, *DITS)), ("kohya", UNETS)):
    row("diffusers", diffusers.__version__, form, "beside", **measured(families, form, put_on, take_off))
