#!/usr/bin/env python3
"""Writes fixtures/gguf: checkpoints of fixtures/generation and fixtures/moe as GGUF files, by the package `gguf` of llama.cpp.

The names of tensors and of keys are those of the package. The order of rows, the offset of norms and the factors of RoPE are those
of llama.cpp's convert_hf_to_gguf.py. The weights stay f32, so that the outputs of the checkpoints in golden.safetensors are also
those of the files.

It also writes fixtures/gguf-formats: a file with random weights in each format that Candle lacks, and golden.safetensors with the
first and the last row of each matrix as the package dequantises them.

    .venv/bin/pip install -r scripts/requirements-gguf.txt
    .venv/bin/python scripts/make_gguf_fixtures.py

With --llama-cpp, it lets llama.cpp's converter write the checkpoints of the other families instead, with the packages of
requirements-real.txt. The sources of llama-cpp-python contain llama.cpp in the folder vendor:

    .venv/bin/pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36
    llama=llama_cpp_python-0.3.36/vendor/llama.cpp
    PYTHONPATH=$llama/gguf-py .venv/bin/python scripts/make_gguf_fixtures.py --llama-cpp $llama
"""

import argparse
import json
import sys
from pathlib import Path

import gguf
import numpy
from gguf import GGMLQuantizationType as Format
from safetensors.numpy import load_file, save_file

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
    "moe/qwen2-8x2": gguf.MODEL_ARCH.QWEN2MOE,
    "moe/gpt-oss-8x2": gguf.MODEL_ARCH.GPT_OSS,
}
# Checkpoints of the families whose files the converter writes.
CONVERTED = [
    "mistral-full", "granite-tied", "granite-biases-untied", "smollm3-tied", "smollm3-untied", "olmo2-mha", "olmo2-gqa",
    "gemma2-long-window", "gemma2-short-window", "phi3-whole-heads", "phi3-longrope", "phi3-longrope-whole-heads",
    "glm4-half-heads", "glm4-no-bias",
]

# The formats that Candle lacks: that of rows that are not whole blocks, and the kind of file.
FORMATS = {
    Format.IQ4_NL: (Format.IQ4_NL, gguf.LlamaFileType.MOSTLY_IQ4_NL),
    Format.IQ4_XS: (Format.IQ4_NL, gguf.LlamaFileType.MOSTLY_IQ4_XS),
    Format.MXFP4: (Format.MXFP4, gguf.LlamaFileType.MOSTLY_MXFP4_MOE),
}
# A model of the smallest sizes with rows of one block of 256, and rows that are shorter.
SMALL = dict(
    model_type="qwen2", vocab_size=64, hidden_size=256, intermediate_size=32, num_hidden_layers=1, num_attention_heads=8,
    num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=True)


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
    writer.add_tokenizer_model("none")
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        if arch != gguf.MODEL_ARCH.LLAMA:
            writer.add_expert_feed_forward_length(config.get("moe_intermediate_size") or config["intermediate_size"])
        if arch == gguf.MODEL_ARCH.QWEN2MOE:
            writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if arch == gguf.MODEL_ARCH.GPT_OSS:
        writer.add_sliding_window(config["sliding_window"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])

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
        if arch == gguf.MODEL_ARCH.GPT_OSS and is_expert:
            # Outputs are the last dimension, and those of gate and up are in turns.
            matrix, kind = (after.removesuffix("_bias"), "bias" if after.endswith("_bias") else "weight")
            parts = [tensor[..., n::2] for n in range(2)] if matrix == "gate_up_proj" else [tensor]
            for own, part in zip(["gate_proj", "up_proj"] if len(parts) > 1 else [matrix], parts):
                part = numpy.ascontiguousarray(part if kind == "bias" else part.swapaxes(1, 2))
                writer.add_tensor(names.get_name(f"{before}.experts.{own}") + f".{kind}", part)
            continue
        if is_expert:
            number, matrix = after.split(".", 1)
            stacks.setdefault(f"{before}.experts.{matrix}", {})[int(number)] = tensor
            continue
        # llama.cpp holds a matrix of one row as a vector.
        tensor = tensor[0] if name.endswith("shared_expert_gate.weight") else tensor
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(f"{own}.weight" if name.endswith(".sinks") else own, tensor)
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


