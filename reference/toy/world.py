"""The toy's world: what a scene holds, how its objects move, and its frames at any size.

A scene is sampled from a seed and drawn by signed distances, so an edge is as smooth at 64 pixels as at 512. Lengths
are in units of the frame's shorter side; y points down, as rows do. Sound and words live in `sound.py` and
`prompts.py`.
"""

import math
import random
import zlib
from dataclasses import dataclass

import torch

FPS = 24
SHAPES = ("circle", "square", "triangle", "star")
COLORS = {
    "red": (215, 35, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 225, 50),
    "green": (40, 165, 70),
    "blue": (50, 95, 225),
    "purple": (145, 50, 185),
}
BACKGROUNDS = {"black": (12, 12, 14), "white": (242, 242, 240), "grey": (128, 130, 132), "blue": (35, 60, 150)}
# Direction of travel: right and down are positive.
DIRECTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up-left": (-1, -1),
    "up-right": (1, -1),
    "down-left": (-1, 1),
    "down-right": (1, 1),
}
MOTIONS = (*DIRECTIONS, "bounce", "grow", "still")
# A diagonal motion is as likely as each of the others.
MOTION_WEIGHTS = [0.25 if "-" in motion else 1.0 for motion in MOTIONS]

BOUNCE_PERIOD = 0.8  # seconds from floor to floor; the object starts at the top
REACH = 1.27  # no outline leaves this many radii


@dataclass(frozen=True)
class Thing:
    """One object: what it is, and where it starts and ends (bouncing: floor and top) in units of the shorter side."""

    shape: str
    color: str
    motion: str
    radius: float
    start: tuple[float, float]
    end: tuple[float, float]

    def place(self, seconds, duration):
        """(x, y, radius), each (frames,), at the times given."""
        part = (seconds / duration).clamp(0, 1)
        (x0, y0), (x1, y1) = self.start, self.end
        radius = torch.full_like(part, self.radius)
        if self.motion == "bounce":
            phase = (seconds / BOUNCE_PERIOD + 0.5) % 1.0  # 0 and 1 on the floor, which is the start
            part = 4 * phase * (1 - phase)
        if self.motion == "grow":
            radius = self.radius * (0.45 + 0.55 * part)
        return x0 + (x1 - x0) * part, y0 + (y1 - y0) * part, radius


@dataclass(frozen=True)
class Scene:
    """A background, one or two objects (the later one in front), and the size of the frame."""

    background: str
    things: tuple[Thing, ...]
    width: int
    height: int
    frames: int
    silent: bool = False

    @property
    def duration(self):
        return (self.frames - 1) / FPS

    @property
    def unit(self):
        """Pixels of the shorter side."""
        return min(self.width, self.height)


def reserved(background, shape, color, motion):
    """Whether this combination is held out of training."""
    return zlib.crc32(f"{background}/{shape}/{color}/{motion}".encode()) % 8 == 0


def _kinds(draw, background, held_out):
    """The kinds of one or two objects, colours differing: all held-out combinations, or none."""
    while True:
        kinds = []
        for _ in range(1 if draw.random() < 0.65 else 2):
            colors = [c for c in COLORS if c != background and c not in [kind[1] for kind in kinds]]
            motion = draw.choices(MOTIONS, MOTION_WEIGHTS)[0]
            kinds.append((draw.choice(SHAPES), draw.choice(colors), motion))
        if all(reserved(background, *kind) == held_out for kind in kinds):
            return kinds


def lanes(wide, high, sideways):
    """The lanes (left, top, right, bottom) of two objects."""
    if sideways:
        return [(0.0, 0.0, wide / 2, high), (wide / 2, 0.0, wide, high)]
    return [(0.0, 0.0, wide, high / 2), (0.0, high / 2, wide, high)]


def place(draw, kind, lane, radius):
    """An object somewhere inside its lane."""
    shape, color, motion = kind
    left, top, right, bottom = lane
    reach = REACH * radius
    low, high = (left + reach, top + reach), (right - reach, bottom - reach)
    middle = [draw.uniform(a + 0.3 * (b - a), b - 0.3 * (b - a)) for a, b in zip(low, high, strict=True)]
    start, end = list(middle), list(middle)
    if motion in DIRECTIONS:
        for axis, sign in enumerate(DIRECTIONS[motion]):
            slack = 0.12 * (high[axis] - low[axis])
            ends = (low[axis] + draw.uniform(0, slack), high[axis] - draw.uniform(0, slack))
            if sign:
                # A wide frame is not crossed in a moment: at most half of the shorter side in one clip.
                travel = min(ends[1] - ends[0], 0.5)
                first = draw.uniform(ends[0], ends[1] - travel)
                start[axis], end[axis] = (first, first + travel)[::sign]
    if motion == "bounce":
        start[1], end[1] = high[1], max(low[1], high[1] - 0.4)  # the floor, the top
    return Thing(shape, color, motion, radius, tuple(start), tuple(end))


