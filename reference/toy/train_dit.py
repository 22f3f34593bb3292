"""Trains the transformer and the text encoder together as a rectified flow.

    python reference/toy/train_dit.py --runs RUNS [--minutes N] [--stage 2] [--length 128] [--long 0.2] [--own 0.5]
        [--guidance 2]

It reads the files of `make_latents.py`. Of the captions a tenth is replaced by an empty or a negative one, for guided
sampling; in a fifth of the clips the first latent frame is given, as in image-to-video; in the others' small sizes the
noise is tied to what the caption leaves open, see `ties.py`. A small head that is thrown away afterwards reads the
scene's attributes from the contexts: its loss teaches the text encoder words much faster than the flow alone.

Stages of a training: stage 1 with 40 text tokens, and `--tokens 36` at first; then `--stage 2`, three in five of whose
batches are large clips, mostly at the sigmas of a second stage, and `--length 128`, as many as there are registers. With
`--own 0.5` half of the batches begin with up to two steps of the network's own down the table of their stage, the second
stage's from upsampled small latents: it learns to lead to the clip from where recipes take it. With `--guidance 2` it
learns the velocity that guidance of that scale would give, so that recipes without guidance do not need any. With
`--long 0.2`, in that share of the batches the text is as long as in the official pipelines.
"""

import random
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import flow
import make_latents
import parts
import prompts
import ties
import training
import world


def sigmas(count, stage, generator):
    """(B,): half of a logit-normal law that leans to noise, a third of the distilled table, the rest uniform; of a second
    stage nothing above where it begins."""
    drawn = torch.sigmoid(torch.randn(count, generator=generator))
    drawn = 3 * drawn / (1 + 2 * drawn)
    table = flow.SECOND_STAGE[:-1] if stage == 2 else flow.DISTILLED[:-1]
    listed = torch.tensor(table)[torch.randint(len(table), (count,), generator=generator)]
    kind = torch.rand(count, generator=generator)
    uniform = torch.rand(count, generator=generator)
    drawn, uniform = (table[0] * part for part in (drawn, uniform))
    return torch.where(kind < 0.5, drawn, torch.where(kind < 0.83, listed, uniform)).clamp(min=0.01)


def paths(table, count, generator):
    """Up to two steps down a table, to each of its sigmas but 0: [[(B,), (B,)]] for video and audio, one pair a step and
    the last."""
    last = torch.randint(len(table) - 1, (count,), generator=generator)
    return [[torch.tensor(table)[torch.minimum((last - 2).clamp(min=0) + step, last)]] * 2 for step in range(3)]


LONG = 1024  # text tokens of the official pipelines
MANY = 64  # tokens: of clips with more, a batch has fewer


class Reader(torch.nn.Module):
    """What a scene holds, told from the means of both contexts: one loss that teaches the text encoder to read."""

    # The background, the sound, then shape, colour and motion of two objects; 0 stands for no second object.
    CLASSES = (len(world.BACKGROUNDS), 2) + 2 * (1 + len(world.SHAPES), 1 + len(world.COLORS), 1 + len(world.MOTIONS))

    def __init__(self):
        super().__init__()
        widths = parts.HEADS * parts.VIDEO_HEAD, parts.HEADS * parts.AUDIO_HEAD
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, sum(self.CLASSES)) for width in widths)

    @staticmethod
    def answers(scene):
        things = [(0, 0, 0)] * 2
        for slot, thing in enumerate(scene.things):
            lists = (world.SHAPES, thing.shape), (world.COLORS, thing.color), (world.MOTIONS, thing.motion)
            things[slot] = tuple(1 + list(names).index(name) for names, name in lists)
        return [list(world.BACKGROUNDS).index(scene.background), int(scene.silent), *things[0], *things[1]]

    def forward(self, contexts, answers):
        """Mean cross entropy; contexts (B, S, width) each, answers (B, 8) with -100 where the text says nothing."""
        logits = [head(context.float().mean(1)) for head, context in zip(self.heads, contexts, strict=True)]
        losses = [
            torch.nn.functional.cross_entropy(part, answers[:, question])
            for both in logits for question, part in enumerate(both.split(self.CLASSES, 1))
        ]
        return torch.stack(losses).mean()


