"""Does what hotfix asks of SGLang-Diffusion and vLLM-Omni fit their released wheels? Needs neither, nor a GPU.

    python benchmarks/clients/wheels.py [-o benchmarks/results/wheels.json]

Fetches both wheels without their dependencies (45 MB), or takes them from --wheels DIR. Names are read from the syntax
tree, also those that tests/sglang_like.py answers with. The small functions that take a request apart are run.
"""

import argparse
import ast
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any, Union

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import sglang_like  # noqa: E402

from benchmarks.kept import write  # noqa: E402
from hotfix import console, sglang, vllm_omni  # noqa: E402
from hotfix.patch import Patch  # noqa: E402

WHEELS = {"sglang": "0.5.23", "vllm_omni": "0.30.0"}
RUNTIME = "sglang/multimodal_gen/runtime"


def wheel(folder: Path, name: str) -> Path:
    if not list(folder.glob(f"{name}-*.whl")):
        wanted = f"{name.replace('_', '-')}=={WHEELS[name]}"
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, wanted], check=True)
    return next(folder.glob(f"{name}-{WHEELS[name]}-*.whl"))


def find(tree: ast.AST, name: str) -> Any:
    """A function, a class, or the value of an assignment."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return node
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value
    raise LookupError(name)


def arguments(function: Any) -> set[str]:
    return {argument.arg for argument in function.args.args} - {"self"}


def keys(node: ast.AST) -> set[str]:
    return {key.value for one in ast.walk(node) if isinstance(one, ast.Dict) for key in one.keys if key is not None}


def run(node: Any, **names: Any) -> Any:
    """A function of a wheel, as it is, without its module."""
    body = ast.Module(body=[node], type_ignores=[])
    space: dict[str, Any] = {"Any": Any, "Union": Union} | names
    exec(compile(ast.fix_missing_locations(body), "wheel", "exec"), space)
    return space[node.name]


def of_sglang(file: zipfile.ZipFile) -> dict[str, bool]:
    def tree(path: str) -> ast.AST:
        return ast.parse(file.read(f"{RUNTIME}/{path}"))

    api, requests = tree("entrypoints/openai/common_api.py"), tree("entrypoints/control_requests.py")
    pipeline = tree("pipelines_core/lora/pipeline.py")
    fields = {one.target.id for one in find(requests, "SetLoraReq").body if isinstance(one, ast.AnnAssign)}
    routes = {one.value for one in ast.walk(api) if isinstance(one, ast.Constant)}
    modes = set()
    for path in file.namelist():
        if (
            path.startswith("sglang/multimodal_gen/")
            and path.endswith(".py")
            and b"LORA_MERGE_MODES =" in file.read(path)
        ):
            modes = set(ast.literal_eval(find(ast.parse(file.read(path)), "LORA_MERGE_MODES")))
    status = find(pipeline, "get_lora_status")
    listed = keys(status)
    normalise = run(find(pipeline, "_normalize_lora_params"))
    return {
        "the addresses exist": {"/list_loras", "/set_lora", "/unmerge_lora_weights", "/models"} <= routes,
        "set_lora takes what the test server takes": arguments(find(api, "set_lora")) == sglang_like.SET_LORA == fields,
        "unmerge takes what the test server takes": arguments(find(api, "unmerge_lora_weights")) == sglang_like.UNMERGE,
        "the targets are those": ast.literal_eval(find(pipeline, "VALID_TARGETS")) == sglang_like.TARGETS,
        "the modes are those": modes == sglang_like.MODES,
        "the list holds what the test server says": sglang_like.STATUS | sglang_like.ACTIVE | {"path"} <= listed,
        "lists are taken apart as hotfix means them": normalise(
            None, ["a", "b"], ["/a", "/b"], [1.0, 0.5], sglang.TARGET, None
        )
        == (["a", "b"], ["/a", "/b"], [1.0, 0.5], [sglang.TARGET] * 2, [None, None]),
    }


def of_vllm_omni(file: zipfile.ZipFile, folder: Path) -> dict[str, bool]:
    def tree(path: str) -> ast.AST:
        return ast.parse(file.read(f"vllm_omni/{path}"))

    patches = [Patch.load(path) for path in sorted(ROOT.glob("patches/*-20*/*.safetensors"))[:2]]
    field = vllm_omni.put(folder, patches)["lora"]
    request = namedtuple("LoRARequest", ["name", "id", "path"])
    stable = run(find(tree("lora/utils.py"), "stable_lora_int_id"), hashlib=hashlib)
    parse = run(
        find(tree("entrypoints/openai/utils.py"), "parse_lora_request"), LoRARequest=request, stable_lora_int_id=stable
    )
    images, api = tree("entrypoints/openai/protocol/images.py"), tree("entrypoints/openai/api_server.py")
    generation = {
        one.target.id for one in find(images, "ImageGenerationRequest").body if isinstance(one, ast.AnnAssign)
    }
    routes = {one.value for one in ast.walk(api) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    setting = [route for route in routes if route.startswith("/") and "lora" in route]
    return {
        "an image request has the field": "lora" in generation,
        "it is known by /v1/omni/sleep": "/v1/omni/sleep" in routes,
        "no address of its own sets an adapter for all": not setting,
        "the field is taken apart as hotfix means it": parse(field)
        == ((field["name"], stable(field["path"]), field["path"]), 1.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "wheels.json")
    parser.add_argument("--wheels", type=Path, help="a folder that has them, or is to have them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.wheels or Path(name)
        with zipfile.ZipFile(wheel(folder, "sglang")) as one, zipfile.ZipFile(wheel(folder, "vllm_omni")) as other:
            found = {"sglang 0.5.23": of_sglang(one), "vllm-omni 0.30.0": of_vllm_omni(other, Path(name))}
    for checks in found.values():
        for words, holds in checks.items():
            console.say(f"{'ok ' if holds else 'BAD'}  {words}")
    write(args.out, found)
    if not all(holds for checks in found.values() for holds in checks.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    with console.door():
        main()
