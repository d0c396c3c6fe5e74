"""Pipelines of the real classes, made in memory in a second: random weights, 16x16 pictures."""

import torch
from diffusers import (
    AutoencoderTiny,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

SIDE = 16
CALLS = {
    "ddpm": {"num_inference_steps": 3},
    "sd3": {"num_inference_steps": 3, "guidance_scale": 2.0, "max_sequence_length": 4},
}


def ddpm(seed: int = 0, prediction_type: str = "epsilon") -> DDPMPipeline:
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=SIDE,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", prediction_type=prediction_type
    )
    return _quiet(DDPMPipeline(unet.eval(), scheduler))


def sd3(seed: int = 0) -> StableDiffusion3Pipeline:
    torch.manual_seed(seed)
    words = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "a", "b"])}
    tokenizer = CLIPTokenizer(vocab=words, merges=[], model_max_length=4)

    def clip() -> CLIPTextModelWithProjection:
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=16,
                intermediate_size=16,
                projection_dim=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=4,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        ).eval()

    transformer = SD3Transformer2DModel(
        sample_size=SIDE,
        patch_size=4,
        in_channels=3,
        out_channels=3,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=SIDE // 4,
    )
    t5 = T5EncoderModel(
        T5Config(vocab_size=3, d_model=32, d_kv=8, d_ff=8, num_layers=1, num_heads=1, decoder_start_token_id=0)
    )
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        latent_channels=3,
    )
    return _quiet(
        StableDiffusion3Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=vae.eval(),
            text_encoder=clip(),
            tokenizer=tokenizer,
            text_encoder_2=clip(),
            tokenizer_2=tokenizer,
            text_encoder_3=t5.eval(),
            tokenizer_3=T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], extra_ids=0),
        )
    )


MAKE = {"ddpm": ddpm, "sd3": sd3}


def _quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe
