#!/usr/bin/env python3
"""Generates with llama.cpp, through the package llama-cpp-python, as a peer of candlepower: see src/guide/peers.md.

    python3 -m venv .venv && CMAKE_ARGS=-DGGML_NATIVE=ON .venv/bin/pip install llama-cpp-python gguf
    . .venv/bin/activate
    CANDLEPOWER_DTYPE=q4k CANDLEPOWER_ENGINE=tuned,peer:llama.cpp cargo bench --bench generation -- '^medium/'

It reads GGUF files. Of a shape with seeded weights, it writes such a file and removes it when it is loaded. Keys and values are
f16, as llama.cpp holds them by default.
"""

import gc
import importlib.metadata
import json
import os
import sys
import tempfile
import time

# This file has the name of the package that it runs.
sys.path.append(sys.path.pop(0))

import candlepower_peer
import gguf
import gguf_file
import llama_cpp
import numpy
from candlepower_peer import Memory, Unsupported

# Tokens that are computed together, as llama.cpp does by default.
BATCH = 512
# Most sequences of a context (LLAMA_MAX_SEQ).
MOST_SEQUENCES = 256


class LlamaCpp:
    context = None

    def describe(self, request):
        version = importlib.metadata.version("llama-cpp-python")
        return {"name": "llama.cpp", "version": f"llama-cpp-python {version}", "sequences": MOST_SEQUENCES}

    def load(self, request):
        if request["device"] != "cpu":
            raise Unsupported("the adapter runs on a CPU")
        self.threads = request["threads"]
        self.memory = Memory()
        model = request["model"]
        llama_cpp.llama_backend_init()
        if "gguf" in model:
            self.open(model["gguf"])
        elif "seeded" in model:
            config = json.loads(model["seeded"]["config"])
            if request["dtype"] not in gguf_file.PRECISIONS or config["model_type"] not in gguf_file.ARCHITECTURES:
                raise Unsupported(f"the adapter writes no {config['model_type']} in {request['dtype']}")
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "seeded.gguf")
                try:
                    gguf_file.write_seeded(path, config, request["dtype"], model["seeded"]["seed"])
                except ValueError as error:
                    raise Unsupported(str(error)) from error
                self.open(path)
        else:
            raise Unsupported("llama.cpp reads GGUF files: convert the model, and name path:<file>.gguf")
        # A collection of garbage in the middle of a step would be measured.
        gc.collect()
        gc.freeze()
        gc.disable()
        return {
            "dtype": request["dtype"],
            "device": "cpu",
            "threads": self.threads,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
        }

    def open(self, path):
        # The factors of RoPE are no weights.
        stored = [tensor for tensor in gguf.GGUFReader(path).tensors if not tensor.name.startswith("rope_")]
        self.parameters = sum(int(tensor.n_elements) for tensor in stored)
        self.weight_bytes = sum(int(tensor.n_bytes) for tensor in stored)
        del stored
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        # Otherwise pages are read in the first pass.
        params.use_mmap = False
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if self.model is None:
            raise RuntimeError("llama.cpp does not load the file")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def reset(self, request):
        if not candlepower_peer.is_greedy(request["sampling"]):
            raise Unsupported("the adapter chooses tokens by argmax only")
        self.empty(request["tokens"], request["sequences"])
        gc.collect()
        self.memory.begin()
        return {}

    def empty(self, tokens, sequences):
        """Makes the context empty, for sequences of so many tokens."""
        self.position, self.sequences, size = 0, sequences, (tokens, sequences)
        if self.context is not None and self.size == size:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
            return
        if self.context is not None:
            llama_cpp.llama_free(self.context)
        params = llama_cpp.llama_context_default_params()
        self.size, params.n_seq_max = size, sequences
        params.n_ctx = params.n_batch = tokens * sequences
        params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = self.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if self.context is None:
            raise RuntimeError("llama.cpp makes no context")

    def logits(self, request):
        ids, begin = request["ids"], request["from"]
        self.empty(len(ids), 1)
        with open(request["file"], "wb") as file:
            for start in range(0, len(ids), BATCH):
                part = ids[start : start + BATCH]
                batch = batch_of([part], start, max(begin - start, 0))
                self.decode(batch)
                llama_cpp.llama_batch_free(batch)
                for place in range(max(begin - start, 0), len(part)):
                    self.logits_of(place).tofile(file)
        return {}

    def decode(self, batch):
        code = llama_cpp.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")

    def logits_of(self, place):
        return numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, place), shape=(self.vocab_size,))

    def prefill(self, request):
        length = len(request["ids"]) // self.sequences
        prompts = [request["ids"][start : start + length] for start in range(0, len(request["ids"]), length)]
        return self.generate(prompts, 1)

    def step(self, request):
        return self.generate([[token] for token in self.last], request["count"])

    def generate(self, given, count):
        """The tokens of a step are known before the next one is begun."""
        tokens, times = [], []
        length = len(given[0])
        batch = batch_of(given, self.position, length - 1)
        started = time.perf_counter_ns()
        for number in range(count):
            if number > 0:
                for sequence, token in enumerate(self.last):
                    batch.token[sequence], batch.pos[sequence] = token, self.position
            self.decode(batch)
            self.position += length
            self.last = [int(self.logits_of(length * (sequence + 1) - 1).argmax()) for sequence in range(self.sequences)]
            tokens += self.last
            ended = time.perf_counter_ns()
            times.append(ended - started)
            started = ended
        llama_cpp.llama_batch_free(batch)
        cache_bytes = sum(llama_cpp.llama_state_seq_get_size(self.context, sequence) for sequence in range(self.sequences))
        return {"tokens": tokens, "ns": times, "cache_bytes": cache_bytes, "peak_bytes": self.memory.peak_bytes()}


def batch_of(sequences, position, begin):
    """Tokens of each sequence, the first at a position. Those from the index `begin` on have logits."""
    batch = llama_cpp.llama_batch_init(sum(map(len, sequences)), 0, 1)
    for sequence, tokens in enumerate(sequences):
        for index, token in enumerate(tokens):
            place = batch.n_tokens
            batch.token[place], batch.pos[place] = token, position + index
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = index >= begin
            batch.n_tokens += 1
    return batch


if __name__ == "__main__":
    candlepower_peer.serve(LlamaCpp())
