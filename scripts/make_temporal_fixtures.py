#!/usr/bin/env python3
"""Makes fixtures/temporal: small seeded sequence backbones written in PyTorch, with outputs, gradients and training losses.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-fixtures.txt
    .venv/bin/python scripts/make_temporal_fixtures.py

The networks are in scripts/peers/backbones.py. fixtures/README.md describes the layout. The same versions make the same files
on the same kind of CPU. Attention, norms, convolutions, pooling, GELU, AdamW, clipping and the schedule are PyTorch's own, so
that the fixtures do not repeat the code that they test.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
# Last, because the folder has a file with the name of a package.
sys.path.append(str(ROOT / "scripts" / "peers"))
from backbones import Forecaster

SIZES = dict(
    features=5, dim=24, depth=3, heads=4, ff_mult=4, state_dim=10, state_kernel=4, conv_kernel=3, dilations=[1, 2],
    coarse_factor=4, cross_every=2, max_seq_len=32)
STEPS = 10
OPTIMIZER = dict(learning_rate=1e-3, weight_decay=0.01, beta1=0.9, beta2=0.95, clip_norm=1.0, cosine_steps=8)
# Name, architecture, sizes, batch, time, horizon, outputs. The seed of a fixture follows from its place, so new rows go to the
# end.
FIXTURES = [
    ("hybrid-transformer", "hybrid_transformer", {}, 2, 18, 5, 3),
    ("hybrid-transformer-wide-dilation", "hybrid_transformer", dict(
        depth=2, heads=2, conv_kernel=5, dilations=[1, 8]), 1, 11, 1, 1),
    ("omni-mixture", "omni_mixture", dict(depth=4, ff_mult=2), 2, 18, 5, 3),
    ("omni-mixture-whole-pools", "omni_mixture", dict(depth=3, ff_mult=1, coarse_factor=3, cross_every=1), 1, 15, 2, 3),
    ("state-space", "state_space", {}, 2, 18, 5, 3),
    ("state-space-short", "state_space", dict(depth=2, state_kernel=15, state_dim=32), 3, 7, 4, 2),
]


def make(out, name, architecture, overrides, batch, time, horizon, outputs, seed):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    sizes = SIZES | overrides
    model = Forecaster(architecture, sizes, horizon, outputs)
    with torch.no_grad():
        # Norms and biases start as ones and zeroes, which would hide one in the wrong place.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.2 / parameter[0].numel() ** 0.5)
    series, target = torch.randn(batch, time, sizes["features"]), torch.randn(batch, horizon, outputs)
    output = model(series)
    loss = nn.functional.mse_loss(output, target)
    loss.backward()
    config = {"architecture": architecture, "sizes": sizes, "horizon": horizon, "outputs": outputs, "optimizer": OPTIMIZER}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_file({name: value.detach().contiguous() for name, value in model.named_parameters()}, folder / "model.safetensors")
    golden = {"series": series, "target": target, "output": output.detach(), "loss": loss.detach().reshape(1)}
    golden |= {f"grad.{name}": value.grad.clone().contiguous() for name, value in model.named_parameters()}
    golden |= train(model, series, target)
    save_file({name: value.contiguous() for name, value in golden.items()}, folder / "golden.safetensors")


def train(model, series, target):
    """Losses before each of the steps on one batch and after the last, and the norms of the gradients before clipping."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=OPTIMIZER["learning_rate"], weight_decay=OPTIMIZER["weight_decay"],
        betas=(OPTIMIZER["beta1"], OPTIMIZER["beta2"]))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=OPTIMIZER["cosine_steps"])
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(series), target)
        loss.backward()
        losses.append(loss.detach())
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER["clip_norm"]))
        optimizer.step()
        schedule.step()
    losses.append(nn.functional.mse_loss(model(series), target).detach())
    return {"losses": torch.stack(losses), "norms": torch.stack(norms)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "fixtures" / "temporal")
    parser.add_argument("--only", help="make the fixture of this name and leave the others as they are")
    parser.add_argument("--seed", type=int, default=80, help="other seeds make other weights of the same shapes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if arguments.only not in {None, *(fixture[0] for fixture in FIXTURES)}:
        parser.error(f"--only {arguments.only}: no fixture has this name")
    for number, fixture in enumerate(FIXTURES):
        if arguments.only not in {None, fixture[0]}:
            continue
        make(arguments.out, *fixture, arguments.seed + number)
        print(fixture[0])


if __name__ == "__main__":
    main()
