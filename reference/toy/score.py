"""Reads a clip and says what it shows and sounds like; compares that with what a prompt asked for.

    python reference/toy/score.py clip.mp4 ...          what each clip shows
    python reference/toy/score.py --truth [--count N]   the scorer itself, on rendered scenes: must be near 100 %
    python reference/toy/score.py --folder DIR          clips NAME.mp4 against NAME.json (written by held_out.py)

Plain image and signal analysis: nearest palette colour, outlines compared with templates and their convex hull, the path
of the middle, the strongest partial. It needs ffmpeg to read files.
"""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage, spatial

import sound
import world

SMALLEST = 0.003  # of the frame's area: less is noise
DENTED = 0.9  # of the convex hull's area: circles and squares fill at least 0.94, as clips have them
CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def read_frames(path):
    """(frames, height, width, 3), 0 to 255."""
    probe = ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "stream=width,height", "-of", "csv=p=0"]
    width, height = map(int, subprocess.check_output([*probe, str(path)], text=True).strip().split(",")[:2])
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    return np.frombuffer(subprocess.check_output(command), np.uint8).reshape(-1, height, width, 3)


def read_sound(path):
    """(samples,) at 16 kHz, both sides mixed; nothing when the file has no sound."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vn", "-ac", "1", "-ar", str(sound.RATE), "-f", "f32le", "-"]
    answer = subprocess.run(command, capture_output=True, check=False)
    return np.frombuffer(answer.stdout, np.float32)


def _palette(colors):
    return np.array(list(colors.values()), np.float32)


def background_of(frames):
    """The background whose colour the rim has."""
    rim = np.concatenate([frames[:, :3].reshape(-1, 3), frames[:, -3:].reshape(-1, 3)])
    color = np.median(rim, axis=0)
    distances = np.linalg.norm(_palette(world.BACKGROUNDS) - color, axis=1)
    return tuple(world.BACKGROUNDS)[int(distances.argmin())], color


def _template(shape, height, width):
    """The outline's mask, filling a box of that size."""
    span = torch.linspace(-1.4, 1.4, 181)
    inside = world.distance(shape, span.view(1, -1), span.view(-1, 1), torch.tensor(1.0)).numpy() < 0
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    inside = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    at = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip((height, width), inside.shape, strict=True)]
    return inside[np.ix_(*at)]


def _solidity(mask):
    """How much of its convex hull a mask fills."""
    rows, columns = np.nonzero(mask)
    pixels = np.stack([columns, rows], 1)
    corners = np.concatenate([pixels + corner for corner in ((0, 0), (0, 1), (1, 0), (1, 1))])
    return len(pixels) / spatial.ConvexHull(corners).volume


