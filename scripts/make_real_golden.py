#!/usr/bin/env python3
"""Writes fixtures/real/golden.json: what trained models compute for real text, by transformers and llama.cpp.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-real.txt
    PYTHON=.venv/bin/python scripts/real_models.sh
    .venv/bin/python scripts/make_real_golden.py target/real-models

The models are those of scripts/real_models.sh; nothing of their weights is in the file. The texts are the beginnings of paragraphs of
fixtures/corpus/moby-dick.txt, which is in the public domain. transformers runs the dequantised weights in f32, so its results are
those of the weights. llama.cpp also rounds activations to 8 bits, as Candle does: `llama_cpp` has its results, which show how far
that rounding alone leads. Token ids are llama.cpp's, and must be those of transformers.
"""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
FILES = ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"]
PROMPTS, WORDS, NEW_TOKENS, TEXT_TOKENS = 20, 24, 16, 512


def texts():
    """The beginnings of long paragraphs from all parts of the book, and one long piece of it."""
    paragraphs = (ROOT / "fixtures" / "corpus" / "moby-dick.txt").read_text().splitlines()
    long = [paragraph for paragraph in paragraphs if len(paragraph.split()) > 2 * WORDS]
    chosen = long[:: len(long) // PROMPTS][:PROMPTS]
    return [" ".join(paragraph.split()[:WORDS]) for paragraph in chosen], "\n".join(paragraphs[:60])


def nll(logits, ids):
    """Mean negative log-likelihood of each token but the first."""
    logits = torch.tensor(numpy.asarray(logits, dtype=numpy.float64))[:-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).item()


class Transformers:
    def __init__(self, file):
        self.tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        self.model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        self.model.eval()

    def logits(self, ids):
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].numpy()

    def greedy(self, ids):
        """Tokens, and how far the best logit is above the second."""
        ids, tokens, gaps = list(ids), [], []
        cache = None
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                out = self.model(torch.tensor([ids if cache is None else ids[-1:]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            best, second = out.logits[0, -1].topk(2).values.tolist()
            tokens.append(int(out.logits[0, -1].argmax()))
            gaps.append(round(best - second, 4))
            ids.append(tokens[-1])
        return tokens, gaps


class LlamaCpp:
    def __init__(self, file):
        self.model = llama_cpp.Llama(str(file), n_ctx=1024, n_batch=1024, logits_all=True, verbose=False, n_threads=2)

    def ids(self, text):
        return self.model.tokenize(text.encode(), add_bos=True, special=False)

    def logits(self, ids):
        self.model.reset()
        self.model.eval(ids)
        return numpy.array(self.model.scores[: len(ids)])

    def greedy(self, ids):
        self.model.reset()
        self.model.eval(ids)
        tokens = []
        for _ in range(NEW_TOKENS):
            tokens.append(int(self.model.scores[self.model.n_tokens - 1].argmax()))
            self.model.eval(tokens[-1:])
        return tokens


def golden(file):
    exact, rounded = Transformers(file), LlamaCpp(file)
    prompts, long = texts()
    cases = []
    for text in prompts:
        ids = rounded.ids(text)
        if ids != exact.tokenizer(text).input_ids:
            raise SystemExit(f"{file.name}: the tokenizers disagree on {text!r}")
        tokens, gaps = exact.greedy(ids)
        cases.append({"text": text, "ids": ids, "greedy": tokens, "gaps": gaps, "llama_cpp": rounded.greedy(ids)})
        print(text, "->", exact.tokenizer.decode(tokens), file=sys.stderr)
    ids = rounded.ids(long)[:TEXT_TOKENS]
    logits = exact.logits(ids), rounded.logits(ids)
    return {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "prompts": cases,
        "ids": ids,
        "nll": nll(logits[0], ids),
        "llama_cpp": {"nll": nll(logits[1], ids), "largest_difference": float(abs(logits[0] - logits[1]).max())},
    }


def main():
    folder = Path(sys.argv[1])
    result = {
        "format": 1,
        "made_with": {name: version(name) for name in ["torch", "transformers", "llama-cpp-python"]},
        "models": [golden(folder / name) for name in FILES],
    }
    lines = json.dumps(result, ensure_ascii=False)
    for key in ['"made_with"', '"models"', '{"file"', '{"text"']:
        lines = lines.replace(key, f"\n{key}")
    (ROOT / "fixtures" / "real").mkdir(exist_ok=True)
    (ROOT / "fixtures" / "real" / "golden.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
