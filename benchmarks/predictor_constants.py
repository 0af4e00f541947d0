"""Two warehouses with ablations of one layer in, the constants of `blended` and its kin chosen on one of them out.

    python benchmarks/predictor_constants.py --tune TUNE.duckdb --test TEST.duckdb --layer 20

The warehouses should be of documents of different sources, each with `elw intervene --layer 20 --features random:N` on
it, finished or stopped; what was measured is read, and the contexts run once more for predictions under every constant:

  growth   of curvature, exp(growth·‖δ‖/‖x‖)
  prior    tokens of the mean of all features that a feature's share of the probes' gradients is drawn towards
  share    of what all features add, taken away for the second gradient of `blended`

Chosen is the largest mean of two rank correlations on the tuning side, of sums and by edited token. All predictors are
then shown on the other side, with the chosen constants and with those of the package, and the difference of the two.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from energy_lens import Warehouse
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.interventions.agreement import Agreement, Comparison, Floats, Replicates, Values, replicates
from energy_lens.analysis.interventions.baseline import Baseline
from energy_lens.analysis.interventions.edits import Edit, Patches
from energy_lens.analysis.interventions.planning import BATCH_CONTEXTS
from energy_lens.analysis.interventions.predictors import (
    ALIGNED_GROWTH,
    BLENDED_SHARE,
    PRIOR_TOKENS,
    SharedGradients,
    predict,
)
from energy_lens.ingest.energies.curvature import GROWTH, growth

GROWTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
PRIORS = (0.0, 3.0, 10.0, 30.0, 100.0)
SHARES = (1 / 6, 1 / 3, 1 / 2, 2 / 3)

RANKS, NUMBERS = Comparison(of_ranks=True), Comparison(of_ranks=False)

#: Predictions without constants, for comparison.
PLAIN = ("first_order", "curvature", "labels", "integrated")


@dataclass(frozen=True)
class Constants:
    """Of one predictor; None where it has no such constant."""

    growth: float
    prior: float | None = None
    share: float | None = None

    def __str__(self) -> str:
        parts = [f"growth {self.growth:g}"]
        parts += [] if self.prior is None else [f"prior {self.prior:g}"]
        parts += [] if self.share is None else [f"share {self.share:.2f}"]
        return ", ".join(parts)


#: What the package has.
OWN = {
    "norm_curvature": Constants(GROWTH), "aligned": Constants(ALIGNED_GROWTH, PRIOR_TOKENS),
    "blended": Constants(ALIGNED_GROWTH, PRIOR_TOKENS, BLENDED_SHARE),
}  # fmt: skip


def grid(predictor: str) -> list[Constants]:
    """All constants that are tried for a predictor."""
    if predictor == "norm_curvature":
        return [Constants(rate) for rate in GROWTHS]
    if predictor == "aligned":
        return [Constants(*pair) for pair in product(GROWTHS, PRIORS)]
    return [Constants(*three) for three in product(GROWTHS, PRIORS, SHARES)]


class Ablations:
    """What an intervention measured, and the parts of every prediction, as sums [1 + document, feature].

    Row 0 is of all documents, the others without one each.
    """

    def __init__(self, path: Path, layer: int, batches: int | None) -> None:
        """Raises ValueError when the warehouse has no ablation of random features of the layer with probes."""
        current = CurrentRun(path)
        with Warehouse(path) as warehouse:
            found = warehouse.sql(
                """
                SELECT intervention_id, n_probes, seed, dtype FROM intervention_settings
                WHERE run_id = $run AND layer = $layer AND kind = 'ablate' AND n_probes > 1
                ORDER BY intervention_id DESC LIMIT 1
                """,
                run=current.run_id, layer=layer,
            ).fetchone()  # fmt: skip
            if found is None:
                raise ValueError(f"{path} has no ablation of layer {layer} with two probes or more: elw intervene.")
            intervention, self.n_probes, self.seed, self.dtype = found
            patches = warehouse.run("interventions/patches", run=current.run_id, intervention=intervention).pl()
        patches = patches.filter(pl.col("direction") == 0).with_columns(
            measured=pl.col("delta_edited") + pl.col("delta_later")
        )
        contexts = patches["context_id"].unique().sort().to_list()
        groups = [contexts[i : i + BATCH_CONTEXTS] for i in range(0, len(contexts), BATCH_CONTEXTS)][:batches]
        self.patches = patches.filter(pl.col("context_id").is_in([id_ for group in groups for id_ in group]))
        parts = list(self._parts(current, layer, groups))
        frame = pl.concat(parts).join(
            self.patches.select("feature", "context_id", "document_id", "n_edited", "measured"),
            on=["feature", "context_id"],
        )
        self.features = frame["feature"].unique().sort().to_list()
        self.documents = frame["document_id"].unique().sort().to_numpy()
        self.sums = {
            name: self._sums(frame, name)
            for name in frame.columns
            if name not in ("feature", "context_id", "document_id")
        }

    def _parts(self, current: CurrentRun, layer: int, groups: list[list[int]]) -> Iterator[pl.DataFrame]:
        model, sae = current.load_model(self.dtype), current.sae(layer)
        features = self.patches["feature"].unique().sort().to_list()
        for ids in tqdm(groups, unit="batch", desc=str(current.path)):
            baseline = Baseline(
                model, sae, [tokens for _, tokens in current.contexts(ids)], ids, self.n_probes, self.seed
            )
            shared = SharedGradients(baseline)
            slopes = {share: shared.without(share) for share in SHARES}
            for feature in features:
                patches = baseline.patches(Edit("ablate"), feature)
                if len(patches):
                    columns = predictions(shared, patches, slopes)
                    yield pl.DataFrame(
                        {
                            "feature": pl.Series([feature] * len(patches), dtype=pl.Int32),
                            "context_id": np.array(ids, dtype=np.int32)[patches.context.numpy()],
                            **{name: values.numpy() for name, values in columns.items()},
                        }
                    )

    def _sums(self, frame: pl.DataFrame, name: str) -> Floats:
        by_document = np.zeros((len(self.documents), len(self.features)))
        rows = np.searchsorted(self.documents, frame["document_id"].to_numpy())
        columns = np.searchsorted(self.features, frame["feature"].to_numpy())
        np.add.at(by_document, (rows, columns), frame[name].to_numpy())
        total = by_document.sum(0)
        return np.concatenate([total[None], total - by_document])

    def predicted(self, predictor: str, constants: Constants | None) -> Floats:
        """Sums [1 + document, feature] of a prediction under constants."""
        sums = self.sums
        if constants is None:
            return sums[predictor]
        if predictor == "norm_curvature":
            return sums["first_order"] + sums[f"grown_{constants.growth:g}"]
        n, probes = sums["n_edited"], "few" if predictor == "blended" else "all"
        shares = sums[f"share_{probes}"]
        mean = shares.sum(1, keepdims=True) / n.sum(1, keepdims=True)
        prior = constants.prior or 0.0
        rho = (shares + prior * mean) / np.maximum(n + prior, 1e-9)
        gradient = sums["first_order"] if constants.share is None else sums[f"blended_{constants.share:.3f}"]
        return gradient + rho * sums[f"scale_{probes}_{constants.growth:g}"]

    def agreement(self, predicted: Floats, by_token: bool, comparison: Comparison) -> Replicates:
        """With the measurement: of sums, as means over the documents that are left, or by edited token."""
        with np.errstate(invalid="ignore", divide="ignore"):
            n = len(self.documents)
            by = self.sums["n_edited"] if by_token else np.concatenate([[n], np.full(n, n - 1)])[:, None]
            sides = [Values(rows[0], rows[1:]) for rows in (predicted / by, self.sums["measured"] / by)]
        return replicates(*sides, np.zeros(n, dtype=np.int64), comparison)

    def quality(self, predictor: str, constants: Constants) -> float:
        """What constants are chosen by: the mean of two rank correlations."""
        predicted, measured, n = (
            self.predicted(predictor, constants)[0],
            self.sums["measured"][0],
            self.sums["n_edited"][0],
        )
        pairs = ((predicted, measured), (predicted / n, measured / n))
        return float(np.mean([RANKS.of(a[None], b[None])[0] for a, b in pairs]))


@torch.no_grad()
def predictions(
    shared: SharedGradients, patches: Patches, slopes: Mapping[float, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Parts of predictions [n] that add up over contexts; slopes: gradients with a share of all features taken away."""
    baseline, change = shared.baseline, patches.change.double()
    plain = predict(shared, patches)
    columns = {name: plain[name] for name in PLAIN}

    def along(vectors: torch.Tensor) -> torch.Tensor:
        products = torch.einsum("...npd,nd->...np", vectors[..., patches.context, :, :], patches.direction)
        return products.double()

    for share, gradient in slopes.items():
        columns[f"blended_{share:.3f}"] = (plain["first_order"] + (change * along(gradient)).sum(-1)) / 2
    size = patches.direction.norm(dim=1)[:, None] * patches.change.abs() / baseline.x[patches.context].norm(dim=-1)
    size = size.double()
    probes = baseline.probes["curvature"]
    for name, some in (("all", probes), ("few", probes[:-1])):
        squares = some.double().square().sum(-1)[:, patches.context].clamp_min(1e-30)
        h = along(some)
        columns[f"share_{name}"] = ((h.square() / squares).mean(0) * patches.edited).sum(-1)
        for rate in GROWTHS:
            terms = change.square() * squares.mean(0) * growth(size, rate)
            columns[f"scale_{name}_{rate:g}"] = terms.sum(-1) / 2
            if name == "all":
                columns[f"grown_{rate:g}"] = ((change * h).square().mean(0) / 2 * growth(size, rate)).sum(-1)
    return columns


