"""Makes clips of held-out prompts with the `ltx` program, for `score.py`.

    python reference/toy/held_out.py --ltx target/release/ltx --model DIR --output DIR [--count 64] [-- OPTIONS]

Prompts name combinations and use frames of sentences that training never sees. Each clip NAME.mp4 comes with
NAME.json: what it must show and sound like, and the prompt. Everything after `--` goes to `ltx generate`.
"""

import argparse
import json
import subprocess
from pathlib import Path

import prompts
import score
import world


def requests(count, width, height, frames):
    """(name, prompt, what is wanted) of each held-out clip."""
    for index in range(count):
        scene = world.sample(f"prompt/{index}", width, height, frames, held_out=True)
        yield f"{index:03}", prompts.describe(scene, f"held-out/{index}", held_out=True), score.wanted(scene)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ltx", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="folder that export.py wrote")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=192)
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    size = arguments.width, arguments.height, arguments.frames
    for number, (name, prompt, wanted) in enumerate(requests(arguments.count, *size)):
        clip = arguments.output / f"{name}.mp4"
        command = [arguments.ltx, "generate", "--model", arguments.model, "--gemma", arguments.model / "gemma",
                   "--spatial-upsampler", arguments.model / "toy-2.3-spatial-x2.safetensors", "--seed", str(number)]
        for key, value in zip(("--width", "--height", "--frames"), size, strict=True):
            command += [key, str(value)]
        subprocess.run([*command, "-o", clip, *arguments.options, prompt], check=True, capture_output=True)
        clip.with_suffix(".json").write_text(json.dumps(wanted | {"prompt": prompt}) + "\n")
        print(name, prompt, flush=True)


if __name__ == "__main__":
    main()
