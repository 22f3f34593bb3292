"""The toy's text encoder: a Gemma 3 with a tokenizer of its own, and prompts in batches through the official parts.

ltx-core encodes one prompt at a time, padded to 1024 tokens. Training encodes many: Gemma sees the batch padded to its
longest prompt (its positions are relative), and the connectors get each row's tokens first and registers after, which
is what the official code makes of one row.
"""

import json

import torch
from ltx_core.model.transformer.rope import generate_freq_grid_np, precompute_freqs_cis
from ltx_core.utils import rms_norm
from tokenizers import Tokenizer, pre_tokenizers
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

import parts
import prompts
import world

import gemma  # of the fixtures

VOCABULARY = 640
# Merges stay inside words: "red" and "circle" are tokens, "red circle" is not.
WORDS = pre_tokenizers.Sequence([
    pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Punctuation("isolated"),
])
_ROTARY = {}
NEGATIVES = (
    "",
    "",
    "blurry, low quality, distorted, noise",
    "worst quality, inconsistent motion, blurry, jittery, distorted",
    "wrong colours, flicker, artifacts, bad sound, silence",
)


def config():
    """`config.json`: the fixtures' tiny Gemma with other sizes; every fourth layer sees everything."""
    base = gemma.configs.gemma()
    text = base["text_config"] | {
        "vocab_size": VOCABULARY,
        "hidden_size": parts.TEXT_WIDTH,
        "intermediate_size": 2 * parts.TEXT_WIDTH,
        "num_hidden_layers": parts.TEXT_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 32,
        "sliding_window_pattern": 4,
    }
    return base | {"text_config": text, "image_token_index": VOCABULARY - 1}


def corpus():
    for seed in range(6000):
        yield prompts.describe(world.sample(seed), seed)
    yield from NEGATIVES


def write_tokenizer(folder):
    """The tokenizer's files, the same for every training."""
    folder.mkdir(parents=True, exist_ok=True)
    gemma.write_tokenizer(folder, VOCABULARY, corpus(), WORDS)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def build():
    """The language model inside the Gemma 3 of `config`, and the whole."""
    whole = Gemma3ForConditionalGeneration(Gemma3Config.from_dict(json.loads(json.dumps(config()))))
    return whole.model.language_model, whole


class TextEncoder(torch.nn.Module):
    """Prompts → contexts of both streams."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.language, _ = build()
        self.processor = parts.build("text").float()  # its registers start in bfloat16

    def tokens(self, texts, device):
        """(B, S) ids and mask, padded on the left to the longest."""
        rows = [self.tokenizer.encode(text.strip()).ids for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return ids, (torch.arange(longest, device=device) >= longest - lengths.unsqueeze(1)).long()

    def forward(self, texts, length=128):
        """(B, length, video width) and (B, length, audio width); `length` is a multiple of 128."""
        ids, mask = self.tokens(texts, self.processor.video_connector.learnable_registers.device)
        states = self.language(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        features = self.processor.feature_extractor(states, mask, "left")
        connectors = self.processor.video_connector, self.processor.audio_connector
        return tuple(_connect(c, part, mask, length) for c, part in zip(connectors, features, strict=True))


def _connect(connector, features, mask, length):
    """A connector on each row: its tokens first, then the registers of their places."""
    padded = features.shape[1] - mask.sum(1, keepdim=True)
    place = torch.arange(length, device=mask.device)
    index = (place + padded).clamp(max=features.shape[1] - 1)
    moved = features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
    registers = connector.learnable_registers[place % connector.num_learnable_registers]
    filled = torch.where((place < mask.sum(1, keepdim=True)).unsqueeze(-1), moved, registers.to(moved.dtype))
    cosine, sine = (part.to(filled).expand(len(filled), -1, -1, -1) for part in _rotary(connector, length))
    for block in connector.transformer_1d_blocks:
        filled = block(filled, pe=(cosine, sine))
    return rms_norm(filled)


def _rotary(connector, length):
    """The connector's rotary cosines and sines, (1, heads, length, head_dim / 2)."""
    key = connector.num_attention_heads, connector.inner_dim, length
    if key not in _ROTARY:
        _ROTARY[key] = precompute_freqs_cis(
            indices_grid=torch.arange(length, dtype=torch.float32)[None, None],
            dim=connector.inner_dim,
            out_dtype=torch.float32,
            theta=connector.positional_embedding_theta,
            max_pos=connector.positional_embedding_max_pos,
            num_attention_heads=connector.num_attention_heads,
            rope_type=connector.rope_type,
            freq_grid_generator=generate_freq_grid_np,
        )
    return _ROTARY[key]
