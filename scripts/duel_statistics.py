"""Compares statistics for duels: the number of blocks that each needs, and how often its interval misses the true ratio.

    python3 scripts/duel_statistics.py [--duels 100]

Needs numpy. A block is two pairs of samples in turns, and a coin decides whose turn is first. Each statistic is a test martingale on an odd
function of the logarithms of both ratios, divided by the candidate ratio; the coin makes its sign fair if the candidate is true (see
src/duel/sequential.rs). A mixture of 40 bets stands for the integral over all bets.

    signs       +1 or -1 if both pairs agree, and 0 otherwise. Duels use this one.
    sizes       The mean of both, in units of the median deviation of the earlier blocks, from -1 to 1.
    half each   Half of the stake on each of the two.
"""

import argparse

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


def duel(pairs, statistic, level, resolve):
    """Blocks until the interval is narrow enough, and whether it misses the ratio 1."""
    votes = STATISTICS[statistic](*pairs)
    wealth = np.zeros((len(BETS) * len(votes), len(CANDIDATES)))
    for block in range(len(pairs[0])):
        wealth += np.concatenate([np.log1p(BETS[:, None] * vote[block]) for vote in votes])
        largest = wealth.max(0)
        inside = largest + np.log(np.exp(wealth - largest).mean(0)) < -np.log(level)
        if not inside.any():
            return block + 1, True
        low, high = CANDIDATES[inside][[0, -1]]
        if not (inside[0] or inside[-1]) and high - low < 2 * np.log1p(resolve):
            return block + 1, not low <= 0 <= high
    return len(pairs[0]), False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duels", type=int, default=100)
    arguments = parser.parse_args()
    print("| machine | level | resolve | " + " | ".join(f"{name}: blocks, misses" for name in STATISTICS) + " |")
    print("|---|---:|---:|" + "---:|" * len(STATISTICS))
    random = np.random.default_rng(1)
    for machine in [quiet, spikes, disturbed, drifting, wandering, starts]:
        for level, resolve in [(0.05, 0.02), (0.0025, 0.02), (0.05, 0.01)]:
            drawn = [blocks(machine, random) for _ in range(arguments.duels)]
            cells = []
            for statistic in STATISTICS:
                ends = [duel(pairs, statistic, level, resolve) for pairs in drawn]
                cells.append(f"{np.mean([end[0] for end in ends]):.0f}, {sum(end[1] for end in ends)}")
            print(f"| {machine.__name__} | {level} | {resolve:.0%} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
