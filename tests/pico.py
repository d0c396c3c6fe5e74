"""Pipelines of the real classes, made in memory in a second: random weights, small pictures."""

from functools import partial

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    AutoencoderTiny,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

SIDE = 16
GUIDED = {"num_inference_steps": 3, "guidance_scale": 2.0}
CALLS = {
    "ddpm": {"num_inference_steps": 3},
    "sd3": GUIDED | {"max_sequence_length": 4},
    "sd15": GUIDED,
    "sd2": GUIDED,
    "sdxl": GUIDED,
    "flux": GUIDED | {"max_sequence_length": 4, "height": 16, "width": 16},
    "pixart": GUIDED | {"max_sequence_length": 4, "use_resolution_binning": False, "clean_caption": False},
    "dit": GUIDED,
    "sana": GUIDED | {"max_sequence_length": 4, "use_resolution_binning": False, "height": 32, "width": 32},
    "qwen_image": {"num_inference_steps": 3, "max_sequence_length": 8, "height": 16, "width": 16},
    "flux2": GUIDED | {"max_sequence_length": 8, "height": 16, "width": 16},
    "klein": GUIDED | {"max_sequence_length": 8, "height": 16, "width": 16},
    "z_image": GUIDED | {"max_sequence_length": 8, "height": 16, "width": 16},
}
WORDS = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "a", "b"])}


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
    return _quiet(
        StableDiffusion3Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=_vae(3),
            text_encoder=_clip(CLIPTextModelWithProjection),
            tokenizer=_words(),
            text_encoder_2=_clip(CLIPTextModelWithProjection),
            tokenizer_2=_words(),
            text_encoder_3=_t5(),
            tokenizer_3=_pieces(),
        )
    )


def sd15(seed: int = 0, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return _quiet(
        StableDiffusionPipeline(
            unet=unet.eval(),
            scheduler=DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type=prediction_type),
            vae=_vae(4),
            text_encoder=_clip(CLIPTextModel),
            tokenizer=_words(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return _quiet(
        StableDiffusionXLPipeline(
            unet=unet.eval(),
            scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
            vae=_vae(4),
            text_encoder=_clip(CLIPTextModel),
            tokenizer=_words(),
            text_encoder_2=_clip(CLIPTextModelWithProjection),
            tokenizer_2=_words(),
            add_watermarker=False,
        )
    )


def flux(seed: int = 0, guidance_embeds: bool = True) -> FluxPipeline:
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    return _quiet(
        FluxPipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=_vae(4),
            text_encoder=_clip(CLIPTextModel),
            tokenizer=_words(),
            text_encoder_2=_t5(),
            tokenizer_2=_pieces(),
        )
    )


DIT = {
    "sample_size": SIDE,
    "num_layers": 2,
    "patch_size": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "in_channels": 4,
    "out_channels": 8,
}


def pixart(seed: int = 0) -> PixArtSigmaPipeline:
    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(**DIT, caption_channels=32, cross_attention_dim=16)
    parts = {"text_encoder": _t5(), "tokenizer": _pieces(), "vae": _vae(4)}
    return _quiet(
        PixArtSigmaPipeline(transformer=transformer.eval(), scheduler=DDIMScheduler(clip_sample=False), **parts)
    )


def dit(seed: int = 0) -> DiTPipeline:
    torch.manual_seed(seed)
    transformer = DiTTransformer2DModel(**DIT)
    classes = {0: "a", 1: "b", 2: "a b"}
    return _quiet(DiTPipeline(transformer.eval(), _vae(4), DDIMScheduler(clip_sample=False), classes))


def sana(seed: int = 0) -> SanaPipeline:
    torch.manual_seed(seed)
    transformer = SanaTransformer2DModel(
        sample_size=SIDE,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
    )
    blocks = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock", "scaling_factor": 0.41407}
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    depths = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    multiscales = {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
    vae = AutoencoderDC(latent_channels=4, attention_head_dim=2, **blocks, **widths, **depths, **multiscales)
    tokenizer = _template()
    text_encoder = Gemma2Model(Gemma2Config(**_decoder(tokenizer), query_pre_attn_scalar=8)).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return _quiet(SanaPipeline(tokenizer, text_encoder, vae.eval(), transformer.eval(), scheduler))


def z_image(seed: int = 0) -> ZImagePipeline:
    torch.manual_seed(seed)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 4, 8],
        axes_lens=[64, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):  # made without values, to be loaded
        torch.nn.init.normal_(token)
    tokenizer = _template()
    text_encoder = Qwen3Model(Qwen3Config(**_decoder(tokenizer))).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return _quiet(ZImagePipeline(scheduler, _vae(4), text_encoder, tokenizer, transformer.eval()))


def qwen_image(seed: int = 0) -> QwenImagePipeline:
    torch.manual_seed(seed)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    scales = {"latents_mean": [0.1, 0.2, -0.1, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.0]}
    shape = {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
    }
    vae = AutoencoderKLQwenImage(**shape, **scales)
    tokenizer = _template()
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 10000.0}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=_decoder(tokenizer) | {"rope_scaling": rope}, vision_config=vision)
    text_encoder = Qwen2_5_VLForConditionalGeneration(config).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipe = QwenImagePipeline(scheduler, vae.eval(), text_encoder, tokenizer, transformer.eval())
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "user {} end", 0
    return _quiet(pipe)


