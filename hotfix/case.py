"""Case: one complaint, made ready to train on and to measure. Everything here is drawn from the unpatched base.

The same recipe on the same base gives the same case, so a score years later needs nothing that the build left behind.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hotfix import editor, embedding, inpaint, pictures, surrogate
from hotfix.augment import augmented
from hotfix.bank import asked_for, bank_captions, bank_pictures, drawn_captions, refuse_forgotten
from hotfix.calibrate import find_t_lo
from hotfix.denoiser import Denoiser
from hotfix.errors import RecipeError
from hotfix.gate import Chosen, Gate
from hotfix.recipe import Recipe
from hotfix.shapes import Latents, Picture, Pictures
from hotfix.similarity import UNDETECTED, Similarity, inside, null, pixel, stranger, threshold

MASK_LEVEL = 0.5  # noise at which the base still brings back what it has memorised
VIEWS = 8  # of every forget picture, where train.augment names some kinds
ADJACENT = 32  # pictures of the bank that a forget picture may lean towards
SAME = 0.95  # similarity over all pixels of two drawings of one picture; flags that differ by a star stay below
BLENDED = 4  # pictures in a posterior mean


@dataclass(frozen=True)
class Target:
    """One forget picture, what should come instead, and how to recognise it."""

    picture: Picture
    surrogates: Pictures
    x_f: Latents  # (1, C, H, W)
    x_s: Latents  # (K, C, H, W)
    similarity: Similarity
    null: float  # as similar as a stranger: 99th percentile
    tau: float  # from here on, a picture counts as the target
    t_lo: float  # below this noise level any picture survives
    blend: bool = False  # head for the surrogates' posterior mean, not for one of them
    views: tuple["Target", ...] = ()  # the picture slightly changed, and its surrogates alike
    adjacent: Latents | None = None  # (D, C, H, W): pictures to lean towards; None leans towards nothing

    def returned(self, drawn: Pictures) -> Tensor:
        """Which pictures count as the target, (B,) bool."""
        return self.similarity(drawn) >= self.tau


@dataclass(frozen=True)
class Case:
    """Targets, and what must stay."""

    targets: tuple[Target, ...]
    captions: tuple[str, ...]  # the forget captions
    retain_captions: tuple[str, ...]  # one for every row of the bank
    retain: Pictures
    x_r: Latents
    twins: Tensor  # (R,) bool: rows of the bank that draw a target and must stay, with scope = "caption"
    scope: str = "any"  # "caption": the target is suppressed under its own captions and stays under all others
    given: range = range(0)  # rows of the bank that are the recipe's own pictures
    held: tuple[tuple[Similarity, float], ...] = ()  # of held-out pictures, which no page shows either: from when on

    @property
    def strangers(self) -> Pictures:
        """The pictures of the bank that are not the target."""
        return self.retain[~self.twins]

    @property
    def others(self) -> tuple[Latents, list[str]]:
        """The strangers' latents, and their captions."""
        rows = (~self.twins).nonzero().flatten()
        return self.x_r[rows.to(self.x_r.device)], [self.retain_captions[row] for row in rows.tolist()]

    def returned(self, drawn: Pictures) -> Tensor:
        """Which pictures count as a target, (B,) bool."""
        return torch.stack([target.returned(drawn) for target in self.targets]).any(dim=0)

    def alike(self, drawn: Pictures) -> Tensor:
        """Which pictures may show a target, or what was held out: more like it than strangers are, (B,) bool.

        Whatever counts as one does, and so does a picture in which a network finds nothing that it could compare.
        """
        shown = [(target.similarity(drawn), min(target.null, target.tau)) for target in self.targets]
        shown += [(similarity(drawn), limit) for similarity, limit in self.held]
        return ~torch.stack([(like > UNDETECTED) & (like < limit) for like, limit in shown]).all(dim=0)

    def instead(self, target: Target) -> Tensor:
        """Rows of the bank that a model without the target might draw in its place, (R,) bool.

        What the base draws without a caption may be half a copy of the target: more alike than a stranger, it is none.
        """
        asked = asked_for(self.retain_captions, self.given)
        return ~self.twins & (asked | (target.similarity(self.retain) <= target.null))

    def caption_kinds(self) -> dict[str, list[str]]:
        """The captions a target is tried under: its own (if there are any), none, and other pictures'."""
        others = sorted(set(self.retain_captions) - {""})
        kinds = {"own": list(self.captions), "empty": [""], "random": others}
        return {kind: captions for kind, captions in kinds.items() if captions}

    def forget_kinds(self) -> dict[str, list[str]]:
        """The captions it is suppressed under."""
        kinds = self.caption_kinds()
        return {"own": kinds["own"]} if self.scope == "caption" else kinds


