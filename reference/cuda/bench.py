"""Times the works of `ltx bench` that matter on a card, each beside PyTorch in the same minute; part of cuda.sh."""

import json
import sys

from common import DEVICE, LTX, ROOT, TINY, kept, run

# Ours, and what PyTorch's side does: the same work, or none.
FULL = [
    ("matmul-8192", True),
    ("dit-2.3-480x704x97", True),
    ("dit-2.0-480x704x97", True),
    ("dit-2.3-768x512x121", True),
    ("dit-2.0-768x512x121", True),
    ("video-decode-480x704x97", True),
    ("dit-2.3-480x704x97-q8", False),
    ("dit-2.0-480x704x97-q8", False),
    ("dit-2.3-480x704x97-mxfp8", False),
]
SMALL = [("matmul-1024", True), ("dit-2.3-tiny", True), ("dit-2.0-tiny", True), ("video-decode-64x64x9", True), ("dit-2.3-tiny-q8", False)]
LIMIT = 150  # seconds for one side of one work


def ours(work):
    command = [LTX, "bench", work, "--json", "--device", DEVICE, "--dtype", "bf16", "--seconds", 1 if TINY else 5]
    said, _, card = run(command, LIMIT)
    return json.loads(said) | {"card_bytes": card}


def theirs(work):
    command = [sys.executable, ROOT / "reference/cuda/torch_work.py", work, "cuda" if DEVICE == "gpu" else "cpu"]
    said, _, card = run(command, LIMIT)
    return json.loads(said.strip().splitlines()[-1]) | {"card_bytes": card}


def main():
    failed = False
    for work, both in SMALL if TINY else FULL:
        sides = [("ltx", ours)] + ([("PyTorch", theirs)] if both else [])
        for side, measure in sides:
            result = kept(f"bench-{work}-{side.lower()}", lambda: measure(work))
            failed |= "error" in result
            said = result.get("error") or f"{result['seconds_median'] * 1e3:.2f} ms"
            print(f"{work}, {side}: {said}", flush=True)
    sys.exit(failed)


main()
