#!/usr/bin/env python3
"""Runs training steps and forward passes in PyTorch, as a peer of candlepower: see src/guide/peers.md.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-psann.txt
    . .venv/bin/activate
    CANDLEPOWER_ENGINE=tuned,peer:torch cargo bench --bench training --bench sweep

Language models are those of psannlm, and networks for series those of backbones.py. Attention is
`scaled_dot_product_attention`, and AdamW is fused. --compile runs the models through torch.compile.
"""

import argparse
import gc
import importlib.metadata
import math
import sys
import time
import warnings

# A file beside this one has the name of a package.
sys.path.append(sys.path.pop(0))

import backbones
import candlepower_peer
import torch
from candlepower_peer import TorchMemory, Unsupported
from torch import nn

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
DEVICES = {"cpu": "cpu", "metal": "mps"}
# The keys of psannlm's configuration that only one base has.
OF_BASE = {
    "sgrpsann": ("k_fft", "gate_init", "gate_strength"),
    "waveresnet": ("wave_interleave", "wave_kernel_size", "wave_dilation_growth"),
}


class Attention(nn.Module):
    """nn.MultiheadAttention, which calls `scaled_dot_product_attention` if no weights are asked for."""

    def __init__(self, dim, heads):
        super().__init__()
        self.inner = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x, over):
        return self.inner(x, over, over, need_weights=False)[0]


class RotaryAttention(backbones.RotaryAttention):
    """Computes the angles once for each length."""

    dropout = 0.0
    angles = None

    def forward(self, x):
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if self.angles is None:
            width = query.shape[-1]
            frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=x.device).float() / width)
            angles = torch.outer(torch.arange(x.shape[1], device=x.device).float(), frequencies)
            angles = torch.cat([angles, angles], -1)
            self.angles = angles.cos().to(query.dtype), angles.sin().to(query.dtype)
        cos, sin = self.angles

        def rotate(heads):
            turned = torch.stack([-heads[..., 1::2], heads[..., 0::2]], -1).flatten(-2)
            return heads * cos + turned * sin

        dropout = self.dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(rotate(query), rotate(key), value, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).flatten(-2))


backbones.Attention, backbones.RotaryAttention = Attention, RotaryAttention


def set_dropout(model, rate):
    """Sets the rate of dropout."""
    for module in model.modules():
        match module:
            case nn.Dropout():
                module.p = rate
            case Attention():
                module.inner.dropout = rate
            case RotaryAttention():
                module.dropout = rate


