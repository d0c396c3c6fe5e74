"""A patch or a report in a few lines of text. No torch."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hotfix.cost import gib
from hotfix.errors import printable
from hotfix.patch import Outline, Patch

if TYPE_CHECKING:
    from hotfix.findings import Retain
    from hotfix.manifest import Scope
    from hotfix.report import Build, Report
    from hotfix.together import Comparison, Interference

UNREAD = "The tensors were not read: whether they are the ones that it speaks of is seen when it is pulled."
SUPPRESSION = "This patch suppresses an output. The weights beneath it are as they were, and so is what they hold."
UNKNOWN = "What this patch does was not measured. The weights beneath it are as they were."


def facts(patch: Patch | Outline) -> dict[str, Any]:
    """Everything the patch says, for programs."""
    return {
        "id": patch.id,
        "layers": len(patch.layers),
        "bytes": patch.size,
        "tensors_read": isinstance(patch, Patch),
        "manifest": patch.manifest.model_dump(mode="json"),
    }


def describe(patch: Patch | Outline, measured: str = "") -> str:
    """Everything a person asks first, one fact a line; and the headline of its report, if there is one."""
    m = patch.manifest
    count = len(m.targets)
    rows = {
        "patch": f"{m.name} {m.version}",
        "id": patch.id,
        "base": f"{m.base.repo}{f' at {m.base.commit}' if m.base.commit else ''} ({m.base.pipeline_class})",
        "acts on": f"{len(patch.layers)} layers of the {m.base.component}, {patch.size / 1000:.0f} kB",
        "targets": f"{count} picture{'s' if count > 1 else ''}, not in this file" if count else "",
        "views": _views(m.recipe),
        "measured at": _measured(m.scope),
        "request": m.request or "none stated",
        "requires": ", ".join(m.requires),
        "conflicts": ", ".join(m.conflicts),
        "supersedes": ", ".join(m.supersedes),
        "made": f"{m.created} by {m.tool}",
    }
    last = [
        *filter(None, [printable(measured)]),
        SUPPRESSION if m.scope else UNKNOWN,
        *([UNREAD] if isinstance(patch, Outline) else []),
    ]
    return "\n".join([*(f"{key:<12} {printable(value)}" for key, value in rows.items() if value), "", *last])


def _views(recipe: Mapping[str, Any]) -> str:
    """Of a recipe that may be of other tools, and may hold anything."""
    train = recipe.get("train")
    views = train.get("augment") if isinstance(train, dict) else None
    return ", ".join(view for view in views if isinstance(view, str)) if isinstance(views, list) else ""


def _measured(scope: "Scope | None") -> str:
    if scope is None:
        return "nowhere: a LoRA of other tools"
    return f"{scope.width}x{scope.height}, noise from {scope.t_lo:.2f} on, {scope.scheduler}"


def together(found: "Interference") -> str:
    """Every patch alone and with the others, the drift, and who weakens whom."""
    lines = [
        f"{one.patch.name} {one.patch.version}: target in {one.bare} without it, {one.alone} alone, "
        f"{one.together} with all on; drift {one.drift:.4f} alone"
        for one in found.patches
    ]
    if found.unmeasured:
        lines.append(f"on, and not measured, because no recipe was given: {', '.join(found.unmeasured)}")
    lines.append(
        f"drift of {found.n} other pictures: {found.drift:.4f} RMSE with all on; the sum of each alone is "
        f"{found.sum_of_drifts:.4f}"
    )
    return "\n".join([*lines, *(found.conflicts or ["no patch is weakened by the others"])])


def beside(found: "Comparison") -> str:
    """Two patches, what came back with each, and how far each drifts."""
    lines = [f"target in {found.bare} without either"]
    for one in found.patches:
        lines.append(
            f"{one.patch.name} {one.patch.version} ({one.patch.id[:19]}): target in {one.returned}, in {one.alone} of "
            f"them with this one alone; drift {one.drift:.4f}; {one.bytes / 1000:.0f} kB"
        )
    lines.append(f"chance of returns so uneven, were both alike: {found.chance:.2g}")
    if found.farther:
        low, high = found.farther
        lines.append(f"the second drifts farther by {low:+.4f} to {high:+.4f} (mean of {found.n} pictures, 95%)")
    return "\n".join(lines)


def summary(report: "Report") -> str:
    """The rates, the drift, and whether the budget was kept."""
    lines = [f"{report.recipe} on {report.pipeline}, seed {report.seed}"]
    for r in report.replays:
        instead = f"; the surrogate in {r.surrogate_before} before, {r.surrogate} after" if r.surrogate else ""
        lines.append(f"  {r.caption} caption: target in {r.before} before, {r.after} after{instead}")
        if r.sound and r.worst:
            unseen = f"; nothing detected in {r.undetected}" if r.undetected else ""
            lines.append(
                f"    sound in {r.sound_before} before, {r.sound} after{unseen}; worst seed {r.worst.seed}: similarity "
                f"{r.worst.similarity:.3f}, the target from {r.worst.tau:.3f} on"
            )
    above = [row for row in report.diffusion if row.t >= report.t_lo]
    before, after = (sum(getattr(row, key).k for row in above) for key in ("before_rate", "after_rate"))
    total = sum(row.after_rate.n for row in above)
    lines.append(f"  partial diffusion from t = {report.t_lo:.2f} on: {before} of {total} before, {after} after")
    if report.subject:
        lines.append(f"  pictures of the subject that were held out, never trained on: {report.subject.pictures}")
        for r in report.subject.replays:
            lines.append(f"    {r.caption} caption: any of them in {r.before} before, {r.after} after")
        for kind in report.subject.captions:
            was, now = report.subject.returns(kind)
            lines.append(f"    partial diffusion, {kind} caption: back in {was} before, {now} after")
    for one in report.attacks:
        rates = f"target in {one.before} before, {one.after} after; a stranger in {one.stranger}"
        lines.append(f"  {one.name} ({one.budget}): {rates}")
    lines += [f"  {line}" for line in _kept(report.retain)]
    if bits := report.likelihood:
        lines.append(
            f"  -log2 p of the target, bits per number: {bits.target_before} before, {bits.target} after; "
            f"of a stranger {bits.stranger_before}"
        )
    lines.append("  within budget" if not report.misses else f"  over budget: {'; '.join(report.misses)}")
    return "\n".join(lines)


def _kept(retain: "Retain") -> Iterator[str]:
    """What must stay, in pixels and as far as networks looked at it."""
    rights = f"; right picture {retain.before} before, {retain.after} after" if retain.after else ""
    between = retain.rmse_interval
    spread = f" ({between[0]:.4f} to {between[1]:.4f})" if between else ""
    yield f"drift of {retain.n} other pictures: {retain.drift_rmse:.4f}{spread} RMSE{rights}"
    if retain.lost:
        yield f"  lost: {', '.join(retain.lost)}"
    if near := retain.neighbours:
        yield f"  of the {near.n} nearest to the target: {near.drift} RMSE"
    for words, mean in {
        "LPIPS": retain.lpips,
        "1 - cosine of features": retain.feature_drift,
        "KID": retain.kid,
        "KID of the base itself": retain.kid_base,
        "change of CLIP's cosine to the caption": retain.alignment_change,
    }.items():
        if mean:
            yield f"  {words}: {mean}"


def cost(build: "Build") -> str:
    """What a build took, in one line; what was not measured is not in it."""
    facts = [f"{build.seconds:.0f} s", f"{build.steps} steps"]
    if build.processes > 1:
        facts.append(f"{build.processes} processes")
    facts.append(f"at most {gib(build.host_bytes)} of host memory")
    if build.gpu_bytes is not None:
        facts.append(f"{gib(build.gpu_bytes)} of GPU memory")
    if build.gpu_joules is not None:
        facts.append(f"{build.gpu_joules:.0f} J on the GPU")
    return f"the build took {', '.join(facts)}"
