"""Times one work in PyTorch with Lightricks' official classes (ltx-core on PYTHONPATH) and prints JSON; part of cuda.sh.

Random weights, bf16, inference mode. Works are tried as they are and compiled, and the fastest is what counts."""

import inspect
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from random_module import filled  # noqa: E402

WORK, DEVICE = sys.argv[1:]
CONFIGS = Path(__file__).resolve().parents[2] / "fixtures/configs"
FILES = {"2.0": "ltx-2-19b.json", "2.3": "ltx-2.3-22b.json"}
ON_GPU = DEVICE == "cuda"


def random(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


def configured(configurator, config):
    """By the class' name for it in ltx-core 1.0.0, or in 1.2.0."""
    if hasattr(configurator, "from_config"):
        return configurator.from_config(config)
    return configurator.from_metadata({"config": config})


def matmul(size):
    a, b = random(size, size), random(size, size)
    return {"eager": lambda: lambda: a @ b}


def transformer(generation, height, width, frames, blocks):
    from ltx_core.model.transformer.modality import Modality
    from ltx_core.model.transformer.model_configurator import LTXModelConfigurator

    config = json.loads((CONFIGS / FILES[generation]).read_text())
    if blocks:
        config["transformer"]["num_layers"] = blocks
    model = filled(lambda: configured(LTXModelConfigurator, config), torch.bfloat16, DEVICE)
    widths = (3840, 3840) if generation == "2.0" else (4096, 2048)

    def modality(axes, tokens, text):
        starts = torch.arange(tokens, dtype=torch.float32, device=DEVICE).view(1, 1, tokens, 1).repeat(1, axes, 1, 1)
        fields = {
            "latent": random(1, tokens, 128),
            "sigma": torch.full((1,), 0.7, device=DEVICE),
            "timesteps": torch.full((1, tokens), 0.7, device=DEVICE),
            "positions": torch.cat([starts, starts + 1], dim=3),
            "context": random(1, 1024, text),
        }
        known = inspect.signature(Modality).parameters
        return Modality(**{name: value for name, value in fields.items() if name in known})

    latent = ((frames - 1) // 8 + 1) * (height // 32) * (width // 32)
    video, audio = modality(3, latent, widths[0]), modality(1, round(frames / 24 * 25), widths[1])
    run = lambda: model(video=video, audio=audio, perturbations=None)  # noqa: E731

    def compiled():
        # Block by block: all are the same code, which is compiled once.
        for block in model.transformer_blocks:
            block.compile()
        return run

    return {"eager": lambda: run, "torch.compile of each block": compiled}


def video_decode(height, width, frames):
    from ltx_core.model.video_vae.model_configurator import VideoDecoderConfigurator

    config = json.loads((CONFIGS / FILES["2.3"]).read_text())
    decoder = filled(lambda: configured(VideoDecoderConfigurator, config), torch.bfloat16, DEVICE)
    latent = random(1, 128, (frames - 1) // 8 + 1, height // 32, width // 32)

    def channels_last():
        layout = {"memory_format": torch.channels_last_3d}
        decoder.to(**layout)
        last = latent.contiguous(**layout)
        return lambda: decoder(last)

    return {"eager": lambda: lambda: decoder(latent), "channels last": channels_last}


def variants():
    """Name → what prepares the work in that way and answers what is to be timed; in this order."""
    if found := re.fullmatch(r"matmul-(\d+)", WORK):
        return matmul(int(found[1]))
    if found := re.fullmatch(r"dit-(2\.\d)-(?:(\d+)x(\d+)x(\d+)|tiny)", WORK):
        size = [int(part) for part in found.groups()[1:]] if found[2] else [64, 64, 9]
        # `ltx` names a clip by height and width where the official examples do, and 768x512 by width and height.
        height, width = (size[1], size[0]) if size[0] == 768 else (size[0], size[1])
        return transformer(found[1], height, width, size[2], None if found[2] else 1)
    if found := re.fullmatch(r"video-decode-(\d+)x(\d+)x(\d+)", WORK):
        return video_decode(*(int(part) for part in found.groups()))
    sys.exit(f"no work {WORK}")


def wait():
    if ON_GPU:
        torch.cuda.synchronize()


def timed(run):
    """Seconds of each run, after two to warm up."""
    for _ in range(2):
        run()
    wait()
    times, start = [], time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - start < 5 and len(times) < 1000):
        begin = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - begin)
    return times


def attention_backends():
    names = ("flash", "mem_efficient", "cudnn", "math")
    return [name for name in names if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()]


def main():
    torch.backends.cudnn.benchmark = True
    best, tried = None, {}
    with torch.inference_mode():
        for name, prepare in variants().items():
            if name.startswith("torch.compile") and not ON_GPU and not os.environ.get("COMPILE_ON_CPU"):
                continue
            try:
                times = timed(prepare())
            except Exception as error:  # noqa: BLE001 - what a compiler cannot do is a result too
                tried[name] = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                continue
            tried[name] = statistics.median(times)
            if best is None or tried[name] < tried[best]:
                best = name
    if best is None:
        sys.exit(f"PyTorch can do it in no way: {tried}")
    result = {
        "work": WORK, "seconds_median": tried[best], "setting": best, "tried": tried,
        "attention": attention_backends(), "torch": torch.__version__,
        "peak_bytes": torch.cuda.max_memory_allocated() if ON_GPU else None,
    }
    print(json.dumps(result))


main()
