"""Attacks through the caption: an embedding learnt on the target, and words found that stand for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hotfix.attack_noise import noise
from hotfix.attack_weights import denoising_loss
from hotfix.case import Case, Target
from hotfix.denoiser import Denoiser
from hotfix.families import FAMILIES
from hotfix.partial import STEPS
from hotfix.shapes import Pictures

LEARNT = ("encoder_hidden_states", "pooled_projections", "text_embeds")  # conditions that are words
LEARNING, RATE = 150, 0.02  # of textual inversion
PREFIX, ROUNDS = 3, 10  # words before the caption, and how often one may be swapped
OTHERS = 64  # captions at most that the target's are compared with
TRIED, BEST = 16, 32  # swaps tried in a round, of the best so many
MEANT = 10, 16  # rounds, and swaps tried in each, where only the encoder is asked


def textual_inversion(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """A condition learnt on the picture through the attacked model, then drawn from any noise (CCE)."""
    generator = torch.Generator().manual_seed(seed)
    rows = denoiser.embed([case.captions[0] if case.captions else ""])
    learnt = {key: row.clone().requires_grad_() for key, row in rows.items() if key in LEARNT}
    optimiser = torch.optim.Adam(learnt.values(), lr=RATE)
    for _ in range(LEARNING):
        loss = denoising_loss(denoiser, target.x_f, {**rows, **learnt}, generator)
        for row, gradient in zip(learnt.values(), torch.autograd.grad(loss, list(learnt.values())), strict=True):
            row.grad = gradient
        optimiser.step()
    found = {key: row.detach().expand(n, *row.shape[1:]) for key, row in {**rows, **learnt}.items()}
    x = noise(denoiser, n, seed)
    return denoiser.decode(denoiser.denoise(x, 1.0, found, steps=STEPS, guidance=denoiser.guidance)).cpu()


def prompt_search(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """Words before the caption, swapped one by one while the denoising loss on the picture falls (UnlearnDiffAtk)."""
    caption = case.captions[0] if case.captions else ""

    def loss(rows: dict[str, Tensor]) -> Tensor:
        return denoising_loss(denoiser, target.x_f, rows, torch.Generator().manual_seed(seed))

    return _drawn_for(denoiser, _searched(denoiser, caption, loss, ROUNDS, TRIED, seed), n, seed)


def concept_search(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """Words that mean to the text encoder what the target's captions mean more than others do (Ring-A-Bell).

    Neither the picture nor the attacked network is asked: only the encoder, which no patch changes.
    """
    others = sorted({*case.retain_captions} - {""})[:OTHERS] or [""]
    own, other, none = (denoiser.embed(captions) for captions in (list(case.captions) or [""], others, [""]))
    wanted = {key: none[key] + own[key].mean(dim=0) - other[key].mean(dim=0) for key in LEARNT if key in none}

    def loss(rows: dict[str, Tensor]) -> Tensor:
        return torch.stack([(rows[key] - one).square().mean() for key, one in wanted.items()]).sum()

    return _drawn_for(denoiser, _searched(denoiser, "", loss, *MEANT, seed), n, seed)


def _drawn_for(denoiser: Denoiser, prompt: str, n: int, seed: int) -> Pictures:
    rows = {key: row.expand(n, *row.shape[1:]) for key, row in denoiser.embed([prompt]).items()}
    x = noise(denoiser, n, seed)
    return denoiser.decode(denoiser.denoise(x, 1.0, rows, steps=STEPS, guidance=denoiser.guidance)).cpu()


def _searched(
    denoiser: Denoiser,
    caption: str,
    loss: Callable[[dict[str, Tensor]], Tensor],
    rounds: int,
    tried: int,
    seed: int,
) -> str:
    """A caption with the words before it under which a loss of its condition is least; by itself, if that is less."""
    ids = _whole_words(denoiser.pipe.tokenizer)
    generator = torch.Generator().manual_seed(seed)

    def prompt(words: list[int]) -> str:
        return " ".join([*(denoiser.pipe.tokenizer.decode([ids[word]]).strip() for word in words), caption]).strip()

    def level(words: list[int]) -> float:
        with torch.no_grad():
            return float(loss(denoiser.embed([prompt(words)])))

    found = torch.randint(len(ids), (PREFIX,), generator=generator).tolist()
    least = level(found)
    for _ in range(rounds):
        gain = _gains(denoiser, prompt(found), [ids[word] for word in found], ids, loss)  # (PREFIX, words)
        best = gain.flatten().topk(min(BEST, gain.numel())).indices
        for at in best[torch.randperm(len(best), generator=generator)[:tried]].tolist():
            slot, word = divmod(at, len(ids))
            swapped = [*found[:slot], word, *found[slot + 1 :]]
            if (now := level(swapped)) < least:
                least, found = now, swapped
    return prompt([] if level([]) <= least else found)


def _whole_words(tokenizer: Any) -> list[int]:
    """Tokens that are words by themselves: what their text is read as again."""
    known = [i for i in range(len(tokenizer)) if i not in set(tokenizer.all_special_ids)]
    texts = [tokenizer.decode([i]).strip() for i in known]
    again = tokenizer(texts, add_special_tokens=False).input_ids
    return [i for i, text, back in zip(known, texts, again, strict=True) if text and back == [i]]


def _gains(
    denoiser: Denoiser, prompt: str, words: list[int], ids: list[int], loss: Callable[[dict[str, Tensor]], Tensor]
) -> Tensor:
    """How much the loss would fall, to first order, with any other word in the place of each, (words, ids)."""
    table = denoiser.pipe.text_encoder.get_input_embeddings()
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        seen.append((given[0], leaf := out.detach().requires_grad_()))
        return leaf

    hook = table.register_forward_hook(keep)
    try:
        rows = FAMILIES[denoiser.family].rows(denoiser.pipe, [prompt], denoiser.size, denoiser.call)
    finally:
        hook.remove()
    (read, leaf), *_ = seen
    (slope,) = torch.autograd.grad(loss(rows), leaf)
    gains, place = torch.zeros(len(words), len(ids)), -1  # none for words that the encoder has no room for
    for slot, word in enumerate(words):
        if word in (after := read[0].tolist()[place + 1 :]):
            place += 1 + after.index(word)
            gains[slot] = (-slope[0, place] @ table.weight[ids].detach().T).cpu()
    return gains
