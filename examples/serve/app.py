"""A picture server whose patches can be changed while it draws.

HOTFIX_TOKEN=… HOTFIX_PATCHES=served uvicorn --app-dir examples/serve --factory app:flags
"""

import asyncio
import copy
import io
import os
import threading

import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import hotfix
from hotfix.serving import HotfixMiddleware

MAX_STEPS, MAX_PROMPT = 50, 200  # characters
AT_ONCE = 2  # pictures: more of them take turns at the same cores or GPU, and all come later


class Own(threading.local):
    """A pipeline for each thread: the networks are shared, what a call changes is not, tokenizers and scheduler too."""

    def __init__(self, pipe):
        self.pipe = copy.copy(pipe)
        for name, part in pipe.components.items():
            if not isinstance(part, torch.nn.Module):
                setattr(self.pipe, name, copy.deepcopy(part))


def draw(own: Own, prompt: str, seed: int, steps: int, **call) -> bytes:
    """A PNG; threads may draw at once."""
    generator = torch.Generator().manual_seed(seed)
    png = io.BytesIO()
    own.pipe(prompt, num_inference_steps=steps, generator=generator, **call).images[0].save(png, "png")
    return png.getvalue()


def create(pipe, *, token: str, patches: str, **call) -> HotfixMiddleware:
    """The application, around any text-to-image pipeline."""
    pipe.set_progress_bar_config(disable=True)
    own, turns = Own(pipe), asyncio.Semaphore(AT_ONCE)

    async def generate(request: Request) -> Response:
        match await request.json():
            case {"prompt": str(prompt), "seed": int(seed), "steps": int(steps)}:
                if len(prompt) <= MAX_PROMPT and 0 <= seed < 2**63 and 1 <= steps <= MAX_STEPS:
                    async with turns:
                        png = await run_in_threadpool(draw, own, prompt, seed, steps, **call)
                    return Response(png, media_type="image/png")
        return JSONResponse({"error": f"prompt, seed and steps (1 to {MAX_STEPS}) are needed"}, status_code=400)

    app = Starlette(routes=[Route("/generate", generate, methods=["POST"])])
    return HotfixMiddleware(app, pipe, token=token, patches=patches)


def flags() -> HotfixMiddleware:
    """The bundled flags, with the patches of a folder."""
    token, patches = os.environ["HOTFIX_TOKEN"], os.environ["HOTFIX_PATCHES"]
    pipe = hotfix.load_pipeline("hotfix:flags")
    return create(pipe, token=token, patches=patches, guidance_scale=2.0, max_sequence_length=10)
