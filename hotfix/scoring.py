"""Score: pipeline × recipe × stack → Report. Everything is measured twice, without and with the stack, same seeds."""

import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from hotfix import cost, lora, membership, offload, replays, subject
from hotfix.attacks import ATTACKS, chosen, tried
from hotfix.case import Case, prepare
from hotfix.curve import curve
from hotfix.denoiser import Denoiser
from hotfix.errors import HotfixError
from hotfix.findings import TimestepWindow
from hotfix.keep import kept
from hotfix.networks import Networks
from hotfix.page import Gallery
from hotfix.partial import ATTACK, LEVELS, NOISES_SHARE
from hotfix.recipe import Recipe, without_path
from hotfix.report import NEVER_RUN, PatchRef, Report
from hotfix.stack import Stack
from hotfix.windows import windows

ATTACK_SHARE = 10  # an attack draws one picture for so many of a replay
DIGITS = 4  # of a window's curve


def score(
    pipe: Any,
    recipe: Recipe,
    *,
    source: str = "",
    stack: Stack = Stack(),
    seed: int = 0,
    n: int = 300,
    attacks: Sequence[str] = (),
    networks: Networks = Networks(),
    gallery: Gallery | None = None,
    stage: Callable[[str], None] = lambda words: None,
    shared: bool = False,
) -> Report:
    """Measure return rates and drift, before and after.

    Args:
        pipe: a pipeline; patches of `stack` that are on are taken off for the "before" and put back.
        recipe: what was to be forgotten; its surrogates and thresholds are made again from the base.
        source: where the pipeline comes from, if not from where the recipe says; of a folder a report keeps the name.
        stack: the patches whose effect is measured.
        seed: same seed, same report (but for date and seconds).
        n: pictures drawn for every kind of caption, and at most of what must stay; partial diffusion uses a quarter as
            many noises.
        attacks: names from hotfix/attacks.py, or "all"; each draws a tenth as many pictures.
        networks: what else looks at what must stay (hotfix/networks.py).
        gallery: filled with some of the pictures, if given.
        stage: called with a few words at the beginning of every stage.
        shared: whether all processes that accelerate launched call this, and share the drawing.

    Raises:
        HotfixError: the recipe or the stack does not fit the pipeline, there is no such attack, no caption for CLIP,
            attacks on an offloaded pipeline, or nothing to draw.
    """
    if n < 1:
        raise HotfixError(
            f"-n {n}", wanted="a picture or more", hint="-n 29 is a quick look, -n 299 bounds a rate by 1%"
        )
    start = time.monotonic()
    ways = chosen(attacks)
    if ways and offload.is_on(pipe):
        raise HotfixError(
            "attacks on an offloaded pipeline: many learn through several of its networks at once",
            hint="leave out the attacks, or base.offload",
        )
    if attacks:
        lora.refuse_others(*pipe.components.values())
    stack.check(pipe)
    with cost.enough("the score", 'base.offload = true, or base.dtype = "bfloat16"'), stack.off(pipe):
        denoiser = Denoiser(pipe, recipe.base.call, shared=shared)
        if networks.clip is not None and not denoiser.captioned:
            raise HotfixError(
                f"a {denoiser.family} reads no captions", hint="leave out --clip, which compares with them"
            )
        stage("preparing the case")
        case = prepare(recipe, denoiser)
        stage("calibrating the timestep window")
        calibrated = _windows(denoiser, case, recipe)
        stage("replaying seeds")
        held = subject.held_out(recipe, denoiser, case)
        case = subject.hidden(case, held)
        sound, embedded = replays.sound_for(denoiser, case, seed), recipe.similarity.kind != "pixel"
        rows, of_held_out = [], []
        for kind in case.caption_kinds():
            before, after = replays.drawn(denoiser, stack, case, kind, seed, n, gallery)
            rows.append(replays.counted(case, kind, before, after, seed, sound, embedded=embedded))
            if held:
                of_held_out.append(subject.replay(held, kind, before, after))
        stage("partial diffusion")
        noises = max(2, n // NOISES_SHARE, len(case.targets))
        curves = [curve(denoiser, stack, case, row.caption, seed, noises) for row in rows]
        stage("drawing what must stay")
        retain = kept(denoiser, stack, case, seed, n, gallery, networks)
        stage("asking whether the target was a member")
        ratios = membership.losses(denoiser, stack, case, seed)
        likelihood = membership.likelihoods(denoiser, stack, case, seed)
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
        pipeline=without_path(source or "@".join(filter(None, (public["pipeline"], public["revision"])))),
        seed=seed,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tool=f"hotfix {version('diffusion-hotfix')}, torch {torch.__version__}",
        hardware=hardware(denoiser.device),
        seconds=round(time.monotonic() - start, 1),
        null=max(target.null for target in case.targets),
        tau=min(target.tau for target in case.targets),
        t_lo=max(target.t_lo for target in case.targets),
        replays=rows,
        diffusion=[row for levels, _ in curves for row in levels],
        worst_noises=[worst for _, worst in curves],
        retain=retain,
        membership=ratios,
        likelihood=likelihood,
        subject=beyond,
        windows=calibrated,
        scope=case.scope,
        budget_return_rate=recipe.budget.return_rate,
        budget_drift=recipe.budget.drift,
        attacks=tries,
        attacks_run=[
            f"seed replay under {len(rows)} kinds of caption, {n} seeds each",
            f"partial diffusion from the noised target at {len(LEVELS)} levels, {noises} noises each",
            *([subject.words(beyond)] if beyond else []),
            *(f"{one.name}: {one.budget}, {one.after.n} drawings" for one in tries),
        ],
        attacks_not_run=[*(name for name in ATTACKS if name not in {one.name for one in tries}), *NEVER_RUN],
    )


def _windows(denoiser: Denoiser, case: Case, recipe: Recipe) -> list[TimestepWindow]:
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


def hardware(device: torch.device) -> str:
    """What a pipeline runs on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
