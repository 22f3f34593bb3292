"""Freezes the trained autoencoders and encodes scenes for the transformer and the upsampler.

    python reference/toy/make_latents.py --runs RUNS [--batches N] [--stage 2] [--minutes N]

The first run measures the mean and spread of every latent channel and writes `frozen.pt`: both autoencoders with these
statistics in them. Then it writes one file per batch, `latents/STAGE-NUMBER.pt`: normalized latents of clips of one
size, with the seeds of their scenes. A run goes on where the last one stopped. Delete `frozen.pt` and `latents/` to
begin again from better autoencoders.
"""

import time

import torch

import parts
import sound
import training
import world
from train_audio_vae import mel

COUNT = 64  # clips in a file
STATISTICS = 384  # clips to measure


def clips(seeds, size, device="cpu"):
    """Pixels (B, 3, F, H, W) and mel (B, 2, T, 64) of scenes of one size; and the scenes."""
    scenes = [world.sample(seed, *size) for seed in seeds]
    pixels = torch.stack([world.render(scene, device=device) for scene in scenes])
    samples = (4 * sound.audio_frames(size[2]) - 4) * sound.HOP
    return pixels, mel(torch.stack([sound.waveform(scene, samples) for scene in scenes])).to(device), scenes


def encode(modules, pixels, spectrum):
    """Normalized latents, (B, 32, F', H', W') and (B, 2, T', 16)."""
    with torch.inference_mode(), training.autocast(pixels.device):
        video = torch.cat([modules["video_encoder"](part) for part in pixels.split(4)])
        audio = modules["audio_encoder"](spectrum)
    return video.float(), audio.float()


def _per_channel(latents, axis):
    """Mean and standard deviation of each channel, over all clips."""
    rows = torch.cat([latent.movedim(axis, -1).reshape(-1, latent.shape[axis]) for latent in latents])
    return rows.mean(0), rows.std(0)


def freeze(runs, device, keep=False):
    """The autoencoders with their statistics: {module name: module}; those of `frozen.pt`, or the newest, which `keep`
    writes there."""
    names = ("video_encoder", "video_decoder", "audio_encoder", "audio_decoder")
    modules = {name: parts.build(name).to(device).eval() for name in names}
    file = runs / "frozen.pt"
    if file.exists():
        for name, state in torch.load(file, map_location=device, weights_only=True).items():
            modules[name].load_state_dict(state)
        return modules
    for part in ("video_vae", "audio_vae"):
        for name, state in parts.trained(runs, part, device)[0].items():
            modules[name].load_state_dict(state)
    video, audio = [], []
    for index in range(STATISTICS // 8):
        seeds = [f"statistics/{seed}" for seed in range(8 * index, 8 * index + 8)]
        latents = encode(modules, *clips(seeds, world.size(f"statistics/{index}"), device)[:2])
        video.append(latents[0])
        audio.append(latents[1].transpose(1, 2).flatten(2).unsqueeze(1))  # (B, 1, T', channels x bands)
    for prefix, (mean, std) in (("video", _per_channel(video, 1)), ("audio", _per_channel(audio, -1))):
        for side in ("encoder", "decoder"):
            statistics = modules[f"{prefix}_{side}"].per_channel_statistics
            # As the file will hold them.
            statistics.get_buffer("mean-of-means").copy_(mean.to(torch.bfloat16))
            statistics.get_buffer("std-of-means").copy_(std.clamp(min=1e-3).to(torch.bfloat16))
    if keep:
        torch.save({name: module.state_dict() for name, module in modules.items()}, file)
    return modules


def encoded(modules, seeds, size, device):
    """{"video", "audio"}: latents of scenes in half precision, a few clips at a time."""
    parts_ = [encode(modules, *clips(seeds[at : at + 8], size, device)[:2]) for at in range(0, len(seeds), 8)]
    video, audio = (torch.cat(part).to(torch.float16).cpu() for part in zip(*parts_, strict=True))
    return {"video": video, "audio": audio}


def load(path):
    """One batch file: {"video", "audio", "seeds", "size"}, "low" in stage 2; latents in float32."""
    batch = torch.load(path, weights_only=True)
    return {key: value.float() if torch.is_tensor(value) else value for key, value in batch.items()}


def main():
    parser = training.arguments(__doc__, rate=0, batch=0)
    parser.add_argument("--batches", type=int, default=600)
    parser.add_argument("--stage", type=int, default=1, help="2: twice as wide and high")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    modules = freeze(options.runs, options.device, keep=True)
    folder = options.runs / "latents"
    folder.mkdir(exist_ok=True)
    began = time.monotonic()
    for number in range(options.batches):
        file = folder / f"{options.stage}-{number:05}.pt"
        if file.exists():
            continue
        if time.monotonic() - began > 60 * options.minutes:
            break
        size = world.size(f"batch/{options.stage}/{number}", options.stage)
        seeds = [f"train/{options.stage}/{number}/{index}" for index in range(COUNT)]
        batch = encoded(modules, seeds, size, options.device)
        if options.stage == 2:
            half = (size[0] // 2, size[1] // 2, size[2])
            batch["low"] = encoded(modules, seeds, half, options.device)["video"]
        scratch = file.with_suffix(".writing")
        torch.save(batch | {"seeds": seeds, "size": size}, scratch)
        scratch.replace(file)
        print(file, tuple(batch["video"].shape), f"{(time.monotonic() - began) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
