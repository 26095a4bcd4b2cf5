#!/usr/bin/env python3
"""Makes fixtures/psann: small seeded language models of psannlm, with logits, gradients and losses of training steps.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-psann.txt
    .venv/bin/python scripts/make_psann_fixtures.py

The layout is described in fixtures/README.md. The same versions make the same files on the same kind of CPU.
"""

import argparse
import json
import shutil
import warnings
from pathlib import Path

import torch
from psannlm.lm.models.registry import get_base
from psannlm.lm.models.sine import SineConfig
from safetensors.torch import save_file
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"vocab_size": 61, "d_model": 24, "n_layers": 2, "n_heads": 3, "d_mlp": 40, "positional_encoding": "rope"}
OPTIMIZER = {"learning_rate": 5e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.01, "warmup_steps": 4, "clip_norm": 1.0}
STEPS = 10
# Maximum difference of the losses of the same steps in f64. Some weights double every rounding error at each step, so
# that a correct implementation is as far away as a wrong one. Such a seed is replaced by the next.
CALM = 1e-4

# name, base, differences from SIZES, batch, time
FIXTURES = [
    ("respsann-rope", "respsann", {}, 2, 21),
    ("respsann-alibi", "respsann", {"positional_encoding": "alibi"}, 2, 21),
    ("respsann-sinusoidal", "respsann", {"positional_encoding": "sinusoidal", "sine": {"decay_mode": "none"}}, 2, 21),
    ("respsann-relu", "respsann", {"n_layers": 1, "n_heads": 4, "sine": {"decay_mode": "relu", "damp_init": 0.4}}, 1, 9),
    ("sgrpsann-long", "sgrpsann", {"k_fft": 16, "gate_strength": 0.7}, 2, 23),
    ("sgrpsann-short", "sgrpsann", {}, 2, 11),
    ("sgrpsann-odd", "sgrpsann", {"k_fft": 9, "positional_encoding": "alibi", "n_heads": 6}, 1, 9),
    ("waveresnet", "waveresnet", {}, 2, 21),
    ("waveresnet-wave", "waveresnet", {"wave_interleave": True, "wave_kernel_size": 5, "wave_dilation_growth": 2}, 2, 21),
    ("transformer-rope", "transformer", {}, 2, 21),
    ("transformer-alibi", "transformer", {"positional_encoding": "alibi", "n_heads": 2}, 2, 21),
    ("respsann-bounds", "respsann", {"sine": {
        "amp_init_std": 0.2, "freq_range": [0.8, 1.4], "amp_bounds": [0.9, 1.3], "freq_bounds": [None, 1.2],
        "damp_bounds": [0.5, None], "learnable": ["amplitude", "decay"]}}, 2, 21),
    ("respsann-frozen", "respsann", {"sine": {"trainable": False}}, 2, 21),
    ("sgrpsann-closed", "sgrpsann", {"k_fft": 16, "gate_strength": 0.0}, 2, 23),
]


def build(base, sizes):
    keywords = dict(sizes)
    if "sine" in keywords:
        keywords["sine"] = SineConfig(**keywords["sine"])
    return get_base(base)(**keywords)


def losses_of(model, inputs, targets):
    """Losses before each step of training, and after the last."""
    o = OPTIMIZER
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=o["learning_rate"], betas=(o["beta1"], o["beta2"]), eps=o["eps"], weight_decay=o["weight_decay"]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / o["warmup_steps"]))
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, inputs, targets)[1]
        losses.append(loss.detach())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), o["clip_norm"])
        optimizer.step()
        schedule.step()
    losses.append(loss_of(model, inputs, targets)[1].detach())
    return torch.stack(losses)


def loss_of(model, inputs, targets):
    logits = model(inputs)
    return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def made(base, overrides, batch, time, seed):
    """Configuration, weights and golden values; None if the training is not calm."""
    torch.manual_seed(seed)
    sizes = SIZES | overrides
    model = build(base, sizes)
    with torch.no_grad():
        # Scales, masks and biases start with equal elements, which would hide one in the wrong place.
        for parameter in model.parameters():
            spread = 0.6 if parameter.dim() == 1 else 1.5 / parameter[0].numel() ** 0.5
            parameter.add_(spread * torch.randn_like(parameter))
    weights = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    ids = torch.randint(sizes["vocab_size"], (batch, time + 1))
    inputs, targets = ids[:, :-1], ids[:, 1:]

    logits, loss = loss_of(model, inputs, targets)
    loss.backward()
    golden = {"ids": ids, "logits": logits.detach(), "loss": loss.detach().reshape(1)}
    golden |= {f"grad.{key}": value.grad.clone() for key, value in model.named_parameters() if value.requires_grad}
    golden["losses"] = losses_of(model, inputs, targets)

    double = build(base, sizes)
    double.load_state_dict(weights)
    apart = (losses_of(double.double(), inputs, targets) - golden["losses"]).abs().max().item()
    return ({"base": base, **sizes}, weights, golden) if apart <= CALM else None


def make(out, name, base, overrides, batch, time, seed):
    config, weights, golden = next(filter(None, (made(base, overrides, batch, time, seed + 100 * i) for i in range(10))))
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (folder / "optimizer.json").write_text(json.dumps(OPTIMIZER, indent=1, sort_keys=True) + "\n")
    save_file(weights, folder / "model.safetensors")
    save_file({key: value.contiguous() for key, value in golden.items()}, folder / "golden.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "fixtures" / "psann")
    parser.add_argument("--seed", type=int, default=160, help="other seeds make other weights of the same shapes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for number, fixture in enumerate(FIXTURES):
        make(arguments.out, *fixture, arguments.seed + number)
        print(fixture[0])


if __name__ == "__main__":
    main()
