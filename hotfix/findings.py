"""What each measurement found: the parts of a report."""

from hotfix.intervals import Mean, Part, Rate


class Worst(Part):
    """Of many drawings the one that came nearest to counting as the target."""

    seed: int
    similarity: float
    tau: float  # from which it would count


class Replay(Part):
    """Pictures drawn from pure noise under one kind of caption, the same seeds before and after."""

    caption: str
    before: Rate
    after: Rate
    # Drawings that are a surrogate. Where no caption of the target asks for it, a rise says that it was memorised.
    surrogate_before: Rate | None = None
    surrogate: Rate | None = None  # after
    # Drawings that the base might have drawn, by its own denoising error: garbage is no success.
    sound_before: Rate | None = None
    sound: Rate | None = None  # after
    # Drawings in which the network of [similarity] found nothing to compare: an undetected face is no suppressed one.
    undetected_before: Rate | None = None
    undetected: Rate | None = None  # after
    worst_before: Worst | None = None
    worst: Worst | None = None  # after


class Diffusion(Part):
    """Partial diffusion: the target noised to level t and denoised again, under one kind of caption."""

    caption: str
    t: float
    before_rate: Rate
    after_rate: Rate
    before_mean: float
    after_mean: float
    after_q95: float
    after_max: float | None = None  # the worst noise
    stranger_mean: float  # a picture the model never saw, brought back by the unpatched base


class WorstNoise(Part):
    """Of the noises that a target was brought back from, the one that did so at most levels from t_lo on."""

    caption: str
    seed: int  # the number of the noise
    levels: int  # from t_lo on
    before: int  # of them, by the worst noise before
    after: int  # by the worst one after: another noise, perhaps


class HeldOut(Part):
    """Partial diffusion from a picture of the subject that was never trained on, judged by a threshold of its own."""

    picture: int  # from 1, in the order of the recipe's files; never a name
    tau: float  # from this similarity on, a picture counts as this one
    caption: str
    t: float  # from the picture's own t_lo on
    before: Rate
    after: Rate


class Subject(Part):
    """The subject in pictures that were held out. No budget judges it: instance is not identity."""

    pictures: int
    replays: list[Replay]  # drawings that count as any of them
    diffusion: list[HeldOut]

    def returns(self, caption: str, picture: int | None = None) -> tuple[Rate, Rate]:
        """How often they came back, or one of them did, over all levels, before and after."""
        rows = [row for row in self.diffusion if row.caption == caption and picture in (None, row.picture)]
        n = sum(row.before.n for row in rows)
        return Rate.of(sum(row.before.k for row in rows), n), Rate.of(sum(row.after.k for row in rows), n)

    @property
    def captions(self) -> list[str]:
        """The kinds of caption they were denoised under."""
        return list(dict.fromkeys(row.caption for row in self.diffusion))


class Attack(Part):
    """One way to get a target back (hotfix/attacks.py): drawings that are the target."""

    name: str
    budget: str
    source: str
    before: Rate  # on the unpatched base: an attack that does not win there proves nothing
    after: Rate
    stranger: Rate  # on the base, for a picture that it never saw: what wins there draws anything it is asked for


class Neighbours(Part):
    """The pictures that must stay and are most like a target: what a patch harms first."""

    n: int
    drift: Mean  # RMSE in [0, 1]
    before: Rate | None = None  # drawn right
    after: Rate | None = None


class Retain(Part):
    """Same-seed pictures for other captions, before and after. Drift in pixel units of [0, 1]."""

    n: int
    drift_rmse: float
    drift_ssim: float  # 1 - structural similarity: the perceptual distance
    rmse_interval: tuple[float, float] | None = None  # of the mean over pictures, 95%
    ssim_interval: tuple[float, float] | None = None
    before: Rate | None = None  # the picture nearest to the base's own for that caption
    after: Rate | None = None
    lost: list[str] = []  # captions drawn right before and not after: accuracy class by class, one seed each
    psnr: float | None = None  # of all pictures together, in dB; None where nothing moved
    psnr_interval: tuple[float, float] | None = None
    neighbours: Neighbours | None = None
    # By networks on the machine that measured, where they were given (hotfix/networks.py)
    networks: dict[str, str] = {}  # which: the file's name and the beginning of its sha256
    feature_drift: Mean | None = None  # 1 - cosine of the features of same-seed pictures
    kid: Mean | None = None  # of the patched model's pictures to the base's at other seeds
    kid_base: Mean | None = None  # of the base's own to those: what no change at all comes to
    lpips: Mean | None = None  # of same-seed pictures
    alignment_before: Mean | None = None  # cosine of picture and caption in CLIP's eyes
    alignment: Mean | None = None  # after
    alignment_change: Mean | None = None  # picture by picture


class Membership(Part):
    """The targets' denoising loss over that of what must stay, at one noise level, without a caption.

    A picture that was trained on is denoised better than others. A patch leads it elsewhere, and its loss rises: far
    above a stranger's, that gives it away no less.
    """

    t: float
    before: Mean
    after: Mean
    stranger: Mean  # of a picture that the base never saw, before


class Likelihood(Part):
    """-log2 p in bits per number of the latent, by the probability-flow ODE, without a caption. Lower is likelier."""

    steps: int
    target_before: Mean  # over the probes of the trace
    target: Mean  # after
    retain_before: Mean  # over pictures that must stay
    retain: Mean
    stranger_before: Mean  # a picture that the base never saw
    stranger: Mean


class TimestepWindow(Part):
    """How often one target is trained on at each noise level, under one kind of caption: numbers in [0, 1] alone."""

    target: int  # in the order of the recipe's pictures, from 1
    caption: str
    weight: str  # "calibrated": measured on the unpatched base; else the curve that the recipe names
    t_lo: float  # below it m is 0
    t: list[float]
    m: list[float]
