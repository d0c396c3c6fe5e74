"""Reports about several patches: how they stand together in a stack, and two of them side by side."""

from hotfix.intervals import Part, Rate
from hotfix.report import SCHEMA_VERSION, PatchRef

CHANCE = 0.01  # one-sided: a patch is weakened where chance explains its returns less often than this


class Held(Part):
    """One patch of a stack. Rates are of drawings that are its target: from pure noise, and in partial diffusion."""

    patch: PatchRef
    bare: Rate  # without any patch
    alone: Rate  # with what it requires
    together: Rate  # with the whole stack
    chance: float  # that so many more come back with the others on, if these changed nothing
    drift: float  # of what must stay, alone: RMSE in [0, 1]
    weakened_by: list[str]  # each enough by itself

    @property
    def weakened(self) -> bool:
        """Whether the others let its target through."""
        return self.chance < CHANCE


class Interference(Part):
    """A whole stack: `hotfix.interference`."""

    schema_version: int = SCHEMA_VERSION
    patches: list[Held]
    unmeasured: list[str]  # on, without a recipe to try them by
    drift: float  # with all of them on
    n: int  # pictures that the drifts are means over

    @property
    def sum_of_drifts(self) -> float:
        """Of the measured patches, each by itself."""
        return sum(one.drift for one in self.patches)

    @property
    def conflicts(self) -> list[str]:
        """In words: which patch weakens which."""
        return [
            f"{one.patch.name} is weakened by {' and by '.join(one.weakened_by) or 'the others together'}: its target "
            f"in {one.alone} alone, {one.together} with all on"
            for one in self.patches
            if one.weakened
        ]


class Compared(Part):
    """One of two patches."""

    patch: PatchRef
    returned: Rate  # drawings that are the target: from pure noise, and in partial diffusion from t_lo on
    alone: int  # of these, drawings that are not the target with the other patch
    drift: float  # of what must stay: mean RMSE in [0, 1]
    bytes: int  # of its tensors


class Comparison(Part):
    """Two patches for one recipe on the same seeds: `hotfix.compare`."""

    schema_version: int = SCHEMA_VERSION
    bare: Rate  # without either
    patches: list[Compared]
    n: int  # pictures that the drifts are means over
    farther: tuple[float, float] | None  # the second drift less the first: interval of the mean over pairs, 95%

    @property
    def chance(self) -> float:
        """Of drawings that differ between the two falling at least so unevenly, were both alike (McNemar, exact)."""
        from scipy.stats import binomtest

        first, second = (one.alone for one in self.patches)
        return float(binomtest(first, first + second).pvalue) if first + second else 1.0
