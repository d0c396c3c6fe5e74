"""Score: pipeline × recipe × stack → Report. Everything is measured twice, without and with the stack, same seeds."""

import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from hotfix import subject
from hotfix.attacks import ATTACKS, chosen, tried
from hotfix.case import Case, Target, prepare
from hotfix.denoiser import Denoiser
from hotfix.page import Gallery
from hotfix.partial import LEVELS, back, cycled, in_turn, twice
from hotfix.recipe import Recipe
from hotfix.report import (
    NEVER_RUN,
    Diffusion,
    PatchRef,
    Rate,
    Replay,
    Report,
    Retain,
    TimestepWindow,
    interval,
)
from hotfix.shapes import Latents, Pictures
from hotfix.similarity import nearest, null, pixel, stranger, threshold
from hotfix.stack import Stack
from hotfix.windows import windows

SAME_PICTURE = 0.03  # RMSE in units of [0, 1]: two captions with one picture
NOISES_SHARE = 4  # partial diffusion costs most: one noise for every four pictures of a replay
ATTACK_SHARE = 10  # and an attack more
STRANGERS = 32  # noises for the stranger's curve
DIGITS = 4  # of a window's curve
REPLAY, PARTIAL, KEEP, ATTACK = 10_000, 20_000, 30_000, 40_000  # seeds of the parts, far from a build's


