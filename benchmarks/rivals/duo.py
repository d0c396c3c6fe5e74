r"""DUO: prefer an edit of x_f over x_f itself, by Diffusion-DPO, and predict at pure noise what the base does.

    -log σ(-β [(L+ - L+_0) - (L- - L-_0)]) + preserve · β · ‖ε_θ(x_T, T, "") - ε_0(x_T, T, "")‖²

L+ and L- are denoising losses of the winner x+ and the loser x_f under one noise and one t < 0.75, L_0 those of the
base. Winners are SDEdits of x_f by the base at strength 0.75. The paper's come from a safe prompt against an unsafe
one at guidance 7.5, and a detector filters them; here the base edits without a caption, and of twice as many edits the
half least like x_f is kept.

Source: Park et al. 2024, arXiv:2407.21035, and its released settings: β = 500, 64 pairs, 1000 steps of 4 pairs, LoRA
rank 32, rate 3e-5 · 100/β for SD3 (ten times that for SD 1.4), preserve = 1e4. In its LoRA no cross-attention is
adapted; ours sits where `problem` put it.
"""

import torch
from torch.nn.functional import logsigmoid

from benchmarks.rivals.descent import descend, gradient
from benchmarks.rivals.prediction import target
from benchmarks.rivals.problem import Noisy, Problem, error, forget_rows, pick
from hotfix.shapes import Flat, Latents, PerExample

__all__ = ["BATCH", "KNOB", "LR", "MODE", "STEPS", "SWEEP", "train"]

STEPS, LR, BATCH, MODE = 1000, 6e-6, 4, "lora"
BETA, PRESERVE, T_MAX = 500.0, 1e4, 0.75
STRENGTH, PAIRS, EDIT_STEPS = 0.75, 64, 50  # EDIT_STEPS is diffusers' default for img2img, not a number of the paper
KNOB, SWEEP = "beta", (50.0, 100.0, 250.0, 500.0, 2000.0)


def preference(
    win: PerExample, win_base: PerExample, lose: PerExample, lose_base: PerExample, beta: float
) -> PerExample:
    """-log sigmoid(-beta [(win - win_base) - (lose - lose_base)]), (B,): log 2 where nothing has changed.

    Args:
        win: denoising losses of the winners, means over the picture, (B,).
        win_base: the same by the base.
        lose: denoising losses of the losers, (B,).
        lose_base: the same by the base.
        beta: how little the model may differ from the base before a preference counts as learned.

    Source: Wallace et al. 2023, arXiv:2311.12908, without its factor 1/2, as DUO has it.
    """
    return -logsigmoid(-beta * ((win - win_base) - (lose - lose_base)))


def train(
    problem: Problem,
    *,
    steps: int,
    lr: float,
    beta: float = BETA,
    rows: int = BATCH,
    winners: Latents | None = None,
    pairs: int = PAIRS,
    preserve: float = PRESERVE,
) -> None:
    """Train in place. A step costs 6 x rows forward and 3 x rows backward; edits 2 x pairs x EDIT_STEPS forward.

    Args:
        problem: what to forget, on an open model.
        steps: steps of Adam.
        lr: its rate; DUO's is proportional to 1/beta.
        beta: of the preference.
        rows: pairs of a step, and rows of pure noise.
        winners: what to prefer, (K, C, H, W), row j for forget picture j % N; None has the base edit x_f as published.
        pairs: how many edits to keep.
        preserve: weight of the difference at pure noise, times beta.
    """
    preferred = _edits(problem, pairs) if winners is None else winners

    def direction() -> Flat:
        both = _pairs(problem, preferred, rows)
        wanted = target(problem.denoiser, both.x, both.eps, both.t)
        now, before = (
            error(problem, predict(both.x_t, both.t, both.condition), wanted, both)
            for predict in (problem.predict, problem.teacher)
        )
        lose, win = now.split(rows)
        lose_base, win_base = before.split(rows)
        g = gradient(problem, preference(win, win_base, lose, lose_base, beta))
        return g + beta * preserve * gradient(problem, _at_pure_noise(problem, rows))

    descend(problem, steps, lr, direction)


def _edits(problem: Problem, pairs: int) -> Latents:
    """The base's own edits of x_f, (>= pairs, C, H, W), row j of forget picture j % N: the half that changed more."""
    n = len(problem.x_f)
    each = -(-pairs // n)
    x = problem.x_f.repeat(2 * each, 1, 1, 1)
    t = torch.full((len(x),), STRENGTH, device=x.device)
    eps = torch.randn(x.shape, generator=problem.generator).to(x.device)
    x_t = problem.denoiser.noised(x, t, eps)
    with problem.base():
        edits = problem.denoiser.denoise(x_t, STRENGTH, problem.bare(len(x)), steps=EDIT_STEPS)
    problem.count.forward += len(x) * EDIT_STEPS
    change = (edits - x).square().mean(dim=(1, 2, 3)).view(2 * each, n)
    rows = change.topk(each, dim=0).indices * n + torch.arange(n, device=x.device)
    return edits[rows.flatten()]


def _pairs(problem: Problem, winners: Latents, rows: int) -> Noisy:
    """Losers, then their winners, (2 x rows): the same noise, level and caption within a pair."""
    which = pick(problem, len(winners), rows)
    x = torch.cat([problem.x_f[which % len(problem.x_f)], winners[which]])
    half = forget_rows(problem, rows, T_MAX)  # its noise, levels and captions; the pictures are those of the pair
    eps, t = half.eps.repeat(2, 1, 1, 1), half.t.repeat(2)
    condition = {k: torch.cat([v, v]) for k, v in half.condition.items()}
    return Noisy(x, eps, t, problem.denoiser.noised(x, t, eps), condition)


def _at_pure_noise(problem: Problem, rows: int) -> PerExample:
    x_T = torch.randn((rows, *problem.x_f.shape[1:]), generator=problem.generator).to(problem.x_f.device)
    t = torch.ones(rows, device=x_T.device)
    noise = Noisy(torch.zeros_like(x_T), x_T, t, x_T, problem.bare(rows))
    teacher = problem.teacher(x_T, t, noise.condition)
    return error(problem, problem.predict(x_T, t, noise.condition), teacher, noise)
