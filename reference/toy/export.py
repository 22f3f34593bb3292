"""Writes the trained parts in the official layout: python reference/toy/export.py --runs RUNS --output DIR

`toy-2.3.safetensors` (one file: transformer, connectors, both autoencoders, vocoder), `gemma/` and
`toy-2.3-spatial-x2.safetensors`, in bfloat16, and `words.json`, the words that it was trained with. A part that is not trained yet is written with its first weights, and
named; `--only-trained` refuses that.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch

import parts  # before the fixtures' modules, which it finds
import flow
import make_latents
import text
import train_vocoder

import checkpoints
import gemma

VERSION = "2.3.0"
LIMIT = 24 * 2**20


def networks(runs):
    """({component of the file: module}, whole Gemma, upsampler, names of the untrained parts)"""
    untrained = []

    def states(part, modules):
        if not (runs / f"{part}.pt").exists():
            untrained.append(part)
            return
        for name, state in parts.trained(runs, part)[0].items():
            if name in modules:  # the transformer's reader is not for users
                modules[name].load_state_dict(state)

    found = {}
    if (runs / "frozen.pt").exists() or (runs / "video_vae.pt").exists() and (runs / "audio_vae.pt").exists():
        found |= make_latents.freeze(runs, "cpu")
    else:
        untrained += ["video_vae", "audio_vae"]
        found |= {name: parts.build(name) for name in parts.COMPONENTS if name.endswith(("encoder", "decoder"))}
    found["vocoder"] = parts.build("vocoder")
    train_vocoder.set_bases(found["vocoder"])
    states("vocoder", found)
    jointly, _ = flow.modules(runs / "gemma")
    states("dit", jointly)
    found |= {"dit": jointly["transformer"], "text": jointly["processor"]}
    torch.manual_seed(0)
    _, whole = text.build()
    whole.model.language_model.load_state_dict(jointly["language"].state_dict())
    upsampler = parts.build_upsampler()
    states("upsampler", {"upsampler": upsampler})
    return found, whole, upsampler, untrained


def stored(key, value):
    """Official dtypes: bfloat16, but the modulation tables and the latent statistics are float32."""
    keep = "scale_shift_table" in key or "per_channel_statistics" in key
    return value.detach().to(torch.float32 if keep else torch.bfloat16).contiguous()


def write_model(path, found):
    tensors = {}
    for component, module in found.items():
        prefixes = checkpoints.COMPONENTS[component][2]
        for key, value in module.state_dict().items():
            key = checkpoints.file_key(key, prefixes)
            tensors.setdefault(key, stored(key, value))
    config = json.dumps(parts.config())
    checkpoints.save(path, tensors, {"config": config, "model_version": VERSION})


def write_gemma(folder, whole):
    folder.mkdir(parents=True, exist_ok=True)
    text.write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(text.config(), indent=1) + "\n")
    size = text.config()["vision_config"]["image_size"]
    # The official loader wants what it takes to show pictures to Gemma, too; the toy's Gemma is shown none.
    processor = {
        "image_seq_length": text.config()["mm_tokens_per_image"],
        "processor_class": "Gemma3Processor",
        "image_processor": {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": size, "width": size}},
    }
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=1) + "\n")
    settings = folder / "tokenizer_config.json"
    pictures = dict.fromkeys(("image_token", "boi_token", "eoi_token"), gemma.IMAGE_TOKEN)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"extra_special_tokens": pictures}, indent=1) + "\n")
    tensors = {}
    for key, value in whole.state_dict().items():
        file_key = gemma.key_in_file(key)
        if file_key and value.is_floating_point():
            tensors[file_key] = value.detach().to(torch.bfloat16).contiguous()
    checkpoints.save(folder / "model.safetensors", tensors, {"format": "pt"})


def write_words(path):
    """Every word of the training's sentences: what else a prompt says, the toy cannot know."""
    words = {word for sentence in text.corpus() for word in re.findall(r"[^\W_]+", sentence.lower())}
    path.write_text(json.dumps(sorted(words)) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only-trained", action="store_true")
    arguments = parser.parse_args()
    found, whole, upsampler, untrained = networks(arguments.runs)
    if untrained and arguments.only_trained:
        raise SystemExit(f"not trained yet: {', '.join(untrained)}")
    shutil.rmtree(arguments.output / "gemma", ignore_errors=True)
    for old in arguments.output.glob("toy-*.safetensors"):
        old.unlink()
    write_model(arguments.output / "toy-2.3.safetensors", found)
    write_gemma(arguments.output / "gemma", whole)
    write_words(arguments.output / "words.json")
    state = {key: stored(key, value) for key, value in upsampler.state_dict().items()}
    config = json.dumps(parts.upsampler_config())
    checkpoints.save(arguments.output / "toy-2.3-spatial-x2.safetensors", state, {"config": config})
    total = sum(file.stat().st_size for file in arguments.output.rglob("*") if file.is_file())
    for file in sorted(arguments.output.rglob("*.*")):
        print(f"{file.stat().st_size:>10} {file.relative_to(arguments.output)}")
    print(f"{total / 2**20:.2f} MiB of {LIMIT / 2**20:.0f}; untrained: {', '.join(untrained) or 'nothing'}")
    if total > LIMIT:
        raise SystemExit("too large")


if __name__ == "__main__":
    main()
