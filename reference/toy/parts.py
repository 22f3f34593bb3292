"""The toy's parts: the official classes at small size, and their checkpoints while they train.

Sizes are the full-size 2.3 header config with a few numbers replaced; keys, block lists and compression stay. The
writing of official files is `export.py`'s.
"""

import json
import sys
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "reference" / "fixtures"))

from checkpoints import COMPONENTS  # noqa: E402
from ltx_core.model.upsampler.model_configurator import LatentUpsamplerConfigurator  # noqa: E402
from ltx_core.text_encoders.gemma.config import GEMMA3_CONFIG_FOR_LTX  # noqa: E402

LATENT = 32  # channels of a video latent, and the width at which ltx-core 1.0.0 starts the encoder
DECODER_START, DECODER_END = 64, 32  # channels of the decoder at the latent's size and at the last one
AUDIO_LATENT = 2  # channels of an audio latent, each of 16 mel bands
TEXT_WIDTH, TEXT_LAYERS = 128, 4
HEADS, VIDEO_HEAD, AUDIO_HEAD = 5, 32, 16

GEMMA3_CONFIG_FOR_LTX.text_config.hidden_size = TEXT_WIDTH
GEMMA3_CONFIG_FOR_LTX.text_config.num_hidden_layers = TEXT_LAYERS


def _blocks(kinds, multipliers, layers):
    """Residual blocks with a change of scale after each but the last."""
    blocks = [["res_x", {"num_layers": layers[0]}]]
    for kind, multiplier, count in zip(kinds, multipliers, layers[1:], strict=True):
        blocks += [[kind, {"multiplier": multiplier}], ["res_x", {"num_layers": count}]]
    return blocks


OVERRIDES = {
    "transformer": {
        "num_layers": 6,
        "num_attention_heads": HEADS,
        "attention_head_dim": VIDEO_HEAD,
        "cross_attention_dim": HEADS * VIDEO_HEAD,
        "audio_num_attention_heads": HEADS,
        "audio_attention_head_dim": AUDIO_HEAD,
        "audio_cross_attention_dim": HEADS * AUDIO_HEAD,
        "in_channels": LATENT,
        "out_channels": LATENT,
        "audio_in_channels": AUDIO_LATENT * 16,
        "audio_out_channels": AUDIO_LATENT * 16,
        "caption_channels": TEXT_WIDTH,
        "connector_num_layers": 1,
        "connector_num_attention_heads": HEADS,
        "connector_attention_head_dim": VIDEO_HEAD,
        "audio_connector_num_attention_heads": HEADS,
        "audio_connector_attention_head_dim": AUDIO_HEAD,
    },
    "vae": {
        "latent_channels": LATENT,
        "encoder_base_channels": LATENT,
        "decoder_base_channels": DECODER_END,
        "encoder_blocks": _blocks(
            ("compress_space_res", "compress_time_res", "compress_all_res", "compress_all_res"),
            (1, 2, 1, 2),
            (1, 1, 1, 1, 1),
        ),
        "decoder_blocks": _blocks(
            ("compress_space", "compress_time", "compress_all", "compress_all"), (1, 1, 2, 1), (1, 1, 1, 2, 1)
        ),
    },
    "audio_vae": {"model": {"params": {"ddconfig": {
        "ch": AUDIO_LATENT * 16, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "z_channels": AUDIO_LATENT,
    }}}},
    "vocoder": {
        "vocoder": {
            "upsample_initial_channel": 192,
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3, 5]],
        },
        "bwe": {
            "upsample_initial_channel": 64,
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3, 5]],
            "n_fft": 160,
            "win_size": 160,
        },
    },
}


def _merge(base, changes):
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _merge(base.get(key, {}), value) if isinstance(value, dict) else value
    return merged


def config():
    """The header config of the toy's single file."""
    full = json.loads((REPOSITORY / "fixtures/configs/ltx-2.3-22b.json").read_text())
    return _merge(full, OVERRIDES)


def upsampler_config():
    full = json.loads((REPOSITORY / "fixtures/configs/latent-upsamplers.json").read_text())["2.3-spatial-x2"]
    return full | {"in_channels": LATENT, "mid_channels": 64, "num_blocks_per_stage": 1}


def build(component):
    """A component of the single file, freshly initialized; latent statistics start as the identity."""
    sizes = config()
    # ltx-core 1.0.0 starts the decoder at eight times its end, whatever the blocks say; v1.2.0 goes by the blocks.
    sizes["vae"]["decoder_base_channels"] = DECODER_START // 8
    module = COMPONENTS[component][0].from_config(sizes)
    for name, value in module.named_buffers():
        if name.endswith("std-of-means"):
            value.fill_(1.0)
        elif name.endswith("mean-of-means"):
            value.zero_()
    return module


def build_upsampler():
    return LatentUpsamplerConfigurator.from_config(upsampler_config())


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def trained(runs, part, device="cpu"):
    """The averaged weights of a part that was trained: {module name: state}, and the training's note."""
    saved = torch.load(Path(runs) / f"{part}.pt", map_location=device, weights_only=True)
    return saved["average"], saved["note"]
