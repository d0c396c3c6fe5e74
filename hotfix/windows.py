"""The timestep window of every target of a case, for the build that trains in it and the report that shows it.

The same recipe on the same base gives the same windows, so a score needs nothing that the build left behind.
"""

from collections.abc import Mapping

from torch import Tensor

from hotfix.calibrate import Window, calibrate, chosen
from hotfix.case import Case
from hotfix.denoiser import Denoiser
from hotfix.recipe import Train


def windows(
    denoiser: Denoiser, case: Case, options: Train, conditions: Mapping[str, Mapping[str, Tensor]] | None = None
) -> tuple[Window, ...]:
    """One window for each target, measured on the base or chosen by the recipe.

    Args:
        denoiser: the unpatched base.
        case: prepared from the same recipe.
        options: its [train] section.
        conditions: of every kind of caption that the targets are suppressed under, where they are encoded already.
    """
    if options.weight != "calibrated":
        kinds = case.forget_kinds()
        return tuple(chosen(denoiser, kinds, options.weight, options.window, one.t_lo) for one in case.targets)
    if conditions is None:
        conditions = {kind: denoiser.embed(captions) for kind, captions in case.forget_kinds().items()}
    return tuple(
        calibrate(denoiser, one.x_f, conditions, one.similarity, one.null, one.t_lo, options.seed)
        for one in case.targets
    )
