"""Times `ltx bench` and PyTorch at the same works, in turns, and prints a table.

    python reference/bench_torch.py [--ltx target/release/ltx] [--threads N] [--rounds 3] [--seconds 2] [--isa avx2] [WORK...]

PyTorch is given its best setting: every work is tried in the dtypes and memory layouts that it can use, and the fastest
is the one that is compared. Layers above single operations are Lightricks' official classes (ltx-core) and
transformers' Gemma 3, at the full width of generation 2.3, with random weights. Both sides run in turns on the same
threads, so that both see the machine in the same state; the ratio is that of medians over all runs of all rounds.
`--isa` restricts both sides to an instruction set, for comparisons with what this machine does not have.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Name of ours → what PyTorch's libraries call it. They read the environment when they are loaded.
ISAS = {
    "avx2": ("AVX2", "avx2"),
    "avx512": ("AVX512_CORE", "avx512"),
    "avx512-bf16": ("AVX512_CORE_BF16", "avx512"),
    "amx-bf16": ("AVX512_CORE_AMX", "avx512"),
}

# Work → how much faster than PyTorch it must be.
BARS = {
    "linear-m256-n4096": 1.5,
    "linear-m256-n16384": 1.5,
    "linear-m1024-n4096": 1.5,
    "linear-m1024-n16384": 1.5,
    "attention-1024": 1.2,
    "attention-4096": 1.2,
    "conv3d-512": 1.2,
    "video-decode-128x128x17": 1.2,
    "dit-block-1024": 1.3,
    "vocoder-1s": 1.2,
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help="names as in `ltx bench --list` [default: all]")
    parser.add_argument("--ltx", default=str(ROOT / "target/release/ltx"), help="the program")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3, help="turns that each side has at each work")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn; three runs at least")
    parser.add_argument("--isa", choices=ISAS, help="use no more than this instruction set, on either side")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    return parser.parse_args()


OPTIONS = arguments()
if OPTIONS.isa:
    onednn, aten = ISAS[OPTIONS.isa]
    os.environ |= {"ONEDNN_MAX_CPU_ISA": onednn, "ATEN_CPU_CAPABILITY": aten, "LTX_ISA": OPTIONS.isa}
    if OPTIONS.isa == "avx2":
        os.environ["MKL_ENABLE_INSTRUCTIONS"] = "AVX2"
os.environ["OMP_NUM_THREADS"] = str(OPTIONS.threads)

import torch  # noqa: E402 - after the environment
from torch.nn import functional as F  # noqa: E402

from random_module import filled  # noqa: E402

CONFIG = json.loads((ROOT / "fixtures/configs/ltx-2.3-22b.json").read_text())
UPSAMPLER = json.loads((ROOT / "fixtures/configs/latent-upsamplers.json").read_text())["2.3-spatial-x2"]


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype)


# Each work takes a setting and gives what is to be timed. A setting is a dtype, or a dtype and a memory layout.


def linear(rows, outputs):
    def prepare(dtype):
        x, weight, bias = random(1, rows, 4096, dtype=dtype), random(outputs, 4096, dtype=dtype), random(outputs, dtype=dtype)
        return lambda: F.linear(x, weight, bias)

    return prepare


def attention(tokens, head_dim):
    def prepare(dtype):
        # As a model has them: heads within tokens.
        q, k, v = (random(1, tokens, 32, head_dim, dtype=dtype).transpose(1, 2) for _ in range(3))
        return lambda: F.scaled_dot_product_attention(q, k, v)

    return prepare


def placed(module, layout):
    """The module with the weights of its 3-D convolutions in that layout, and those of 2-D ones in the like."""
    for tensor in module.parameters():
        if layout is torch.channels_last_3d and tensor.ndim in (4, 5):
            tensor.data = tensor.data.contiguous(memory_format=layout if tensor.ndim == 5 else torch.channels_last)
    return module


def layouts(prepare):
    """The work in both memory layouts that volumes can have."""
    return {"": lambda dtype: prepare(dtype, torch.contiguous_format), "channels last": lambda dtype: prepare(dtype, torch.channels_last_3d)}


def conv3d(dtype, layout):
    from ltx_core.model.video_vae.convolution import CausalConv3d

    module = placed(filled(lambda: CausalConv3d(512, 512, 3), dtype), layout)
    x = random(1, 512, 5, 32, 32, dtype=dtype).contiguous(memory_format=layout)
    return lambda: module(x, causal=False)


def video_decode(dtype, layout):
    from ltx_core.model.video_vae.model_configurator import VideoDecoderConfigurator

    module = placed(filled(lambda: VideoDecoderConfigurator.from_config(CONFIG), dtype), layout)
    latent = random(1, 128, 3, 4, 4, dtype=dtype).contiguous(memory_format=layout)
    return lambda: module(latent)


def upsample(dtype, layout):
    from ltx_core.model.upsampler.model_configurator import LatentUpsamplerConfigurator

    module = placed(filled(lambda: LatentUpsamplerConfigurator.from_config(UPSAMPLER), dtype), layout)
    latent = random(1, 128, 2, 8, 8, dtype=dtype).contiguous(memory_format=layout)
    return lambda: module(latent)


def audio_decode(dtype):
    from ltx_core.model.audio_vae.model_configurator import AudioDecoderConfigurator

    module = filled(lambda: AudioDecoderConfigurator.from_config(CONFIG), dtype)
    latent = random(1, 8, 25, 16, dtype=dtype)
    return lambda: module(latent)


def vocoder(dtype):
    from ltx_core.model.audio_vae.model_configurator import VocoderConfigurator

    module = filled(lambda: VocoderConfigurator.from_config(CONFIG), dtype)
    mel = random(1, 2, 100, 64, dtype=dtype)
    return lambda: module(mel)


def dit_block(dtype):
    """The block alone: what stands before it (projections, timestep embeddings, rotary tables) is done once."""
    from ltx_core.guidance.perturbations import BatchedPerturbationConfig
    from ltx_core.model.transformer.modality import Modality
    from ltx_core.model.transformer.model_configurator import LTXModelConfigurator

    config = CONFIG | {"transformer": CONFIG["transformer"] | {"num_layers": 1}}
    model = filled(lambda: LTXModelConfigurator.from_config(config), dtype)

    def modality(axes, tokens, width):
        starts = torch.arange(tokens, dtype=torch.float32).view(1, 1, tokens, 1).repeat(1, axes, 1, 1)
        return Modality(
            latent=random(1, tokens, 128, dtype=dtype),
            sigma=torch.full((1,), 0.7),
            timesteps=torch.full((1, tokens), 0.7),
            positions=torch.cat([starts, starts + 1], dim=3),
            context=random(1, 1024, width, dtype=dtype),
            attention_mask=None,
        )

    video, audio = modality(3, 1024, 4096), modality(1, 26, 2048)
    video = model.video_args_preprocessor.prepare(video, audio), video
    audio = model.audio_args_preprocessor.prepare(audio, video[1])
    video, block, nothing = video[0], model.transformer_blocks[0], BatchedPerturbationConfig.empty(1)
    return lambda: block(video=video, audio=audio, perturbations=nothing)


def gemma_layer(dtype):
    """A text model of one layer and no words: embeddings go in, and the final norm is done too."""
    from transformers import Gemma3TextConfig, Gemma3TextModel

    config = Gemma3TextConfig(
        vocab_size=8, hidden_size=3840, intermediate_size=15360, num_hidden_layers=1, num_attention_heads=16,
        num_key_value_heads=8, head_dim=256, query_pre_attn_scalar=256, sliding_window=1024, pad_token_id=0,
    )
    module = Gemma3TextModel(config).to(dtype).eval()
    x = random(1, 128, 3840, dtype=dtype)
    return lambda: module(inputs_embeds=x, use_cache=False)


def plain(prepare):
    return {"": prepare}


WORKS = {
    **{
        f"linear-m{rows}-n{outputs}": plain(linear(rows, outputs))
        for rows in (1, 256, 1024)
        for outputs in (4096, 16384)
    },
    "attention-1024": plain(attention(1024, 128)),
    "attention-1024-d64": plain(attention(1024, 64)),
    "attention-4096": plain(attention(4096, 128)),
    "conv3d-512": layouts(conv3d),
    "dit-block-1024": plain(dit_block),
    "gemma-layer": plain(gemma_layer),
    "upsample": layouts(upsample),
    "video-decode-128x128x17": layouts(video_decode),
    "audio-decode": plain(audio_decode),
    "vocoder-1s": plain(vocoder),
}
OURS_ALONE = ("peak", "memory", "start")


def turn(run, seconds):
    """Seconds of each run, after one to warm up."""
    run()
    times, start = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return times


def best(variants):
    """The fastest setting: its name, what to time, and the median of a first turn."""
    fastest = None
    for layout, prepare in variants.items():
        for dtype in (torch.bfloat16, torch.float32):
            name = f"{str(dtype).removeprefix('torch.')} {layout}".strip()
            try:
                run = prepare(dtype)
                median = statistics.median(turn(run, 0))
            except RuntimeError as error:  # not every class takes every dtype
                print(f"  PyTorch, {name}: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            print(f"  PyTorch, {name}: {median * 1e3:.1f} ms", file=sys.stderr)
            if fastest is None or median < fastest[2]:
                fastest = name, run, median
            run = None  # frees the weights of what is not the fastest
    if fastest is None:
        sys.exit("PyTorch can do it in no dtype")
    return fastest[0], fastest[1]


def ltx(work, seconds):
    """One turn of ours: what `ltx bench --json` says."""
    command = [OPTIONS.ltx, "bench", work, "--json", "--device", "cpu", "--threads", str(OPTIONS.threads)]
    answer = subprocess.run([*command, "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True)
    if answer.returncode != 0:
        sys.exit(f"{' '.join(command)} failed")
    return json.loads(answer.stdout)


def compare(work):
    """All turns of one work, ours and PyTorch's by turns."""
    print(work, file=sys.stderr)
    setting, run = best(WORKS[work]) if work in WORKS else (None, None)
    turns, theirs = [], []
    for _ in range(OPTIONS.rounds):
        turns.append(ltx(work, OPTIONS.seconds))
        if run:
            theirs += turn(run, OPTIONS.seconds)
    ours = statistics.median(second for answer in turns for second in answer["seconds"])
    scale = statistics.median(answer["seconds_median"] for answer in turns) / ours
    middle = {
        key: statistics.median(values) if (values := [answer[key] for answer in turns if answer[key]]) else None
        for key in ("gflops", "gb_per_second", "peak_share")
    }
    result = turns[0] | {key: value and value * scale for key, value in middle.items()} | {"seconds_median": ours}
    del result["seconds"], result["runs"]
    if run:
        result |= {"torch_seconds_median": statistics.median(theirs), "torch_setting": setting}
        result["ratio"] = result["torch_seconds_median"] / ours
    print(f"  ltx {ours * 1e3:.1f} ms" + (f", ratio {result['ratio']:.2f}" if run else ""), file=sys.stderr)
    return result


