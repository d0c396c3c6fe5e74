"""A real ComfyUI server for benchmarks/clients/comfyui.py, and workflows to run in it."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SIDE, SEED, STEPS = 8, 7, 2
BEFORE = "the node before"
# The words of the prompt are noise: a text encoder is no part of this.
NOISE_NODE = """
import torch
class SeededConditioning:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "testing"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0})}}
    def make(self, seed):
        return ([[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed)), {}]],)
NODE_CLASS_MAPPINGS = {"SeededConditioning": SeededConditioning}
"""


@contextmanager
def server(comfy: Path, base: Path) -> Iterator[tuple[Callable[[dict], dict], Path]]:
    """The real server, stopped at the end: gives a function that runs a workflow, and the file of what it said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = base / "server.log"
    command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with said.open("w") as log:
        child = subprocess.Popen(command, cwd=comfy, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path})

    def ask(route: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{route}", data, timeout=60) as answer:
            return json.loads(answer.read())

    def run(graph: dict) -> dict:
        key = ask("prompt", {"prompt": graph})["prompt_id"]
        for _ in range(1200):
            if key in (history := ask(f"history/{key}")):
                return history[key]
            time.sleep(0.1)
        raise TimeoutError(said.read_text())

    try:
        for _ in range(600):
            try:
                ask("system_stats")
                break
            except (urllib.error.URLError, ConnectionError):
                if child.poll() is not None:
                    raise RuntimeError(said.read_text()) from None
                time.sleep(0.2)
        yield run, said
    finally:
        child.terminate()
        child.wait(30)


def hotfix(lock: str, related: bool = False) -> tuple[str, dict]:
    return "ApplyHotfixStack", {"model": BEFORE, "lock": lock, "allow_related_base": related}


def lora(file: str) -> tuple[str, dict]:
    return "LoraLoaderModelOnly", {"model": BEFORE, "lora_name": file, "strength_model": 1.0}


def merged() -> tuple[str, dict]:
    return "ModelMergeSimple", {"model1": BEFORE, "model2": ["model0", 0], "ratio": 0.5}


def graph(nodes: Sequence[tuple[str, dict]], unet: str = "base", dtype: str = "default") -> dict:
    """A workflow: the model through these nodes, then sampled and its latents saved."""
    made = {"model0": ("UNETLoader", {"unet_name": f"{unet}.safetensors", "weight_dtype": dtype})}
    for i, (kind, inputs) in enumerate(nodes, 1):
        made[f"model{i}"] = (kind, {k: [f"model{i - 1}", 0] if v is BEFORE else v for k, v in inputs.items()})
    words, empty = ["words", 0], {"width": SIDE * 8, "height": SIDE * 8, "batch_size": 1}
    sampling = {
        "seed": SEED,
        "steps": STEPS,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }
    sampling |= {"model": [f"model{len(nodes)}", 0], "positive": words, "negative": words, "latent_image": ["empty", 0]}
    made["words"] = ("SeededConditioning", {"seed": 0})
    made["empty"] = ("EmptyLatentImage", empty)
    made["sampled"] = ("KSampler", sampling)
    made["saved"] = ("SaveLatent", {"samples": ["sampled", 0], "filename_prefix": "latent"})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in made.items()}


def not_run(done: dict) -> list[str]:
    """Nodes that were not run again."""
    return next(told["nodes"] for kind, told in done["status"]["messages"] if kind == "execution_cached")