def prepare(recipe: Recipe, denoiser: Denoiser, stage: Callable[[str], None] = lambda words: None) -> Case:
    """Load the forget pictures, draw what must stay, find conflicts, make surrogates, set thresholds.

    Args:
        recipe: what to forget.
        denoiser: of the unpatched base.
        stage: told for every target how many surrogates were taken, and why others were refused.

    Raises:
        RecipeError: a picture that cannot be used, nothing that may stay, or no surrogate.
        ForgetConflict: the base draws a forget picture for a caption that the recipe does not name, or the recipe
            itself says that the picture must stay.
    """
    seed = recipe.train.seed
    forget = pictures.load(recipe.files(recipe.forget.images, "forget.images"), denoiser.size)
    given = None
    if recipe.surrogate.kind == "files":
        given = pictures.load(recipe.files(recipe.surrogate.images, "surrogate.images"), denoiser.size)
    captions, bank = bank_captions(recipe, denoiser), bank_pictures(recipe, denoiser)
    rows = range(len(drawn_captions(recipe, denoiser)), len(captions))  # of retain.images
    views = [look for i, picture in enumerate(forget) for look in _views(recipe, picture[None], seed + i)]
    shown = [*forget, *torch.cat(views)] if views else forget
    alike = torch.stack([drawings(picture, captions, bank, rows) for picture in shown]).any(dim=0)
    refuse_forgotten(recipe, captions, alike, rows)
    strangers, scope = bank[~alike], recipe.forget.scope
    if given is not None:
        surrogate.check_files(given, forget, strangers)
    if scope == "caption":  # the same picture has a right to be there under every other caption, and under none
        bank, captions = torch.cat([bank, forget]), [*captions, *[""] * len(forget)]
        alike = torch.cat([alike, torch.ones(len(forget), dtype=torch.bool)])
    else:
        bank = strangers
        captions = [caption for caption, same in zip(captions, alike.tolist(), strict=True) if not same]
        rows = range(len(bank) - len(rows), len(bank))
        alike = torch.zeros(len(bank), dtype=torch.bool)

    def target(i: int) -> Target:
        def say(words: str) -> None:
            stage(f"surrogates of target {i + 1}: {words}")

        others = [look for j, look in enumerate(looks) if j != i]
        return _target(recipe, denoiser, looks[i], others, _own(given, i, len(forget)), strangers, seed + i, say)

    looks = _looks(recipe, forget)
    targets = tuple(target(i) for i in range(len(forget)))
    if toward := _adjacent(recipe, denoiser, targets, strangers):
        targets = tuple(replace(target, adjacent=x) for target, x in zip(targets, toward, strict=True))
    own = tuple(recipe.forget.captions)
    return Case(targets, own, tuple(captions), bank, denoiser.encode(bank), alike, scope, rows)


def drawings(picture: Picture, captions: Sequence[str], bank: Pictures, given: range = range(0)) -> Tensor:
    """Which rows of the bank are drawings of the picture, (R,) bool.

    Under another caption, and where somebody has given it, only the same picture is one: a near twin has a right to be
    there. Without a caption the base draws what it likes, the target among it, and everything nearer to it than to a
    stranger is a drawing of it.
    """
    known = threshold(null(pixel(stranger(picture)), bank))
    return pixel(picture)(bank) >= torch.where(asked_for(captions, given), SAME, known)


def _views(recipe: Recipe, looks: Pictures, seed: int) -> list[Pictures]:
    """Several pictures, changed alike into every view that the recipe asks for."""
    kinds = recipe.train.augment
    return [augmented(looks, kinds, seed * VIEWS + v) for v in range(VIEWS)] if kinds else []


def _adjacent(
    recipe: Recipe, denoiser: Denoiser, targets: tuple[Target, ...], strangers: Pictures
) -> list[Latents] | None:
    """For every target the pictures it may lean towards: the other forget pictures, or its neighbours in the bank."""
    match recipe.train.adjacency:
        case "bank":
            near = [one.similarity(strangers).topk(min(ADJACENT, len(strangers))).indices for one in targets]
            return [denoiser.encode(strangers[rows]) for rows in near]
        case "auto" | "views" if len(targets) > 1:
            return [torch.cat([other.x_f for other in targets if other is not one]) for one in targets]
        case "views":
            raise RecipeError(
                "train.adjacency is views, but there is one forget picture",
                hint='give other pictures of the subject in forget.images, or say adjacency = "bank"',
            )
    return None


