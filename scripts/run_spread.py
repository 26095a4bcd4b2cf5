#!/usr/bin/env python3
"""Shows how much benchmarks vary between runs, and which runs their marks of doubt find.

    cargo bench --no-run
    python3 scripts/run_spread.py measure [--beside nothing|disturber|compiler] [--runs 10] [--only TARGET,...] FOLDER
    python3 scripts/run_spread.py table FOLDER
    python3 scripts/run_spread.py pairs FOLDER

`measure` runs seven benchmarks of different kinds, each run in a process of its own, and keeps their records below FOLDER. The
disturber writes to memory for one to five random seconds, with pauses as long. The compiler builds this package's dependencies
over and over. `table` prints the deviation between the runs beside nothing, in each form in which `candlepower compare` may state a
time. It then counts the results that are wrong: those whose best form is farther from its median over these runs than twice their
deviation; and how many of them each rule of doubt marks. `pairs` compares each run with the next and with the one after by `candlepower compare`,
and counts what it calls changed although the program is the same, and how many intervals contain no change. Each run is also saved as a
baseline of Criterion's; one that is not saved ends `measure`. Needs Python 3.10 or later.
"""

import argparse
import collections
import json
import math
import multiprocessing
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

BENCHMARKS = [
    ("generation", "^short/llama-mini/"),
    ("moe", "^moe_top_k_decode/moe-16x2/"),
    ("moe", "^moe_top_k_prefill/moe-16x2/"),
    ("training", "^psann_throughput_train/respsann-d256-l4-s512-b1/"),
    ("sweep", "^architecture_sweep_train/state_space-d48-l2-"),
    ("memory", "^checkpoint_memory_time/.*checkpointed/"),
]
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


def compile_dependencies():
    """Builds the package of kernels with its dependencies, over and over, until it is stopped."""
    folder = tempfile.mkdtemp()
    while True:
        command = ["cargo", "build", "--quiet", "--package", "candlepower-kernels", "--target-dir", folder]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)


BESIDE = {"nothing": None, "disturber": disturb, "compiler": compile_dependencies}


def programs():
    """The built bench targets, by name."""
    command = ["cargo", "bench", "--no-run", "--message-format", "json"]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        sys.exit("error: the benchmarks do not build")
    messages = map(json.loads, built.stdout.splitlines())
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}


