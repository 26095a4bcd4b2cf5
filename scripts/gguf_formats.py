#!/usr/bin/env python3
"""Prints a table of one model in each file type that llama.cpp's quantiser writes: speed, perplexity and divergence.

    PYTHON=.venv/bin/python scripts/real_models.sh
    cargo build --release
    . .venv/bin/activate
    scripts/gguf_formats.py target/real-models/SmolLM2-135M-Instruct.Q4_1.gguf [TYPE ...]
    scripts/gguf_formats.py src/core/model/shapes/llama-3.2-1b.json F16 Q8_0 ...

Needs the packages of scripts/requirements-real.txt. The machine must be idle for one or two minutes for each type; scores follow, which need
no idle machine. The weights of the file are quantised again: F32 has those of the file, and all others begin with them. A configuration gets
seeded weights in F16. `tuned`, llama.cpp and `stock` generate in turns (`candlepower standings`), after prompts that suit the slowest; then the
first two alone, after longer ones, which gives their prefill. `tuned` and llama.cpp then score the first
20,000 tokens or so of fixtures/corpus/moby-dick.txt in windows of 512 (`candlepower perplexity`); the divergence is that from F32. Seeded
weights have no scores. BUDGET_S is the time of the generations of one type (default: 40). Files and speeds that target/gguf-formats has are
not made again.
"""

import ctypes
import json
import os
import pathlib
import subprocess
import sys

import llama_cpp

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Last, because the folder has a file with the name of a package.
sys.path.append(str(ROOT / "scripts" / "peers"))
import gguf_file

PROGRAM = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "candlepower"
OUT = ROOT / "target" / "gguf-formats"
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q5_K_M", "Q5_K_S", "Q4_1", "Q4_0", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS"]
TYPES += ["Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"]
TEXT_BYTES = 80_000
ENGINES = ["tuned", "peer:llama.cpp", "stock"]
HEAD = ["type", "MB", "decode tok/s", "llama.cpp", "stock", "prompt", "prefill tok/s", "llama.cpp", "stock", "time of llama.cpp", "time of stock"]
HEAD += ["MBU", "peak MB", "llama.cpp", "stock", "perplexity", "llama.cpp", "KL", "llama.cpp"]


def seeded(config):
    """A file with seeded weights. Written once."""
    file = OUT / f"{config.stem}.F16.gguf"
    if not file.exists():
        temporary = file.with_suffix(".tmp")
        gguf_file.write_seeded(temporary, json.loads(config.read_text()), "f16", seed=0)
        temporary.rename(file)
    return file


def quantised(source, kind):
    """The file in a type. Written once."""
    file = OUT / f"{source.stem.rsplit('.', 1)[0]}-{kind}.gguf"
    if not file.exists():
        params = llama_cpp.llama_model_quantize_default_params()
        prefix = "LLAMA_FTYPE_ALL_" if kind == "F32" else "LLAMA_FTYPE_MOSTLY_"
        params.ftype, params.allow_requantize = getattr(llama_cpp, prefix + kind), True
        temporary = file.with_suffix(".tmp")
        if llama_cpp.llama_model_quantize(str(source).encode(), str(temporary).encode(), ctypes.byref(params)) != 0:
            sys.exit(f"error: llama.cpp did not quantise {source} to {kind}")
        temporary.rename(file)
    return file


def run(*arguments):
    """The output of candlepower. A peer or an engine that fails leaves the others."""
    return subprocess.run([PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, text=True).stdout


def speeds(file, engines):
    """The records of generations, by engine."""
    name = f"{file.stem}-{len(engines)}"
    records, kept = OUT / "records" / name / "records.jsonl", OUT / f"{name}.jsonl"
    if not kept.exists():
        records.unlink(missing_ok=True)
        os.environ |= {"CANDLEPOWER_OUT": str(OUT / "records"), "CANDLEPOWER_RUN": name}
        budget = os.environ.get("BUDGET_S", "40")
        run("standings", "--models", file, "--engine", ",".join(engines), "--budget", f"{budget}s")
        # A run that was stopped has no such file.
        records.rename(kept)
    lines = map(json.loads, kept.read_text().splitlines())
    return {line["subject"]["engine"]: line for line in lines if line["measures"] and line["measures"]["kind"] == "generation"}


def scores(file, text, reference):
    """Perplexities of tuned and llama.cpp, and their divergences. Empty without a reference."""
    if reference is None:
        return [""] * 4
    report = json.loads(run("perplexity", text, "--model", file, "--engine", "tuned,peer:llama.cpp", "--seq-len", 512, "--stride", 512,
                            "--reference", "tuned-f32", "--reference-model", reference, "--json") or "{}")
    scored = {subject["id"].split("/")[-1].split("-")[0]: subject for subject in report.get("subjects", [])}
    figures = [scored.get(engine) for engine in ("tuned", "llama.cpp")]
    perplexities = [f"{one['perplexity']:.3f}" if one else "" for one in figures]
    return perplexities + [f"{one['divergence']['kl_mean']:.4f}" if one and one["divergence"] else "" for one in figures]


def row(file, kind, found, alone, text, reference):
    """The row of a type, whose generations are known, also those without stock. Scores it."""
    engines = [found.get(engine) for engine in ("tuned", "llama.cpp", "stock")]
    figure = lambda value: f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    measure = lambda name, engines=engines: [figure(engine["measures"][name]) if engine else "" for engine in engines]
    pair = [alone.get(engine) for engine in ("tuned", "llama.cpp")]
    prompt = str(pair[0]["measures"]["prompt_tokens"]) if pair[0] else ""
    megabytes = [f"{engine['measures']['peak_bytes'] / 1e6:.0f}" if engine else "" for engine in engines]
    ratios = {}
    for engine in filter(None, engines):
        for ratio in engine["ratios"]:
            other = ratio["to"].split("/")[-1]
            ratios[engine["subject"]["engine"], other.startswith("tuned")] = ratio

    def over_tuned(engine):
        """The ratio of the times, and its interval."""
        ratio = ratios.get((engine, True))
        return f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""

    mbu = engines[0] and engines[0]["measures"]["mbu"]
    return [kind, f"{file.stat().st_size / 1e6:.0f}", *measure("decode_tokens_per_s"), prompt,
            *measure("prefill_tokens_per_s", [*pair, engines[2]]),
            over_tuned("llama.cpp"), over_tuned("stock"), f"{mbu:.0%}" if mbu else "", *megabytes, *scores(file, text, reference)]


def main():
    source, kinds = pathlib.Path(sys.argv[1]), sys.argv[2:] or TYPES
    OUT.mkdir(parents=True, exist_ok=True)
    text = OUT / "text.txt"
    text.write_bytes((ROOT / "fixtures" / "corpus" / "moby-dick.txt").read_bytes()[:TEXT_BYTES].rsplit(b" ", 1)[0])
    is_shape = source.suffix == ".json"
    source = seeded(source) if is_shape else source
    reference = None if is_shape else quantised(source, "F32")
    for kind in kinds:
        quantised(source, kind)
    all_speeds = {kind: [speeds(quantised(source, kind), engines) for engines in (ENGINES, ENGINES[:2])] for kind in kinds}
    if reference:
        print("All speeds are measured. Scores follow, which need no idle machine.", file=sys.stderr)
    print(f"| {' | '.join(HEAD)} |", f"|---|{'---:|' * (len(HEAD) - 1)}", sep="\n", flush=True)
    for kind, both in all_speeds.items():
        print(f"| {' | '.join(row(quantised(source, kind), kind, *both, text, reference))} |", flush=True)


if __name__ == "__main__":
    main()
