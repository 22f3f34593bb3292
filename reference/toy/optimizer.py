"""Muon for matrices and convolutions, AdamW for the rest, as one optimizer; and the first weights of convolutions.

Muon steps along the orthogonal matrix nearest to the averaged gradient (K. Jordan et al., 2024): here it reaches a loss
in about half of AdamW's steps.
"""

import math

import torch

# Polynomial coefficients of the Newton-Schulz iteration that Muon uses.
_A, _B, _C = 3.4445, -4.7750, 2.0315
RATE_OF_MATRICES = 20  # times the rate of the rest


def _orthogonal(gradient):
    """Every singular value near 1, in five steps.

    The steps are polynomials in the Gram matrix of the short side: iterating on that alone, and multiplying the long
    matrix once, costs a fifth of the multiplications of a long matrix.
    """
    matrix = gradient.flatten(1)
    tall = matrix.shape[0] > matrix.shape[1]
    matrix = matrix.T if tall else matrix
    gram = matrix @ matrix.T
    gram = gram / (gram.trace() + 1e-14)
    scale = (matrix.norm() + 1e-7).reciprocal()
    whole = torch.eye(len(gram), device=gram.device)
    for step in range(5):
        part = _B * gram + _C * gram @ gram
        part.diagonal().add_(_A)
        whole = part @ whole if step else part
        gram = part @ gram @ part
    matrix = scale * (whole @ matrix)
    return (matrix.T if tall else matrix).reshape(gradient.shape)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized; a little weight decay."""

    def __init__(self, weights, lr):
        super().__init__(weights, {"lr": lr, "momentum": 0.95, "decay": 0.01})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                average = state.setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                update = _orthogonal(weight.grad.lerp(average, group["momentum"]))
                wide = max(1.0, weight.shape[0] / weight[0].numel()) ** 0.5
                weight.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"] * wide)


class Optimizers:
    """Both, behind one `step`; `factor` scales their rates."""

    # Tables are read row by row: a matrix in shape only.
    TABLES = ("scale_shift_table", "embed_tokens", "learnable_registers")

    def __init__(self, modules, rate):
        named = [pair for module in modules for pair in module.named_parameters() if pair[1].requires_grad]
        matrices = [w for name, w in named if w.ndim > 1 and not any(table in name for table in self.TABLES)]
        chosen = {id(weight) for weight in matrices}
        rest = [weight for _, weight in named if id(weight) not in chosen]
        self.weights = matrices + rest
        self.rates = [rate * RATE_OF_MATRICES, rate]
        self.both = [Muon(matrices, self.rates[0]), torch.optim.AdamW(rest, rate, (0.9, 0.98), weight_decay=0)]

    def step(self, factor):
        for optimizer, rate in zip(self.both, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()

    def clear(self):
        for weight in self.weights:
            weight.grad = None

    def state_dict(self):
        return [optimizer.state_dict() for optimizer in self.both]

    def load_state_dict(self, states):
        for optimizer, state in zip(self.both, states, strict=True):
            optimizer.load_state_dict(state)


def start_convolutions(module, branch_ends=("conv2.conv",)):
    """Weights that keep a signal's size through a deep stack; the ends of residual branches start small."""
    for name, layer in module.named_modules():
        if isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)):
            gain = 0.3 if name.endswith(branch_ends) else 1.0
            torch.nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)