def shape_of(mask):
    """The shape whose outline, stretched to the mask's box, agrees best with the mask; but what has dents is neither a
    circle nor a square: it is a star, however round its points."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    def overlap(shape):
        template = _template(shape, *mask.shape)
        return (template & mask).sum() / (template | mask).sum()

    best = max(world.SHAPES, key=overlap)
    return "star" if best in ("circle", "square") and _solidity(mask) < DENTED else best


def _tracks(frames, background):
    """{colour: [(frame, x, y, area, mask)]} of the largest spot of each palette colour, lengths in pixels."""
    palette = _palette(world.COLORS)
    tracks = {}
    for index, frame in enumerate(frames.astype(np.float32)):
        away = np.linalg.norm(frame - background, axis=-1)
        distances = np.linalg.norm(frame[:, :, None] - palette, axis=-1)
        nearest = distances.argmin(-1)
        # Nearer to the object's colour than to the background.
        foreground = distances.min(-1) < away
        for color in np.unique(nearest[foreground]):
            spots, count = ndimage.label(foreground & (nearest == color))
            areas = ndimage.sum_labels(np.ones_like(spots), spots, range(1, count + 1))
            mask = spots == areas.argmax() + 1
            # Yellow that fades into blue is green on the way: a rim without a core is no object.
            core = ndimage.binary_erosion(mask, iterations=max(1, min(mask.shape) // 64))
            if areas.max() >= SMALLEST * spots.size and core.sum() > 0.15 * areas.max():
                y, x = np.nonzero(mask)
                tracks.setdefault(tuple(world.COLORS)[color], []).append((index, x.mean(), y.mean(), mask.sum(), mask))
    return {color: track for color, track in tracks.items() if len(track) >= 0.6 * len(frames)}


def motion_of(track, unit):
    """The motion of one object's track, as a name of `world.MOTIONS`."""
    time, x, y, area = (np.array([entry[key] for entry in track], float) for key in range(4))
    x, y = x / unit, y / unit

    def change(values):
        """From the first to the last quarter of the track, as if the whole way were covered at that pace."""
        count = max(2, len(values) // 4)
        return (values[-count:].mean() - values[:count].mean()) * len(values) / (len(values) - count)

    slope = np.polyfit(time, y, 1)
    if len(time) > 4 and (y - np.polyval(slope, time)).std() > 0.035 and np.ptp(y) > 0.1:
        return "bounce"
    dx, dy = change(x), change(y)
    names = [low if part < -0.1 else high if part > 0.1 else "" for part, low, high in
             ((dy, "up", "down"), (dx, "left", "right"))]
    if any(names):
        return "-".join(name for name in names if name)
    ends = max(2, len(area) // 5)
    return "grow" if area[-ends:].mean() > 1.5 * area[:ends].mean() else "still"


def look(frames):
    """{"background", "things": [{"color", "shape", "motion"}]} of frames (frames, height, width, 3), 0 to 255."""
    name, color = background_of(frames)
    unit = min(frames.shape[1:3])
    things = []
    for thing, track in _tracks(frames, color).items():
        votes = [shape_of(mask) for *_, mask in track[:: max(1, len(track) // 6)]]
        things.append({
            "color": thing,
            "shape": max(set(votes), key=votes.count),
            "motion": motion_of(track, unit),
        })
    return {"background": name, "things": sorted(things, key=lambda thing: thing["color"])}


def pitch_class(hertz):
    return CLASSES[round(12 * np.log2(hertz / 261.6256)) % 12]


def listen(samples):
    """The pitch class of the strongest partial at the clip's beginning, or "silent"."""
    if len(samples) == 0 or np.sqrt(np.mean(samples**2)) < 0.004:
        return "silent"
    start = samples[int(0.01 * sound.RATE) : int(0.09 * sound.RATE)]
    spectrum = np.abs(np.fft.rfft(start * np.hanning(len(start)), 1 << 15))
    hertz = np.fft.rfftfreq(1 << 15, 1 / sound.RATE)
    heard = (hertz > 150) & (hertz < 2500)
    return pitch_class(hertz[heard][spectrum[heard].argmax()])


def wanted(scene):
    """What a clip of the scene must show and sound like."""
    things = [{"color": thing.color, "shape": thing.shape, "motion": thing.motion} for thing in scene.things]
    notes = sorted({pitch_class(sound.NOTES[thing.shape]) for thing in scene.things})
    return {
        "background": scene.background,
        "things": sorted(things, key=lambda thing: thing["color"]),
        "pitch": ["silent"] if scene.silent else notes,
    }


def compare(seen, heard, want):
    """{"colors", "shapes", "background", "motion", "video" (all of these), "pitch"}: right or not."""
    pairs = list(zip(seen["things"], want["things"], strict=False))
    right = {"background": seen["background"] == want["background"]}
    complete = len(seen["things"]) == len(want["things"])
    for key in ("color", "shape", "motion"):
        right[key] = complete and all(found[key] == asked[key] for found, asked in pairs)
    return right | {"video": all(right.values()), "pitch": heard in want["pitch"]}


def truth(count):
    """The scorer's verdicts on rendered scenes of many sizes."""
    for seed in range(count):
        scene = world.sample(f"truth/{seed}", *world.size(f"truth/{seed}", stage=2), held_out=True)
        frames = ((world.render(scene) + 1) * 127.5).round().permute(1, 2, 3, 0).to(torch.uint8).numpy()
        samples = sound.waveform(scene, int(scene.frames / world.FPS * sound.RATE)).mean(0).numpy()
        yield scene, look(frames), listen(samples), wanted(scene)


def summary(verdicts):
    return {key: round(sum(verdict[key] for verdict in verdicts) / len(verdicts), 4) for key in verdicts[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--truth", action="store_true")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    for path in arguments.clips:
        print(path, json.dumps(look(read_frames(path)) | {"pitch": listen(read_sound(path))}))
    verdicts = []
    if arguments.truth:
        for scene, seen, heard, want in truth(arguments.count):
            verdicts.append(compare(seen, heard, want))
            if not (verdicts[-1]["video"] and verdicts[-1]["pitch"]):
                print("wrong:", scene, seen, heard)
    if arguments.folder:
        for path in sorted(arguments.folder.glob("*.json")):
            want, clip = json.loads(path.read_text()), path.with_suffix(".mp4")
            seen, heard = look(read_frames(clip)), listen(read_sound(clip))
            verdicts.append(compare(seen, heard, want))
            if not (verdicts[-1]["video"] and verdicts[-1]["pitch"]):
                print("wrong:", json.dumps({"clip": clip.name, "wanted": want, "seen": seen, "heard": heard}))
    if verdicts:
        print(json.dumps({"clips": len(verdicts)} | summary(verdicts)))


if __name__ == "__main__":
    main()
