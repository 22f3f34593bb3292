"""Runs Lightricks' own DistilledPipeline on the toy, and `ltx` on the same files with the same noise: same latents?

    python reference/toy/official.py --model DIR --ltx target/release/ltx [--width 256 --height 192 --frames 25] "PROMPT"

DIR is what `export.py` wrote. The pipeline is that of LTX-2 v1.2.0 (not on PyPI: clone it and put
`packages/ltx-core/src` and `packages/ltx-pipelines/src` on PYTHONPATH), in float32: it encodes the prompt with its own
Gemma loader, denoises, upsamples and refines. `ltx` does the same from the prompt on, with the noise that the pipeline
drew. Relative errors are printed; one over 1e-3 is a failure.

Two things the pipelines do not read from a file: how many channels latents have (128 and 8) and the type to compute in.
Both are set from outside; every class runs as it is.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import types
from functools import partialmethod
from pathlib import Path

import torch

try:
    import OpenImageIO  # noqa: F401
except ImportError:  # it reads HDR pictures, of which there are none here
    sys.modules["OpenImageIO"] = types.ModuleType("OpenImageIO")

from ltx_core.components.noisers import GaussianNoiser
from ltx_core.types import AudioLatentShape, VideoLatentShape
from ltx_pipelines import distilled
from ltx_pipelines.utils.blocks import AudioDecoder, DiffusionStage, VideoDecoder
from ltx_pipelines.utils.model_paths import ModelPaths
from safetensors import safe_open
from safetensors.torch import load_file, save_file

LIMIT = 1e-3


class Float32:
    """`torch` with another opinion on bfloat16, for the one module that would choose it."""

    bfloat16 = torch.float32

    def __getattr__(self, name):
        return getattr(torch, name)


class Recorded(GaussianNoiser):
    """Keeps what it draws: tokens (1, T, C) of video and audio, in turns."""

    drawn = []

    def _sample_noise(self, latent_state):
        noise = super()._sample_noise(latent_state)
        self.drawn.append(noise)
        return noise


def set_channels(file):
    """Gives the shapes of latents the channels of the file, where the official defaults are those of the full size."""
    with safe_open(file, framework="pt") as opened:
        config = json.loads(opened.metadata()["config"])
    video = config["vae"]["latent_channels"]
    audio = config["audio_vae"]["model"]["params"]["ddconfig"]["z_channels"]
    for function, usual, ours in (
        (VideoLatentShape.from_pixel_shape, 128, video),
        (AudioLatentShape.from_duration, 8, audio),
        (AudioLatentShape.from_video_pixel_shape, 8, audio),
    ):
        defaults = function.__defaults__
        if defaults[0] != usual:
            raise SystemExit(f"this version of ltx-core has other defaults: {function.__qualname__}{defaults}")
        function.__defaults__ = (ours, *defaults[1:])


def run(model, prompt, seed, width, height, frames):
    """Final latents and initial noise, as `ltx` writes and reads them."""
    latents = {}

    def keep(name):
        def decode(self, latent, *arguments, **options):
            latents[name] = latent.detach().float().contiguous()
        return decode

    set_channels(model / "toy-2.3.safetensors")
    distilled.torch, distilled.GaussianNoiser = Float32(), Recorded
    DiffusionStage._build_transformer = partialmethod(DiffusionStage._build_transformer, dtype=torch.float32)
    VideoDecoder.__call__, AudioDecoder.__call__ = keep("video"), keep("audio")
    pipeline = distilled.DistilledPipeline(
        model_paths=ModelPaths.from_monolith(str(model / "toy-2.3.safetensors"), str(model / "gemma")),
        spatial_upsampler_path=str(model / "toy-2.3-spatial-x2.safetensors"),
        loras=[],
        device=torch.device("cpu"),
    )
    with torch.inference_mode():
        pipeline(prompt, seed, height, width, 24.0, [], num_frames=frames, tiling_config=None)
    noise, (_, _, *audio) = {}, latents["audio"].shape
    for index, suffix in enumerate(("", "_stage_2")):
        video_tokens, audio_tokens = (tokens.float() for tokens in Recorded.drawn[2 * index : 2 * index + 2])
        scale = 64 if index == 0 else 32
        size = (frames - 1) // 8 + 1, height // scale, width // scale
        noise[f"video{suffix}"] = video_tokens.transpose(1, 2).unflatten(2, size).contiguous()
        noise[f"audio{suffix}"] = audio_tokens.unflatten(2, (-1, audio[1])).transpose(1, 2).contiguous()
    return latents, noise


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="a red circle moves right on a blue background")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--ltx", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=42)
    for name, value in (("width", 256), ("height", 192), ("frames", 25)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    size = arguments.width, arguments.height, arguments.frames
    latents, noise = run(arguments.model, arguments.prompt, arguments.seed, *size)
    with tempfile.TemporaryDirectory() as folder:
        noise_file, result = Path(folder) / "noise.safetensors", Path(folder) / "latents.safetensors"
        save_file(noise, noise_file)
        command = [arguments.ltx, "generate", arguments.prompt, "--recipe", "distilled", "--dtype", "f32",
                   "--model", arguments.model / "toy-2.3.safetensors", "--gemma", arguments.model / "gemma",
                   "--spatial-upsampler", arguments.model / "toy-2.3-spatial-x2.safetensors", "--device", "cpu",
                   "--no-cache", "--noise", noise_file, "--save-latents", result, "-o", Path(folder) / "clip.mp4"]
        for name, value in zip(("--width", "--height", "--frames"), size, strict=True):
            command += [name, str(value)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        ours = load_file(result)
    errors = {name: ((ours[name] - latents[name]).norm() / latents[name].norm()).item() for name in latents}
    print(json.dumps({"relative errors": errors, "limit": LIMIT}))
    if not all(error < LIMIT for error in errors.values()):
        raise SystemExit("the latents differ")


if __name__ == "__main__":
    main()
