"""What a search saves by dropping children as soon as they cannot enter the population.

    python benchmarks/dropping.py

The default recipe's start and search on the bundled networks, three seeds each, at two lengths and
with and without the criteria's lower bounds: the results are checked to be equal, the costs are the
table in docs/evolq.md. Takes about 20 minutes on one core.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

from evolq.criteria import no_bound
from evolq.evolve import Iterate, search_scales
from evolq.problem import Settings, prepare
from evolq.recipes import choose_recipe

NETWORKS = ("fashion_vit", "fashion_resnet")
BITS = (3, 2)
CRITERIA = ("info_nce", "kl", "mse", "cosine")
SEEDS = (0, 1, 2)


def searched(settings: Settings, passes: int) -> tuple[float, float]:
    """Return the passes over the calibration images that a search costs, without and with dropping.

    Raises:
        AssertionError: if dropping changes the result.
    """
    recipe = choose_recipe("default", passes=passes)
    problem = prepare(settings)
    plain = replace(
        problem.objective, criterion=replace(problem.objective.criterion, bound=no_bound)
    )
    slow, fast = (
        list(search_scales(objective, problem.start, recipe, seed=settings.seed))
        for objective in (plain, problem.objective)
    )
    assert losses(slow) == losses(fast)
    return slow[-1].cost, fast[-1].cost


def losses(iterates: list[Iterate]) -> list[float]:
    """Return where a search stood after each visit."""
    return [iterate.loss for iterate in iterates]


def main() -> None:
    """Print the table."""
    recipe = choose_recipe("default")
    print("| network | weight bits | criterion | passes P | without | with | saved |")
    print("|---|---|---|---|---|---|---|")
    for network in NETWORKS:
        for bits in BITS:
            for criterion in CRITERIA:
                settings = Settings(
                    model=network,
                    weight_bits=bits,
                    criterion=criterion,
                    observer=recipe.observer,
                    weight_observer=recipe.weight_observer,
                    moment_matching=recipe.moment_matching,
                    calibration_images=300,
                    selection_images=0,
                    test_images=2,
                )
                costs = [searched(replace(settings, seed=seed), passes=1) for seed in SEEDS]
                without, with_ = (statistics.mean(side) for side in zip(*costs, strict=True))
                print(
                    f"| {network} | {bits} | {criterion} | 1 | {without:.1f} | {with_:.1f} | "
                    f"{1 - with_ / without:.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