def sample(seed, width=128, height=128, frames=17, held_out=False):
    """The scene of a seed. Training scenes hold no combination that a held-out scene holds."""
    draw = random.Random(f"scene/{seed}/{held_out}")
    background = draw.choice(tuple(BACKGROUNDS))
    kinds = _kinds(draw, background, held_out)
    unit = min(width, height)
    wide, high = width / unit, height / unit
    if len(kinds) == 1:
        places = [(0.0, 0.0, wide, high)]
    else:
        places = lanes(wide, high, wide > high or (wide == high and draw.random() < 0.5))
    if draw.random() < 0.5:
        places.reverse()
    things = []
    for kind, lane in zip(kinds, places, strict=True):
        radius = draw.uniform(0.21, 0.25) if len(kinds) == 1 else draw.uniform(0.125, 0.14)
        if kind[2] in ("grow", "still"):
            radius *= 1.2
        things.append(place(draw, kind, lane, radius))
    return Scene(background, tuple(things), width, height, frames, silent=draw.random() < 0.12)


def distance(shape, x, y, radius):
    """How far outside the outline a point is, negative inside; exact away from corners."""
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88 * radius
    if shape == "triangle":
        y = y - 0.18 * radius  # its corners' middle is lower than its outline's
        slanted = x.abs() * math.cos(math.pi / 6) - y * math.sin(math.pi / 6)
        return torch.maximum(slanted, y) - 0.62 * radius
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)  # 0 at the top
    angle = ((angle + sector / 2) % sector - sector / 2).abs()
    length = torch.hypot(x, y)
    outer, inner = 1.25 * radius, 0.55 * radius
    edge_x, edge_y = inner * math.cos(sector / 2) - outer, inner * math.sin(sector / 2)
    norm = torch.hypot(edge_x, edge_y)
    return ((length * angle.cos() - outer) * edge_y - length * angle.sin() * edge_x) / norm


def render(scene, window=None, times=None, device="cpu"):
    """The frames, (3, frames, height, width) in [-1, 1]; `window` is (left, top, width, height) in pixels.

    `times` are seconds, one per frame; those of the scene's frame rate unless given.
    """
    left, top, width, height = window or (0, 0, scene.width, scene.height)
    if times is None:
        times = torch.arange(scene.frames, device=device) / FPS
    x = ((torch.arange(width, device=device) + left + 0.5) / scene.unit).view(1, 1, -1)
    y = ((torch.arange(height, device=device) + top + 0.5) / scene.unit).view(1, -1, 1)
    paint = torch.tensor(BACKGROUNDS[scene.background], device=device, dtype=torch.float32).view(3, 1, 1, 1)
    frames = paint.expand(3, len(times), height, width)
    for thing in scene.things:
        center_x, center_y, radius = (part.view(-1, 1, 1) for part in thing.place(times, scene.duration))
        outside = distance(thing.shape, x - center_x, y - center_y, radius) * scene.unit
        coverage = (0.5 - outside).clamp(0, 1)
        paint = torch.tensor(COLORS[thing.color], device=device, dtype=torch.float32).view(3, 1, 1, 1)
        frames = torch.lerp(frames, paint, coverage)
    return frames / 127.5 - 1


# (width, height) of training clips by stage. The second stage's are mostly those of the program's default.
SIZES = {
    1: ((64, 64), (96, 64), (64, 96), *((96, 96), (128, 96), (128, 96)) * 2, (96, 128), (128, 128)),
    2: ((192, 128), (192, 128), (128, 192), (192, 192), *((256, 192),) * 4, (192, 256), (256, 256)),
}


def size(seed, stage=1):
    """(width, height, frames) of a training clip."""
    draw = random.Random(f"size/{seed}")
    return *draw.choice(SIZES[stage]), draw.choice((17, 17, 25, 25, 25, 25, 33, 33, 41, 49))
