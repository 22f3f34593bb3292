"""What scenes are called: an English sentence for a scene, varied by seed.

Some frames of sentences are kept for held-out prompts, as some combinations of shape, colour, background and motion
are (`world.reserved`).
"""

import random

SHAPES = {
    "circle": ("circle", "circle", "ball", "disc", "dot"),
    "square": ("square", "square", "box", "block"),
    "triangle": ("triangle", "triangle", "pyramid"),
    "star": ("star", "star", "five-pointed star"),
}
COLORS = {
    "red": ("red", "red", "crimson", "scarlet"),
    "orange": ("orange", "orange", "tangerine"),
    "yellow": ("yellow", "yellow", "golden"),
    "green": ("green", "green", "emerald"),
    "blue": ("blue", "blue", "azure"),
    "purple": ("purple", "purple", "violet"),
}
BACKGROUNDS = {
    "black": ("black", "black", "dark"),
    "white": ("white", "white"),
    "grey": ("grey", "gray"),
    "blue": ("blue", "blue", "navy"),
}
# Verbs as "it moves" and "moving", with what follows them.
_GO = (("moves", "moving"), ("slides", "sliding"), ("drifts", "drifting"), ("travels", "travelling"),
       ("glides", "gliding"), ("goes", "going"), ("flies", "flying"))
_TO = {
    "left": ("left", "to the left", "leftwards", "from right to left", "toward the left"),
    "right": ("right", "to the right", "rightwards", "from left to right", "toward the right"),
    "up": ("up", "upwards", "to the top", "from bottom to top", "straight up"),
    "down": ("down", "downwards", "to the bottom", "from top to bottom", "straight down"),
}
for _vertical in ("up", "down"):
    for _side in ("left", "right"):
        _TO[f"{_vertical}-{_side}"] = (
            f"diagonally {_vertical} and to the {_side}",
            f"diagonally {_vertical} to the {_side}",
            f"{_vertical} and {_side}",
            f"{_vertical} and to the {_side}",
            f"toward the {'upper' if _vertical == 'up' else 'lower'} {_side} corner",
        )
_OWN = {
    "up": (("rises", "rising"), ("climbs", "climbing"), ("floats up", "floating up")),
    "down": (("falls", "falling"), ("sinks", "sinking"), ("descends", "descending"), ("drops", "dropping")),
    "bounce": (("bounces", "bouncing"), ("bounces", "bouncing"), ("bounces up and down", "bouncing up and down"),
               ("hops", "hopping"), ("hops up and down", "hopping up and down"), ("jumps", "jumping")),
    "grow": (("grows", "growing"), ("grows", "growing"), ("gets bigger", "getting bigger"), ("expands", "expanding"),
             ("becomes larger", "becoming larger"), ("grows bigger", "growing bigger")),
    "still": (("stays still", "staying still"), ("is still", "being still"), ("rests", "resting"),
              ("does not move", "not moving"), ("stands still", "standing still"), ("sits still", "sitting still"),
              ("stays in place", "staying in place")),
}
# {it}: the objects with finite verbs; {ing}: with participles; {name}, {verb}: of one object.
_FRAMES = (
    "{it} on a {background} background",
    "{it} on a {background} background",
    "{it} against a {background} background",
    "{it} in front of a {background} backdrop",
    "{it} over {background}",
    "on a {background} background, {it}",
    "on a {background} background {it}",
    "{background} background, {ing}",
    "a {background} background with {ing}",
    "{ing} on a {background} background",
    "{ing}, {background} background",
    "there is {ing} on a {background} background",
)
_FRAMES_OF_ONE = (
    "{name} on a {background} background {verb}",
    "{name} on {background} {verb}",
    "{name} in front of a {background} background {verb}",
    "on {background}, {name} that {verb}",
)
_HELD_OUT_FRAMES = (
    "against a {background} backdrop, {it}",
    "{it} before a {background} background",
    "we see {ing} over a {background} background",
    "{it}; the background is {background}",
)
_OPENINGS = ("", "", "", "", "", "a video of ", "a clip of ", "an animation of ", "video: ")
_JOINTS = (" and ", " and ", ", and ", " while ", ", ")
_SILENT = (", silently", ", in silence", ", without sound", ", no sound", ". Silent", ", silent",
           ", with no sound at all")
_HEARD = ("", "", "", "", "", ", with sound", ", with its tone", ". It hums")


def _words(draw, thing):
    """("a crimson ball", "drifts left", "drifting left")"""
    color, shape = draw.choice(COLORS[thing.color]), draw.choice(SHAPES[thing.shape])
    size = draw.choice(("", "", "", "", "big ", "small ", "bright ", "little ", "single "))
    name = f"{size}{color} {shape}"
    article = draw.choice(("the", "one")) if draw.random() < 0.1 else "an" if name[0] in "aeiou" else "a"
    own = _OWN.get(thing.motion)
    if own and (thing.motion not in _TO or draw.random() < 0.4):
        verb, participle = draw.choice(own)
    else:
        (verb, participle), to = draw.choice(_GO), draw.choice(_TO[thing.motion])
        verb, participle = f"{verb} {to}", f"{participle} {to}"
    return f"{article} {name}", verb, participle


def describe(scene, seed, held_out=False):
    """A prompt for the scene."""
    draw = random.Random(f"prompt/{seed}")
    words = [_words(draw, thing) for thing in scene.things]
    joint = draw.choice(_JOINTS)
    one = len(words) == 1
    frames = _HELD_OUT_FRAMES if held_out else _FRAMES + (_FRAMES_OF_ONE if one else ())
    background = draw.choice(BACKGROUNDS[scene.background])
    text = draw.choice(frames).format(
        it=joint.join(f"{name} {verb}" for name, verb, _ in words),
        ing=joint.join(f"{name} {participle}" for name, _, participle in words),
        name=words[0][0],
        verb=words[0][1],
        background=background,
    )
    if text.startswith(("a ", "an ", "one ", "the ")):
        text = draw.choice(_OPENINGS) + text
    text += draw.choice(_SILENT if scene.silent else _HEARD)
    if draw.random() < 0.6:
        text = text[0].upper() + text[1:]
    if draw.random() < 0.4:
        text += "."
    return text
