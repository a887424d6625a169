"""What a scan of cliffs found, in words."""

from __future__ import annotations

import numpy as np

from landscape.analysis import ALONE
from landscape.cliff_analysis import CliffAnalysis, ExactLine
from landscape.words import Row

# Of kinds of layers, those with the largest jumps have rows.
SHOWN_KINDS = 6


def describe_cliffs(found: CliffAnalysis) -> list[Row]:
    """Say in words where the jaggedness of a line comes from."""
    kinds = sorted(
        ((name, kind) for name, kind in found.kinds.items() if kind.jumps),
        key=lambda item: -item[1].median,
    )
    return [
        _variation(found),
        _rate(found),
        Row(
            "Step that resolves single flips",
            f"{found.resolving_step:.2g}",
            f"95 % of flips are alone in such a step; in a step of this line {found.per_step:,.0f} "
            "are added up",
        ),
        _jumps(found),
        *(
            Row(
                f"Jump, {name.removesuffix('.weight')}",
                f"{kind.median:.2g}",
                f"median of {len(kind.jumps)}: {kind.jumps[0]:.2g} to {kind.jumps[-1]:.2g}; "
                f"{kind.above} above numerical noise",
            )
            for name, kind in kinds[:SHOWN_KINDS]
        ),
        _exact(found.exact),
    ]


def _variation(found: CliffAnalysis) -> Row:
    name, share = "Ups and downs made by flips", found.share
    if np.isnan(share.estimate):
        return Row(name, "not known", "no step of the line is larger than numerical noise")
    words = "share of the line's total variation that appears when codes of weights change"
    if np.isfinite(share.low):
        words += f", {share.low:.0%} to {share.high:.0%} (95 %, over images)"
    words += "; the rest is there with these codes held, while scales move"
    return Row(name, f"{share.estimate:.0%}", words)


def _rate(found: CliffAnalysis) -> Row:
    by_bits = ", ".join(f"{bits}: {rate:,.0f}" for bits, rate in found.rates.items())
    most, fewest = (
        pick(found.kinds, key=lambda name: found.kinds[name].rate) for pick in (max, min)
    )
    words = (
        f"changes of a weight's code that a distance of 1 crosses; most in {most} "
        f"({found.kinds[most].rate:,.0f}), fewest in {fewest} ({found.kinds[fewest].rate:,.0f}); "
        f"by bits, {by_bits}"
    )
    return Row("Cliffs per unit of distance", f"{found.rate:,.0f}", words)


def _jumps(found: CliffAnalysis) -> Row:
    sizes = np.concatenate([kind.jumps for kind in found.kinds.values()])
    above = sum(kind.above for kind in found.kinds.values())
    words = f"median jump of the test loss at {len(sizes)} single cliffs, from both sides; "
    words += (
        f"{above} are above the numerical noise of a difference, {found.floor:.2g}"
        if found.floor
        else "numerical noise was not measured"
    )
    return Row("Jump at a cliff", f"{np.median(sizes) if len(sizes) else np.nan:.2g}", words)


def _exact(found: ExactLine) -> Row:
    words = f"{found.weight} from {found.low:.3g} to {found.high:.3g}, once between each two cliffs"
    words += ", which is all there is" if found.constant else ", where it still drifts"
    words += f"; lowest at {found.lowest:.3g}: {found.change:+.2g}"
    if np.isfinite(found.error):
        words += f" ± {found.error:.1g} from the start"
    if np.isfinite(found.critical):
        clear = found.change < -max(found.critical, ALONE) * found.error
        words += ", clearly lower" if clear else ", not told apart"
    return Row("Exact line", f"{found.intervals} intervals", words)
