#!/usr/bin/env python3
"""Writes the weights of a GGUF file as a folder of safetensors in f32, beside the file and with its name.

transformers reads the file and dequantises it, so that its models, candlepower's and llama.cpp's run the same weights.

    .venv/bin/pip install -r scripts/requirements-real.txt
    .venv/bin/python scripts/gguf_to_safetensors.py target/real-models/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    file = Path(sys.argv[1])
    folder = file.with_suffix("")
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # transformers saves no model that it has dequantised, but does save one with the same weights.
    plain = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    del plain.config.quantization_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    print(folder)


if __name__ == "__main__":
    main()
