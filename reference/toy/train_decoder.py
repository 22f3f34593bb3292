"""Goes on with the video decoder on what the transformer makes: python reference/toy/train_decoder.py --runs RUNS

Stage-2 latents get noise, and the transformer takes it off in the one to three last steps of the distilled recipe. What
it cannot restore so quickly, such as the corner of a triangle, the decoder learns to draw. Two in seven clips stay
clean, so that reconstructions keep their quality. The result goes into `frozen.pt`.
"""

import random

import torch

import flow
import make_latents
import parts
import prompts
import training
import world
from train_video_vae import NOISE, frozen_decoder, held_out_psnr, psnr, reconstruction

# How many of the recipe's last steps: none leaves the latent as it is, with a little noise.
STARTS = (0, 0, 1, 1, 2, 2, 3)
LONGEST = 33  # frames


def main():
    parser = training.arguments(__doc__, rate=3e-4, batch=1)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    encoder, decoder = (parts.build(name) for name in ("video_encoder", "video_decoder"))
    put_back = frozen_decoder(options, encoder, decoder)
    run = training.Training("video_decoder", {"video_decoder": decoder}, options)
    modules, text_encoder = flow.modules(options.runs / "gemma")
    for name, state in parts.trained(options.runs, "dit", options.device)[0].items():
        if name in modules:
            modules[name].load_state_dict(state)
    transformer = modules["transformer"].to(options.device).eval()
    text_encoder.to(options.device).eval()
    files = map(make_latents.load, sorted((options.runs / "latents").glob("2-*.pt")))
    files = [whole for whole in files if whole["size"][2] <= LONGEST]

    def batch(step):
        draw = random.Random(f"decoder/{options.seed}/{step}")
        whole = draw.choice(files)
        rows = draw.sample(range(len(whole["seeds"])), options.batch)
        scenes = [world.sample(whole["seeds"][row], *whole["size"]) for row in rows]
        pixels = torch.stack([world.render(scene) for scene in scenes])
        texts = [prompts.describe(scene, draw.random()) for scene in scenes]
        return pixels, whole["video"][rows], whole["audio"][rows], texts, draw.choice(STARTS)

    @torch.no_grad()
    def made(video, audio, texts, steps):
        """Latents (B, 32, F, H, W) as the transformer restores them in its last `steps` steps."""
        if not steps:
            return video + NOISE * torch.randn_like(video)
        sigmas = flow.SECOND_STAGE[-1 - steps :]
        clean = flow.tokens(video, audio)
        noisy = [torch.lerp(x, torch.randn_like(x), sigmas[0]) for x in clean]
        where = flow.positions(video.shape[2:], audio.shape[2], options.device)
        states = flow.sample(transformer, text_encoder(texts, 128), where, noisy, sigmas)
        return states[0].transpose(1, 2).unflatten(2, video.shape[2:])

    def loss(inputs):
        pixels, video, audio, texts, steps = inputs
        with training.autocast(options.device):
            # A copy: what inference mode made cannot be trained on.
            output = decoder(made(video, audio, texts, steps).clone())
        error = reconstruction(output.float(), pixels)
        return error, {f"psnr_{steps}": psnr(output, pixels).mean()}

    run.run(batch, loss, lambda: held_out_psnr(encoder, decoder, options.device))
    put_back(run.average["video_decoder"])


if __name__ == "__main__":
    main()
