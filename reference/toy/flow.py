"""The transformer and the text encoder together: initial weights, one call on a batch, sampling."""

import torch
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.guidance.perturbations import BatchedPerturbationConfig
from ltx_core.model.transformer.modality import Modality
from ltx_core.tools import AudioLatentTools, VideoLatentTools
from ltx_core.types import AudioLatentShape, VideoLatentShape
from ltx_pipelines.utils.constants import DISTILLED_SIGMA_VALUES, STAGE_2_DISTILLED_SIGMA_VALUES

import parts  # before the fixtures' modules, which it finds
import text
import world

import dit  # noqa: F401 - of the fixtures: gives ltx-core 1.0.0 the newer modulation of the audio-video attention

DISTILLED, SECOND_STAGE = DISTILLED_SIGMA_VALUES, STAGE_2_DISTILLED_SIGMA_VALUES
_POSITIONS = {}


def start(transformer):
    """Modulation begins constant in sigma, with every branch half open."""
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if "scale_shift_table" in name:
                weight.zero_()
                rows = {9: (2, 5, 8), 5: (4,)}.get(len(weight), ())
                for row in rows:
                    weight[row] = 0.5
            if "adaln_single.linear" in name or name.endswith("proj_out.weight"):
                weight.zero_()


def modules(folder):
    """{"transformer", "language", "processor"} and the text encoder that holds the last two."""
    encoder = text.TextEncoder(text.write_tokenizer(folder))
    transformer = parts.build("dit").float()
    start(transformer)
    return {"transformer": transformer, "language": encoder.language, "processor": encoder.processor}, encoder


def positions(video_shape, audio_frames, device):
    """Official positions of the tokens, for a batch of one."""
    key = (*video_shape, audio_frames, str(device))
    if key not in _POSITIONS:
        video = VideoLatentShape(1, parts.LATENT, *video_shape)
        audio = AudioLatentShape(1, parts.AUDIO_LATENT, audio_frames, 16)
        tools = (VideoLatentTools(VideoLatentPatchifier(patch_size=1), video, float(world.FPS)),
                 AudioLatentTools(AudioPatchifier(patch_size=1), audio))
        _POSITIONS[key] = [tool.create_initial_state(device, torch.float32).positions for tool in tools]
    return _POSITIONS[key]


def tokens(video, audio):
    """(B, 32, F, H, W) and (B, 2, T, 16) → (B, F H W, 32) and (B, T, 32)"""
    return video.flatten(2).transpose(1, 2), audio.transpose(1, 2).flatten(2)


def velocity(transformer, states, sigmas, masks, where, contexts):
    """Velocities of both streams. Each argument has video first: states (B, T, 32), sigmas (B,), masks (B, T)."""
    streams = []
    for state, sigma, mask, place, context in zip(states, sigmas, masks, where, contexts, strict=True):
        streams.append(Modality(
            latent=state, sigma=sigma, timesteps=sigma.unsqueeze(1) * mask,
            positions=place.expand(len(state), *place.shape[1:]), context=context,
        ))
    return transformer(*streams, BatchedPerturbationConfig.empty(len(states[0])))


@torch.inference_mode()
def sample(transformer, contexts, where, noise, sigmas, clean=None, negative=None, guidance=1.0):
    """Euler steps down the sigmas; tokens of (B, T, 32). `clean` is (tokens, mask) of known video tokens."""
    states = list(noise)
    masks = [torch.ones(state.shape[:2], device=state.device) for state in states]
    if clean is not None:
        masks[0] = clean[1]
        states[0] = torch.lerp(clean[0], states[0], clean[1].unsqueeze(-1))
    for high, low in zip(sigmas[:-1], sigmas[1:], strict=True):
        sigma = [torch.full((len(states[0]),), high, device=states[0].device)] * 2
        speeds = velocity(transformer, states, sigma, masks, where, contexts)
        if guidance != 1.0:
            plain = velocity(transformer, states, sigma, masks, where, negative)
            speeds = [torch.lerp(b, a, guidance) for a, b in zip(speeds, plain, strict=True)]
        states = [
            state + (low - high) * speed.float() * mask.unsqueeze(-1)
            for state, speed, mask in zip(states, speeds, masks, strict=True)
        ]
    return states
