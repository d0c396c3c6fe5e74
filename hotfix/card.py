"""Card: what a published patch says of itself to people, as Markdown. The same sections here and on the Hub."""

from collections.abc import Iterator, Mapping
from typing import Any

from hotfix import hub
from hotfix.describe import describe, summary
from hotfix.intervals import Rate
from hotfix.manifest import BaseIdentity
from hotfix.patch import Patch
from hotfix.report import HONEST, Report

BODY = """\
# {name} {version}

{story}

## How to use

{usage}

## What it says of itself

```text
{facts}
```

## What was measured

{headline}{measured}

## What this does and does not say

{words}

Attacks run: {run}. Not run: {not_run}.
"""
MEASURED = """\
```text
{summary}
```

Measured on {hardware}. Intervals are Clopper–Pearson, 95%; `report.json` has every number."""
UNCONDITIONAL = "unconditional-image-generation"
UNMEASURED = "No report was published with it: nobody says here that it works."
HOTFIX = """\
```python
import hotfix

pipe = hotfix.load_pipeline("{base}"{revision})
hotfix.Stack.of({patch}).apply(pipe)
```"""
STOCK = """\
Without hotfix, by stock diffusers, which does not check the base, and whose later calls may take it off:

```python
import diffusers

pipe = diffusers.{pipeline_class}.from_pretrained("{base}"{revision})
pipe.load_lora_weights("{repo}", revision="{tag}", use_safetensors=True)
```"""


def body(patch: Patch, report: Report | None, story: str, usage: str) -> str:
    """The card below its front matter.

    Args:
        patch: what it is about.
        report: what was measured, if anything.
        story: a paragraph: what is suppressed, and why.
        usage: Markdown.
    """
    measured = MEASURED.format(summary=summary(report), hardware=report.hardware) if report else UNMEASURED
    return BODY.format(
        name=patch.name,
        version=patch.version,
        story=story,
        usage=usage,
        facts=describe(patch),
        headline=f"{report.headline}\n\n" if report else "",
        measured=measured,
        words="\n".join(f"- {words}" for words in (report.words if report else HONEST)),
        run="; ".join(report.attacks_run if report else []) or "none",
        not_run="; ".join(report.attacks_not_run) if report else "all of them",
    )


def local(base: str, path: str) -> str:
    """How to put a patch of a file on."""
    return HOTFIX.format(base=base, revision="", patch=f'hotfix.Patch.load("{path}")')


def page(patch: Patch, repo: str, report: Report | None, license: str) -> str:
    """The whole card of a repository on the Hub: front matter with a model-index, and usage at this very version."""
    base, tag = patch.manifest.base, hub.tag(patch.version)
    revision = f', revision="{base.commit}"' if base.commit else ""
    usage = [HOTFIX.format(base=base.repo, revision=revision, patch=f'hotfix.pull("{repo}@{patch.version}")')]
    if base.commit and has_lora_loader(base.pipeline_class):
        usage.append(
            STOCK.format(pipeline_class=base.pipeline_class, base=base.repo, revision=revision, repo=repo, tag=tag)
        )
    count = len(patch.manifest.targets)
    story = f"Suppresses {count} picture{'s' if count > 1 else ''} in what {base.repo} draws. None of them is in here."
    if not count:
        story = f"A LoRA of other tools for {base.repo}, as a patch. What it does was not measured."
    front = hub.front_matter(facts(base, patch.name, license), results(report) if report else [])
    return f"{front}\n{body(patch, report, story, chr(10).join(usage))}"


def facts(base: BaseIdentity, name: str, license: str) -> dict[str, Any]:
    """The front matter, but for the model-index. Only a base that is on the Hub is named as one."""
    on_hub = {"base_model": base.repo, "base_model_relation": "adapter"} if base.commit else {}
    claimed = {"license": license} if license else {}
    tags = [hub.KIND, "lora", "machine-unlearning", "output-suppression"]
    return {"model_name": name, "library_name": "diffusers", "tags": tags} | on_hub | claimed


def results(report: Report) -> Iterator[Mapping[str, Any]]:
    """The rates of a report, for a model-index."""
    for row in report.replays:
        for name, metric, rate in (
            (f"target drawn, {row.caption} caption", "return-rate", row.after),
            (f"target drawn, {row.caption} caption, without the patch", "return-rate-before", row.before),
        ):
            yield _result(report, name, metric, rate.k / rate.n, _interval(rate))
    drift = report.retain
    yield _result(report, "drift of other pictures, RMSE in [0, 1]", "drift", drift.drift_rmse, {"n": drift.n})


def _interval(rate: Rate) -> dict[str, float]:
    return {"k": rate.k, "n": rate.n, "low": rate.low, "high": rate.high, "upper": rate.upper}


def _result(report: Report, name: str, metric: str, value: float, about: Mapping[str, float]) -> Mapping[str, Any]:
    return {
        "task_type": "text-to-image" if any(row.caption != "empty" for row in report.replays) else UNCONDITIONAL,
        "dataset_type": "hotfix-report",
        "dataset_name": f"seeds of report.json, from {report.seed} on",
        "metric_type": metric,
        "metric_name": name,
        "metric_value": value,
        "metric_args": dict(about),
    }


def has_lora_loader(pipeline_class: str) -> bool:
    """Whether stock diffusers can load a patch for a pipeline class."""
    import diffusers

    return hasattr(getattr(diffusers, pipeline_class, None), "load_lora_weights")
