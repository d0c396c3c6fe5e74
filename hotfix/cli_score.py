"""Measuring: return rates, attacks and drift of one patch, or how the patches of a stack stand together."""

from pathlib import Path
from typing import Annotated

from hotfix import console, ledger, lock
from hotfix.errors import HotfixError
from hotfix.options import Json, Parameter, ShowForget, pictures_for, pipeline_of

QUICK = 0.1  # the bound of --quick


def score(
    pipeline: str,
    recipes: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    stack: Annotated[Path | None, Parameter(help="A lock; without one the bare pipeline is measured.")] = None,
    seed: int = 0,
    n: Annotated[int, Parameter(name=["-n", "--n"], help="Pictures to draw for every rate.")] = 300,
    bound: Annotated[
        float | None, Parameter(help="Instead of -n: draw as many as no return among them bounds so.")
    ] = None,
    quick: Annotated[bool, Parameter(negative=(), help="The same as --bound 0.1.")] = False,
    attacks: Annotated[str, Parameter(help="Also try to get the target back: all, or names with commas.")] = "",
    features: Annotated[
        Path | None, Parameter(help="A network of pictures: KID and feature distance of what must stay.")
    ] = None,
    lpips: Annotated[
        Path | None, Parameter(help="LPIPS as TorchScript: perceptual distance of what must stay.")
    ] = None,
    clip: Annotated[Path | None, Parameter(help="A folder with CLIP: how well pictures fit their captions.")] = None,
    json: Json = False,
    html: Annotated[Path | None, Parameter(help="Write a page here, with pictures.")] = None,
    show_forget: ShowForget = False,
) -> None:
    """Measure return rates and drift, before and after. Exits with 3 over budget.

    With several recipes: whether each of their patches in the stack holds with the others on, which one weakens it if
    not, and the drift of the stack against the sum of its parts. Exits with 3 where one is weakened.

    Args:
        pipeline: hotfix:NAME, a folder, or a Hub id as ID@COMMIT.
        recipes: what was to be forgotten.
        seed: same seed, same numbers.
    """
    from hotfix.recipe import Recipe
    from hotfix.stack import Stack

    if quick or bound is not None:
        n = pictures_for(QUICK if bound is None else bound)
    if n < 1:
        raise HotfixError(
            f"-n {n}", wanted="a picture or more", hint="-n 29 is a quick look, -n 299 bounds a rate by 1%"
        )
    wanted = [Recipe.load(recipe) for recipe in recipes]
    for one in wanted:
        one.pictures()
    ways = [one.base.model_dump(include={"dtype", "bits", "offload"}) for one in wanted]
    if differ := [f"base.{key}" for key in ways[0] if any(way[key] != ways[0][key] for way in ways)]:
        raise HotfixError(
            f"the recipes do not agree on {', '.join(differ)}, and share one loaded pipeline",
            hint="score them one at a time",
        )
    seen = {"features": features, "lpips": lpips, "clip": clip}
    if (html or attacks or any(seen.values())) and len(wanted) > 1:
        raise HotfixError(
            "a page, attacks and networks are about one recipe", hint="leave them out, or give one recipe"
        )
    patches = Stack.load(stack) if stack else Stack()
    note, on = ledger.notes(stack or Path(lock.LOCK)), [ledger.ref(patch) for patch in patches.patches]
    console.quiet_libraries()
    from hotfix import processes
    from hotfix.describe import summary, together
    from hotfix.networks import Networks

    shared = processes.several() and len(wanted) == 1 and not attacks  # an attack's next step hangs on last bits
    if processes.split() and not shared:
        raise HotfixError(
            "attacks, and several recipes, on a base that is split up",
            wanted="one recipe, and no attacks",
            hint="the first process takes them alone: launch without --use_fsdp",
        )
    if not processes.first() and not shared:
        return
    networks = Networks.load(**seen)
    pipe = pipeline_of(pipeline, like=wanted[0].base, draws=True, split=processes.split())

    if len(wanted) > 1:
        from hotfix.interfering import interference

        found = interference(pipe, wanted, stack=patches, seed=seed, n=n, stage=console.say)
        note("scored", on, weakened=[one.patch.name for one in found.patches if one.weakened])
        console.data(found.model_dump(mode="json"), together(found), json)
        if found.conflicts:
            raise SystemExit(console.OVER_BUDGET)
    else:
        from hotfix.page import Gallery
        from hotfix.scoring import score as measure

        gallery = Gallery(show_forget) if html else None
        report = measure(
            pipe,
            wanted[0],
            source=pipeline,
            stack=patches,
            seed=seed,
            n=n,
            attacks=[name for name in attacks.split(",") if name],
            networks=networks,
            gallery=gallery,
            stage=console.say if processes.first() else lambda words: None,
            shared=shared,
        )
        if not processes.first():
            return
        note("scored", on, **ledger.evidence(report, report.text().encode()))
        console.data(report.model_dump(mode="json"), summary(report), json)
        if html:
            console.say(str(report.to_html(html, gallery)))
        if report.misses:
            console.say(f"over budget: {'; '.join(report.misses)}")
            raise SystemExit(console.OVER_BUDGET)
