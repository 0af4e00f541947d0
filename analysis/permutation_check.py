"""`elw efas test`: the current run of a warehouse in, permutation p beside z, p and q of `efas` out.

What is tested, and on which contexts, `permutation_inputs` says; how, `permutation`. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from energy_lens.analysis.permutation import LEVEL, Floats, Integers, Permuted, permutation_test
from energy_lens.analysis.permutation_inputs import Inputs, PermutationInputs, PermutationOptions
from energy_lens.ingest.statistics.significance import benjamini_hochberg


@dataclass(frozen=True)
class LayerOutcome:
    """One layer and energy; arrays are by tested feature."""

    layer: int
    energy: str
    features: Integers
    n_active: Integers  #: counted active tokens in the contexts used
    n_contexts: Integers  #: contexts with such a token
    permuted: Permuted
    q_permutation: Floats  #: Benjamini and Hochberg's, of the permutation p
    z: Floats  #: as `efas` has it, on all contexts
    p_value: Floats
    q_value: Floats

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Layer, energy and feature, then the figures of each feature: the permutation's, then those of `efas`."""
        permuted = self.permuted
        figures = (
            self.features, self.n_active, self.n_contexts, permuted.statistic, permuted.z, permuted.p,
            self.q_permutation, permuted.p_sum, self.z, self.p_value, self.q_value,
        )  # fmt: skip
        for row in zip(*(values.tolist() for values in figures), strict=True):
            yield (self.layer, self.energy, *row)


def check_run(path: Path | None, options: PermutationOptions) -> list[LayerOutcome]:
    """Test the current run's features by permuting documents.

    Raises UsageError when there is no run, nothing that efas tests, a layer, energy or category that is not there, or
    when the model or an SAE is needed and is no longer what it was.
    """
    return [_outcome(inputs, options) for inputs in PermutationInputs(path, options).inputs()]


def _outcome(inputs: Inputs, options: PermutationOptions) -> LayerOutcome:
    contexts, tested = inputs.contexts, inputs.tested
    permuted = permutation_test(contexts, inputs.centred, inputs.decoder, options.permutations, options.seed)
    n_features, n_contexts = len(tested["feature"]), len(contexts.documents)
    cells = np.unique(contexts.feature * n_contexts + contexts.context)
    return LayerOutcome(
        layer=inputs.layer,
        energy=inputs.energy,
        features=tested["feature"].astype(np.int64),
        n_active=np.bincount(contexts.feature, minlength=n_features),
        n_contexts=np.bincount(cells // n_contexts, minlength=n_features),
        permuted=permuted,
        q_permutation=benjamini_hochberg(permuted.p),
        **{name: tested[name].astype(np.float64) for name in ("z", "p_value", "q_value")},
    )


def permutation_sentences(outcomes: Sequence[LayerOutcome]) -> Iterator[str]:
    """A sentence or two for each energy: how far the tests agree, and whether the permutations are in order."""
    from scipy.stats import spearmanr

    for energy in dict.fromkeys(outcome.energy for outcome in outcomes):
        tested = [outcome for outcome in outcomes if outcome.energy == energy]

        def joined(figure: Callable[[LayerOutcome], Floats], tested: Sequence[LayerOutcome] = tested) -> Floats:
            return np.concatenate([figure(outcome) for outcome in tested])

        z, by_z = joined(lambda o: o.z), joined(lambda o: o.p_value) <= LEVEL
        by_permutation, by_sum = (
            joined(figure) <= LEVEL for figure in (lambda o: o.permuted.p, lambda o: o.permuted.p_sum)
        )
        agreement = f"{spearmanr(z, joined(lambda o: o.permuted.z)).statistic:.2f}" if len(z) > 2 else "undefined"
        random = float(
            np.average([o.permuted.random_rejected for o in tested], weights=[len(o.features) for o in tested])
        )
        deviation = float(np.median(joined(lambda o: o.permuted.permuted_deviation)))
        yield (
            f"{energy}: {len(z):,} features tested in {len(tested)} layer{'s' * (len(tested) != 1)}; z and its "
            f"permutation agree with a Spearman correlation of {agreement}. At 5 % z rejects {by_z.mean():.1%}, its "
            f"permutation {by_permutation.mean():.1%}, both {(by_z & by_permutation).mean():.1%}, the permuted sum "
            f"{by_sum.mean():.1%}; a random pairing of documents is rejected for {random:.1%}. Permuted z has a median "
            f"standard deviation of {deviation:.2f}, and the normal 1."
        )
