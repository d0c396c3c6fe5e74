"""Train the flags base: a miniature Stable Diffusion 3 that draws 259 flags from their countries' names.

    python examples/bases/flags.py first --steps 3310
    python examples/bases/flags.py hotfix/bases/flags --start first --steps 9563 --batch 32 --seed 1

A gold model, what a model that never saw a flag draws, is both runs again, each `--without` its caption. The words stay
in the vocabulary, so that both models can be asked for it, but neither the picture nor the caption is shown.

Stock classes throughout. The autoencoder is an exact identity on pixels, the text encoders are one-layer CLIPs whose
penultimate states are plain word embeddings, trained together with the transformer. The data are `flags.png`.
"""

import argparse
import copy
import json
import math
from pathlib import Path

import torch
from atlas import SIDE, tiles
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from hotfix.pipeline import prompts as known_prompts

TEXT_WIDTH = 64  # of each of the two text encoders
MAX_TOKENS = 10  # <start>, at most 7 words, <end>
HELD = 0.1  # share of training rows with the empty caption, for classifier-free guidance


def tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer in which every word of the captions is one token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=10_000, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    bpe.train_from_iterator(captions, trainer)
    learned = json.loads(bpe.to_str())["model"]
    vocab = learned["vocab"]
    for token in [*(f"{byte}</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]:
        vocab.setdefault(token, len(vocab))
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def text_encoder(words: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """One layer: Stable Diffusion 3 reads the penultimate states, which are then the word embeddings themselves."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def mute_text_encoder() -> tuple[T5EncoderModel, T5Tokenizer]:
    """A T5 that says nothing: its states are exactly zero, as diffusers substitutes for a T5 that is not there.

    The pipeline class cannot be loaded from a folder without its third text encoder.
    """
    words = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], extra_ids=0)
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=3, d_model=2 * TEXT_WIDTH, d_kv=8, d_ff=8, num_layers=1, num_heads=1, decoder_start_token_id=0
        )
    )
    nn.init.zeros_(t5.encoder.final_layer_norm.weight)
    return t5, words


def identity_autoencoder() -> AutoencoderTiny:
    """Latents are pixels. z = x/8 stays in the linear part of the decoder's tanh; powers of two are exact in fp16."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(3,),
        decoder_block_out_channels=(3,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        latent_channels=3,
        scaling_factor=8.0,
        shift_factor=0.0,
    )
    enter, leave = vae.encoder.layers
    inward, _, outward = vae.decoder.layers
    for conv, gain, bias in ((enter, 1.0, 0.0), (leave, 0.25, -0.125), (inward, 4.0, 0.5), (outward, 1.0, 0.0)):
        nn.init.zeros_(conv.weight)
        with torch.no_grad():
            conv.weight[range(3), range(3), 1, 1] = gain
            conv.bias.fill_(bias)
    return vae


def pipeline(captions: list[str]) -> StableDiffusion3Pipeline:
    """The untrained pipeline: 4.7 M parameters."""
    words = tokenizer(captions)
    mute, no_words = mute_text_encoder()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=SIDE,
            patch_size=4,
            in_channels=3,
            out_channels=3,
            num_layers=5,
            attention_head_dim=32,
            num_attention_heads=5,
            caption_projection_dim=160,
            joint_attention_dim=2 * TEXT_WIDTH,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=SIDE // 4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=identity_autoencoder(),
        text_encoder=text_encoder(words),
        tokenizer=words,
        text_encoder_2=text_encoder(words),
        tokenizer_2=words,
        text_encoder_3=mute,
        tokenizer_3=no_words,
    )


class ManyNullTokens:
    """Joint attention as if the last text token stood there `count` times.

    The mute T5 appends `max_sequence_length` (256 unless told otherwise) all-zero tokens. They are identical, so one
    token with log(count) added to its attention logits stands for all of them, exactly and at a 256th of the cost.
    Training under random counts makes the model indifferent to `max_sequence_length`.
    """

    def __init__(self) -> None:
        self.count = 1

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object):
        """Return the image stream `(B, N, C)` and the text stream `(B, M, C)`."""

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        image, text = hidden_states, encoder_hidden_states
        q = torch.cat([heads(attn.to_q(image)), heads(attn.add_q_proj(text))], dim=2)
        k = torch.cat([heads(attn.to_k(image)), heads(attn.add_k_proj(text))], dim=2)
        v = torch.cat([heads(attn.to_v(image)), heads(attn.add_v_proj(text))], dim=2)
        bias = torch.zeros(1, 1, 1, k.shape[2])
        bias[..., -1] = math.log(self.count)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        image, text = out[:, : image.shape[1]], out[:, image.shape[1] :]
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)


def train(pipe: StableDiffusion3Pipeline, captions: list[str], pictures: Tensor, steps: int, batch: int) -> None:
    """Flow matching with logit-normal noise levels, AdamW and an EMA."""
    nets = nn.ModuleList([pipe.transformer, pipe.text_encoder, pipe.text_encoder_2])
    ema = copy.deepcopy(nets)
    null_tokens = ManyNullTokens()
    pipe.transformer.set_attn_processor(null_tokens)
    optimizer = torch.optim.AdamW(nets.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 100) * max(0.01, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        rows = torch.randint(len(captions), (batch,))
        prompts = [captions[i] if torch.rand(()) > HELD else "" for i in rows]
        embeds, _, pooled, _ = pipe.encode_prompt(
            prompts, prompts, prompts, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS
        )
        embeds = embeds[:, : MAX_TOKENS + 1]
        null_tokens.count = int(256 ** float(torch.rand(())))
        x, eps = pictures[rows], torch.randn(batch, *pictures.shape[1:])
        sigma = torch.sigmoid(torch.randn(batch))[:, None, None, None]
        velocity = pipe.transformer(
            hidden_states=(1 - sigma) * x + sigma * eps,
            timestep=sigma.flatten() * 1000,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
        ).sample
        loss = F.mse_loss(velocity, eps - x)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimizer.step()
        decay = min(0.998, (2 + step) / (11 + step))
        with torch.no_grad():
            for average, now in zip(ema.parameters(), nets.parameters(), strict=True):
                average.lerp_(now, 1 - decay)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {steps} loss {loss.item():.4f}", flush=True)
    for average, now in zip(ema.parameters(), nets.parameters(), strict=True):
        now.data.copy_(average)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", type=Path, help="go on from the weights of an earlier run")
    parser.add_argument("--without", action="append", default=[], metavar="CAPTION", help="leave a flag out")
    parser.add_argument("--steps", type=int, default=3310)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    entries, pictures = tiles("flags")
    captions = [caption for _, caption in entries]
    if missing := sorted(set(args.without) - set(captions)):
        parser.error(f"there is no flag of {', '.join(missing)}")
    if args.start and (seen := sorted(set(args.without) & set(known_prompts(str(args.start))))):
        parser.error(f"{args.start} has seen {', '.join(seen)}: a gold model is trained without it from the start")
    pipe = (
        StableDiffusion3Pipeline.from_pretrained(args.start, dtype=torch.float32) if args.start else pipeline(captions)
    )
    rows = [i for i, caption in enumerate(captions) if caption not in args.without]
    captions, pictures = [captions[i] for i in rows], pictures[rows]
    train(pipe, captions, pictures, args.steps, args.batch)
    pipe.to(torch.float16).save_pretrained(args.folder)
    (args.folder / "prompts.txt").write_text("\n".join(captions) + "\n")


if __name__ == "__main__":
    main()
