#!/usr/bin/env python3
"""Reads the results of sweeps with pandas, polars and DuckDB, and compares `sweep summarise` with a pandas group-by.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-data.txt
    cargo build --release
    .venv/bin/python scripts/check_sweep.py target/candlepower/<run>/sweep.parquet results/shard-*.parquet

Summarises all files together, in each format and by each of some columns. Exits with code 1 if something differs.
"""

import argparse
import io
import json
import math
import subprocess
import tempfile
from pathlib import Path

import pandas
from check_data import check

METRICS = {"metric_val_loss": False, "metric_train_loss": False, "step_p50_ms": False, "samples_per_s": True}
NAMES = [
    "scenario_count", "failed_count", "best_metric", "best_metric_label", "median_metric", "mean_metric",
    "median_duration", "mean_duration"]


def grouped(rows, metric, higher_is_better):
    """The summary of each architecture, as pandas computes it."""
    measured = rows.dropna(subset=[metric])
    groups = measured.groupby("architecture")
    best = measured.loc[groups[metric].idxmax() if higher_is_better else groups[metric].idxmin()]
    best = best.set_index("architecture")
    table = pandas.DataFrame({
        "scenario_count": groups.size(),
        "failed_count": (rows["status"] == "failed").groupby(rows["architecture"]).sum(),
        "best_metric": best[metric],
        "best_metric_label": best["label"],
        "median_metric": groups[metric].median(),
        "mean_metric": groups[metric].mean(),
        "median_duration": groups["duration_seconds"].median(),
        "mean_duration": groups["duration_seconds"].mean(),
    })
    table["scenario_count"] = table["scenario_count"].fillna(0)
    return table


def summaries(program, files, metric, higher_is_better):
    """What the command prints as JSON and CSV, and writes as Parquet."""
    command = [program, "sweep", "summarise", *files, "--metric", metric, "--format"]
    flags = ["--higher-is-better"] if higher_is_better else []

    def run(*arguments):
        return subprocess.run([*command, *arguments, *flags], check=True, capture_output=True, text=True).stdout

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "summary.parquet"
        run("parquet", "--quiet", "--output", file)
        yield "Parquet", pandas.read_parquet(file)
    yield "JSON", pandas.DataFrame(json.loads(run("json")))
    yield "CSV", pandas.read_csv(io.StringIO(run("csv")))


def same(a, b):
    if pandas.isna(a) or pandas.isna(b):
        return pandas.isna(a) and pandas.isna(b)
    return a == b or (not isinstance(a, str) and math.isclose(a, b, rel_tol=1e-12))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="Parquet files of sweeps")
    parser.add_argument("--program", default="target/release/candlepower", help="the built command")
    arguments = parser.parse_args()
    for file in arguments.files:
        check(file)
    rows = pandas.concat([pandas.read_parquet(file) for file in arguments.files], ignore_index=True)
    # A result that is in several files counts once, as the command counts it.
    rows = rows.drop_duplicates(["run", "id"], keep="last")
    for metric, higher_is_better in METRICS.items():
        expected = grouped(rows, metric, higher_is_better)
        for format_name, found in summaries(arguments.program, arguments.files, metric, higher_is_better):
            order = found["best_metric"].dropna()
            sorted_order = order.is_monotonic_decreasing if higher_is_better else order.is_monotonic_increasing
            assert sorted_order, f"{metric} in {format_name}: the best is not first"
            found = found.set_index("architecture")
            assert set(found.index) == set(expected.index), f"{metric} in {format_name}: {list(found.index)}"
            for architecture, row in expected.iterrows():
                for name in NAMES:
                    value = found.loc[architecture, name]
                    assert same(row[name], value), f"{metric} in {format_name}: {architecture} {name}: {value}"
        print(f"{metric}: {len(expected)} architectures, as pandas groups them, in Parquet, JSON and CSV")


if __name__ == "__main__":
    main()
