#!/usr/bin/env python3
"""Compares the backbones of the sweep with the same modules in PyTorch, measured in turns in one run.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-fixtures.txt
    cargo build --release --example sweep_step
    .venv/bin/python scripts/sweep_ratio.py --presets smoke,baseline-cpu

Both sides run blocks of steps in turns. The first step of each block and the first block of each side are not counted. `train` is
forward, backward, clipping and AdamW; `forward` is a forecast. The modules, with the same dropout, are those of
`make_temporal_fixtures.py`, with attention by `scaled_dot_product_attention`, and AdamW is fused. `--compile` runs
them through `torch.compile`, which needs a C++ compiler. Ratios are PyTorch's time over candlepower's: above 1,
candlepower is faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import make_temporal_fixtures as modules
import torch
from torch import nn


class Attention(nn.Module):
    """nn.MultiheadAttention, which calls `scaled_dot_product_attention` if no weights are asked for."""

    def __init__(self, dim, heads):
        super().__init__()
        self.inner = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x, over):
        return self.inner(x, over, over, need_weights=False)[0]


class RotaryAttention(modules.RotaryAttention):
    """Computes the angles once for each length."""

    dropout = 0.0
    angles = None

    def forward(self, x):
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if self.angles is None:
            width = query.shape[-1]
            angles = torch.outer(torch.arange(x.shape[1]).float(), 10000.0 ** (-torch.arange(0, width, 2).float() / width))
            angles = torch.cat([angles, angles], -1)
            self.angles = angles.cos(), angles.sin()
        cos, sin = self.angles

        def rotate(heads):
            turned = torch.stack([-heads[..., 1::2], heads[..., 0::2]], -1).flatten(-2)
            return heads * cos + turned * sin

        dropout = self.dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(rotate(query), rotate(key), value, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).flatten(-2))


modules.Attention, modules.RotaryAttention = Attention, RotaryAttention


def add_dropout(model, rate):
    """Adds dropout where the sweep has it."""
    if rate == 0.0:
        return

    def drop(module, x):
        return nn.functional.dropout(x, rate, module.training)

    def before(module):
        module.register_forward_pre_hook(lambda module, inputs: (drop(module, inputs[0]),))

    def after(module):
        module.register_forward_hook(lambda module, _, output: drop(module, output))

    for module in model.modules():
        match module:
            case Attention():
                module.inner.dropout = rate
            case RotaryAttention():
                module.dropout = rate
            case modules.FeedForward():
                before(module.down)
            case modules.Convolution():
                before(module.pointwise)
            case modules.Embedding() | modules.Coarse():
                after(module)
            case modules.OmniBlock():
                after(module.mixer_out)
            case modules.StateSpaceBlock():
                after(module.mixer_out)
                after(module.feed_forward)


class Torch:
    def __init__(self, combination, is_compiled):
        torch.manual_seed(0)
        self.clip_norm = combination["clip_norm"]
        sizes, horizon, outputs = (combination[name] for name in ("sizes", "horizon", "outputs"))
        self.model = modules.Forecaster(combination["architecture"], sizes, horizon, outputs)
        add_dropout(self.model, combination["dropout"])
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=combination["learning_rate"], weight_decay=combination["weight_decay"],
            betas=tuple(combination["betas"]), fused=True)
        self.series = torch.randn(combination["batch"], combination["time"], sizes["features"])
        self.after = torch.randn(combination["batch"], horizon, outputs)
        self.call = torch.compile(self.model) if is_compiled else self.model

    def step(self, phase):
        self.model.train(phase == "train")
        started = time.perf_counter()
        if phase == "train":
            self.optimizer.zero_grad(set_to_none=True)
            nn.functional.mse_loss(self.call(self.series), self.after).backward()
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm, foreach=True)
            self.optimizer.step()
        else:
            with torch.inference_mode():
                self.call(self.series)
        return (time.perf_counter() - started) * 1e3


def at_least(least):
    def number(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"at least {least}")
        return int(text)
    return number


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", default="target/release/examples/sweep_step", help="the built example")
    parser.add_argument("--presets", default="smoke,baseline-cpu")
    parser.add_argument("--only", default="", help="combinations whose names contain this text")
    parser.add_argument("--steps", type=at_least(5), default=6, help="steps of a block, of which the first is not counted")
    parser.add_argument("--blocks", type=at_least(1), default=5, help="counted blocks of each side")
    parser.add_argument("--threads", type=at_least(1), default=2)
    parser.add_argument("--compile", action="store_true", help="run PyTorch's modules through torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    environment = os.environ | {"RAYON_NUM_THREADS": str(arguments.threads)}
    mode = "torch.compile" if arguments.compile else "eager"
    print(f"torch {torch.__version__} ({mode}), {arguments.threads} threads, {arguments.blocks} blocks in turns, "
          f"{arguments.steps - 1} counted steps each\n")
    print("| preset | combination | phase | torch ms | ours ms | torch windows/s | ours windows/s | ratio | from | to |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for preset in arguments.presets.split(","):
        command = [arguments.ours, preset]
        ours = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

        def ask(number, phase, steps):
            ours.stdin.write(f"{number} {phase} {steps}\n")
            ours.stdin.flush()
            return [float(time) for time in ours.stdout.readline().split()]

        listed = ours.stdout.readline()
        if not listed:
            sys.exit(ours.wait())
        combinations = json.loads(listed)
        for number, combination in enumerate(combinations):
            if arguments.only not in combination["name"]:
                continue
            reference = Torch(combination, arguments.compile)
            for phase in ("train", "forward"):
                blocks = []
                for _ in range(arguments.blocks + 1):
                    # Waiting threads spin for a while. The threads of one side must not slow down the other.
                    time.sleep(0.3)
                    theirs = [reference.step(phase) for _ in range(arguments.steps)][1:]
                    time.sleep(0.3)
                    mine = ask(number, phase, arguments.steps)[1:]
                    blocks.append((statistics.median(theirs), statistics.median(mine)))
                del blocks[0]
                theirs, mine = (statistics.median(times) for times in zip(*blocks))
                ratios = sorted(a / b for a, b in blocks)
                rates = " | ".join(f"{combination['batch'] / ms * 1e3:.1f}" for ms in (theirs, mine))
                print(f"| {preset} | {combination['name']} | {phase} | {theirs:.1f} | {mine:.1f} | {rates} "
                      f"| {statistics.median(ratios):.2f} | {ratios[0]:.2f} | {ratios[-1]:.2f} |", flush=True)
        ours.stdin.close()
        ours.wait()


if __name__ == "__main__":
    main()