def milliseconds(seconds):
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def row(result):
    work, rate = result["work"], ""
    if result["gflops"]:
        rate = f"{result['gflops']:.0f} GFLOP/s"
    elif result["gb_per_second"]:
        rate = f"{result['gb_per_second']:.1f} GB/s"
    share = f"{result['peak_share'] * 100:.0f} %" if result["peak_share"] else ""
    ours = f"{milliseconds(result['seconds_median'])} ({result['dtype']})" if result["dtype"] else milliseconds(result["seconds_median"])
    theirs = ratio = bar = ""
    if "ratio" in result:
        theirs = f"{milliseconds(result['torch_seconds_median'])} ({result['torch_setting']})"
        ratio = f"**{result['ratio']:.2f}**"
        bar = f"≥ {BARS[work]}" if work in BARS else ""
    if work == "start":
        bar = "< 0.5 s"
    return f"| `{work}` | {ours} | {theirs} | {ratio} | {bar} | {rate} | {share} |"


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit():
    answer = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True)
    return answer.stdout.strip() or "unknown"


def main():
    torch.set_num_threads(OPTIONS.threads)
    known = [*OURS_ALONE[:2], *WORKS, OURS_ALONE[2]]
    if unknown := set(OPTIONS.works) - set(known):
        sys.exit(f"no such work: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    with torch.inference_mode():
        results = [compare(work) for work in OPTIONS.works or known]
    versions = f"PyTorch {torch.__version__}, ltx-core {importlib.metadata.version('ltx-core')}"
    isa = OPTIONS.isa or f"{results[0]['backend']} (PyTorch: {torch.backends.cpu.get_cpu_capability()})"
    print(f"{processor()}, {OPTIONS.threads} threads, {isa}; {versions}; commit {commit()};")
    print(f"`python reference/bench_torch.py {' '.join(sys.argv[1:])}`".replace(" `", "`"))
    print("\n| work | ltx | PyTorch at its best | ratio | bar | rate | share of the limit |\n|---|---|---|---|---|---|---|")
    print("\n".join(row(result) for result in results))
    if OPTIONS.json:
        Path(OPTIONS.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
