#!/usr/bin/env python3
"""Repeats the generations of a run with PyTorch's transformers in eager mode on the same device, and prints ratios.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-fixtures.txt
    cargo bench --bench generation
    .venv/bin/python scripts/transformers_ratio.py target/candlepower/*/records.jsonl

Uses every generation record whose model is a known shape with seeded weights: the same sizes, dtype, device, prompt length
and new tokens, greedy, with a key-value cache, one token at a time. Weights are random on both sides. Prints
a Markdown table of medians; ratios are transformers' time over Candle's: above 1, Candle is faster.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SHAPES = Path(__file__).parent.parent / "src" / "subject" / "shapes"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def records_of(files):
    """Records of generations, the last of each benchmark."""
    found = {}
    for file in files:
        for number, line in enumerate(Path(file).read_text().splitlines(), 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                sys.exit(f"error: {file}:{number} is not a record")
            measures = record.get("measures") or {}
            if measures.get("kind") == "generation" and shape_of(record).is_file():
                found[record["id"]] = record
    return found.values()


def shape_of(record):
    return SHAPES / f"{record['subject']['source'].removeprefix('synthetic:')}.json"


def build(record, device):
    """The same model with random weights."""
    config = json.loads(shape_of(record).read_text())
    config = CONFIG_MAPPING[config.pop("model_type")].from_dict(config)
    torch.manual_seed(0)
    with torch.device(device):
        dtype = DTYPES[record["subject"]["dtype"]]
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def generate(model, ids, new_tokens):
    """Milliseconds to the first token, and between the others. Each token is fetched before the next is begun."""
    marks = [time.perf_counter()]
    cache, step = None, ids
    for _ in range(new_tokens):
        out = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, step = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
        step.item()
        marks.append(time.perf_counter())
    times = [(b - a) * 1e3 for a, b in zip(marks, marks[1:])]
    return times[0], times[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", help="files of records")
    parser.add_argument("--runs", type=int, default=5, help="number of runs of each, after one warm-up")
    parser.add_argument("--scenarios", help="names, separated by commas (default: all)")
    arguments = parser.parse_args()
    wanted = arguments.scenarios and arguments.scenarios.split(",")
    records = [record for record in records_of(arguments.records) if not wanted or record["scenario"] in wanted]
    if not records:
        sys.exit("error: no record of a generation of a known shape is in the files")
    first = records[0]["subject"]["device"]
    on = torch.cuda.get_device_name() if first.startswith("cuda") else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {on}, medians of {arguments.runs} runs\n")
    print("| benchmark | transformers TTFT ms | Candle TTFT ms | ratio | transformers ITL ms | Candle ITL ms | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    records.sort(key=lambda record: record["subject"]["model"])
    model, built = None, None
    for record in records:
        subject, measures = record["subject"], record["measures"]
        device = subject["device"].replace("cuda", "cuda:")
        torch.set_num_threads(record["machine"]["threads"])
        if built != (subject["source"], subject["dtype"], device):
            model = None
            gc.collect()
            model, built = build(record, device), (subject["source"], subject["dtype"], device)
        ids = torch.randint(model.config.vocab_size, (1, measures["prompt_tokens"]), device=device)
        generate(model, ids, measures["generated_tokens"])
        runs = [generate(model, ids, measures["generated_tokens"]) for _ in range(arguments.runs)]
        ttft = statistics.median(first for first, _ in runs)
        cells = [f"{ttft:.2f}", f"{measures['ttft_ms']:.2f}", f"{ttft / measures['ttft_ms']:.2f}"]
        between = [time for _, times in runs for time in times]
        if between and measures["itl_p50_ms"]:
            itl = statistics.median(between)
            cells += [f"{itl:.2f}", f"{measures['itl_p50_ms']:.2f}", f"{itl / measures['itl_p50_ms']:.2f}"]
        else:
            cells += ["", "", ""]
        print(f"| {record['id']} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
