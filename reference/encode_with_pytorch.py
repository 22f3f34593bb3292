"""Encodes a prompt with PyTorch: transformers' Gemma 3 and Lightricks' ltx-core. Writes what `ltx encode-text` writes.

    python reference/encode_with_pytorch.py "PROMPT" --gemma-path weights/gemma-3-12b \
        --weights weights/ltx-2/ltx-2-19b-distilled.safetensors --output prompt_embedding.npz

    ltx generate --embedding prompt_embedding.npz --model weights/ltx-2/ltx-2-19b-distilled.safetensors …

A name that ends in .safetensors gets video and audio contexts. Needs the packages of reference/requirements.txt; no
triton. `ltx` itself needs none of this.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from ltx_core.text_encoders.gemma.config import GEMMA3_CONFIG_FOR_LTX
from ltx_core.text_encoders.gemma.encoders.encoder_configurator import (
    EMBEDDINGS_PROCESSOR_KEY_OPS,
    EmbeddingsProcessorConfigurator,
)
from ltx_core.text_encoders.gemma.tokenizer import LTXVGemmaTokenizer
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Gemma3ForConditionalGeneration

REGISTERS = 128


@torch.inference_mode()
def hidden_states(prompt, folder, max_tokens, dtype, device):
    """Every hidden state of Gemma, embeddings first, and the mask of real tokens; padded on the left."""
    pairs = LTXVGemmaTokenizer(str(folder), max_tokens + 1).tokenize_with_weights(prompt)["gemma"]
    if pairs[0][1]:  # One place more than allowed, and no padding in it.
        raise SystemExit(f"the prompt has more than {max_tokens} tokens: shorten it, or raise --max-tokens")
    ids, mask = torch.tensor([pairs[1:]], device=device).unbind(-1)
    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(device).eval()
    states = model.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return states, mask


def embeddings_processor(path, folder, dtype, device):
    """Projection and connectors, with the file's weights."""
    sizes = json.loads((folder / "config.json").read_text())
    sizes = sizes.get("text_config", sizes)
    # ltx-core 1.0.0 keeps the sizes of the text encoder in one object for the whole module.
    GEMMA3_CONFIG_FOR_LTX.text_config.hidden_size = sizes["hidden_size"]
    GEMMA3_CONFIG_FOR_LTX.text_config.num_hidden_layers = sizes["num_hidden_layers"]
    with safe_open(path, framework="pt") as file:
        processor = EmbeddingsProcessorConfigurator.from_config(json.loads(file.metadata()["config"]))
        state = {}
        for key in file.keys():
            name = EMBEDDINGS_PROCESSOR_KEY_OPS.apply_to_key(key)
            if name is None:
                continue
            for pair in EMBEDDINGS_PROCESSOR_KEY_OPS.apply_to_key_value(name, file.get_tensor(key)):
                state[pair.new_key] = pair.new_value.to(dtype)
    processor.load_state_dict(state, strict=True, assign=True)
    return processor.to(device).eval()


@torch.inference_mode()
def encode(prompt, arguments):
    """Video and audio contexts (1, tokens, width), and the mask of the video's."""
    dtype, device = getattr(torch, arguments.dtype), torch.device(arguments.device)
    states, mask = hidden_states(prompt, arguments.gemma_path, arguments.max_tokens, dtype, device)
    processor = embeddings_processor(arguments.weights, arguments.gemma_path, dtype, device)
    out = processor.process_hidden_states(states, mask, "left")
    return [part.cpu() for part in (out.video_encoding, out.audio_encoding, out.attention_mask)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--negative-prompt")
    parser.add_argument("--gemma-path", type=Path, default=Path("weights/gemma-3-12b"))
    parser.add_argument("--weights", type=Path, default=Path("weights/ltx-2/ltx-2-19b-distilled.safetensors"))
    parser.add_argument("--output", type=Path, default=Path("prompt_embedding.npz"))
    parser.add_argument("--max-tokens", type=int, help="a multiple of 128; 256 for .npz, 1024 for .safetensors")
    parser.add_argument("--device", default="cpu", help="cpu, mps, cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    arguments = parser.parse_args()
    npz = arguments.output.suffix == ".npz"
    if arguments.max_tokens is None:
        arguments.max_tokens = 256 if npz else 1024
    if arguments.max_tokens % REGISTERS or not REGISTERS <= arguments.max_tokens <= 1024:
        parser.error(f"--max-tokens is {arguments.max_tokens}, not a multiple of {REGISTERS} up to 1024")

    tensors = {}
    for prefix, prompt in (("", arguments.prompt), ("negative_", arguments.negative_prompt)):
        if prompt is None:
            continue
        video, audio, mask = encode(prompt, arguments)
        if npz:
            tensors[f"{prefix}embedding"] = video.float().numpy()
            tensors[f"{prefix}attention_mask"] = mask.numpy().astype(np.int32)
        else:
            tensors[f"{prefix}video_context"] = video.contiguous()
            tensors[f"{prefix}audio_context"] = audio.contiguous()
    if npz:
        np.savez(arguments.output, **tensors, prompt=arguments.prompt)
    else:
        save_file(tensors, arguments.output, {"prompt": arguments.prompt})


if __name__ == "__main__":
    main()
