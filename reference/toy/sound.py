"""What a scene sounds like: 16 kHz and 48 kHz stereo, made sample by sample from the objects' motion.

Every partial is a multiple of 100 Hz that starts at phase 0 at time 0, and everything that changes changes on a grid
of 10 ms. A mel frame is 10 ms long, so the waveform is a function of the mel frames around it: a vocoder can learn it
with a plain loss, and a pitch that steps does so without a click.
"""

import torch

import world

RATE = 16000  # of the spectrograms
HOP = 160  # samples of a mel frame at that rate
STEP = 0.01  # seconds
PITCH_STEP = 100  # Hz
# Pitch at the start of the clip: D5, G4, B4, F5 (within 40 cents).
NOTES = {"circle": 600, "square": 400, "triangle": 500, "star": 700}
# (multiple of the pitch, Hz added, loudness)
PARTIALS = {
    "circle": ((1, 0, 1.0),),
    "square": ((1, 0, 0.8), (3, 0, 0.3), (5, 0, 0.15)),
    "triangle": ((1, 0, 0.8), (2, 0, 0.4), (4, 0, 0.15)),
    "star": ((1, 0, 0.75), (1, 200, 0.35), (1, 400, 0.3)),
}
STEPS_PER_HEIGHT = 7  # pitch steps per shorter side of height
LOWEST = 200
LOUDNESS = 0.3
NOTE = 0.16  # seconds: a moving object repeats its note, a resting one sustains it
CLICK = tuple(range(2300, 7000, 600))
CLICK_HIGH = tuple(range(8600, 16000, 1200))  # heard at 48 kHz only


def pitch(thing, seconds, duration):
    """Hz at each time: the shape's note, then up and down with the height that the object gains or loses."""
    _, y, _ = thing.place(seconds, duration)
    first = thing.place(torch.zeros(1), duration)[1]
    return (NOTES[thing.shape] + PITCH_STEP * (STEPS_PER_HEIGHT * (first - y)).round()).clamp(min=LOWEST)


def _envelope(thing, seconds):
    """Loudness at each time of the finest grid."""
    if thing.motion in ("still", "grow"):
        return torch.ones_like(seconds)
    since = seconds % NOTE
    return (since / STEP).clamp(max=1) * (0.35 + 0.65 * (-since / 0.06).exp())


def bounces(duration):
    """Seconds at which a bouncing object meets the floor."""
    count = int(duration / world.BOUNCE_PERIOD + 0.5)
    return [round((index + 0.5) * world.BOUNCE_PERIOD, 2) for index in range(count)]


def waveform(scene, samples, rate=RATE):
    """(2, samples) in [-1, 1], left and right. The clip's last pitch goes on past its end."""
    seconds = torch.arange(samples, dtype=torch.float64) / rate
    if scene.silent:
        return torch.zeros(2, samples)
    grid = (seconds / STEP + 1e-6).floor() * STEP
    mix = torch.zeros(2, samples, dtype=torch.float64)
    for thing in scene.things:
        hertz = pitch(thing, grid, scene.duration)
        tone = torch.zeros_like(seconds)
        for multiple, added, loudness in PARTIALS[thing.shape]:
            tone += loudness * (2 * torch.pi * (multiple * hertz + added) * seconds).sin()
        x, _, radius = thing.place(seconds, scene.duration)
        tone *= _envelope(thing, seconds) * LOUDNESS
        if thing.motion == "grow":
            tone *= radius / thing.radius
        if thing.motion == "bounce":
            tone += _clicks(seconds, scene.duration, rate)
        side = (x * scene.unit / scene.width).clamp(0, 1) * torch.pi / 2
        mix += torch.stack([side.cos(), side.sin()]) * tone
    return mix.clamp(-1, 1).float()


def _clicks(seconds, duration, rate):
    """A burst at each bounce."""
    burst = torch.zeros_like(seconds)
    for start in bounces(duration):
        since = seconds - start
        heard = (since >= 0) & (since < 0.06)
        decay = torch.where(heard, (-since.clamp(min=0) / 0.012).exp(), 0.0)
        for hertz in CLICK + (CLICK_HIGH if rate > 2 * CLICK_HIGH[-1] else ()):
            burst += 0.055 * decay * (2 * torch.pi * hertz * since).sin()
    return burst


def audio_frames(frames):
    """Latent frames of sound for a clip of that many pixel frames, as the official pipelines count them."""
    return round(frames / world.FPS * 25)