def score(
    pipe: Any,
    recipe: Recipe,
    *,
    stack: Stack = Stack(),
    seed: int = 0,
    n: int = 300,
    attacks: Sequence[str] = (),
    gallery: Gallery | None = None,
    stage: Callable[[str], None] = lambda words: None,
    shared: bool = False,
) -> Report:
    """Measure return rates and drift, before and after.

    Args:
        pipe: a pipeline; patches of `stack` that are on are taken off for the "before" and put back.
        recipe: what was to be forgotten; its surrogates and thresholds are made again from the base.
        stack: the patches whose effect is measured.
        seed: same seed, same report (but for date and seconds).
        n: pictures drawn for every kind of caption; partial diffusion uses a quarter as many noises.
        attacks: names from hotfix/attacks.py, or "all"; each draws a tenth as many pictures.
        gallery: filled with some of the pictures, if given.
        stage: called with a few words at the beginning of every stage.
        shared: whether all processes that accelerate launched call this, and share the drawing.

    Raises:
        HotfixError: the recipe or the stack does not fit the pipeline, or there is no such attack.
    """
    start = time.monotonic()
    ways = chosen(attacks)
    stack.check(pipe)
    with stack.off(pipe):
        denoiser = Denoiser(pipe, recipe.base.call, shared=shared)
        stage("preparing the case")
        case = prepare(recipe, denoiser)
        stage("calibrating the timestep window")
        curves = _curves(denoiser, case, recipe)
        stage("replaying seeds")
        held = subject.held_out(recipe, denoiser, case)
        kinds = list(case.caption_kinds())
        replays, of_held_out = [], []
        for kind in kinds:
            before, after = _drawn(denoiser, stack, case, kind, seed, n, gallery)
            replays.append(_replay(case, kind, before, after))
            if held:
                of_held_out.append(subject.replay(held, kind, before, after))
        stage("partial diffusion")
        noises = max(2, n // NOISES_SHARE, len(case.targets))
        diffusion = [row for kind in kinds for row in _diffusion(denoiser, stack, case, kind, seed, noises)]
        stage("drawing what must stay")
        retain = _retain(denoiser, stack, case, seed, gallery)
        beyond = None
        if held:
            stage("held-out pictures of the subject")
            each = max(2, noises // len(held))
            beyond = subject.measure(denoiser, stack, case, held, of_held_out, seed, each)
        tries = []
        for name in ways:
            if ATTACKS[name].fits(denoiser):
                stage(f"attack: {name}")
                tries.append(tried(denoiser, stack, case, name, max(1, n // ATTACK_SHARE), seed + ATTACK))
    public = recipe.public()["base"]
    return Report(
        recipe=f"{recipe.name} {recipe.version}",
        patches=[PatchRef(name=p.name, version=p.version, id=p.id) for p in stack.patches],
        pipeline="@".join(filter(None, (public["pipeline"], public["revision"]))),
        seed=seed,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tool=f"hotfix {version('diffusion-hotfix')}, torch {torch.__version__}",
        hardware=hardware(denoiser.device),
        seconds=round(time.monotonic() - start, 1),
        null=max(target.null for target in case.targets),
        tau=min(target.tau for target in case.targets),
        t_lo=max(target.t_lo for target in case.targets),
        replays=replays,
        diffusion=diffusion,
        retain=retain,
        subject=beyond,
        windows=curves,
        scope=case.scope,
        budget_return_rate=recipe.budget.return_rate,
        budget_drift=recipe.budget.drift,
        attacks=tries,
        attacks_run=[
            f"seed replay under {len(replays)} kinds of caption, {n} seeds each",
            f"partial diffusion from the noised target at {len(LEVELS)} levels, {noises} noises each",
            *([subject.words(beyond)] if beyond else []),
            *(f"{one.name}: {one.budget}, {one.after.n} drawings" for one in tries),
        ],
        attacks_not_run=[*(name for name in ATTACKS if name not in {one.name for one in tries}), *NEVER_RUN],
    )


def _curves(denoiser: Denoiser, case: Case, recipe: Recipe) -> list[TimestepWindow]:
    return [
        TimestepWindow(
            target=number,
            caption=kind,
            weight=recipe.train.weight,
            t_lo=window.t_lo,
            t=[round(t, DIGITS) for t in window.t.tolist()],
            m=[round(height, DIGITS) for height in m.tolist()],
        )
        for number, window in enumerate(windows(denoiser, case, recipe.train), start=1)
        for kind, m in window.m.items()
    ]


def _any_return(case: Case, drawn: Pictures) -> Rate:
    hits = torch.stack([target.returned(drawn) for target in case.targets]).any(dim=0)
    return Rate.of(int(hits.sum()), len(drawn))


def _drawn(
    denoiser: Denoiser, stack: Stack, case: Case, kind: str, seed: int, n: int, gallery: Gallery | None
) -> tuple[Pictures, Pictures]:
    captions = cycled(case.caption_kinds()[kind], n)
    seeds = [seed + REPLAY + i for i in range(n)]
    before, after = twice(denoiser.pipe, stack, lambda: denoiser.draw(captions, seeds))
    if gallery is not None:
        gallery.add(f"{kind} caption", before[:10], after[:10], case.alike)
    return before, after


def _replay(case: Case, kind: str, before: Pictures, after: Pictures) -> Replay:
    return Replay(
        caption=kind,
        before=_any_return(case, before),
        after=_any_return(case, after),
        surrogate_before=_count(is_surrogate(case, before)),
        surrogate=_count(is_surrogate(case, after)),
    )


def is_surrogate(case: Case, drawn: Pictures) -> Tensor:
    """Which drawings are a surrogate, (B,) bool: nearest of all known pictures, and nearer than strangers are."""
    surrogates = torch.cat([target.surrogates for target in case.targets])
    known = torch.cat([surrogates, torch.stack([t.picture for t in case.targets]), case.strangers])
    row = nearest(drawn, known)
    like = [pixel(one) for one in surrogates]
    hits = [(row == i) & (one(drawn) >= threshold(null(one, case.strangers))) for i, one in enumerate(like)]
    return torch.stack(hits).any(dim=0)


def _count(hits: Tensor) -> Rate:
    return Rate.of(int(hits.sum()), len(hits))


@torch.no_grad()
def _diffusion(denoiser: Denoiser, stack: Stack, case: Case, kind: str, seed: int, n: int) -> list[Diffusion]:
    rows = denoiser.embed(cycled(case.caption_kinds()[kind], n))
    return [_level(denoiser, stack, case.targets, kind, rows, level, seed, n) for level in LEVELS]


def _level(
    denoiser: Denoiser,
    stack: Stack,
    targets: Sequence[Target],
    kind: str,
    rows: dict[str, Tensor],
    t: float,
    seed: int,
    n: int,
) -> Diffusion:
    """Noise the targets in turn, n noises in all; each drawing is compared with the target that it came from."""
    turn, x_f, eps = in_turn(targets, n, seed + PARTIAL)

    def again(x: Latents) -> Pictures:
        return back(denoiser, x, eps[: len(x)], t, rows, kind)

    def like(drawn: Pictures) -> Tensor:
        return torch.stack([target.similarity(drawn) for target in targets])[turn, torch.arange(n)]

    like_before, like_after = map(like, twice(denoiser.pipe, stack, lambda: again(x_f)))
    unseen = torch.stack([stranger(target.picture) for target in targets])[turn[: min(n, STRANGERS)]]
    error = (again(denoiser.encode(unseen)) - unseen).square().mean(dim=(1, 2, 3)).sqrt()
    tau = torch.tensor([target.tau for target in targets])[turn]
    return Diffusion(
        caption=kind,
        t=t,
        before_rate=Rate.of(int((like_before >= tau).sum()), n),
        after_rate=Rate.of(int((like_after >= tau).sum()), n),
        before_mean=float(like_before.mean()),
        after_mean=float(like_after.mean()),
        after_q95=float(like_after.quantile(0.95)),
        stranger_mean=float((1 - error / 2).mean()),
    )


def _retain(denoiser: Denoiser, stack: Stack, case: Case, seed: int, gallery: Gallery | None) -> Retain:
    captions = list(case.retain_captions)
    if denoiser.captioned:
        captions = [caption for caption in dict.fromkeys(captions) if caption] or [""]
    seeds = [seed + KEEP + i for i in range(len(captions))]
    before, after = twice(denoiser.pipe, stack, lambda: denoiser.draw(captions, seeds))
    kept = ~torch.stack([target.returned(before) for target in case.targets]).any(dim=0)
    if case.scope == "caption":
        kept[:] = True  # the target itself must stay under these captions
    before, after = before[kept], after[kept]
    captions = [caption for caption, keep in zip(captions, kept.tolist(), strict=True) if keep]
    if gallery is not None:
        gallery.add("what must stay", before[:20], after[:20], case.alike)
    unit_before, unit_after = (before + 1) / 2, (after + 1) / 2
    rates: list[Rate | None] = [None, None]
    if denoiser.captioned:
        own = case.retain[[case.retain_captions.index(caption) for caption in captions]]
        rates = [_right(drawn, own, case.retain) for drawn in (before, after)]
    rmse = (unit_after - unit_before).square().mean(dim=(1, 2, 3)).sqrt()
    unlike = 1 - torch.atleast_1d(ssim(unit_after, unit_before, reduction="none", data_range=1.0))
    return Retain(
        n=len(before),
        drift_rmse=float(rmse.mean()),
        drift_ssim=float(unlike.mean()),
        rmse_interval=interval(rmse.tolist()) if len(before) > 1 else None,
        ssim_interval=interval(unlike.tolist()) if len(before) > 1 else None,
        before=rates[0],
        after=rates[1],
    )


def _right(drawn: Pictures, own: Pictures, known: Pictures) -> Rate:
    """How many are nearest to the base's picture for their caption, or to one that looks the same (many flags do)."""
    found = known[nearest(drawn, known)]
    return Rate.of(int(((found - own).square().mean(dim=(1, 2, 3)).sqrt() / 2 < SAME_PICTURE).sum()), len(drawn))


def hardware(device: torch.device) -> str:
    """What a pipeline runs on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
