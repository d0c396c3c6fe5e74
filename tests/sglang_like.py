"""A server that speaks SGLang-Diffusion's LoRA requests and draws nothing.

Names and behaviour as in sglang 0.5.23; benchmarks/clients/wheels.py compares the names with the wheel.
"""

from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

SET_LORA = {"lora_nickname", "lora_path", "target", "strength", "merge_mode", "lora_alpha"}
UNMERGE = {"target"}
TARGETS = ["all", "transformer", "transformer_2", "critic"]
MODES = {"auto", "merge", "dynamic"}
STATUS = {"loaded_adapters", "active"}
ACTIVE = {"nickname", "nicknames", "path", "merged", "mode", "strength", "strengths"}


class Sglang:
    """`breaks` is a number of set_lora requests that fail half-way, after the weights were touched."""

    def __init__(self, precision="bf16"):
        self.loaded, self.active, self.precision, self.breaks, self.asked = {}, {}, precision, 0, []
        self.app = Starlette(
            routes=[
                Route("/v1/list_loras", self.list_loras),
                Route("/v1/models", self.models),
                Route("/v1/set_lora", self.set_lora, methods=["POST"]),
                Route("/v1/unmerge_lora_weights", self.unmerge, methods=["POST"]),
            ]
        )

    async def models(self, request):
        return JSONResponse({"object": "list", "data": [{"id": "x", "dit_precision": self.precision}]})

    async def list_loras(self, request):
        loaded = [{"nickname": name, "path": path} for name, path in self.loaded.items()]
        return JSONResponse({"loaded_adapters": loaded, "active": self.active})

    async def set_lora(self, request):
        body = await request.json()
        self.asked.append(body)
        assert set(body) <= SET_LORA and body["target"] in TARGETS and body["merge_mode"] in MODES
        names, paths, weights = body["lora_nickname"], body["lora_path"], body["strength"]
        if not len(names) == len(paths) == len(weights):
            return self.failed("Length mismatch")
        if body["merge_mode"] == "dynamic" and len(names) > 1:
            return self.failed("Dynamic LoRA currently supports only one adapter per target.")
        for name, path in zip(names, paths, strict=True):
            if self.loaded.get(name) != path:
                if not Path(path).is_file():
                    return self.failed(f"{path} not found")
                self.loaded[name] = path
        if self.breaks:
            self.breaks -= 1
            self.active.pop(body["target"], None)
            return self.failed("out of memory")
        merged = body["merge_mode"] == "merge"
        status = {
            "nickname": ",".join(names),
            "nicknames": names,
            "path": ",".join(paths),
            "merged": merged,
            "mode": "merged" if merged else "unmerged",
            "strength": weights[0],
            "strengths": weights,
        }
        assert set(status) == ACTIVE
        self.active[body["target"]] = [status]
        return JSONResponse({"status": "ok", "message": "Successfully set LoRA adapter(s)"})

    async def unmerge(self, request):
        body = await request.json()
        self.asked.append(body)
        assert set(body) <= UNMERGE
        self.active.pop(body["target"], None)
        return JSONResponse({"status": "ok", "message": "Successfully unmerged LoRA weights"})

    def failed(self, detail):
        return JSONResponse({"detail": f"Failed to set LoRA adapter: {detail}"}, status_code=500)
