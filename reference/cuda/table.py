"""Writes a Markdown table of what the other parts of cuda.sh left in the state folder: python table.py STATE"""

import json
import re
import sys
from pathlib import Path

STATE = Path(sys.argv[1])


def results(prefix):
    names = sorted(STATE.glob(f"{prefix}-*.json"))
    return {file.stem.removeprefix(f"{prefix}-"): json.loads(file.read_text()) for file in names}


def log(part):
    file = STATE / f"{part}.log"
    return file.read_text().strip() if file.exists() else f"{part}: not run"


def seconds(value):
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


def gigabytes(value):
    return f"{value / 1e9:.1f} GB" if value else ""


def bench():
    found = results("bench")
    works = dict.fromkeys(re.sub("-(ltx|pytorch)$", "", name) for name in found)
    limit = max((result["gflops"] for name, result in found.items() if name.startswith("matmul") and result.get("gflops")), default=None)
    print("| work | ltx | TFLOP/s, share of `matmul` | PyTorch | setting | ratio | peak: ltx, its card; PyTorch's card |")
    print("|---|---|---|---|---|---|---|")
    for work in works:
        ours, theirs = found.get(f"{work}-ltx", {}), found.get(f"{work}-pytorch", {})
        base = found.get(re.sub("-(q8|mxfp8)$", "", work) + "-ltx", {}) if re.search("-(q8|mxfp8)$", work) else None
        time = seconds(ours["seconds_median"]) if "seconds_median" in ours else ours.get("error", "not run")
        rate = f"{ours['gflops'] / 1e3:.3g}" if ours.get("gflops") else ""
        if rate and limit:
            rate += f", {ours['gflops'] / limit * 100:.0f} %"
        other = seconds(theirs["seconds_median"]) if "seconds_median" in theirs else theirs.get("error", "")
        ratio, setting = "", theirs.get("setting", "")
        if "seconds_median" in ours and "seconds_median" in theirs:
            ratio = f"**{theirs['seconds_median'] / ours['seconds_median']:.2f}**"
        elif base and "seconds_median" in ours and "seconds_median" in base:
            ratio, setting = f"**{base['seconds_median'] / ours['seconds_median']:.2f}**", "our bf16"
        peak = "; ".join(filter(None, [", ".join(filter(None, map(gigabytes, (ours.get("peak_bytes"), ours.get("card_bytes"))))), gigabytes(theirs.get("card_bytes"))]))
        print(f"| `{work}` | {time} | {rate} | {other} | {setting} | {ratio} | {peak} |")
    for theirs in (result for name, result in found.items() if name.endswith("-pytorch") and "torch" in result):
        print(f"\nPyTorch {theirs['torch']}; attention may use {', '.join(theirs['attention'])}; bf16, inference mode.")
        break


def rows():
    print("\n| clip of 25 frames, whole program | in all | phases | peak: program, card |\n|---|---|---|---|")
    for name, result in results("row").items():
        if "error" in result:
            print(f"| {name} | {result['error']} | | |")
            continue
        phases = ", ".join(f"{phase} {seconds(took)}" for phase, took in result["timings"].items())
        peak = ", ".join(filter(None, map(gigabytes, (result["peak_bytes"], result["card_bytes"]))))
        print(f"| {name} steps | {seconds(result['seconds'])} | {phases} | {peak} |")


print("```\n" + log("info") + "\n```\n")
print("Command: `reference/cuda.sh`. The ratio is PyTorch's median time over ours (above 1, ours is faster), or our bf16's over that of fewer bits.\n")
bench()
rows()
print("\n```\n" + log("verify") + "\n" + log("clips") + "\n```")
