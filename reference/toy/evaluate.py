"""Prompt accuracy of the trained parts in PyTorch, before anything is exported.

    python reference/toy/evaluate.py --runs RUNS [--count 64] [--recipe distilled|one-pass|guided] [--save FOLDER]

`distilled` is the two-stage recipe; `one-pass` its first eight steps at full size, which needs no upsampler; `guided`
30 steps with classifier-free guidance. The accuracy that counts is that of the Rust program: `held_out.py`.
"""

import argparse
import json
from pathlib import Path

import torch
from ltx_core.components.schedulers import LTX2Scheduler
from PIL import Image

import flow
import make_latents
import parts
import prompts
import score
import sound
import train_vocoder
import training
import world

BATCH = 8


class Model:
    """Every trained part."""

    def __init__(self, runs, recipe, length, device):
        self.recipe, self.length, self.device = recipe, length, device
        self.vaes = make_latents.freeze(runs, device)
        modules, self.encoder = flow.modules(runs / "gemma")
        states = parts.trained(runs, "dit", device)[0]
        for name, module in modules.items():
            module.load_state_dict(states[name])
        self.transformer, self.encoder = modules["transformer"].to(device).eval(), self.encoder.to(device).eval()
        self.vocoder = parts.build("vocoder").to(device).eval()
        train_vocoder.set_bases(self.vocoder)
        self.vocoder.load_state_dict(parts.trained(runs, "vocoder", device)[0]["vocoder"])
        self.upsampler = parts.build_upsampler().to(device).eval()
        if recipe == "distilled":
            self.upsampler.load_state_dict(parts.trained(runs, "upsampler", device)[0]["upsampler"])

    def _noise(self, shape, audio_frames, generator, count):
        sizes = shape[0] * shape[1] * shape[2], audio_frames
        return [torch.randn(count, tokens, 32, generator=generator).to(self.device) for tokens in sizes]

    def __call__(self, texts, size, seed):
        """Pixels (B, 3, F, H, W) and samples (B, 2, N) at 48 kHz."""
        width, height, frames = size
        generator = torch.Generator().manual_seed(seed)
        sound_frames, time = sound.audio_frames(frames), (frames - 1) // 8 + 1
        full = time, height // 32, width // 32
        first = (time, full[1] // 2, full[2] // 2) if self.recipe == "distilled" else full
        contexts = self.encoder(texts, self.length)
        noise = self._noise(first, sound_frames, generator, len(texts))
        options = {"sigmas": flow.DISTILLED}
        if self.recipe == "guided":
            negative = self.encoder([flow.text.NEGATIVES[-1]] * len(texts), self.length)
            sigmas = LTX2Scheduler().execute(steps=30).tolist()
            options = {"sigmas": sigmas, "negative": negative, "guidance": 3.0}
        where = flow.positions(first, sound_frames, self.device)
        states = flow.sample(self.transformer, contexts, where, noise, **options)
        if self.recipe == "distilled":
            statistics = self.vaes["video_encoder"].per_channel_statistics
            low = states[0].transpose(1, 2).unflatten(2, first)
            high = statistics.normalize(self.upsampler(statistics.un_normalize(low)).float()).flatten(2).transpose(1, 2)
            again = self._noise(full, sound_frames, generator, len(texts))
            start = [torch.lerp(x, n, flow.SECOND_STAGE[0]) for x, n in zip((high, states[1]), again, strict=True)]
            where = flow.positions(full, sound_frames, self.device)
            states = flow.sample(self.transformer, contexts, where, start, flow.SECOND_STAGE)
        video = states[0].transpose(1, 2).unflatten(2, full)
        audio = states[1].unflatten(2, (parts.AUDIO_LATENT, 16)).transpose(1, 2)
        pixels = torch.cat([self.vaes["video_decoder"](part) for part in video.split(2)])
        return pixels, self.vocoder(self.vaes["audio_decoder"](audio))


def judge(pixels, samples, scene):
    frames = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 3, 0).to(torch.uint8).cpu().numpy()
    heard = score.listen(samples.float().mean(0).cpu().numpy()[::3])
    return score.compare(score.look(frames), heard, score.wanted(scene)), frames


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--recipe", choices=("distilled", "one-pass", "guided"), default="distilled")
    parser.add_argument("--length", type=int, default=1024, help="text tokens; the program has 1024")
    parser.add_argument("--size", type=int, nargs=3, default=(256, 192, 25), metavar=("WIDTH", "HEIGHT", "FRAMES"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", type=Path, help="folder for a strip of frames of each clip")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = Model(arguments.runs, arguments.recipe, arguments.length, arguments.device)
    verdicts = []
    for start in range(0, arguments.count, BATCH):
        numbers = range(start, min(start + BATCH, arguments.count))
        scenes = [world.sample(f"prompt/{n}", *arguments.size, held_out=True) for n in numbers]
        texts = [prompts.describe(scene, f"held-out/{n}", True) for n, scene in zip(numbers, scenes, strict=True)]
        with torch.inference_mode(), training.autocast(arguments.device):
            pixels, samples = model(texts, arguments.size, start)
        for number, text, scene, *clip in zip(numbers, texts, scenes, pixels, samples, strict=True):
            verdict, frames = judge(*clip, scene)
            verdicts.append(verdict)
            if arguments.save:
                arguments.save.mkdir(parents=True, exist_ok=True)
                strip = frames[:: max(1, len(frames) // 6)].transpose(1, 0, 2, 3).reshape(frames.shape[1], -1, 3)
                name = f"{number:03}-{'right' if verdict['video'] else 'wrong'}.png"
                Image.fromarray(strip).save(arguments.save / name)
                print(name, text)
    print(json.dumps({"recipe": arguments.recipe, "clips": len(verdicts)} | score.summary(verdicts)))


if __name__ == "__main__":
    main()
