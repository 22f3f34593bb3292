"""Trains the vocoder and its bandwidth extension: python reference/toy/train_vocoder.py --runs RUNS [--minutes N]

The world's waveforms are functions of the mel frames around them (`sound.py`), so the loss is plain: L1 on samples and
on spectra, at 16 and 48 kHz. Half of the spectrograms went through the audio autoencoder when that is trained: then
its errors are part of what the vocoder knows.
"""

import math
import random

import torch
import torchaudio

import parts
import sound
import training
import world
from optimizer import start_convolutions
from train_audio_vae import mel

FRAMES = 20  # mel frames of a training window
HELD_OUT = 12


def set_bases(vocoder):
    """The constants of the bandwidth extension's mel spectrogram, in the precision of the file."""
    stft = vocoder.mel_stft
    size = stft.stft_fn.forward_basis.shape[-1]
    angle = 2 * math.pi * torch.outer(torch.arange(size // 2 + 1.0), torch.arange(float(size))) / size
    forward = (torch.cat([angle.cos(), -angle.sin()]) * torch.hann_window(size)).unsqueeze(1)
    filters = torchaudio.functional.melscale_fbanks(
        size // 2 + 1, 0.0, sound.RATE / 2, stft.mel_basis.shape[0], sound.RATE, norm="slaney", mel_scale="slaney"
    ).T
    for buffer, value in ((stft.stft_fn.forward_basis, forward), (stft.stft_fn.inverse_basis, forward / size),
                          (stft.mel_basis, filters)):
        buffer.copy_(value.to(torch.bfloat16))


def example(seed, held_out=False, frames=FRAMES):
    """Mel (2, frames, 64) with the waveforms that belong to it: (2, 160 frames) and (2, 480 frames)."""
    draw = random.Random(f"vocoder/{seed}")
    scene = world.sample(seed, *world.size(seed), held_out=held_out)
    whole = sound.audio_frames(scene.frames) * 4 - 3
    first = draw.randrange(max(1, whole - frames))
    low, high = (sound.waveform(scene, (first + frames) * hop, rate) for hop, rate in ((160, 16000), (480, 48000)))
    # Some frames more than the window, so that it does not end where the sound does.
    spectrum = mel(sound.waveform(scene, (first + frames + 4) * sound.HOP).unsqueeze(0))[0]
    return spectrum[:, first : first + frames], low[:, first * 160 :], high[:, first * 480 :]


def spectral(output, target, sizes):
    """L1 between log magnitudes and between magnitudes, at several window sizes."""
    total = 0.0
    for size in sizes:
        window = torch.hann_window(size, device=output.device)
        spectra = [
            torch.stft(x.flatten(0, 1), size, size // 4, window=window, return_complex=True).abs() / size**0.5
            for x in (output, target)
        ]
        logs = [(spectrum + 1e-3).log() for spectrum in spectra]
        total = total + (logs[0] - logs[1]).abs().mean() + 2 * (spectra[0] - spectra[1]).abs().mean()
    return total / len(sizes)


def main():
    # Nothing in this network normalizes its signal: at the other parts' rate it runs away after 300 steps.
    options = training.arguments(__doc__, rate=2e-4, batch=8).parse_args()
    torch.manual_seed(options.seed)
    vocoder = parts.build("vocoder")
    set_bases(vocoder)
    start_convolutions(vocoder, branch_ends=("convs2.0", "convs2.1", "convs2.2"))
    torch.nn.init.zeros_(vocoder.bwe_generator.conv_post.weight)
    run = training.Training("vocoder", {"vocoder": vocoder}, options)
    coder = []
    if (options.runs / "audio_vae.pt").exists():
        weights, _ = parts.trained(options.runs, "audio_vae", options.device)
        for name in ("audio_encoder", "audio_decoder"):
            module = parts.build(name).to(options.device).eval()
            module.load_state_dict(weights[name])
            coder.append(module)

    def batch(step):
        seeds = range(step * options.batch, (step + 1) * options.batch)
        spectrum, low, high = zip(*(example(f"{options.seed}/{seed}") for seed in seeds), strict=True)
        return torch.stack(spectrum), torch.stack(low), torch.stack(high)

    def coded(spectrum):
        """As the audio autoencoder answers it: one mel frame, then four for each latent."""
        padded = torch.nn.functional.pad(spectrum, (0, 0, 0, -(FRAMES - 1) % 4), mode="replicate")
        with torch.no_grad():
            return coder[1](coder[0](padded))[:, :, :FRAMES]

    def forward(spectrum):
        """Both rates; the extension does not train the vocoder under it."""
        low = vocoder.vocoder(spectrum)
        heard = low.detach()
        extra = vocoder.bwe_generator(vocoder._compute_mel(heard).transpose(2, 3))
        return low, extra + vocoder.resampler(heard)

    def loss(inputs):
        spectrum, low, high = inputs
        if coder and run.step % 2:
            spectrum = coded(spectrum)
        output, wide = forward(spectrum)
        near, far = (output - low).abs().mean(), (wide - high).abs().mean()
        spectra = spectral(output, low, (256, 1024)), spectral(wide, high, (512, 2048))
        metrics = {"samples": near, "samples_48k": far, "spectrum": spectra[0], "spectrum_48k": spectra[1]}
        return 10 * near + spectra[0] + 0.3 * (10 * far + spectra[1]), metrics

    def measure():
        signal, noise, noise_48k, signal_48k = 0.0, 0.0, 0.0, 0.0
        for seed in range(HELD_OUT):
            spectrum, low, high = (part.unsqueeze(0).to(options.device) for part in example(f"held-out/{seed}", True))
            output, wide = forward(spectrum)
            signal, noise = signal + low.square().sum(), noise + (output - low).square().sum()
            signal_48k, noise_48k = signal_48k + high.square().sum(), noise_48k + (wide - high).square().sum()
        return {"held_out_snr": float(10 * (signal / noise).log10()),
                "held_out_snr_48k": float(10 * (signal_48k / noise_48k).log10())}

    run.run(batch, loss, measure, measure_every=500)


if __name__ == "__main__":
    main()
