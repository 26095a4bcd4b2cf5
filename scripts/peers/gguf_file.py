"""GGUF files from configurations of transformers, by the package `gguf` of llama.cpp."""

import math

import gguf
import numpy
from gguf import GGMLQuantizationType as Format

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
# Precisions of candlepower, the format of matrices, and the kind of file. `q4k` has the head, and an embedding that is also the
# head, in `q8_0`, as candlepower.
PRECISIONS = {
    "f32": (Format.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Format.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Format.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Format.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4k": (Format.Q4_K, gguf.LlamaFileType.MOSTLY_Q4_K_S),
}
# Floating-point formats: the number type, the bits that are random (sign and mantissa), and the exponent of 2^-6.
RANDOM_BITS = {
    Format.F32: (numpy.uint32, 0x807FFFFF, 0x3C800000),
    Format.F16: (numpy.uint16, 0x83FF, 0x2400),
    Format.BF16: (numpy.uint16, 0x807F, 0x3C80),
}


def full_rope(config):
    """The parameters of RoPE, of the full layers if sliding ones have others."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope.get("full_attention", rope)
    return {"rope_theta": config.get("rope_theta"), **rope}


def head_dim(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def rope_factors(rope, head_dim):
    """The numbers that Llama 3's scaling divides the frequencies by."""
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (2 * pair / head_dim)
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


def add_sizes(writer, arch, config, file_type):
    """Adds the keys of the metadata that describe the sizes of a model."""
    width = head_dim(config)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(full_rope(config)["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(file_type)
    if arch == gguf.MODEL_ARCH.LLAMA:
        writer.add_rope_dimension_count(width)
    if arch == gguf.MODEL_ARCH.GEMMA3:
        # Files do not hold the pattern of sliding layers and the base of their RoPE, which are the same in all models.
        layers = range(config["num_hidden_layers"])
        pattern = [f"{'sliding' if (n + 1) % 6 else 'full'}_attention" for n in layers]
        assert config.get("layer_types", pattern) == pattern and config.get("sliding_window_pattern", 6) == 6
        local = config.get("rope_parameters", {}).get("sliding_attention", {}).get("rope_theta")
        assert (local or config["rope_local_base_freq"]) == 10000
        writer.add_sliding_window(config["sliding_window"])


def tensors(arch, config, matrix, head):
    """Name, shape and format of each tensor of a dense model."""
    hidden, inner, width = config["hidden_size"], config["intermediate_size"], head_dim(config)
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    norm = Format.F32
    yield "token_embd.weight", (config["vocab_size"], hidden), head
    yield "output_norm.weight", (hidden,), norm
    if not config.get("tie_word_embeddings", arch == gguf.MODEL_ARCH.GEMMA3):
        yield "output.weight", (config["vocab_size"], hidden), head
    if full_rope(config).get("rope_type") == "llama3":
        yield "rope_freqs.weight", (width // 2,), norm
    for layer in range(config["num_hidden_layers"]):
        parts = {
            "attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q": (queries, hidden), "attn_k": (keys, hidden),
            "attn_v": (keys, hidden), "attn_output": (hidden, queries), "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
        }
        if arch != gguf.MODEL_ARCH.LLAMA:
            parts |= {"attn_q_norm": (width,), "attn_k_norm": (width,)}
        if arch == gguf.MODEL_ARCH.GEMMA3:
            parts |= {"post_attention_norm": (hidden,), "post_ffw_norm": (hidden,)}
        for name, shape in parts.items():
            yield f"blk.{layer}.{name}.weight", shape, matrix if len(shape) > 1 else norm


def random_bytes(random, shape, form):
    """The bytes of a random matrix, whose weights are around 0.02 in size. Blocks of whole numbers have one scale."""
    block, size = gguf.GGML_QUANT_SIZES[form]
    if form in RANDOM_BITS:
        number, mask, exponent = RANDOM_BITS[form]
        bits = random.integers(numpy.iinfo(number).max, size=shape, dtype=number, endpoint=True)
        return ((bits & number(mask)) | number(exponent)).view(numpy.uint8)
    made = random.integers(256, size=(shape[0], shape[1] // block, size), dtype=numpy.uint8)
    # The scale and, in Q4_K, the scale of the offsets, which centres the weights.
    scales = {Format.Q8_0: [2e-4], Format.Q4_K: [4e-5, 3e-4]}[form]
    made[..., : 2 * len(scales)] = numpy.array(scales, numpy.float16).view(numpy.uint8)
    return made.reshape(shape[0], -1)


def write_seeded(path, config, precision, seed):
    """Writes the shape of a configuration with random weights, and without a tokenizer."""
    arch = ARCHITECTURES[config["model_type"]]
    matrix, file_type = PRECISIONS[precision]
    head = Format.Q8_0 if matrix == Format.Q4_K else matrix
    all_tensors = list(tensors(arch, config, matrix, head))
    for name, shape, form in all_tensors:
        block = gguf.GGML_QUANT_SIZES[form][0]
        if shape[-1] % block:
            raise ValueError(f"{name} has rows of {shape[-1]} weights, which are no whole blocks of {block}")
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    add_sizes(writer, arch, config, file_type)
    writer.add_tokenizer_model("none")
    for name, shape, form in all_tensors:
        block, size = gguf.GGML_QUANT_SIZES[form]
        in_bytes = (*shape[:-1], shape[-1] // block * size)
        writer.add_tensor_info(name, in_bytes, numpy.dtype(numpy.uint8), math.prod(in_bytes), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = numpy.random.default_rng(seed)
    for name, shape, form in all_tensors:
        if name == "rope_freqs.weight":
            data = rope_factors(full_rope(config), head_dim(config)).view(numpy.uint8)
        elif len(shape) == 1:
            data = numpy.ones(shape, numpy.float32).view(numpy.uint8)
        else:
            data = random_bytes(random, shape, form)
        writer.write_tensor_data(data)
    writer.close()
