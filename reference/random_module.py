"""Modules with random weights, for timing."""

import torch


def filled(build, dtype, device="cpu"):
    """What `build` makes, with random weights, without the time its own initialization takes."""
    with torch.device("meta"):
        module = build()
    module = module.to(dtype).to_empty(device=device).eval()
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            inputs = tensor[0].numel() if tensor.ndim > 1 else 3
            tensor.data.uniform_(-1, 1).mul_((3 / max(inputs, 3)) ** 0.5)
        else:
            tensor.data.zero_()
    return module
