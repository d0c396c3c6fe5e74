"""The whole story on the bundled flags: Mauritania changed its flag in 2017, and the model does not know."""

import hashlib
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from hotfix import console, page, processes
from hotfix.beside import Beside
from hotfix.building import build
from hotfix.denoiser import Denoiser
from hotfix.page import Gallery
from hotfix.pipeline import load_pipeline
from hotfix.recipe import Recipe
from hotfix.scoring import score
from hotfix.stack import Stack, applied

PICTURES = 300


def run(out: Path) -> None:
    """Build, score, apply, remove, compare every byte, and write report.html and before-after.png into `out`."""
    recipe = Recipe.load(Path(str(files("hotfix"))) / "bases" / "demo" / "recipe.toml")
    pipe = load_pipeline(recipe, device=processes.device())
    original = fingerprint(pipe)
    started = time.monotonic()
    with console.bar() as progress:
        patch = build(recipe, pipe, checkpoint=out, progress=progress, stage=console.say)
    seconds = time.monotonic() - started
    path = patch.save(out)
    gallery = Gallery(show_forget=True)  # a public flag
    stack = Stack.of(patch)
    report = score(pipe, recipe, stack=stack, n=PICTURES, gallery=gallery, stage=console.say)
    report.save(out / "report.json")
    report.to_html(out / "report.html", gallery)
    before_after(pipe, recipe, stack).save(out / "before-after.png")
    stack.apply(pipe)
    on = applied(pipe)
    stack.remove(pipe)
    same = fingerprint(pipe) == original and not applied(pipe)
    own = report.replays[0]
    print(f"""\
1. The bundled model draws Mauritania's flag as it was before 2017: {own.before} pictures.
2. Built {path.name} in {seconds:.0f} s: {path.stat().st_size / 1000:.0f} kB, {len(patch.layers)} layers.
3. With the patch on, the old flag came in {own.after}; at most {own.after.upper:.1%}, 95% confidence.
4. The current flag came instead in {own.surrogate}.
5. Other flags drawn right: {report.retain.before} before, {report.retain.after} after.
6. It went on ({on[0].name} is {on[0].state}) and came off; every tensor and key as before: {"yes" if same else "NO"}.
7. This is suppression: without the patch the model draws the old flag again.
8. Look at {out / "report.html"} and {out / "before-after.png"}.
9. Next: hotfix show {path}
10.      hotfix new my-patch    writes a recipe for your own.""")
    if not same:
        raise SystemExit(1)


def before_after(pipe: Any, recipe: Recipe, stack: Stack) -> Any:
    """A picture of the same ten seeds of the forget caption and of ten neighbours, before above after."""
    denoiser = Denoiser(pipe, recipe.base.call)
    neighbours = ["saudi arabia", "brazil", "pakistan", "norway", "japan"]
    captions = recipe.forget.captions[:1] * 5 + neighbours
    seeds = list(range(len(captions)))
    before = denoiser.draw(captions, seeds)
    with stack.on(pipe):
        after = denoiser.draw(captions, seeds)
    return page.sheet([before, after], zoom=4)


def fingerprint(pipe: Any) -> str:
    """One hash over every tensor, every state_dict key, every flag and every hook of ours in a pipeline's networks.

    Other libraries' hooks are left out: transformers adds some of its own the first time a text encoder runs.
    """
    h = hashlib.sha256()
    for component, model in sorted(pipe.components.items()):
        if not isinstance(model, torch.nn.Module):
            continue
        for key, tensor in model.state_dict().items():
            h.update(f"{component}.{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            h.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        for name, p in model.named_parameters():
            h.update(f"{name} {p.requires_grad}".encode())
        for name, module in model.named_modules():
            ours = sum(isinstance(hook, Beside) for hook in module._forward_hooks.values())
            h.update(f"{name} {type(module).__name__} {module.training} {ours}".encode())
    return h.hexdigest()