class Batches:
    """Batches of one size each from the files, in an order that depends on the step alone: three in five of the last
    stage, and fewer clips where they are large. With long texts there are a third of the clips, each of them twice, with
    another noise: the contexts are then most of the work."""

    def __init__(self, folder, stages, batch, seed, tokens, long, upsample=None):
        self.batch, self.seed, self.long = batch, seed, long
        self.files = []
        for stage in stages:
            files = map(make_latents.load, sorted(folder.glob(f"{stage}-*.pt")))
            self.files.append([whole for whole in files if whole["video"][0, 0].numel() <= tokens])
            if not self.files[-1]:
                raise SystemExit(f"no latents of stage {stage} and so few tokens in {folder}: run make_latents.py first")
        if upsample:
            for whole in self.files[-1]:
                whole["start"] = upsample(whole["low"])

    def __call__(self, step):
        draw = random.Random(f"{self.seed}/{step}")
        stage = len(self.files) - 1 if draw.random() < 0.6 else 0
        whole = draw.choice(self.files[stage])
        count = min(self.batch, len(whole["seeds"]), max(8, self.batch * MANY // whole["video"][0, 0].numel()))
        long = draw.random() < self.long
        count = min(count, self.batch // 3) // 2 if long else count
        rows = draw.sample(range(len(whole["seeds"])), count)
        scenes = [world.sample(whole["seeds"][row], *whole["size"]) for row in rows]
        texts, answers = [], []
        for scene in scenes:
            negative = draw.random() < 0.1
            texts.append(draw.choice(flow.text.NEGATIVES) if negative else prompts.describe(scene, draw.random()))
            answers.append([-100] * 8 if negative else Reader.answers(scene))
        twice = rows * 2 if long else rows
        clips = {key: whole[key][twice] for key in ("video", "audio", "start") if key in whole}
        clips |= {"seeds": [whole["seeds"][row] for row in twice], "size": whole["size"]}
        return clips, torch.tensor(answers), texts, long, stage + 1, draw


def upsampler(runs):
    """The trained upsampler, between normalized latents (B, C, F, H, W)."""
    module = parts.build_upsampler().eval()
    module.load_state_dict(parts.trained(runs, "upsampler")[0]["upsampler"])
    statistics = make_latents.freeze(runs, "cpu")["video_encoder"].per_channel_statistics

    @torch.inference_mode()
    def upsample(low):
        return torch.cat([statistics.normalize(module(statistics.un_normalize(some))) for some in low.split(8)]).clone()

    return upsample


class Guide:
    """What guidance adds to a velocity, from the network itself as it is now: its own velocity less that of a negative
    text. Learning v = target + (1 - 1/s) (v - negative) leads to the velocity that guidance of scale s would give."""

    def __init__(self, scale):
        self.share, self.names = 1 - 1 / scale, flow.text.NEGATIVES

    @torch.no_grad()
    def __call__(self, transformer, encoder, texts, length, speeds, *inputs):
        """For both streams (B, T, C), 0 where the text is a negative one; inputs are those of `flow.velocity` between
        transformer and contexts."""
        count = len(speeds[0])
        contexts = [part.expand(count, -1, -1) for part in encoder([self.names[-1]], length)]
        other = flow.velocity(transformer, *inputs, contexts)
        shares = [0.0 if text in self.names else self.share for text in texts * (count // len(texts))]
        shares = torch.tensor(shares, device=speeds[0].device).view(-1, 1, 1)
        return [shares * (a.float() - b.float()) for a, b in zip(speeds, other, strict=True)]


def main():
    parser = training.arguments(__doc__, rate=1e-3, batch=48)
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--length", type=int, default=40, help="text tokens")
    parser.add_argument("--long", type=float, default=0.0, help=f"share of batches with {LONG} text tokens")
    parser.add_argument("--tokens", type=int, default=1000, help="only clips of at most that many video tokens")
    parser.add_argument("--guidance", type=float, default=1.0, help="scale of guidance to learn; 1 for none")
    parser.add_argument("--own", type=float, default=0.0, help="share of batches that begin with steps of its own")
    parser.add_argument("--read", type=float, default=0.1, help="weight of the loss that teaches to read")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    modules, encoder = flow.modules(options.runs / "gemma")
    modules["reader"] = Reader()
    run = training.Training("dit", modules, options)
    transformer = modules["transformer"]
    guide = Guide(options.guidance)
    folder = options.runs / "latents"
    stages = (1, 2) if options.stage == 2 else (1,)
    upsample = upsampler(options.runs) if options.own and options.stage == 2 else None
    batches = Batches(folder, stages, options.batch, options.seed, options.tokens, options.long, upsample)

    def loss(inputs):
        clips, answers, texts, long, stage, draw = inputs
        video, audio = clips["video"], clips["audio"]
        count = len(video)
        generator = torch.Generator().manual_seed(draw.randrange(1 << 40))
        where = flow.positions(video.shape[2:], audio.shape[2], options.device)
        clean = flow.tokens(video, audio)
        noise = [torch.randn(part.shape, generator=generator) for part in clean]
        masks = [torch.ones(part.shape[:2]) for part in clean]
        # One-stage recipes make large clips too.
        stage = 1 if draw.random() < 0.25 else stage
        given = draw.random() < 0.2
        if given:
            masks[0][:, : video.shape[3] * video.shape[4]] = 0
        elif stage == 1:
            noise[0] = ties.tie(noise[0], clips["seeds"], clips["size"])
        own = draw.random() < options.own
        start, ahead = clean, [[level, level] for level in (sigmas(count, stage, generator),)]
        if own:
            table = flow.SECOND_STAGE if stage == 2 else flow.DISTILLED
            ahead = paths(table, count, generator)
            if stage == 2 and not given:
                start = flow.tokens(clips["start"], audio)
        elif draw.random() < 0.1:
            # Mostly one sigma for both streams, as in every recipe that makes both.
            ahead[0][1] = sigmas(count, stage, generator)
        device = options.device
        clean, noise, start, masks = ([part.to(device) for part in some] for some in (clean, noise, start, masks))
        ahead = [[level.to(device) for level in levels] for levels in ahead]
        states = [
            torch.lerp(torch.lerp(x, s, mask.unsqueeze(-1)), n, (level.unsqueeze(1) * mask).unsqueeze(-1))
            for x, s, n, level, mask in zip(clean, start, noise, ahead[0], masks, strict=True)
        ]
        # Where no frame is given, all tokens of a clip share one modulation.
        steps = masks if given else [mask[:, :1] for mask in masks]
        with training.autocast(device):
            length = LONG if long else options.length
            contexts = encoder(texts, length)
            repeated = [part.repeat(count // len(part), 1, 1) for part in contexts]
            for levels, after in zip(ahead[:-1], ahead[1:], strict=True):
                with torch.no_grad():
                    known = [part.detach() for part in repeated]
                    speeds = flow.velocity(transformer, states, levels, steps, where, known)
                    states = [
                        state + ((low - high).unsqueeze(1) * mask).unsqueeze(-1) * speed.float()
                        for state, low, high, mask, speed in zip(states, after, levels, masks, speeds, strict=True)
                    ]
            levels = ahead[-1]
            speeds = flow.velocity(transformer, states, levels, steps, where, repeated)
            targets = [
                (state - x) / level.view(-1, 1, 1) for state, x, level in zip(states, clean, levels, strict=True)
            ]
            if options.guidance > 1:
                added = guide(transformer, encoder, texts, length, speeds, states, levels, steps, where)
                targets = [target + more for target, more in zip(targets, added, strict=True)]
        errors = [
            ((speed.float() - target).square().mean(-1) * mask).sum() / mask.sum()
            for speed, target, mask in zip(speeds, targets, masks, strict=True)
        ]
        read = modules["reader"](contexts, answers)
        kind = "own" if own else "given" if given else "large" if stage == 2 else "small"
        metrics = {f"{kind}_video": errors[0], "audio": errors[1], "read": read}
        return errors[0] + errors[1] + options.read * read, metrics

    def measure():
        """The flow loss on fixed clips of the held-out combinations, at fixed noise and sigmas."""
        frozen = make_latents.freeze(options.runs, options.device)
        seeds = [f"held-out/{seed}" for seed in range(24)]
        scenes = [world.sample(seed, 128, 128, 17, held_out=True) for seed in seeds]
        pixels = torch.stack([world.render(scene, device=options.device) for scene in scenes])
        samples = (4 * make_latents.sound.audio_frames(17) - 4) * make_latents.sound.HOP
        waves = torch.stack([make_latents.sound.waveform(scene, samples) for scene in scenes])
        clean = flow.tokens(*make_latents.encode(frozen, pixels, make_latents.mel(waves).to(options.device)))
        where = flow.positions((3, 4, 4), make_latents.sound.audio_frames(17), options.device)
        texts = [prompts.describe(scene, f"held-out/{index}", True) for index, scene in enumerate(scenes)]
        generator = torch.Generator().manual_seed(1)
        noise = [torch.randn(part.shape, generator=generator).to(options.device) for part in clean]
        level = torch.linspace(0.1, 1.0, len(scenes), device=options.device)
        ones = [torch.ones(part.shape[:2], device=options.device) for part in clean]
        states = [torch.lerp(x, n, level.view(-1, 1, 1)) for x, n in zip(clean, noise, strict=True)]
        with training.autocast(options.device):
            contexts = encoder(texts, options.length)
            speeds = flow.velocity(transformer, states, [level] * 2, ones, where, contexts)
        errors = [float((s.float() - (n - x)).square().mean()) for s, x, n in zip(speeds, clean, noise, strict=True)]
        return {"held_out_video": errors[0], "held_out_audio": errors[1]}

    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        run.run(batches, loss, measure)


if __name__ == "__main__":
    main()
