"""Trains the spatial x2 latent upsampler: python reference/toy/train_upsampler.py --runs RUNS [--minutes N]

It reads the stage-2 files of `make_latents.py`: latents of the same scenes at one size and at twice that size. The
error is in normalized units, which is what the second stage sees.
"""

import random

import torch

import make_latents
import parts
import training
from optimizer import start_convolutions

HELD_OUT = 1  # the last file


def main():
    options = training.arguments(__doc__, rate=1e-3, batch=8).parse_args()
    torch.manual_seed(options.seed)
    upsampler = parts.build_upsampler()
    start_convolutions(upsampler, branch_ends=("conv2",))
    run = training.Training("upsampler", {"upsampler": upsampler}, options)
    statistics = make_latents.freeze(options.runs, options.device)["video_encoder"].per_channel_statistics
    files = sorted((options.runs / "latents").glob("2-*.pt"))
    if len(files) <= HELD_OUT:
        raise SystemExit("too few stage-2 latents: run make_latents.py --stage 2 first")
    loaded = {}

    def rows(file):
        if file not in loaded:
            loaded[file] = make_latents.load(file)
        return loaded[file]["low"], loaded[file]["video"]

    def batch(step):
        draw = random.Random(f"{options.seed}/{step}")
        low, high = rows(draw.choice(files[:-HELD_OUT]))
        chosen = draw.sample(range(len(low)), min(options.batch, len(low)))
        return low[chosen], high[chosen]

    def forward(low):
        return statistics.normalize(upsampler(statistics.un_normalize(low)))

    def loss(inputs):
        low, high = inputs
        with training.autocast(options.device):
            output = forward(low)
        error = (output.float() - high).square().mean()
        return error, {"error": error}

    def measure():
        low, high = (part[:16].to(options.device) for part in rows(files[-1]))
        return {"held_out_error": float((forward(low) - high).square().mean())}

    run.run(batch, loss, measure)


if __name__ == "__main__":
    main()
