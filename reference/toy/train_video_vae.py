"""Trains the video autoencoder: python reference/toy/train_video_vae.py --runs RUNS [--minutes N] [--decoder]

Windows around an object in scenes of any size. They have several sizes: in a window of 64 pixels every latent lies at a
border, and a network that sees only such windows learns the borders and fails inside of larger frames. Loss: L1 and
squared error at full and lower resolutions, and a small KL term. The decoder sees latents with noise, as it will get
them from the transformer. `--decoder` goes on with the decoder alone, against the encoder in `frozen.pt`, and puts the
result there.
"""

import random

import torch
from torch.nn import functional as F

import parts
import training
import world
from optimizer import start_convolutions

KL = 2e-4
NOISE = 0.1  # of a latent's spread, in training
HELD_OUT = 16
WINDOWS = ((64, 64), (96, 64), (64, 96), (96, 96), (128, 96), (96, 128), (128, 128), (192, 128))


def clip(seed, frames, window):
    """A window (width, height) into a scene near one of its objects, (3, frames, height, width)."""
    draw = random.Random(f"clip/{seed}")
    unit = draw.choice((64, 64, 96, 128, 128, 160, 192, 256))
    aspect = draw.choice((1.0, 1.0, 1.0, 1.5, 0.75))
    parts_ = max(1.0, aspect), max(1.0, 1 / aspect)
    width, height = (max(least, round(unit * part / 32) * 32) for least, part in zip(window, parts_, strict=True))
    scene = world.sample(seed, width, height, draw.choice([length for length in (17, 25, 33, 49) if length >= frames]))
    first = draw.randrange(scene.frames - frames + 1)
    times = (torch.arange(frames) + first) / world.FPS
    thing = draw.choice(scene.things)
    x, y, _ = thing.place(times[[draw.randrange(frames)]], scene.duration)
    corner = []
    for center, extent, length in ((x, width, window[0]), (y, height, window[1])):
        near = float(center) * scene.unit - length / 2 + draw.uniform(-0.4, 0.4) * length
        corner.append(round(min(max(near, 0), extent - length)))
    return world.render(scene, (*corner, *window), times)


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


def held_out_psnr(encoder, decoder, device):
    """The mean and the worst over held-out scenes."""
    values = []
    for seed in range(HELD_OUT):
        scene = world.sample(f"held-out/{seed}", *((128, 128, 17), (192, 128, 25))[seed % 2], held_out=True)
        pixels = world.render(scene, device=device).unsqueeze(0)
        with training.autocast(device):
            values.append(float(psnr(decoder(encoder(pixels)), pixels)))
    return {"held_out_psnr": sum(values) / len(values), "worst_psnr": min(values)}


def frozen_decoder(options, encoder, decoder):
    """Loads the frozen pair, the encoder for good; answers what puts the decoder back into the file."""
    frozen = torch.load(options.runs / "frozen.pt", map_location=options.device, weights_only=True)
    encoder.load_state_dict(frozen["video_encoder"])
    encoder.to(options.device).eval().requires_grad_(False)
    decoder.load_state_dict(frozen["video_decoder"])

    def put_back(average):
        frozen["video_decoder"] = average
        scratch = options.runs / "frozen.writing"
        torch.save(frozen, scratch)
        scratch.replace(options.runs / "frozen.pt")

    return put_back


def main():
    parser = training.arguments(__doc__, rate=1e-3, batch=8)
    parser.add_argument("--frames", type=int, nargs="+", default=[9, 17, 17])
    parser.add_argument("--decoder", action="store_true", help="train the decoder alone, after freezing")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    modules = {name: parts.build(name) for name in ("video_encoder", "video_decoder")}
    encoder, decoder = modules.values()
    for module in modules.values():
        start_convolutions(module)
    torch.nn.init.constant_(encoder.conv_out.conv.bias[-1:], -4.0)  # little noise at first
    if options.decoder:
        put_back = frozen_decoder(options, encoder, decoder)
        run = training.Training("video_decoder", {"video_decoder": decoder}, options)
    else:
        run = training.Training("video_vae", modules, options)

    def batch(step):
        """As many clips as have the pixels of `--batch` windows of 64."""
        draw = random.Random(f"window/{step}")
        frames, window = draw.choice(options.frames), draw.choice(WINDOWS)
        count = max(1, round(options.batch * 64 * 64 / (window[0] * window[1])))
        return torch.stack([clip(f"{options.seed}/{step}/{index}", frames, window) for index in range(count)])

    def loss(pixels):
        with training.autocast(options.device):
            if options.decoder:
                with torch.no_grad():
                    latents = encoder(pixels)  # normalized: their spread is 1
                output = decoder(latents + NOISE * torch.randn_like(latents))
                error = reconstruction(output.float(), pixels)
                return error, {"psnr": psnr(output, pixels).mean()}
            means, log_variance = encode(encoder, pixels)
            spread = log_variance.exp() + (NOISE * means.detach().std()).square()
            output = decoder(means + torch.randn_like(means) * spread.sqrt())
        error = reconstruction(output.float(), pixels)
        kl = 0.5 * (means.square() + log_variance.exp() - 1 - log_variance).mean()
        metrics = {"psnr": psnr(output, pixels).mean(), "kl": kl, "spread": means.std(), "noise": log_variance.mean()}
        return error + KL * kl, metrics

    run.run(batch, loss, lambda: held_out_psnr(encoder, decoder, options.device))
    if options.decoder:
        put_back(run.average["video_decoder"])


if __name__ == "__main__":
    main()