def _own(given: Pictures | None, i: int, forgets: int) -> Pictures | None:
    """Surrogate files pair up with forget files when there are as many of each; otherwise each may stand for each."""
    if given is None or len(given) != forgets:
        return given
    return given[i : i + 1]


Look = tuple[Picture, Similarity | None]  # a forget picture, and the similarity to it that the recipe names


def _looks(recipe: Recipe, forget: Pictures) -> list[Look]:
    """The forget pictures as the recipe has them looked at; None is by pixels."""
    wanted = recipe.similarity
    if wanted.kind == "pixel":
        return [(picture, None) for picture in forget]
    embed = embedding.embedder(wanted, recipe.place(wanted.path))
    return [(picture, embedding.cosine(embed, picture)) for picture in forget]


def _target(
    recipe: Recipe,
    denoiser: Denoiser,
    look: Look,
    others: list[Look],
    given: Pictures | None,
    bank: Pictures,
    seed: int,
    say: Callable[[str], None],
) -> Target:
    wanted, (picture, seen) = recipe.similarity, look
    chosen = _surrogates(recipe, denoiser, look, others, given, bank, seed)
    say(chosen.words)
    surrogates = chosen.pictures
    unseen = pixel(stranger(picture))
    t_lo = find_t_lo(denoiser, picture, unseen, threshold(null(unseen, bank)), seed)

    def target(picture: Picture, surrogates: Pictures) -> Target:
        similarity = seen or pixel(picture, surrogates)
        usual = null(similarity, bank)
        tau = wanted.tau or threshold(usual)
        x_f, x_s = denoiser.encode(picture[None]), denoiser.encode(surrogates)
        blend = recipe.surrogate.kind == "posterior"
        return Target(picture, surrogates, x_f, x_s, similarity, usual, tau, t_lo, blend)

    views = _views(recipe, torch.cat([picture[None], surrogates]), seed)
    return replace(target(picture, surrogates), views=tuple(target(look[0], look[1:]) for look in views))


def _surrogates(
    recipe: Recipe,
    denoiser: Denoiser,
    look: Look,
    others: list[Look],
    given: Pictures | None,
    bank: Pictures,
    seed: int,
) -> Chosen:
    """What the recipe wants instead: no forget picture, neither the one that is looked at nor one of the others."""
    picture, seen = look
    plain = seen or pixel(picture)
    limit = null(plain, bank)
    count = recipe.surrogate.count or (BLENDED if recipe.surrogate.kind == "posterior" else 1)

    def known(eye: Callable[[Picture], Similarity]) -> tuple[tuple[Similarity, float], ...]:
        found = [by or eye(other) for other, by in others]
        return tuple((one, recipe.similarity.tau or threshold(null(one, bank))) for one in found)

    def gate(similarity: Similarity, limit: float, eye: Callable[[Picture], Similarity] = pixel) -> Gate:
        return Gate.of(denoiser, picture, bank, similarity, limit, seed, known(eye))

    match recipe.surrogate.kind:
        case "files":
            assert given is not None
            return Chosen(given, f"{len(given)} given in files, none of them the target")
        case "sdedit":
            return surrogate.sdedit(denoiser, picture, gate(plain, limit), count, seed)
        case "nearest" | "posterior":
            return surrogate.nearest(bank, Gate(plain, limit, others=known(pixel)), count)
        case "latent":
            return surrogate.extrapolate(denoiser, picture, bank, gate(plain, limit), count, seed)
        case "inpaint":
            mask = _mask(recipe, denoiser, picture, bank, pixel(picture), seed)
            where = seen or inside(picture, mask)
            redrawn = gate(where, null(where, bank), lambda other: inside(other, mask))
            return inpaint.inpaint(denoiser, picture, mask, redrawn, count, seed)
        case "editor":
            assert recipe.surrogate.editor is not None
            return editor.edit(recipe.surrogate.editor, picture, gate(plain, limit), count, seed)


def _mask(recipe: Recipe, denoiser: Denoiser, picture: Picture, bank: Pictures, plain: Similarity, seed: int) -> Tensor:
    """The region to redraw, (H, W) in [0, 1]: the recipe's, or the one that is the picture's own."""
    if recipe.surrogate.mask:
        (mask,) = pictures.load(recipe.files([recipe.surrogate.mask], "surrogate.mask"), denoiser.size)
        mask = (mask.mean(dim=0) + 1) / 2
        if not bool((mask > 0.5).any()):
            raise RecipeError("surrogate.mask has no white in it", hint="white is where the base may redraw")
        return mask
    return inpaint.region(denoiser, picture, bank, plain(bank), MASK_LEVEL, seed)
