"""The three runs that the Python original reports, whole program, with random weights of full size; part of cuda.sh."""

import json
import sys
import tempfile
from pathlib import Path

from common import DEVICE, LTX, STATE, TINY, kept, run

# Height, width, steps; 25 frames.
ROWS = [(64, 64, 1)] if TINY else [(128, 128, 3), (256, 256, 5), (480, 704, 5)]
# Without guidance, as the original's rows are: one pass a step.
PLAIN = ["--recipe", "one-stage", "--cfg", "1", "--stg-scale", "0", "--modality-scale", "1"]
PLAIN += ["--audio-cfg", "1", "--audio-stg-scale", "0", "--audio-modality-scale", "1"]


def model():
    """A file like the official one of 2.0: 44 GB, written once. A tiny proof has one block with values and 47 holes."""
    file = STATE / "model-2.0.safetensors"
    if not file.exists():
        run([LTX, "synth", "--like", "2.0", file, "--quiet", *(["--blocks", "1", "--sparse", "1"] if TINY else [])], 240)
    return file


def row(height, width, steps):
    with tempfile.TemporaryDirectory() as folder:
        command = [LTX, "generate", "rain", "--dummy-text", "--no-cache", "--model", model(), "--device", DEVICE, *PLAIN]
        command += ["--height", height, "--width", width, "--frames", 25, "--steps", steps, "--timings", "--json", "--quiet"]
        command += ["--skip-vae"] if TINY else []
        said, seconds, card = run([*command, "--output", Path(folder) / "clip.mp4"], 180)
    told = json.loads(said.strip().splitlines()[-1])
    return {"seconds": seconds, "timings": told["timings"], "peak_bytes": told["peak_memory_bytes"], "card_bytes": card}


def main():
    failed = False
    for height, width, steps in ROWS:
        result = kept(f"row-{height}x{width}-{steps}", lambda: row(height, width, steps))
        failed |= "error" in result
        said = result.get("error") or f"{result['seconds']:.1f} s: {result['timings']}"
        print(f"{height}x{width}, {steps} steps: {said}", flush=True)
    sys.exit(failed)


main()