class Language:
    """A language model of psannlm on random tokens."""

    has_loss = True

    def __init__(self, given, device):
        try:
            from psannlm.lm.models.registry import get_base
            from psannlm.lm.models.sine import SineConfig
        except ImportError as error:
            raise ImportError(f"{error}: pip install psannlm") from error
        config = dict(given["config"])
        base = config.pop("base")
        for name, keys in OF_BASE.items():
            for key in keys if name != base else ():
                config.pop(key)
        sine = SineConfig(**config.pop("sine"))
        if base != "transformer":
            config["sine"] = sine
        # psannlm warns that the names of bases are old.
        warnings.simplefilter("ignore")
        self.model = get_base(base)(**config, attn_impl="sdpa").to(device)
        self.model.enable_gradient_checkpointing(given["checkpointing"])
        self.shape = (given["rows"], given["tokens_per_row"] + 1)
        self.vocab_size, self.device = config["vocab_size"], device

    def rate(self, optimizer, step):
        """Linear warm-up, then half a cosine."""
        warm_up, end = optimizer["warmup_steps"], optimizer["decay_steps"]
        if step < warm_up:
            return (step + 1) / warm_up
        if end is None or end <= warm_up:
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * min((step + 1 - warm_up) / (end - warm_up), 1.0)))

    def draw(self):
        return torch.randint(self.vocab_size, self.shape, device=self.device)

    def loss(self, call, ids):
        return nn.functional.cross_entropy(call(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())

    def forward(self, call, ids):
        return self.loss(call, ids)


class Series:
    """A network of the sweep on random series."""

    has_loss = False

    def __init__(self, given, device):
        if given["checkpointing"] or given["accumulate"] > 1:
            raise Unsupported("the adapter's steps have one batch and no checkpointing")
        sizes, horizon, outputs = given["sizes"], given["horizon"], given["outputs"]
        self.model = backbones.Forecaster(given["architecture"], sizes, horizon, outputs).to(device)
        set_dropout(self.model, given["dropout"])
        self.series = (given["batch"], given["window"], sizes["features"])
        self.after, self.device = (given["batch"], horizon, outputs), device

    def rate(self, optimizer, step):
        """Half a cosine, which rises again."""
        steps = optimizer["cosine_steps"]
        return 1.0 if steps is None else 0.5 * (1.0 + math.cos(math.pi * step / steps))

    def draw(self):
        return torch.randn(self.series, device=self.device), torch.randn(self.after, device=self.device)

    def loss(self, call, batch):
        series, after = batch
        return nn.functional.mse_loss(call(series).float(), after)

    def forward(self, call, batch):
        return call(batch[0])


class TorchTraining:
    def __init__(self, is_compiled):
        self.is_compiled = is_compiled

    def describe(self, request):
        mode = "compiled" if self.is_compiled else "eager"
        try:
            psannlm = f", psannlm {importlib.metadata.version('psannlm')}"
        except importlib.metadata.PackageNotFoundError:
            psannlm = ""
        return {"name": "torch", "version": f"{torch.__version__}{psannlm}, {mode}"}

    def load(self, request):
        # The model before goes first, so that the two are not in memory together.
        self.work = self.call = self.optimizer = None
        gc.collect()
        torch.set_num_threads(request["threads"])
        torch.set_flush_denormal(True)
        name = request["device"]
        self.device = torch.device(DEVICES.get(name) or name.replace("cuda", "cuda:"))
        if request["dtype"] not in DTYPES:
            raise Unsupported(f"the adapter computes in {' and '.join(DTYPES)}, not in {request['dtype']}")
        self.dtype = DTYPES[request["dtype"]]
        self.memory = TorchMemory(self.device)
        (kind, given), = request["model"].items()
        kinds = {"language": Language, "series": Series}
        if kind not in kinds:
            raise Unsupported(f"the adapter has no model {kind}")
        torch.manual_seed(given["seed"])
        self.work = kinds[kind](given, self.device)
        model = self.work.model
        is_training = request["work"] == "train"
        model.train(is_training)
        # Weights of trainings and of language models are f32, and the computation casts them.
        self.casts = self.dtype != torch.float32 and (is_training or kind == "language")
        if not is_training and not self.casts:
            model.to(self.dtype)
        model.requires_grad_(is_training)
        self.call = torch.compile(model, dynamic=False) if self.is_compiled else model
        self.steps, self.given = 0, given["optimizer"]
        if is_training:
            given = self.given
            self.optimizer = torch.optim.AdamW(
                model.parameters(), lr=given["learning_rate"], betas=(given["beta1"], given["beta2"]),
                weight_decay=given["weight_decay"], eps=given["eps"], fused=True)
        # A collection of garbage in the middle of a step would be measured.
        gc.collect()
        gc.disable()
        parameters = list(model.parameters())
        return {
            "dtype": request["dtype"],
            "device": name,
            "threads": torch.get_num_threads(),
            "parameters": sum(tensor.numel() for tensor in parameters),
            "weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in parameters),
        }

    def train(self, request):
        return self.run(request["count"], self.train_step, True)

    def forward(self, request):
        return self.run(request["count"], self.forward_step, self.work.has_loss)

    def train_step(self, batch):
        self.optimizer.zero_grad(set_to_none=True)
        with self.cast():
            loss = self.work.loss(self.call, batch)
        loss.backward()
        if self.given["clip_norm"] is not None:
            nn.utils.clip_grad_norm_(self.work.model.parameters(), self.given["clip_norm"], foreach=True)
        self.optimizer.step()
        return loss.detach()

    def forward_step(self, batch):
        with torch.inference_mode(), self.cast():
            return self.work.forward(self.call, batch)

    def cast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.casts)

    def run(self, count, step, has_losses):
        """Each step ends when its result is known. Drawing batches is not timed."""
        times, losses = [], []
        is_cuda = self.device.type == "cuda"
        self.memory.begin()
        for _ in range(count):
            batch = self.work.draw()
            if self.optimizer is not None:
                rate = self.given["learning_rate"] * self.work.rate(self.given, self.steps)
                self.optimizer.param_groups[0]["lr"] = rate
            elif self.dtype != torch.float32 and not self.casts:
                batch = tuple(part.to(self.dtype) for part in batch)
            if is_cuda:
                torch.cuda.synchronize(self.device)
            started = time.perf_counter_ns()
            result = step(batch)
            if is_cuda:
                torch.cuda.synchronize(self.device)
            loss = result.item() if has_losses else None
            times.append(time.perf_counter_ns() - started)
            self.steps += 1
            if has_losses:
                # JSON has no number that is not finite.
                losses.append(loss if math.isfinite(loss) else None)
        return {"ns": times, "losses": losses, "peak_bytes": self.memory.peak_bytes()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="run the models through torch.compile")
    candlepower_peer.serve(TorchTraining(parser.parse_args().compile))


if __name__ == "__main__":
    main()
