"""Measure: what changed between two sets of drawings from the same seeds. Tensors in, numbers out; no model here.

- Returns: `hotfix.case.Target.returned`, in replay and after partial diffusion, k of n.
- `excess`: how far the 95th percentile of the similarity after partial diffusion lies above the strangers' 99th, at the
  worst level from t_lo on and under the worst kind of caption; `worst` is the same for the most similar single noise.
- `over`: likewise, but above the 95th percentile of what an exact model of the real pictures without the target makes
  of the same states (`Subject.left_out`), where that is higher than the strangers' 99th. It often is: what is noised is
  the target, and where its composition survives, the nearest strangers are what is left to draw. `left_out_excess` is
  the excess of that exact model: no method can be asked for less.
- `suppressed`: no return in any replay, and over <= 0; `strictly`: and excess <= 0. What the untouched base scores is
  `base_suppressed`: where that is true there was nothing to suppress.
- What comes instead: RMSE in [0, 1] of the drawings replayed under the target's own caption (or none) to the nearest
  real picture that is not the target; and KID of all replays to those pictures, over thumbnails of 8x8 pixels
  (`distance.py`): no network judges, but noise and grey are far from real pictures in both.
- Retain: drift between drawings from the same seed where the base did not draw the target, as RMSE in [0, 1] and as
  1 - SSIM. With captions, how many are nearest to the real picture of their caption; without, how many kept their
  nearest real picture.
- Gold, where there is a model that never saw the target: how far the replays are from its own from the same seeds
  (`gold`, RMSE in [0, 1]; `base_gold` for the untouched base), and what it would score itself (`gold_excess` and so
  on): where that is no better, the target has near twins, and nothing that draws like the data can score better.
"""

from typing import Any

import torch
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from benchmarks.flags import is_picture
from benchmarks.forgetting.distance import apart, kid, to_nearest
from benchmarks.forgetting.drawings import Drawn
from benchmarks.forgetting.subject import Subject
from hotfix.intervals import Rate
from hotfix.shapes import Pictures
from hotfix.similarity import nearest

DIGITS = 6
SCORES = ("suppressed", "strictly", "returns", "excess", "over", "worst", "nearest_real", "kid", "kept")
CHANGES = ("drift", "ssim_lost")  # from the untouched base: its own are 0


def measured(subject: Subject, before: Drawn, after: Drawn, gold: Drawn | None = None) -> dict[str, Any]:
    """Every number about one changed model.

    Args:
        subject: what was to be forgotten.
        before: what the base draws.
        after: what the changed model draws, from the same seeds.
        gold: what a model that never saw the target draws, from the same seeds, if there is one.
    """
    target = subject.case.targets[0]
    replay, partial = _replay(subject, before, after), _partial(subject, before, after)
    states = ("before", "after")
    excess, worst = ({s: max(row[s][key] for row in partial) - target.null for s in states} for key in ("q95", "max"))
    over = {s: max(row[s]["q95"] - max(target.null, row["left_out"]) for row in partial) for s in states}
    returns = {s: sum(row[s]["k"] for row in replay.values()) for s in states}
    pooled = {s: torch.cat(list(drawn.replays.values())) for s, drawn in zip(states, (before, after), strict=True)}
    first = next(iter(replay.values()))  # its own caption, or none
    found = {
        "suppressed": returns["after"] == 0 and over["after"] <= 0,
        "base_suppressed": returns["before"] == 0 and over["before"] <= 0,
        "strictly": returns["after"] == 0 and excess["after"] <= 0,
        "base_strictly": returns["before"] == 0 and excess["before"] <= 0,
        "returns": returns["after"],
        "base_returns": returns["before"],
        "replayed": len(pooled["after"]),
        "excess": excess["after"],
        "base_excess": excess["before"],
        "over": over["after"],
        "base_over": over["before"],
        "left_out_excess": max(row["left_out"] for row in partial) - target.null,
        "worst": worst["after"],
        "base_worst": worst["before"],
        "nearest_real": first["after"]["nearest_real"],
        "base_nearest_real": first["before"]["nearest_real"],
        "kid": kid(pooled["after"], subject.others),
        "base_kid": kid(pooled["before"], subject.others),
        "broken": after.broken,
        **_retain(subject, before.kept, after.kept),
        "null": target.null,
        "tau": target.tau,
        "t_lo": target.t_lo,
        "replay": replay,
        "partial": partial,
    }
    if gold is not None:
        own, wanted = measured(subject, before, gold), torch.cat([gold.replays[kind] for kind in before.replays])
        found |= {f"gold_{name}": own[name] for name in (*SCORES, *CHANGES)}
        found |= {"gold": apart(pooled["after"], wanted), "base_gold": apart(pooled["before"], wanted)}
    return rounded(found)


def _replay(subject: Subject, before: Drawn, after: Drawn) -> dict[str, Any]:
    target, others = subject.case.targets[0], subject.others

    def row(pictures: Pictures) -> dict[str, Any]:
        rate = Rate.of(int(target.returned(pictures).sum()), len(pictures)).model_dump()
        return rate | {"nearest_real": to_nearest(pictures, others)}

    return {kind: {"before": row(x), "after": row(after.replays[kind])} for kind, x in before.replays.items()}


def _partial(subject: Subject, before: Drawn, after: Drawn) -> list[dict[str, Any]]:
    target = subject.case.targets[0]

    def row(pictures: Pictures) -> dict[str, Any]:
        like = target.similarity(pictures)
        rate = Rate.of(int((like >= target.tau).sum()), len(like)).model_dump()
        return rate | {"q95": float(like.quantile(0.95)), "max": float(like.max()), "mean": float(like.mean())}

    left_out = {t: subject.left_out(t, len(x)) for (_, t), x in before.partial.items()}
    return [
        {"caption": kind, "t": t, "before": row(x), "after": row(after.partial[kind, t]), "left_out": left_out[t]}
        for (kind, t), x in before.partial.items()
    ]


def _retain(subject: Subject, before: Pictures, after: Pictures) -> dict[str, Any]:
    stays = ~subject.case.targets[0].returned(before)
    if not bool(stays.any()):
        return {"drift": None, "ssim_lost": None, "kept": None, "base_kept": None}
    captions, _ = subject.kept(len(before) if subject.model.denoiser.captioned else 0)
    names, known = subject.known
    rows = stays.nonzero().flatten().tolist()
    before, after = before[stays], after[stays]
    found_before, found_after = (known[nearest(x, known)] for x in (before, after))
    if captions and all(captions[i] in names for i in rows):
        wanted = known[[names.index(captions[i]) for i in rows]]
        right = [int(is_picture(found, wanted).sum()) for found in (found_before, found_after)]
    else:
        right = [len(rows), int(is_picture(found_after, found_before).sum())]
    unit_before, unit_after = (before + 1) / 2, (after + 1) / 2
    return {
        "drift": apart(before, after),
        "ssim_lost": 1 - float(ssim(unit_after, unit_before, data_range=1.0)),
        "kept": right[1] / len(rows),
        "base_kept": right[0] / len(rows),
        "drifted_over": len(rows),
    }


def rounded(value: Any) -> Any:
    """Floats to a few digits: the last ones depend on the machine."""
    match value:
        case float():
            return round(value, DIGITS) + 0.0  # no minus zero
        case dict():
            return {key: rounded(item) for key, item in value.items()}
        case list():
            return [rounded(item) for item in value]
    return value
