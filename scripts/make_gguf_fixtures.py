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
import math
from pathlib import Path

import gguf
import numpy
from safetensors.numpy import load_file

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


def rope_factors(rope, theta, head_dim):
    """The numbers that Llama 3's scaling divides the frequencies by."""
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / head_dim)
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return numpy.array(factors, dtype=numpy.float32)


def write(folder, arch, out):
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    experts = config.get("num_experts") or config.get("num_local_experts")
    rope = config["rope_parameters"]
    full = rope.get("full_attention", rope)

    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if arch == gguf.MODEL_ARCH.LLAMA:
        writer.add_rope_dimension_count(head_dim)
    if arch == gguf.MODEL_ARCH.GEMMA3:
        # Files do not hold the pattern of sliding layers and the base of their RoPE, which are the same in all models.
        layers = range(config["num_hidden_layers"])
        assert config["layer_types"] == [f"{'sliding' if (n + 1) % 6 else 'full'}_attention" for n in layers]
        assert rope["sliding_attention"]["rope_theta"] == 10000
        writer.add_sliding_window(config["sliding_window"])
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
    if full.get("rope_type") == "llama3":
        factors = rope_factors(full, full["rope_theta"], head_dim)
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
