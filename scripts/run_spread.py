#!/usr/bin/env python3
"""Shows how much the figures of a benchmark vary between runs, and whether its shares of the machine's limits vary less.

    python3 scripts/run_spread.py [--disturbed] [--runs 10] [--binary PATH] ['^medium/llama-mini/']

Each run is a process of its own: `cargo bench --bench generation`, or with --binary PATH the program that this command has
built. For each benchmark, prints the median over the runs, the coefficient of variation (standard deviation over mean), the
lowest and the highest value. With --disturbed, another process writes to memory for one to five random seconds, with pauses of
one to five random seconds. Needs Python 3.9 or later.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

FIELDS = {
    "tokens_per_s": "tok/s",
    "decode_tokens_per_s": "decode tok/s",
    "mbu": "MBU",
    "prefill_tokens_per_s": "prefill tok/s",
    "mfu": "MFU",
}
# Larger than a cache, so that each write reaches memory.
BUFFER_BYTES = 256 << 20


def disturb():
    """Loads a core and the memory from time to time, until it is stopped."""
    buffer, zeros = bytearray(BUFFER_BYTES), bytes(BUFFER_BYTES)
    while True:
        end = time.monotonic() + random.uniform(1, 5)
        while time.monotonic() < end:
            buffer[:] = zeros
        time.sleep(random.uniform(1, 5))


def run(number, out, filter, binary):
    """Runs the benchmarks once, and returns their records."""
    environment = {**os.environ, "CANDLEPOWER_OUT": str(out), "CANDLEPOWER_RUN": f"run-{number}"}
    start = [binary, "--bench"] if binary else ["cargo", "bench", "--quiet", "--bench", "generation", "--"]
    command = [*start, filter]
    try:
        ended = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError as error:
        sys.exit(f"error: {command[0]} does not start: {error.strerror}")
    records = out / f"run-{number}" / "records.jsonl"
    if ended.returncode != 0 or not records.is_file():
        sys.exit(f"error: run {number} measured nothing or failed: see what `{' '.join(command[:-1])} '{filter}'` prints")
    lines = records.read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["status"] == "measured"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--disturbed", action="store_true")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--binary", help="a benchmark that was built before")
    parser.add_argument("filter", nargs="?", default="^medium/llama-mini/")
    arguments = parser.parse_args()
    if arguments.runs < 2:
        parser.error("--runs: a spread needs at least two runs")
    if not arguments.binary and subprocess.run(["cargo", "bench", "--bench", "generation", "--no-run"]).returncode != 0:
        sys.exit("error: the benchmark does not build")

    disturber = multiprocessing.Process(target=disturb, daemon=True)
    if arguments.disturbed:
        disturber.start()
    values = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, arguments.runs + 1):
            for record in run(number, pathlib.Path(folder), arguments.filter, arguments.binary):
                for field in FIELDS:
                    value = record["measures"].get(field)
                    if value is not None:
                        values.setdefault((record["id"], field), []).append(value)
            print(f"run {number} of {arguments.runs}", flush=True)
    print("| benchmark | figure | runs | median | variation | lowest | highest |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for (id, field), found in values.items():
        variation = statistics.stdev(found) / statistics.mean(found) if len(found) > 1 else float("nan")
        print(
            f"| {id} | {FIELDS[field]} | {len(found)} | {statistics.median(found):.4g} | {variation:.1%} "
            f"| {min(found):.4g} | {max(found):.4g} |"
        )


if __name__ == "__main__":
    main()
