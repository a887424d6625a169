"""What pflacco says about known surfaces: writes tests/golden/pflacco.json.

pflacco pins an old numpy, so it gets an environment of its own:

    python -m venv pflacco && pflacco/bin/pip install pflacco==1.2.2
    pflacco/bin/python benchmarks/pflacco_fixture.py
"""

import json
from pathlib import Path

import numpy as np
from pflacco.classical_ela_features import calculate_dispersion, calculate_information_content
from pflacco.misc_features import calculate_fitness_distance_correlation

STEP = 0.05


def lines() -> dict[str, np.ndarray]:
    """Return losses along lines."""
    random = np.random.default_rng(0)
    x = np.arange(150) * STEP
    return {
        "white noise": random.normal(size=150),
        "random walk": random.normal(size=150).cumsum(),
        "sinusoid": np.sin(3 * x),
        "stairs": np.floor(2 * x) + 0.5 * np.floor(4 * np.sin(x)),
        "rugged bowl": (x - 3) ** 2 + 0.3 * np.sin(40 * x),
    }


def main() -> None:
    """Compute and write."""
    cases = {}
    for name, losses in lines().items():
        losses = losses.round(6)
        positions = (np.arange(len(losses)) * STEP)[:, None]
        content = calculate_information_content(positions, losses, ic_nn_start=0)
        spread = calculate_dispersion(positions, losses)
        # all but none of the points: with a proportion of 1 pflacco 1.2.2 fails
        fitness = calculate_fitness_distance_correlation(
            positions, losses, proportion_of_best=0.9999
        )
        features = {**content, **spread, **fitness}
        wanted = (
            "ic.h_max", "ic.eps_s", "ic.m0", "disp.ratio_mean_05", "disp.ratio_mean_25",
            "fitness_distance.fd_correlation",
        )  # fmt: skip
        cases[name] = {
            "losses": losses.tolist(),
            "features": {feature: float(features[feature]) for feature in wanted},
        }
    path = Path(__file__).parents[1] / "tests" / "golden" / "pflacco.json"
    path.write_text(json.dumps({"pflacco": "1.2.2", "step": STEP, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
