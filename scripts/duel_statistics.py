"""Compares statistics for duels: the number of blocks that each needs, and how often its interval misses the true ratio.

    python3 scripts/duel_statistics.py [--duels 100]
    python3 scripts/duel_statistics.py --records target/candlepower/*-b/records.jsonl

Needs numpy. The second command reads duels that were measured, and prints the interval of each statistic after their blocks. A block is two pairs of samples in turns, and a coin decides whose turn is first. Each statistic is a test martingale on an odd
function of the logarithms of both ratios, divided by the candidate ratio; the coin makes its sign fair if the candidate is true (see
src/duel/sequential.rs). A mixture of 40 bets stands for the integral over all bets.

    signs       +1 or -1 if both pairs agree, and 0 otherwise. Duels use this one.
    sizes       The mean of both, in units of the median deviation of the earlier blocks, from -1 to 1.
    half each   Half of the stake on each of the two.
"""

import argparse
import json
import pathlib

import numpy as np

BETS = np.concatenate([-np.linspace(0.975, 0.025, 20), np.linspace(0.025, 0.975, 20)])
CANDIDATES = np.concatenate([np.linspace(-0.3, -0.05, 60, endpoint=False), np.linspace(-0.05, 0.05, 401), np.linspace(0.05, 0.3, 61)[1:]])
MOST_BLOCKS = 300


def quiet(random, n):
    return 0.02 * random.standard_normal(n)


def spikes(random, n):
    return 0.01 * random.standard_normal(n) + np.where(random.random(n) < 0.2, 0.5 * random.random(n), 0)


def disturbed(random, n):
    busy = np.cumsum(random.random(n) < 0.1) % 2 == 1
    return 0.01 * random.standard_normal(n) + np.where(busy, 0.2 + 0.6 * random.random(n), 0)


def drifting(random, n):
    return 0.005 * np.arange(n) + 0.01 * random.standard_normal(n)


def wandering(random, n):
    level, levels = 0.0, np.zeros(n)
    for i, step in enumerate(random.standard_normal(n)):
        levels[i] = level = 0.9 * level + 0.03 * step
    return levels + 0.01 * random.standard_normal(n)


def starts(random, n):
    """Noise between starts, of which two are a block. Its pairs are equal."""
    return 0.03 * random.standard_t(3, n)


def blocks(machine, random):
    """The logarithms of the ratios of both pairs, of sides that are equal."""
    samples = machine(random, 4 * MOST_BLOCKS).reshape(-1, 4)
    side = random.choice([-1, 1], MOST_BLOCKS)
    one, other = side * (samples[:, 1] - samples[:, 0]), side * (samples[:, 2] - samples[:, 3])
    return ((one + other) / 2,) * 2 if machine is starts else (one, other)


def signs(one, other):
    one, other = np.sign(one[:, None] - CANDIDATES), np.sign(other[:, None] - CANDIDATES)
    return np.where(one == other, one, 0)


def sizes(one, other):
    mean = (one + other) / 2
    scale = [0, 0] + [np.median(np.abs(mean[:t] - np.median(mean[:t]))) for t in range(2, len(mean))]
    return np.clip((mean[:, None] - CANDIDATES) / np.maximum(scale, 1e-12)[: len(mean), None], -1, 1)


STATISTICS = {
    "signs": lambda *pairs: [signs(*pairs)],
    "sizes": lambda *pairs: [sizes(*pairs)],
    "half each": lambda *pairs: [signs(*pairs), sizes(*pairs)],
}


def intervals(pairs, statistic, level):
    """The candidates in the interval, after each block."""
    votes = STATISTICS[statistic](*pairs)
    wealth = np.zeros((len(BETS) * len(votes), len(CANDIDATES)))
    for block in range(len(pairs[0])):
        wealth += np.concatenate([np.log1p(BETS[:, None] * vote[block]) for vote in votes])
        largest = wealth.max(0)
        yield CANDIDATES[largest + np.log(np.exp(wealth - largest).mean(0)) < -np.log(level)]


def is_known(inside):
    """Whether neither end lies beyond the candidates."""
    return len(inside) == 0 or CANDIDATES[0] < inside[0] and inside[-1] < CANDIDATES[-1]


def duel(pairs, statistic, level, resolve):
    """Blocks until the interval is narrow enough, and whether it misses the ratio 1."""
    for block, inside in enumerate(intervals(pairs, statistic, level)):
        if len(inside) == 0:
            return block + 1, True
        if is_known(inside) and inside[-1] - inside[0] < 2 * np.log1p(resolve):
            return block + 1, not inside[0] <= 0 <= inside[-1]
    return len(pairs[0]), False


def simulate(duels):
    """Prints the table of simulated duels of equal sides."""
    print("| machine | level | resolve | " + " | ".join(f"{name}: blocks, misses" for name in STATISTICS) + " |")
    print("|---|---:|---:|" + "---:|" * len(STATISTICS))
    random = np.random.default_rng(1)
    for machine in [quiet, spikes, disturbed, drifting, wandering, starts]:
        for level, resolve in [(0.05, 0.02), (0.0025, 0.02), (0.05, 0.01)]:
            drawn = [blocks(machine, random) for _ in range(duels)]
            cells = []
            for statistic in STATISTICS:
                ends = [duel(pairs, statistic, level, resolve) for pairs in drawn]
                cells.append(f"{np.mean([end[0] for end in ends]):.0f}, {sum(end[1] for end in ends)}")
            print(f"| {machine.__name__} | {level} | {resolve:.0%} | " + " | ".join(cells) + " |", flush=True)


def measured(files, level):
    """Prints the table of duels that were measured, from the records of one side of each."""
    print("| benchmark | blocks | " + " | ".join(f"{name}: change, width" for name in STATISTICS) + " |")
    print("|---|---:|" + "---:|" * len(STATISTICS))
    for record in (json.loads(line) for file in files for line in file.read_text().splitlines()):
        pairs = (record.get("duel") or {}).get("blocks", [])
        if not pairs:
            continue
        cells = []
        for statistic in STATISTICS:
            *_, inside = intervals(np.log(pairs).T, statistic, level)
            low, high = (f"{np.expm1(end):+.1%}" for end in (inside[0], inside[-1])) if len(inside) else ("", "")
            cells.append(f"{low} to {high}, {np.ptp(inside):.1%}" if len(inside) and is_known(inside) else "not known")
        print(f"| {record['id']} | {len(pairs)} | " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duels", type=int, default=100, help="simulated duels of each row")
    parser.add_argument("--records", type=pathlib.Path, nargs="+", help="records of measured duels")
    parser.add_argument("--level", type=float, default=0.05, help="level of their intervals")
    arguments = parser.parse_args()
    if arguments.records:
        measured(arguments.records, arguments.level)
    else:
        simulate(arguments.duels)


if __name__ == "__main__":
    main()