def _flux2(kind, text_encoder, guidance_embeds: bool, **options):
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,  # states of three layers
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = AutoencoderKLFlux2(
        block_out_channels=(8,), layers_per_block=1, latent_channels=4, norm_num_groups=4, **blocks
    )
    torch.nn.init.normal_(vae.bn.running_mean)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return _quiet(kind(scheduler, vae.eval(), text_encoder.eval(), _template(), transformer.eval(), **options))


def flux2(seed: int = 0) -> Flux2Pipeline:
    torch.manual_seed(seed)
    words = _decoder(_template()) | {"num_hidden_layers": 30, "model_type": "mistral"}
    eye = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    config = Mistral3Config(text_config=words, vision_config=eye | {"model_type": "pixtral"})
    return _flux2(Flux2Pipeline, Mistral3ForConditionalGeneration(config), guidance_embeds=True)


def klein(seed: int = 0, is_distilled: bool = False) -> Flux2KleinPipeline:
    torch.manual_seed(seed)
    config = Qwen3Config(**_decoder(_template()) | {"num_hidden_layers": 27})
    return _flux2(Flux2KleinPipeline, Qwen3ForCausalLM(config), guidance_embeds=False, is_distilled=is_distilled)


def wan(seed: int = 0) -> WanPipeline:
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    parts = {"tokenizer": _pieces(), "text_encoder": _t5(), "vae": vae.eval(), "transformer": transformer.eval()}
    return _quiet(WanPipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0), **parts))


MAKE = {"ddpm": ddpm, "sd3": sd3}  # one of each kind: of pixels, of latents
HOSTS = MAKE | {"sd15": sd15, "sdxl": sdxl, "flux": flux}  # what host applications run most
FAMILIES = HOSTS | {"sd2": partial(sd15, prediction_type="v_prediction"), "pixart": pixart, "dit": dit}
FAMILIES |= {"sana": sana, "z_image": z_image, "qwen_image": qwen_image, "flux2": flux2, "klein": klein}


def _words() -> CLIPTokenizer:
    return CLIPTokenizer(vocab=WORDS, merges=[], model_max_length=4)


def _clip(kind):
    return kind(
        CLIPTextConfig(
            vocab_size=len(WORDS),
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


def _t5() -> T5EncoderModel:
    config = T5Config(vocab_size=3, d_model=32, d_kv=8, d_ff=8, num_layers=1, num_heads=1, decoder_start_token_id=0)
    return T5EncoderModel(config).eval()


def _pieces() -> T5Tokenizer:
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], extra_ids=0)


def _template() -> PreTrainedTokenizerFast:
    """Of a chat model: words between white space, and what is put around them."""
    words = Tokenizer(
        WordLevel({word: i for i, word in enumerate(["<pad>", "<unk>", "user", "end", "a", "b"])}, "<unk>")
    )
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    tokenizer.chat_template = (
        "{% for message in messages if message.role == 'user' %}"
        "user {{ message.content if message.content is string else message.content[0].text }} end{% endfor %}"
    )
    return tokenizer


def _decoder(tokenizer: PreTrainedTokenizerFast) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vae(channels: int) -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        latent_channels=channels,
    ).eval()


def _quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe
