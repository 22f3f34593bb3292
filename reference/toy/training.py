"""One training loop for every part: seeded batches, averaged weights, checkpoints, a log of JSON lines.

A part's script gives modules, a batch maker and a loss. A run stops after `--minutes` or `--steps`, and the next
run of the same command goes on where it stopped.
"""

import argparse
import json
import math
import signal
import time
from pathlib import Path

import torch

from optimizer import HALF, Optimizers

SAVE_SECONDS = 150


def arguments(description, rate, batch):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--minutes", type=float, default=60, help="stop after that long")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after that many steps in all")
    parser.add_argument("--cool", type=int, default=0, help="lower the learning rate to 0 over the last of --steps")
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches, for a GPU")
    return parser


class _Steps(torch.utils.data.Dataset):
    """The batch of each step, for a loader's worker processes."""

    def __init__(self, batch):
        self.batch = batch

    def __getitem__(self, step):
        return self.batch(step)


def _to(device, batch):
    """A batch, or the tensors in a sequence of things, on the device."""
    if torch.is_tensor(batch):
        return batch.to(device, non_blocking=True)
    return [_to(device, part) for part in batch] if isinstance(batch, (list, tuple)) else batch


class Training:
    """Modules by name, their optimizer and averages, and where they are saved."""

    def __init__(self, part, modules, options, note=None):
        torch.set_num_threads(options.threads)
        self.part, self.modules, self.options = part, modules, options
        self.step, self.seconds, self.note = 0, 0.0, note or {}
        for module in modules.values():
            module.to(options.device)
        self.optimizer = Optimizers(modules.values(), options.rate)
        self.average = {name: self._copy(module) for name, module in modules.items()}
        options.runs.mkdir(parents=True, exist_ok=True)
        self.file = options.runs / f"{part}.pt"
        if self.file.exists():
            self._resume()

    @staticmethod
    def _copy(module):
        return {key: value.detach().clone() for key, value in module.state_dict().items()}

    def _resume(self):
        saved = torch.load(self.file, map_location=self.options.device, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(saved["weights"][name])
        self.average, self.step, self.seconds = saved["average"], saved["step"], saved["seconds"]
        self.note = saved["note"] | self.note
        self.optimizer.load_state_dict(saved["optimizer"])

    def save(self):
        weights = {name: module.state_dict() for name, module in self.modules.items()}
        state = {"weights": weights, "average": self.average, "optimizer": self.optimizer.state_dict(),
                 "step": self.step, "seconds": self.seconds, "note": self.note}
        scratch = self.file.with_suffix(".writing")
        torch.save(state, scratch)
        scratch.replace(self.file)

    def log(self, **metrics):
        line = {"part": self.part, "step": self.step, "minutes": round(self.seconds / 60, 1)} | metrics
        line = {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in line.items()}
        with open(self.options.runs / f"{self.part}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def _factor(self):
        """The learning rate's share of its full height: it warms up, and cools down at the end."""
        left = self.options.steps - self.step
        cool = min(1.0, left / self.options.cool) if self.options.cool else 1.0
        return min(1.0, (self.step + 1) / 50) * (0.5 - 0.5 * math.cos(math.pi * cool))

    def _average(self):
        # Over about fifty steps: the learning rate cools, and a phase may be short.
        keep = min(0.98, (1 + self.step) / (10 + self.step))
        for name, module in self.modules.items():
            for key, value in module.state_dict().items():
                if value.is_floating_point():
                    self.average[name][key].lerp_(value, 1 - keep)

    def averaged(self):
        """The modules with the averaged weights in them; call the answer to put the trained ones back."""
        trained = {name: self._copy(module) for name, module in self.modules.items()}
        for name, module in self.modules.items():
            module.load_state_dict(self.average[name])

        def restore():
            for name, module in self.modules.items():
                module.load_state_dict(trained[name])

        return restore

    def _batches(self, batch):
        steps = range(self.step, self.options.steps)
        if not self.options.workers:
            return map(batch, steps)
        workers = {"num_workers": self.options.workers, "prefetch_factor": 4, "pin_memory": True}
        return torch.utils.data.DataLoader(_Steps(batch), batch_size=None, sampler=steps, **workers)

    def run(self, batch, loss, measure, every=50, measure_every=1000):
        """`batch(step)` → inputs, made on the CPU; `loss(inputs)` → (scalar, metrics); `measure()` → metrics of the
        averaged weights."""
        began, saved, sums = time.monotonic(), time.monotonic(), {}
        start, stopped = began, []
        for name in (signal.SIGTERM, signal.SIGINT):  # finishes the step, then saves
            signal.signal(name, lambda *_: stopped.append(True))
        for inputs in self._batches(batch):
            torch.manual_seed(self.options.seed * 1_000_003 + self.step)
            value, metrics = loss(_to(self.options.device, inputs))
            self.optimizer.clear()
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.optimizer.weights, 1.0)
            if torch.isfinite(norm):
                self.optimizer.step(self._factor())
                self._average()
            self.step += 1
            for key, number in ({"loss": value, "norm": norm} | metrics).items():
                sums.setdefault(key, []).append(number.detach())
            now = time.monotonic()
            self.seconds, start = self.seconds + now - start, now
            if self.step % every == 0:
                self.log(**{key: float(sum(numbers)) / len(numbers) for key, numbers in sums.items()})
                sums = {}
            if self.step % measure_every == 0:
                self.measure(measure)
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = now
            if stopped or now - began > 60 * self.options.minutes:
                break
        self.measure(measure)
        self.save()

    def measure(self, measure):
        restore = self.averaged()
        with torch.inference_mode():
            metrics = measure()
        restore()
        self.log(**metrics)


def autocast(device):
    """bfloat16 where the device computes in it: a processor without it would only imitate it, slowly. Nothing is cached:
    weights converted where no gradient is wanted would be taken where one is."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu" or HALF, cache_enabled=False)