def shown(agreement: Agreement) -> str:
    bounds = "" if np.isnan(agreement.low) else f" [{agreement.low:.2f}, {agreement.high:.2f}]"
    return f"{agreement.value:.2f}{bounds}"


def lines(tune: Ablations, test: Ablations) -> Iterator[str]:
    """What was chosen, and a table in Markdown."""
    for name, side in (("Tuned on", tune), ("Tested on", test)):
        yield f"{name} {len(side.features)} features, {side.patches.height} patches, {len(side.documents)} documents."
    yield ""
    yield "| predictor | constants | tuning side | Spearman | above the package's | per token | above it | Pearson |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for predictor, own in OWN.items():
        chosen = max(grid(predictor), key=lambda constants: tune.quality(predictor, constants))
        of_own = [test.agreement(test.predicted(predictor, own), by_token, RANKS) for by_token in (False, True)]
        for constants in dict.fromkeys((own, chosen)):
            predicted = test.predicted(predictor, constants)
            cells = [f"`{predictor}`", f"{constants}{' (package)' if constants == own else ''}"]
            cells.append(f"{tune.quality(predictor, constants):.3f}")
            for by_token, other in zip((False, True), of_own, strict=True):
                found = test.agreement(predicted, by_token, RANKS)
                cells += [shown(found.agreement()), "–" if constants == own else shown(found.difference(other))]
            cells.append(shown(test.agreement(predicted, by_token=False, comparison=NUMBERS).agreement()))
            yield f"| {' | '.join(cells)} |"
    for predictor in PLAIN:
        predicted = test.predicted(predictor, None)
        ranks = [shown(test.agreement(predicted, by_token, RANKS).agreement()) for by_token in (False, True)]
        numbers = shown(test.agreement(predicted, by_token=False, comparison=NUMBERS).agreement())
        yield f"| `{predictor}` | – | – | {ranks[0]} | – | {ranks[1]} | – | {numbers} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", type=Path, required=True, help="Warehouse to choose constants on.")
    parser.add_argument("--test", type=Path, required=True, help="Warehouse of other sources to show predictors on.")
    parser.add_argument("--layer", type=int, default=20)
    parser.add_argument("--batches", type=int, help="Batches of 8 contexts of each; else all that were measured.")
    options = parser.parse_args()
    sides = [Ablations(path, options.layer, options.batches) for path in (options.tune, options.test)]
    for line in lines(*sides):
        print(line, flush=True)


if __name__ == "__main__":
    main()
