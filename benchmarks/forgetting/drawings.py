"""Drawings: all that one state of a model is judged by. Before and after a change they come from the same seeds."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from benchmarks.forgetting.subject import Draw, Sizes, Subject
from hotfix.shapes import Pictures


@dataclass(frozen=True)
class Drawn:
    replays: Mapping[str, Pictures]
    partial: Mapping[tuple[str, float], Pictures]  # kind of caption, t
    kept: Pictures  # without captions: the replay
    broken: int  # pictures with numbers in them that are none


def drawn(subject: Subject, sizes: Sizes, draw: Draw) -> Drawn:
    """Draw everything from the model as it is now; `draw` is its own call, or what it remembers."""
    replays = {kind: draw(*call) for kind, call in subject.replays(sizes.n).items()}
    kinds = subject.case.caption_kinds()
    partial = {(kind, t): subject.back(kind, t, sizes.noises) for kind in kinds for t in subject.levels()}
    captions, seeds = subject.kept(sizes.kept)
    kept = draw(captions, seeds) if captions else replays["empty"]
    everything = [*replays.values(), *partial.values(), *([kept] if captions else [])]
    broken = sum(int((~x.isfinite()).flatten(1).any(dim=1).sum()) for x in everything)
    return Drawn(
        {kind: _whole(x) for kind, x in replays.items()},
        {key: _whole(x) for key, x in partial.items()},
        _whole(kept),
        broken,
    )


def _whole(pictures: Pictures) -> Tensor:
    """A model that was trained to pieces draws NaN; grey can be compared with other pictures, and is like none."""
    return pictures.nan_to_num(0.0, 0.0, 0.0)
