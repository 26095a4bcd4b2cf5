#!/usr/bin/env python3
"""Writes fixtures/gguf: checkpoints of fixtures/generation and fixtures/moe as GGUF files, by the package `gguf` of llama.cpp.

The names of tensors and of keys are those of the package. The order of rows, the offset of norms and the factors of RoPE are those
of llama.cpp's convert_hf_to_gguf.py. The weights stay f32, so that the outputs of the checkpoints in golden.safetensors are also
those of the files.

    .venv/bin/pip install -r scripts/requirements-gguf.txt
    .venv/bin/python scripts/make_gguf_fixtures.py
"""

import argparse
import json
import sys
from pathlib import Path

import gguf
import numpy
from safetensors.numpy import load_file

# Last, because the folder has a file with the name of a package.
sys.path.append(str(Path(__file__).resolve().parent / "peers"))
import gguf_file

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SELECTED = {
    "generation/llama-mqa-llama3": gguf.MODEL_ARCH.LLAMA,
    "generation/qwen3-gqa-tied": gguf.MODEL_ARCH.QWEN3,
    "generation/gemma3-short-window": gguf.MODEL_ARCH.GEMMA3,
    "moe/mixtral-8x2": gguf.MODEL_ARCH.LLAMA,
    "moe/qwen3-8x2": gguf.MODEL_ARCH.QWEN3MOE,
}


def interleaved(weights, heads):
    """The halves of each head in turns."""
    return weights.reshape(heads, 2, -1, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def write(folder, arch, out):
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    experts = config.get("num_experts") or config.get("num_local_experts")
    rope = gguf_file.full_rope(config)

    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[arch])
    gguf_file.add_sizes(writer, arch, config, gguf.LlamaFileType.ALL_F32)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        if "moe_intermediate_size" in config:
            writer.add_expert_feed_forward_length(config["moe_intermediate_size"])

    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    stacks = {}
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.astype(numpy.float32)
        if arch == gguf.MODEL_ARCH.LLAMA and ".q_proj." in name:
            tensor = interleaved(tensor, heads)
        if arch == gguf.MODEL_ARCH.LLAMA and ".k_proj." in name:
            tensor = interleaved(tensor, kv_heads)
        if arch == gguf.MODEL_ARCH.GEMMA3 and name.endswith("norm.weight"):
            tensor = tensor + 1
        before, is_expert, after = name.partition(".experts.")
        if is_expert:
            number, matrix = after.split(".", 1)
            stacks.setdefault(f"{before}.experts.{matrix}", {})[int(number)] = tensor
            continue
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor)
    for name, parts in sorted(stacks.items()):
        stacked = numpy.stack([parts[number] for number in range(len(parts))])
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), stacked)
    if rope.get("rope_type") == "llama3":
        factors = gguf_file.rope_factors(rope, gguf_file.head_dim(config))
        writer.add_tensor(names.get_name("rope_freqs.weight", try_suffixes=(".weight",)) or "rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FIXTURES / "gguf", help="folder of the files")
    parser.add_argument("--fixtures", type=Path, default=FIXTURES, help="folder of the checkpoints")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, arch in SELECTED.items():
        write(args.fixtures / name, arch, args.out / f"{Path(name).name}.gguf")


if __name__ == "__main__":
    main()
