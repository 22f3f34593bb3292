"""Which noise becomes which scene.

A caption leaves open where its objects start, how large they are and which of two is on the left. A flow trained with
noise that knows nothing of that must decide it halfway, from a blurred mean of all answers, and a recipe of a few steps
has no steps for that. So the noise that a training clip starts from is tied to what its caption leaves open: the mean
over the tokens of some channels says it. The noise of clips and captions together is still the normal law: each answer
is ranked among those that were as likely, and the rank's normal quantile is the mean.
"""

import random
from functools import lru_cache
from statistics import NormalDist

import torch

import world

# Of the object in the left or upper lane: x, y, radius; of the other one; whether the first one's colour is the earlier
# in the palette; whether lanes are side by side.
CHANNELS = 8
OTHERS = 31  # to rank among


def _rank(value, others, draw):
    """The normal quantile of a value's rank among others drawn by the same law."""
    equal = sum(other == value for other in others)  # all of them where the law leaves no choice
    below = sum(other < value for other in others) + (1 + equal) * draw.random()
    return NormalDist().inv_cdf(min(max(below / (len(others) + 1), 1e-3), 1 - 1e-3))


def _half(upper, draw):
    """The normal quantile that stands for one of two answers that are as likely."""
    return NormalDist().inv_cdf(min(max((upper + draw.random()) / 2, 1e-3), 1 - 1e-3))


def _middle(thing):
    return [(a + b) / 2 for a, b in zip(thing.start, thing.end, strict=True)]


def _open(thing, lane, single, draw):
    """Quantiles of x, y and radius of an object in its lane."""
    low, high = (0.21, 0.25) if single else (0.125, 0.14)
    part = (thing.radius / (1.2 if thing.motion in ("grow", "still") else 1) - low) / (high - low)
    kind = (thing.shape, thing.color, thing.motion)
    others = [_middle(world.place(draw, kind, lane, thing.radius)) for _ in range(OTHERS)]
    ranks = [_rank(at, [other[axis] for other in others], draw) for axis, at in enumerate(_middle(thing))]
    return [*ranks, NormalDist().inv_cdf(min(max(part, 1e-3), 1 - 1e-3))]


@lru_cache(maxsize=None)
def quantiles(seed, width, height, frames):
    """What a caption leaves open in a training scene, as CHANNELS normal quantiles; NaN where nothing is."""
    scene, draw = world.sample(seed, width, height, frames), random.Random(f"ties/{seed}")
    wide, high = width / scene.unit, height / scene.unit
    if len(scene.things) == 1:
        return *_open(scene.things[0], (0.0, 0.0, wide, high), True, draw), *[float("nan")] * 5
    gaps = [abs(a - b) for a, b in zip(*map(_middle, scene.things), strict=True)]
    sideways = wide > high or (wide == high and gaps[0] > gaps[1])
    lanes = world.lanes(wide, high, sideways)
    things = sorted(scene.things, key=lambda thing: _middle(thing)[0 if sideways else 1])
    palette = list(world.COLORS)
    ordered = palette.index(things[0].color) < palette.index(things[1].color)
    answers = [part for thing, lane in zip(things, lanes, strict=True) for part in _open(thing, lane, False, draw)]
    return *answers, _half(ordered, draw), _half(sideways, draw) if wide == high else float("nan")


def tie(noise, seeds, size):
    """Moves the noise of video tokens, (B, T, C), to what the scenes of the seeds have."""
    wanted = torch.tensor([quantiles(seed, *size) for seed in seeds])
    scale = noise.shape[1] ** 0.5
    shift = (wanted - noise[..., :CHANNELS].mean(1) * scale).nan_to_num(0.0) / scale
    tied = noise.clone()
    tied[..., :CHANNELS] += shift.unsqueeze(1)
    return tied