def convert(llama_cpp, folder, out):
    """Lets llama.cpp write a checkpoint. The checkpoint has no tokenizer, so the file states that it has none."""
    sys.path.insert(0, str(llama_cpp))
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    config = ModelBase.load_hparams(folder, False)
    kind = get_model_class(get_model_architecture(config, ModelType.TEXT))

    class WithoutTokenizer(kind):
        model_arch = kind.model_arch

        def set_vocab(self):
            self.gguf_writer.add_tokenizer_model("none")
            self.gguf_writer.add_vocab_size(config["vocab_size"])

    WithoutTokenizer(folder, gguf.LlamaFileType.ALL_F32, out).write()


def random_blocks(random, shape, form):
    """The bytes of a random matrix, whose weights are around 0.03 in size."""
    block, size = gguf.GGML_QUANT_SIZES[form]
    blocks = random.integers(256, size=(shape[0] * shape[1] // block, size), dtype=numpy.uint8)
    if form == Format.MXFP4:
        # The exponent of a block, as of 2^-8 to 2^-6.
        blocks[:, 0] = random.integers(119, 122, size=len(blocks), dtype=numpy.uint8)
    else:
        # The scale of a block, which multiplies numbers of up to 127, and in IQ4_XS these times up to 32.
        most = 127 * (32 if form == Format.IQ4_XS else 1)
        scales = (random.uniform(0.03, 0.09, size=len(blocks)) / most).astype(numpy.float16)
        blocks[:, :2] = scales[:, None].view(numpy.uint8)
    return blocks.reshape(shape[0], -1)


def write_format(form, out, golden):
    """Writes a file whose matrices have a format, and adds rows of them to golden values."""
    random, (narrow, file_type), arch = numpy.random.default_rng(form.value), FORMATS[form], gguf.MODEL_ARCH.QWEN2
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[arch])
    gguf_file.add_sizes(writer, arch, SMALL, file_type)
    # The other architectures have norms of queries and keys.
    for name, shape, _ in gguf_file.tensors(gguf.MODEL_ARCH.LLAMA, SMALL, form, form):
        if len(shape) == 1:
            writer.add_tensor(name, random.uniform(0.5, 1.5, size=shape).astype(numpy.float32))
            continue
        own = form if shape[1] % gguf.GGML_QUANT_SIZES[form][0] == 0 else narrow
        blocks = random_blocks(random, shape, own)
        writer.add_tensor(name, blocks, raw_dtype=own)
        golden[f"{form.name.lower()}.{name}"] = gguf.quants.dequantize(blocks, own)[[0, -1]]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FIXTURES / "gguf", help="folder of the files")
    parser.add_argument("--fixtures", type=Path, default=FIXTURES, help="folder of the checkpoints")
    parser.add_argument("--llama-cpp", type=Path, help="folder of llama.cpp, to write the files of its converter only")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.llama_cpp:
        for name in CONVERTED:
            convert(args.llama_cpp, args.fixtures / "generation" / name, args.out / f"{name}.gguf")
        return
    for name, arch in SELECTED.items():
        write(args.fixtures / name, arch, args.out / f"{Path(name).name}.gguf")
    formats, golden = args.out.parent / f"{args.out.name}-formats", {}
    formats.mkdir(parents=True, exist_ok=True)
    for form in FORMATS:
        write_format(form, formats / f"{form.name.lower()}.gguf", golden)
    save_file(golden, formats / "golden.safetensors")


if __name__ == "__main__":
    main()
