"""What a search saves by dropping children as soon as they cannot enter the population.

    python benchmarks/dropping.py SEED ...

One pass of the default recipe on the bundled networks with 300 calibration images, as a table in
forward passes of them. The tests show that dropping does not change the result; without it, every
visit runs its part of the network once for each child, whatever the losses are. Takes about 4
minutes on one core for each seed.
"""

from __future__ import annotations

import statistics
import sys
from itertools import product

from evolq.optimizers.evolve import search_scales, visits
from evolq.optimizers.recipes import choose_recipe
from evolq.problem import Settings, prepare

NETWORKS = ("fashion_vit", "fashion_resnet")
BITS = (3, 2)
CRITERIA = ("info_nce", "kl", "mse", "cosine")
RECIPE = choose_recipe("default", passes=1)


def passes(network: str, bits: int, criterion: str, seed: int) -> tuple[float, float]:
    """Return the forward passes of a search without and with dropping."""
    problem = prepare(
        Settings(
            model=network,
            weight_bits=bits,
            criterion=criterion,
            observer=RECIPE.observer,
            weight_observer=RECIPE.weight_observer,
            moment_matching=RECIPE.moment_matching,
            calibration_images=300,
            selection_images=0,
            test_images=2,
            seed=seed,
        )
    )
    shares = [problem.network.share(names) for names in visits(problem.network, RECIPE).values()]
    without = 1 + sum(1 - share + RECIPE.cycles * share for share in shares)
    *_, last = search_scales(problem.objective, problem.start, RECIPE, seed=seed)
    return without, last.cost


def main() -> None:
    """Print the table, over the seeds on the command line."""
    seeds = [int(seed) for seed in sys.argv[1:]]
    print("| network | weight bits | criterion | passes without | with | saved |")
    print("|---|---|---|---|---|---|")
    for network, bits, criterion in product(NETWORKS, BITS, CRITERIA):
        costs = zip(*(passes(network, bits, criterion, seed) for seed in seeds), strict=True)
        without, spent = (statistics.mean(column) for column in costs)
        saved = 100 * (1 - spent / without)
        print(
            f"| {network} | {bits} | {criterion} | {without:.1f} | {spent:.1f} | {saved:.0f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
