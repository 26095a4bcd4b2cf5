#!/usr/bin/env python3
"""Compares the tokenizers that candlepower makes from GGUF files with llama.cpp's and transformers', on 10,000 lines.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-real.txt
    PYTHON=.venv/bin/python scripts/real_models.sh
    .venv/bin/python scripts/check_tokenizers.py

The lines are a book, the sources of Python's standard library, words of 40 parts of Unicode, emoji with modifiers and joiners, and mixtures of spaces,
digits and punctuation. Writes the lines and their ids to target/real-models/token_ids.json, which a test of candlepower-core reads, and runs
that test. A line on which llama.cpp and transformers differ is counted and compared with llama.cpp's ids alone.
"""

import json
import os
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import llama_cpp
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
MODELS = Path(os.environ.get("CANDLEPOWER_REAL_MODELS", ROOT / "target" / "real-models"))
FILES = ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"]
# The first and the last letter of a part of each script.
SCRIPTS = [
    "az", "AZ", "àÿ", "āſ", "ǍȎ", "αω", "ΑΡ", "ая", "АЯ", "ԱՖ", "את", "ءي", "ܐܬ", "अह", "অহ", "ਅਸ", "અહ", "அஹ", "అహ", "ಅಹ", "അഹ", "กฮ",
    "ກຮ", "ཀཧ", "ကအ", "აჰ", "ሀፐ", "កអ", "ᠠᡂ", "ぁゖ", "ァヺ", "一龥", "가힣", "Ḁỹ", "𐌰𐍊", "𝐀𝟿", "ⓐⓩ", "①⑳", "Ａｚ", "ﬀﬆ",
]
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷", "❤️", "☎︎", "1️⃣", "🧑🏿‍🚀", "🫠", "🐈‍⬛"]
PIECES = [
    " ", "  ", "   ", "\t", "\u00a0", "\u3000", "\u200b", "\r", "0", "7", "12", "123", "1234", "3.14", "1e-9", "0x1F", "'s", "'T", "’ll", "...",
    "!?", "--", "—", "…", "«", "»", "#", "##", "//", "/*", "*/", "==", "=>", "<|", "|>", "<s>", "<|im_start|>", "<end_of_turn>", "{", "}", "\\n", "\\", "a", "The", "don't", "I'M",
    "é", "e\u0301", "ñ", "\u0300", "\ufeff", "\ufffd", "\u2028", "ß", "İ", "ſ",
]


def lines():
    """The same lines each time."""
    draw = random.Random(1)
    book = (ROOT / "fixtures" / "corpus" / "moby-dick.txt").read_text().splitlines()
    found = [line[:400] for line in book[:2500]]
    library = Path(sysconfig.get_path("stdlib"))
    code = [line for file in sorted(library.glob("*.py")) for line in file.read_text(errors="ignore").splitlines() if line.strip()]
    found += draw.sample(code, 2500)

    def word():
        first, last = map(ord, draw.choice(SCRIPTS))
        return "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 9)))

    while len(found) < 7500:
        found.append(draw.choice([" ", " ", ", ", "-", ""]).join(word() for _ in range(draw.randint(1, 10))))
    while len(found) < 10_000:
        found.append("".join(draw.choice([draw.choice(PIECES), draw.choice(EMOJI), word()]) for _ in range(draw.randint(1, 16))))
    return found


def of_file(file, texts):
    """Of each line, the ids and whether its text comes back from them, by transformers."""
    own = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    other = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ids, comes_back, differ = [], [], 0
    for text in texts:
        ids.append(own.tokenize(text.encode(), add_bos=False, special=True))
        with_other = other(text, add_special_tokens=False).input_ids
        differ += with_other != ids[-1]
        comes_back.append(other.decode(ids[-1], clean_up_tokenization_spaces=False) == text)
    print(f"{file.name}: llama.cpp and transformers differ in {differ} of {len(texts)} lines", file=sys.stderr)
    return {"file": file.name, "ids": ids, "comes_back": comes_back}


def main():
    files = [MODELS / name for name in FILES if (MODELS / name).exists()]
    if not files:
        sys.exit(f"error: no model in {MODELS}: scripts/real_models.sh fetches them")
    texts = lines()
    out = MODELS / "token_ids.json"
    out.write_text(json.dumps({"lines": texts, "files": [of_file(file, texts) for file in files]}))
    command = ["cargo", "test", "--package", "candlepower-core", "--lib", "--", "--nocapture", "token_ids_of_many_lines"]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
