#!/usr/bin/env python3
"""Checks that llama.cpp computes the logits of transformers for each file of fixtures/gguf, so that the files mean to it what they
mean to candlepower. Ends with an error if they differ.

    .venv/bin/pip install -r scripts/requirements-real.txt
    .venv/bin/python scripts/check_gguf_llama_cpp.py
"""

import ctypes
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

# Last, because the folder has a file with the name of a package.
sys.path.append(str(Path(__file__).resolve().parent / "peers"))
import llama_cpp
import numpy
from llama_cpp import GGML_TYPE_F32
from safetensors.numpy import load_file

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
# Weights in a wrong place move logits by 0.04 or more. llama.cpp takes GELU, which Gemma has, from a table in f16.
TOLERANCE = 1e-4
TOLERANCE_OF_GELU = 2e-2


@llama_cpp.llama_log_callback
def quiet(*_):
    """llama.cpp describes every tensor."""


def peer():
    """The adapter of the peer, with keys and values in f32."""
    path = Path(__file__).resolve().parent / "peers" / "llama_cpp.py"
    spec = importlib.util.spec_from_file_location("peer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    default = llama_cpp.llama_context_default_params

    def exact():
        params = default()
        params.type_k = params.type_v = GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return params

    # llama.cpp makes contexts of whole 256 tokens, for which it would take LongRoPE's factors of longer sequences. The second
    # override ends the list.
    overrides = (llama_cpp.llama_model_kv_override * 2)()
    overrides[0].key = b"phi3.rope.scaling.original_context_length"
    overrides[0].tag, overrides[0].value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, 256
    default_model = llama_cpp.llama_model_default_params

    def short():
        params = default_model()
        params.kv_overrides = overrides
        return params

    llama_cpp.llama_context_default_params, llama_cpp.llama_model_default_params = exact, short
    return module.LlamaCpp


def main():
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    is_wrong, adapter = False, peer()
    for file in sorted((FIXTURES / "gguf").glob("*.gguf")):
        folder = next(path for kind in ["generation", "moe"] if (path := FIXTURES / kind / file.stem).is_dir())
        config, golden = json.loads((folder / "config.json").read_text()), load_file(folder / "golden.safetensors")
        llama = adapter()
        llama.load({"device": "cpu", "threads": 1, "model": {"gguf": str(file)}, "dtype": "f32"})
        far = 0.0
        for prompt in json.loads((folder / "golden.json").read_text())["prompts"]:
            ids, expected = prompt["ids"] + prompt["greedy"][:-1], golden[f"{prompt['name']}.logits"]
            with tempfile.NamedTemporaryFile() as out:
                llama.logits({"ids": ids, "from": 0, "file": out.name})
                found = numpy.fromfile(out.name, dtype=numpy.float32).reshape(expected.shape)
            # llama.cpp ignores the sliding window of Phi-3.
            window = config.get("sliding_window") if config["model_type"] == "phi3" else None
            far = max(far, float(numpy.abs(found - expected)[:window].max()))
        print(f"{file.stem}: the logits differ by at most {far:.2g}")
        is_wrong |= not far <= (TOLERANCE_OF_GELU if "hidden_activation" in config else TOLERANCE)
    sys.exit(is_wrong)


if __name__ == "__main__":
    main()
