"""Trains the video autoencoder: python reference/toy/train_video_vae.py --runs RUNS [--minutes N]

Mostly 64-pixel windows around an object in scenes of any size: edges are what is hard, and a window full of background
teaches nothing. Loss: L1 and squared error at full and lower resolutions, and a small KL term.
"""

import random

import torch
from torch.nn import functional as F

import parts
import training
import world
from optimizer import start_convolutions

KL = 2e-4
HELD_OUT = 16


def clip(seed, frames, window):
    """A window into a scene near one of its objects, (3, frames, height, width)."""
    draw = random.Random(f"clip/{seed}")
    unit = draw.choice((64, 64, 96, 128, 128, 160, 192, 256))
    aspect = draw.choice((1.0, 1.0, 1.0, 1.5, 0.75))
    width, height = (max(window, round(unit * max(1.0, part) / 32) * 32) for part in (aspect, 1 / aspect))
    scene = world.sample(seed, width, height, draw.choice((17, 25, 33, 49)))
    first = draw.randrange(scene.frames - frames + 1)
    times = (torch.arange(frames) + first) / world.FPS
    thing = draw.choice(scene.things)
    x, y, _ = thing.place(times[[draw.randrange(frames)]], scene.duration)
    corner = []
    for center, extent in ((x, width), (y, height)):
        near = float(center) * scene.unit - window / 2 + draw.uniform(-0.4, 0.4) * window
        corner.append(round(min(max(near, 0), extent - window)))
    return world.render(scene, (*corner, window, window), times)


def encode(encoder, pixels):
    """Means and the shared log variance of the official encoder, which answers the means alone."""
    kept = []
    hook = encoder.conv_out.register_forward_hook(lambda _, __, out: kept.append(out))
    encoder(pixels)
    hook.remove()
    return kept[0][:, :-1].float(), kept[0][:, -1:].float().clamp(-12, 2)


def reconstruction(output, target):
    """L1 and squared error, at full size and at 1/2 and 1/4."""
    total = 0.0
    for scale, weight in ((1, 1.0), (2, 0.5), (4, 0.5)):
        if scale > 1:
            output, target = (F.avg_pool3d(x, (1, 2, 2)) for x in (output, target))
        error = output - target
        total = total + weight * (error.abs().mean() + 2 * error.square().mean())
    return total


def psnr(output, target):
    """dB of each clip, (B,), for pixels in [-1, 1] that are shown in 256 levels."""
    shown = ((output.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    return 10 * torch.log10(4 / (shown - target).square().flatten(1).mean(1))


def main():
    parser = training.arguments(__doc__, rate=1e-3, batch=8)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--frames", type=int, nargs="+", default=[9, 17, 17])
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    modules = {name: parts.build(name) for name in ("video_encoder", "video_decoder")}
    encoder, decoder = modules.values()
    for module in modules.values():
        start_convolutions(module)
    torch.nn.init.constant_(encoder.conv_out.conv.bias[-1:], -4.0)  # little noise at first
    run = training.Training("video_vae", modules, options)

    def batch(step):
        frames = options.frames[step % len(options.frames)]
        seeds = range(step * options.batch, (step + 1) * options.batch)
        return torch.stack([clip(f"{options.seed}/{seed}", frames, options.window) for seed in seeds])

    def loss(pixels):
        with training.autocast(options.device):
            means, log_variance = encode(encoder, pixels)
            noise = torch.randn_like(means) * (0.5 * log_variance).exp()
            output = decoder(means + noise)
        error = reconstruction(output.float(), pixels)
        kl = 0.5 * (means.square() + log_variance.exp() - 1 - log_variance).mean()
        metrics = {"psnr": psnr(output, pixels).mean(), "kl": kl, "spread": means.std(), "noise": log_variance.mean()}
        return error + KL * kl, metrics

    def measure():
        values = []
        for seed in range(HELD_OUT):
            scene = world.sample(f"held-out/{seed}", *((128, 128, 17), (192, 128, 25))[seed % 2], held_out=True)
            pixels = world.render(scene, device=options.device).unsqueeze(0)
            with training.autocast(options.device):
                values.append(float(psnr(decoder(encoder(pixels)), pixels)))
        return {"held_out_psnr": sum(values) / len(values), "worst_psnr": min(values)}

    run.run(batch, loss, measure)


if __name__ == "__main__":
    main()
