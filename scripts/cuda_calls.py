#!/usr/bin/env python3
"""Counts the calls of a decode step to a CUDA device: kernel launches, products, copies and allocations per token.

    eval "$(scripts/cuda-simulated.sh target/simulated)"
    cargo build --release --features cuda
    python3 scripts/cuda_calls.py synthetic:llama-3.2-1b synthetic:qwen3-1.7b synthetic:gemma3-1b

The counts depend on the program and on Candle, not on the device. They are taken on the simulated device, which computes nothing
here by default. A model runs twice, the second time with 32 more tokens, and the difference is divided by 32. `--kernels` lists the kernels.
"""

import argparse
import os
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

TOKENS = (2, 34)
KINDS = ["kernels", "products", "copies to the device", "copies from the device", "allocations"]


def calls(program, model, engine, tokens, idle):
    with tempfile.TemporaryDirectory() as folder:
        counted = Path(folder, "calls")
        environment = os.environ | {"SIMULATED_CUDA_CALLS": str(counted)} | ({"SIMULATED_CUDA_IDLE": "1"} if idle else {})
        command = [program, "run", "--device", "cuda:0", "--model", model, "--engine", engine, "--prompt-tokens", "16",
                   "--max-new-tokens", str(tokens), "--warmup", "0", "--trials", "1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode or not counted.exists():
            reason = done.stderr.strip() or "the device was not the simulated one"
            raise SystemExit(f"error: {model}: {reason}")
        lines = (line.split("\t") for line in counted.read_text().splitlines())
        return Counter({name: int(times) for times, name in lines})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="as CANDLEPOWER_MODELS names them")
    parser.add_argument("--engine", default="stock", help="stock or tuned")
    parser.add_argument("--program", default="target/release/candlepower")
    parser.add_argument("--compute", action="store_true", help="run the kernels too; mixtures of experts depend on their results")
    parser.add_argument("--kernels", action="store_true", help="print the number of launches of each kernel")
    arguments = parser.parse_args()
    print("|".join(["", " model ", *(f" {kind} " for kind in KINDS), ""]))
    print("|" + "---|" + "---:|" * len(KINDS))
    for model in arguments.models:
        few, many = (calls(arguments.program, model, arguments.engine, tokens, not arguments.compute) for tokens in TOKENS)
        each = {name: (many[name] - few[name]) / (TOKENS[1] - TOKENS[0]) for name in many}
        kernels = {name.split()[1]: times for name, times in each.items() if name.startswith("kernel ")}
        shares = [sum(kernels.values()), *(each.get(name, 0) for name in ["product", "copy to the device",
                                                                         "copy from the device", "allocation"])]
        print("|".join(["", f" {model} ", *(f" {share:.0f} " for share in shares), ""]))
        if arguments.kernels:
            for name, times in sorted(kernels.items(), key=lambda kernel: -kernel[1]):
                if times:
                    print(f"{times:8.1f}  {name}")


if __name__ == "__main__":
    main()