def measure(arguments):
    found = programs()
    only = arguments.only.split(",") if arguments.only else found
    beside = BESIDE[arguments.beside]
    if beside:
        # It starts processes of its own, so it must not be a daemon.
        process = multiprocessing.Process(target=beside)
        process.start()
    out = arguments.folder / arguments.beside
    started = int(time.time())
    try:
        for number in range(arguments.runs):
            for target, filter in (row for row in BENCHMARKS if row[0] in only):
                run = {"CANDLEPOWER_OUT": str(out), "CANDLEPOWER_RUN": f"{started}-{number:03}"}
                home = {"CRITERION_HOME": str(arguments.folder / "criterion")}
                ended = subprocess.run(
                    [found[target], "--bench", filter, "--save-baseline", f"{arguments.beside}-{number:03}"],
                    env={**os.environ, **run, **home},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                if ended.returncode != 0:
                    sys.exit(f"error: see what `{found[target]} --bench '{filter}'` prints")
            print(f"run {number + 1} of {arguments.runs} beside {arguments.beside}", flush=True)
    finally:
        if beside:
            process.terminate()


def median_ms(measures):
    return statistics.median(measures.get("sample_total_ms") or measures["sample_ms"])


def limit(record, work, time_ms, share, otherwise):
    """The limit that a share of a generation divides by, or the median of its readings."""
    measures = record["measures"]
    if not (measures.get("work") and measures.get(time_ms) and measures.get(share)):
        return record["limits"][otherwise]
    return measures["work"][work] / (measures[time_ms] * measures[share])


# The forms in which a time is compared, as logarithms.
FORMS = {
    "time": lambda record: math.log(median_ms(record["measures"])),
    "x bandwidth": lambda record: math.log(
        median_ms(record["measures"]) * limit(record, "step_bytes", "tpot_ms", "mbu", "read_bytes_per_s")
    ),
    "x matrix rate": lambda record: math.log(
        median_ms(record["measures"]) * limit(record, "prefill_flops", "ttft_ms", "mfu", "matrix_flops_per_s")
    ),
}


def others(record):
    return record["conditions"]["other_cpu_share"] or 0.0


def held_back(record):
    samples = record["measures"].get("sample_total_ms") or record["measures"]["sample_ms"]
    return len(record["conditions"]["held_back"]) / len(samples)


def within(record):
    samples = record["measures"].get("sample_total_ms") or record["measures"]["sample_ms"]
    return statistics.stdev(map(math.log, samples))


def limits_moved(record):
    return max(record["limits"][limit]["highest"] / record["limits"][limit]["lowest"] - 1 for limit in ("read", "matrix"))


RULES = {
    "the doubts of the record": lambda record: bool(record["conditions"]["doubts"]),
    **{f"others took more than {share} %": (lambda record, s=share: others(record) > s / 100) for share in (3, 5, 8, 10, 20)},
    **{f"{share} % of the samples held back": (lambda record, s=share: held_back(record) >= s / 100) for share in (10, 20, 50)},
    **{f"samples vary by more than {share} %": (lambda record, s=share: within(record) > s / 100) for share in (5, 10, 20)},
    **{f"a limit moved by more than {share} %": (lambda record, s=share: limits_moved(record) > s / 100) for share in (10, 50)},
}


def table(arguments):
    records = collections.defaultdict(lambda: collections.defaultdict(list))
    for file in sorted(arguments.folder.glob("*/*/records.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["status"] == "measured" and file.parent.parent.name in BESIDE:
                records[record["id"]][file.parent.parent.name].append(record)
    print("| benchmark | runs | " + " | ".join(FORMS) + " |\n|---|---" + "|---" * len(FORMS) + "|")
    results = []
    for id, by_beside in records.items():
        quiet = by_beside["nothing"]
        if len(quiet) < 3:
            sys.exit(f"error: {id} has {len(quiet)} runs beside nothing, and a deviation needs three")
        deviations = {form: statistics.stdev(map(of, quiet)) for form, of in FORMS.items()}
        print(f"| `{id}` | {len(quiet)} | " + " | ".join(f"{100 * d:.1f} %" for d in deviations.values()) + " |")
        best = min(deviations, key=deviations.get)
        middle = statistics.median(map(FORMS[best], quiet))
        for beside, of_beside in by_beside.items():
            for record in of_beside:
                is_wrong = abs(FORMS[best](record) - middle) > 2 * deviations[best]
                results.append((beside, is_wrong, record))
    quiet = [record for beside, _, record in results if beside == "nothing"]
    wrong = [record for beside, is_wrong, record in results if is_wrong and beside != "nothing"]
    print(f"\n{len(quiet)} results beside nothing, {len(results) - len(quiet)} beside a disturber or a compiler, {len(wrong)} of them wrong")
    print("\n| rule | marked beside nothing | marked of the wrong |\n|---|---|---|")
    for name, rule in RULES.items():
        print(f"| {name} | {sum(map(rule, quiet)) / len(quiet):.1%} | {sum(map(rule, wrong)) / max(len(wrong), 1):.0%} |")


def pairs(arguments):
    built = subprocess.run(["cargo", "build", "--release", "--quiet", "--bin", "candlepower", "--message-format", "json"], stdout=subprocess.PIPE)
    program = next(m["executable"] for m in map(json.loads, built.stdout.splitlines()) if m.get("executable"))
    print("| runs beside | comparisons | not comparable | called changed | intervals with no change in them | median detectable change |")
    print("|---|---:|---:|---:|---:|---:|")
    for beside in BESIDE:
        runs = sorted(path.parent for path in arguments.folder.glob(f"{beside}/*/records.jsonl"))
        rows = []
        for step in (1, 2):
            for a, b in zip(runs, runs[step:]):
                compared = subprocess.run([program, "compare", a, b, "--all", "--format", "json"], stdout=subprocess.PIPE)
                rows += json.loads(compared.stdout)["rows"]
        rows = [row for row in rows if row["unit"] == "ms"]
        fit = [row for row in rows if row["verdict"] != "incomparable"]
        if fit:
            changed = sum(row["verdict"] in ("slower", "faster") for row in fit)
            within = sum(row["low"] <= 1 <= row["high"] for row in fit)
            detectable = [row["found_from"] for row in fit if "found_from" in row]
            found = f"{statistics.median(detectable):.1%}" if detectable else "n/a"
            print(f"| {beside} | {len(rows)} | {len(rows) - len(fit)} | {changed} | {within / len(fit):.1%} | {found} |")
        elif rows:
            print(f"| {beside} | {len(rows)} | {len(rows)} | 0 | n/a | n/a |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--beside", choices=BESIDE, default="nothing")
    measuring.add_argument("--runs", type=int, default=10)
    measuring.add_argument("--only", help="bench targets, separated by commas")
    measuring.set_defaults(run=measure)
    showing = commands.add_parser("table")
    showing.set_defaults(run=table)
    comparing = commands.add_parser("pairs")
    comparing.set_defaults(run=pairs)
    for command in (measuring, showing, comparing):
        command.add_argument("folder", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
