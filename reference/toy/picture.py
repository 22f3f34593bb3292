"""Draws docs/images/toy.png: python reference/toy/picture.py [--ltx target/release/ltx]

A row of frames for each prompt, as the program with the toy built in makes them, one in four.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

PROMPTS = (
    "a red circle moves right on a blue background",
    "a yellow star bounces on a black background",
    "a green square moves down on a white background",
    "a purple triangle grows on a grey background",
)
EVERY, GAP = 4, 4
PICTURE = Path(__file__).resolve().parents[2] / "docs/images/toy.png"


def frames(program, prompt):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([program, "generate", prompt, "--quiet", "--output", f"{folder}/frames/"], check=True)
        return [Image.open(file).convert("RGB") for file in sorted(Path(folder, "frames").glob("*.png"))[::EVERY]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ltx", type=Path, default="target/release/ltx")
    rows = [frames(parser.parse_args().ltx, prompt) for prompt in PROMPTS]
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (len(rows[0]) * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (column * (width + GAP), row * (height + GAP)))
    PICTURE.parent.mkdir(exist_ok=True)
    sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
