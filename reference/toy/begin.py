"""Begins to train from the files of a trained toy instead of from nothing.

    python reference/toy/begin.py --runs RUNS [--files toy]

Writes the checkpoints that `export.py` made the files from: `frozen.pt` with the autoencoders, `dit.pt`, `vocoder.pt`,
`upsampler.pt`, at step 0 and with fresh optimizers. `make_latents.py` and then `train_dit.py` go on from there.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

import parts  # before the fixtures' modules, which it finds
import flow
import text
import train_dit
import training

import checkpoints
import gemma


def loaded(component, tensors):
    """A component with the file's weights, in float32."""
    module, prefixes = parts.build(component).float(), checkpoints.COMPONENTS[component][2]
    module.load_state_dict({key: tensors[checkpoints.file_key(key, prefixes)] for key in module.state_dict()})
    return module


def main():
    parser = training.arguments(__doc__, rate=1e-3, batch=1)
    parser.add_argument("--files", type=Path, default=parts.REPOSITORY / "toy", help="folder that export.py wrote")
    options = parser.parse_args()
    if any(options.runs.glob("*.pt")):
        raise SystemExit(f"{options.runs} has checkpoints already")
    tensors = load_file(options.files / "toy-2.3.safetensors")
    modules, _ = flow.modules(options.runs / "gemma")
    modules["transformer"], modules["processor"] = loaded("dit", tensors), loaded("text", tensors)
    _, whole = text.build()
    words = load_file(options.files / "gemma" / "model.safetensors")
    named = {key: gemma.key_in_file(key) for key in whole.state_dict()}
    whole.load_state_dict({key: words[name] for key, name in named.items() if name in words}, strict=False)
    modules["language"].load_state_dict(whole.model.language_model.state_dict())
    upsampler = parts.build_upsampler()
    upsampler.load_state_dict(load_file(options.files / "toy-2.3-spatial-x2.safetensors"))
    training.Training("dit", modules | {"reader": train_dit.Reader()}, options).save()
    training.Training("vocoder", {"vocoder": loaded("vocoder", tensors)}, options).save()
    training.Training("upsampler", {"upsampler": upsampler}, options).save()
    names = ("video_encoder", "video_decoder", "audio_encoder", "audio_decoder")
    torch.save({name: loaded(name, tensors).state_dict() for name in names}, options.runs / "frozen.pt")


if __name__ == "__main__":
    main()
