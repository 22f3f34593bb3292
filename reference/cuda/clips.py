"""Makes tiny clips of both generations, guided and distilled, on the device and on the CPU, and compares their latents;
part of cuda.sh."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import DEVICE, LTX, ROOT, kept, run

FIXTURES = ROOT / "fixtures"
RECIPES = {
    "one-stage": ["--recipe", "one-stage", "--steps", "2", "--stg-blocks", "1", "--force-guidance"],
    "distilled": ["--recipe", "distilled"],
}
FAR = 2e-2  # f32 on both sides; a clip multiplies the differences of its steps


def tensors(path):
    """The f32 tensors of a safetensors file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, info in json.loads(data[8:start]).items():
        if name != "__metadata__" and info["dtype"] == "F32":
            begin, end = (start + offset for offset in info["data_offsets"])
            found[name] = np.frombuffer(data[begin:end], np.float32).astype(np.float64)
    return found


def clip(generation, recipe, device, folder):
    """The latents of both modalities of a clip, which is made whole: sound, frames and file."""
    output = folder / f"{device}.mp4"
    command = [LTX, "generate", "rain on a tin roof", "--model", FIXTURES / generation / "model.safetensors"]
    command += ["--gemma", FIXTURES / "gemma3", "--spatial-upsampler", FIXTURES / f"upsamplers/{generation}-spatial-x2.safetensors"]
    command += [*RECIPES[recipe], "--height", "64", "--width", "128", "--frames", "9", "--seed", "3", "--no-cache", "--quiet"]
    latents = folder / f"{device}.safetensors"
    run([*command, "--device", device, "--dtype", "f32", "--output", output, "--save-latents", latents], 60)
    if not output.exists():
        raise RuntimeError("no clip was written")
    return tensors(latents)


def compare(generation, recipe):
    with tempfile.TemporaryDirectory() as folder:
        ours, reference = (clip(generation, recipe, device, Path(folder)) for device in (DEVICE, "cpu"))
    if not reference or ours.keys() != reference.keys():
        raise RuntimeError(f"the latents are {sorted(ours)} and {sorted(reference)}")
    worst = max(np.abs(ours[name] - reference[name]).max() / np.abs(reference[name]).max() for name in reference)
    if not worst <= FAR:
        raise RuntimeError(f"the latents differ by {worst:.2e} of the largest")
    return {"relative": worst}


def main():
    failed = False
    for generation in ("2.0", "2.3"):
        for recipe in RECIPES:
            result = kept(f"clip-{generation}-{recipe}", lambda: compare(generation, recipe))
            failed |= "error" in result
            said = result.get("error") or f"relative {result['relative']:.1e}"
            print(f"{generation} {recipe}: {said}", flush=True)
    sys.exit(failed)


main()
