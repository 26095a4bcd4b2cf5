#!/usr/bin/env python3
"""Compares PSANN language models with psannlm on PyTorch, measured in turns in one run.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-psann.txt
    cargo build --release --example psann_step
    .venv/bin/python scripts/psann_ratio.py

The model is 256 wide, 4 layers, 4 heads, 1024 in the feed-forward, a vocabulary of 32000; a step takes 4 sequences of 256
tokens, f32. `forward` computes all logits, `loss` the loss too, `train` is forward, backward, clipping and AdamW.
Ratios are PyTorch's time over candlepower's: above 1, candlepower is faster.
"""

import argparse
import os
import statistics
import subprocess
import time
import warnings

import torch
from psannlm.lm.models.registry import get_base
from torch import nn

TOKENS = 4 * 256


class Torch:
    def __init__(self, base):
        torch.manual_seed(0)
        sizes = {"vocab_size": 32000, "d_model": 256, "n_layers": 4, "n_heads": 4, "d_mlp": 1024}
        self.model = get_base(base)(positional_encoding="rope", **sizes)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0.01)
        self.ids = torch.randint(32000, (4, 257))

    def loss_of(self):
        logits = self.model(self.ids[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), self.ids[:, 1:].flatten())

    def run(self, phase):
        started = time.perf_counter()
        if phase == "train":
            self.optimizer.zero_grad(set_to_none=True)
            self.loss_of().backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        else:
            with torch.no_grad():
                self.model(self.ids[:, :-1]) if phase == "forward" else self.loss_of()
        return (time.perf_counter() - started) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", default="target/release/examples/psann_step", help="the built example")
    parser.add_argument("--bases", default="respsann,sgrpsann,waveresnet,transformer")
    parser.add_argument("--runs", type=int, default=9, help="number of alternating runs of each, after two warm-ups")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    environment = os.environ | {"RAYON_NUM_THREADS": str(arguments.threads)}
    ours = subprocess.Popen([arguments.ours], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(base, phase):
        ours.stdin.write(f"{base} {phase}\n")
        ours.stdin.flush()
        return float(ours.stdout.readline())

    print(f"torch {torch.__version__}, {arguments.threads} threads, medians of {arguments.runs} alternating runs")
    print("| base | phase | torch ms | ours ms | torch tok/s | ours tok/s | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for base in arguments.bases.split(","):
        reference = Torch(base)
        for phase in ("forward", "loss", "train"):
            pairs = []
            for _ in range(arguments.runs + 2):
                # Waiting threads spin for a while. The threads of one side must not slow down the other.
                time.sleep(0.3)
                theirs = reference.run(phase)
                time.sleep(0.3)
                pairs.append((theirs, ask(base, phase)))
            del pairs[:2]
            theirs, mine = (statistics.median(times) for times in zip(*pairs))
            ratio = statistics.median(a / b for a, b in pairs)
            rates = f"{TOKENS / theirs * 1e3:.0f} | {TOKENS / mine * 1e3:.0f}"
            print(f"| {base} | {phase} | {theirs:.0f} | {mine:.0f} | {rates} | {ratio:.2f} |", flush=True)
    ours.stdin.close()
    ours.wait()


if __name__ == "__main__":
    main()
