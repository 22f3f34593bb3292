"""Trains the audio autoencoder: python reference/toy/train_audio_vae.py --runs RUNS [--minutes N]

Log-mel spectrograms of the world's sounds, as the official front end makes them. Loss: L1, more for what is loud,
and a small KL term.
"""

import random

import torch
from ltx_core.model.audio_vae.ops import AudioProcessor

import parts
import sound
import training
import world
from optimizer import start_convolutions

KL = 2e-4
HELD_OUT = 16
PROCESSOR = AudioProcessor(sound.RATE, 64, sound.HOP, 1024)


def mel(waveforms):
    """(B, 2, samples) at 16 kHz → (B, 2, samples / 160 + 1, 64)"""
    spectrum = PROCESSOR.mel_transform(waveforms)
    return spectrum.clamp(min=1e-5).log().transpose(2, 3)


def spectrogram(seed, latents, held_out=False):
    """The log mel of a scene's sound, (2, 4 latents - 3, 64)."""
    scene = world.sample(seed, *world.size(seed), held_out=held_out)
    return mel(sound.waveform(scene, (4 * latents - 4) * sound.HOP).unsqueeze(0))[0]


def encode(encoder, spectrum):
    """Means and log variances of the official encoder, which answers the means alone."""
    kept = []
    hook = encoder.conv_out.register_forward_hook(lambda _, __, out: kept.append(out))
    encoder(spectrum)
    hook.remove()
    means, log_variance = kept[0].float().chunk(2, dim=1)
    return means, log_variance.clamp(-12, 2)


def main():
    options = training.arguments(__doc__, rate=1e-3, batch=12).parse_args()
    torch.manual_seed(options.seed)
    modules = {name: parts.build(name) for name in ("audio_encoder", "audio_decoder")}
    encoder, decoder = modules.values()
    for module in modules.values():
        start_convolutions(module)
    torch.nn.init.constant_(encoder.conv_out.conv.bias[parts.AUDIO_LATENT :], -4.0)  # little noise at first
    run = training.Training("audio_vae", modules, options)

    def batch(step):
        latents = random.Random(f"latents/{step}").choice((12, 18, 18, 26, 34))
        seeds = range(step * options.batch, (step + 1) * options.batch)
        return torch.stack([spectrogram(f"{options.seed}/{seed}", latents) for seed in seeds])

    def loss(spectrum):
        with training.autocast(options.device):
            means, log_variance = encode(encoder, spectrum)
            noise = torch.randn_like(means) * (0.5 * log_variance).exp()
            output = decoder(means + noise).float()
        error = (output - spectrum).abs()
        loud = torch.sigmoid(spectrum + 3)
        kl = 0.5 * (means.square() + log_variance.exp() - 1 - log_variance).mean()
        metrics = {"mel": error.mean(), "loud": (error * loud).sum() / loud.sum().clamp(min=1), "kl": kl,
                   "spread": means.std(), "noise": log_variance.mean()}
        return (error * (0.3 + 3 * loud)).mean() + KL * kl, metrics

    def measure():
        errors = {"held_out_mel": [], "held_out_loud": []}
        for seed in range(HELD_OUT):
            spectrum = spectrogram(f"held-out/{seed}", 18, held_out=True).unsqueeze(0).to(options.device)
            error = (decoder(encoder(spectrum)) - spectrum).abs()
            errors["held_out_mel"].append(float(error.mean()))
            if (spectrum > -3).any():
                errors["held_out_loud"].append(float(error[spectrum > -3].mean()))
        return {key: sum(values) / len(values) for key, values in errors.items()}

    run.run(batch, loss, measure)


if __name__ == "__main__":
    main()
