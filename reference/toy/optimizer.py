"""Muon for matrices and convolutions, AdamW for the rest, as one optimizer; and the first weights of convolutions.

Muon steps along the orthogonal matrix nearest to the averaged gradient (K. Jordan et al., 2024): here it reaches a loss
in about half of AdamW's steps.
"""

import math

import torch

# Polynomial coefficients of the Newton-Schulz iteration that Muon uses.
_A, _B, _C = 3.4445, -4.7750, 2.0315
RATE_OF_MATRICES = 20  # times the rate of the rest
HALF = torch.cpu._is_avx512_bf16_supported()  # whether this processor multiplies in bfloat16


def _orthogonal(matrices):
    """Every singular value of each matrix near 1, in five steps; (B, rows, columns).

    Nearly square matrices take the steps in half precision, where a batch of them costs least. The steps are
    polynomials in the Gram matrix of the short side: for long matrices, iterating on that alone, and multiplying the
    long side once, costs a fifth of the multiplications.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.shape[2] <= 4 * x.shape[1]:
        x = x.bfloat16() if HALF or x.is_cuda else x
        for _ in range(5):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
        x = x.float()
    else:
        gram = x @ x.mT
        whole = torch.eye(gram.shape[1], device=gram.device)
        for _ in range(5):
            part = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
            part.diagonal(dim1=1, dim2=2).add_(_A)
            whole = part @ whole
            gram = part @ gram @ part
        x = whole @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized; a little weight decay. Weights of one shape are one batch."""

    def __init__(self, weights, lr):
        super().__init__(weights, {"lr": lr, "momentum": 0.95, "decay": 0.01})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            batches = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(average, group["momentum"]).flatten(1)
                batches.setdefault(update.shape, []).append((weight, update))
            for shape, pairs in batches.items():
                wide = max(1.0, shape[0] / shape[1]) ** 0.5
                updates = _orthogonal(torch.stack([update for _, update in pairs]))
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["decay"])
                    weight.add_(update.reshape(weight.shape), alpha=-group["lr"] * wide)


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
