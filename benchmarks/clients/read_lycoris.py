"""lycoris-lora, through `create_lycoris_from_weights`, `apply_to` or `merge_to`, and `restore`.

pip install --no-deps --target FOLDER lycoris-lora==VERSION einops toml
python benchmarks/clients/read_lycoris.py FOLDER
"""

from client import UNETS, folder, measured, released, row

where = folder(__doc__)
from lycoris import create_lycoris_from_weights  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

networks = []


def put_on(pipe, model, paths):
    state = {key.replace("lora_unet_", "lycoris_"): tensor for key, tensor in load_file(paths[0]).items()}
    network, _ = create_lycoris_from_weights(1.0, "", model, weights_sd=state)
    networks.append(network)
    network.apply_to()


def take_off(pipe, put):
    networks.pop().restore()


row("lycoris-lora", released(where, "lycoris-lora"), "kohya", "beside", **measured(UNETS, "kohya", put_on, take_off))
