"""Documents permuted: activations and centred gradients of contexts in, permutation p values of every feature out.

The question is that of `efas.z`: do a and g go together inside contexts? g̃ and S_c are the same (`ingest.statistics`).
Where the null distribution comes from is not: from one document's activations with another's gradients.

1. Within each category the documents are permuted. Document A's i-th context gets g̃ of document π(A)'s i-th context,
   position by position; a position counts where it counts in both. What has no partner is dropped.
2. M[A, B, j] = Σ_i S, S = Σ_t a_{A,i,t,j}·g̃_{B,i,t,j} − (Σ_t a)(Σ_t g̃)/n over the n positions that count in both, and
   Σ_i S² are taken once for every pair of documents. A permutation's ΣS_c is then Σ_A M[A, π(A), j], a sum of look-ups:
   ten times the permutations take little longer. (In the observed pairing Σg̃ = 0; in another one positions drop out.)
3. p = (b + 1)/(N + 1), two-sided, with b of N permutations whose statistic is in size not below the observed one, for
   two statistics:

   z = ΣS_c / √ΣS_c²   of `efas` itself: its permuted values stand where z's own p has the normal. Studentised, it asks
                       for an association of zero and no more (DiCiccio and Romano 2017), whatever the lengths.
   ΣS_c / √n           n the tokens that a pairing counts. It asks for independence: it rejects also where a feature
                       fires at gradients that are large, of either sign. The observed pairing drops nothing and a
                       permuted one does where documents differ in length, so that without √n it would reject too often:
                       with nothing true, in simulations, 6 % at 5 % at lengths like those of this package's corpus and
                       16 to 20 % at very unequal ones, where both statistics here reject 3 to 6 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.statistics.significance import MIN_MATES
from energy_lens.ingest.statistics.stream import centred_by_context, less_mates

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Numbers in one array over pairs of documents, or over a rank's tokens and documents, and features.
CHUNK_NUMBERS = 4_000_000

#: Random pairings that stand in for the observed one, to see how often the test rejects them.
RANDOM_PAIRINGS = 200

LEVEL = 0.05

#: Statistics this close, relative to themselves, are equal: pairings that differ where a feature is silent must tie.
TIE = 1e-9


@dataclass(frozen=True)
class PairedContexts:
    """Contexts of one layer, and what is active at their counted tokens; features are numbered from 0."""

    categories: NDArray[np.object_]  #: [context]
    documents: Integers  #: [context] ids
    ranks: Integers  #: [context] i: which of its document's contexts it is, from 0
    context: Integers  #: [active] place of its context
    position: Integers  #: [active]
    feature: Integers  #: [active]
    activation: Floats  #: [active]


@dataclass(frozen=True)
class Permuted:
    """A permutation test's figures, by feature."""

    statistic: Floats  #: ΣS_c of the observed pairing
    z: Floats  #: its z, less the mean of the permuted ones, over their standard deviation
    p: Floats  #: of z
    p_sum: Floats  #: of ΣS_c / √n
    permuted_deviation: Floats  #: standard deviation of the permuted z; the normal has 1
    random_rejected: float  #: share of features with p <= 0.05 when a random pairing stands for the observed one


def permutation_test(
    contexts: PairedContexts, centred: Tensor, decoder: Tensor, permutations: int, seed: int
) -> Permuted:
    """Test every feature of one layer and energy.

    centred: ∇̃ [context, position, d_model], 0 where not counted, so that g̃_j = −⟨∇̃, d_j⟩. decoder: d_j
    [feature, d_model]. Equal seeds give equal permutations, whatever the layer.
    """
    generator = np.random.default_rng(seed)
    blocks = [Block.of(contexts, category) for category in sorted(set(contexts.categories))]
    # The observed pairing comes first, then the random ones, then those that they all are compared with.
    n_compared = 1 + RANDOM_PAIRINGS
    pairings = [block.pairings(RANDOM_PAIRINGS + permutations, generator) for block in blocks]
    counts = [paired_tokens(block, centred) for block in blocks]
    n_tokens = torch.stack([look_up(n, paired) for n, paired in zip(counts, pairings, strict=True)]).sum(0).clamp_min(1)
    parts: list[tuple[Tensor, ...]] = []
    start = 0
    for features in decoder.split(_chunk(blocks, centred.shape[1])):
        s, s2 = torch.zeros(2, n_compared + permutations, len(features), dtype=torch.float64)
        for block, paired in zip(blocks, pairings, strict=True):
            for total, sums in zip((s, s2), pair_sums(contexts, block, centred, features, start), strict=True):
                total += look_up(sums, paired)
        start += len(features)
        z = s / s2.sqrt().clamp_min(torch.finfo(s.dtype).tiny)
        p, p_sum = (_p_values(t[:n_compared], t[n_compared:]) for t in (z, s / n_tokens.sqrt()))
        mean, deviation = z[n_compared:].mean(0), z[n_compared:].std(0)
        standardised = (z[0] - mean) / deviation.clamp_min(torch.finfo(s.dtype).tiny)
        parts.append((s[0], standardised, p[0], p_sum[0], deviation, (p[1:] <= LEVEL).double().mean(0)))
    *columns, rejected = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    statistic, standardised_z, p_value, p_of_sum, deviations = columns
    return Permuted(statistic, standardised_z, p_value, p_of_sum, deviations, float(rejected.mean()))


def _p_values(compared: Tensor, permuted: Tensor) -> Tensor:
    """(b + 1)/(N + 1) [compared, feature], with b of N permuted |t| [N, feature] not below each compared |t|."""
    ascending = permuted.abs().T.contiguous().sort().values  # [feature, N]
    bounds = compared.abs().T.contiguous() * (1 - TIE)
    below = torch.searchsorted(ascending, bounds)
    return (len(permuted) - below + 1).T.double() / (len(permuted) + 1)


@dataclass(frozen=True)
class Block:
    """The contexts of one category, whose documents are permuted among themselves."""

    by_rank: list[Integers]  #: places of all documents' i-th contexts
    documents: Integers  #: [context, of all categories] number of its document in the block; −1 outside
    n_documents: int

    @classmethod
    def of(cls, contexts: PairedContexts, category: str) -> Block:
        places = np.flatnonzero(contexts.categories == category)
        ids = np.unique(contexts.documents[places])
        documents = np.full(len(contexts.documents), -1)
        documents[places] = np.searchsorted(ids, contexts.documents[places])
        ranks = contexts.ranks[places]
        return cls([places[ranks == i] for i in range(ranks.max() + 1)], documents, len(ids))

    def pairings(self, n: int, generator: np.random.Generator) -> Tensor:
        """[1 + n, document] π(A): the identity, then random permutations."""
        every = np.tile(np.arange(self.n_documents), (1 + n, 1))
        every[1:] = generator.permuted(every[1:], axis=1)
        return torch.from_numpy(every)


def _chunk(blocks: list[Block], n_positions: int) -> int:
    """Features taken at once."""
    widest = max(block.n_documents * max(block.n_documents, n_positions) for block in blocks)
    return max(1, CHUNK_NUMBERS // widest)


def pair_sums(
    contexts: PairedContexts, block: Block, centred: Tensor, decoder: Tensor, first_feature: int = 0
) -> tuple[Tensor, Tensor]:
    """Σ_i S and Σ_i S² [document A, document B, feature] of a block, float64, for features from `first_feature` on.

    decoder: their rows. Only active tokens are visited: each adds a·g̃ and a of all B at once.
    """
    n_documents, n_features = block.n_documents, len(decoder)
    s, s2 = torch.zeros(2, n_documents, n_features, n_documents, dtype=torch.float64)
    here = (contexts.feature >= first_feature) & (contexts.feature < first_feature + n_features)
    for places in block.by_rank:
        chosen = here & np.isin(contexts.context, places)
        if not chosen.any():
            continue
        documents = torch.from_numpy(block.documents[places])
        g = -(centred[torch.from_numpy(places)] @ decoder.T).permute(1, 2, 0).contiguous()  # [position, feature, B]
        feature = torch.from_numpy(contexts.feature[chosen] - first_feature)
        activation = torch.from_numpy(contexts.activation[chosen])
        position = torch.from_numpy(contexts.position[chosen])
        counted = counted_tokens(centred[torch.from_numpy(places)])
        document = torch.from_numpy(block.documents[contexts.context[chosen]])
        sums = torch.zeros(2, n_documents * n_features, len(places), dtype=torch.float64)
        for total, factors in zip(sums, (g[position, feature].double(), counted.T[position]), strict=True):
            total.index_add_(0, document * n_features + feature, activation[:, None] * factors)
        sum_ag, sum_a = sums.view(2, n_documents, n_features, len(places))
        sum_g = (counted.to(g.dtype) @ g.flatten(1)).view(-1, n_features, len(places)).double()
        n = (counted @ counted.T).clamp_min(1)[:, None]
        of_rank = sum_ag[documents] - sum_a[documents] * sum_g / n  # [A, feature, B]
        s[documents[:, None], :, documents] += of_rank.transpose(1, 2)
        s2[documents[:, None], :, documents] += of_rank.square().transpose(1, 2)
    return s.transpose(1, 2), s2.transpose(1, 2)


def counted_tokens(centred: Tensor) -> Tensor:
    """1 where ∇̃ [context, position, d_model] counts, else 0 [context, position]; float64."""
    return (centred != 0).any(-1).double()


def paired_tokens(block: Block, centred: Tensor) -> Tensor:
    """Tokens that count in both documents [A, B, 1] of a block, over all their paired contexts; float64."""
    counted = counted_tokens(centred)
    n_tokens = torch.zeros(block.n_documents, block.n_documents, 1, dtype=torch.float64)
    for places in block.by_rank:
        documents, of_rank = torch.from_numpy(block.documents[places]), counted[torch.from_numpy(places)]
        n_tokens[documents[:, None], documents, 0] += of_rank @ of_rank.T
    return n_tokens


def look_up(sums: Tensor, pairings: Tensor) -> Tensor:
    """Σ_A M[A, π(A)] [pairing, feature] for M [A, B, feature] and π [pairing, A]."""
    n_documents = sums.shape[0]
    cells = pairings + torch.arange(n_documents) * n_documents
    return torch.nn.functional.embedding_bag(cells, sums.reshape(n_documents**2, -1), mode="sum")


def within_rows(gradients: Tensor, included: Tensor, rows: list[Integers]) -> Tensor:
    """∇̃ [context, position, d_model]: what `ingest.statistics` tests, 0 where not counted.

    gradients: s_t·∂E/∂x, changed in place. included: [context, position]. rows: places of the contexts of each row of
    the plan: mates. A position counts with at least MIN_MATES other contexts included there.
    """
    for places in map(torch.from_numpy, rows):
        counts = included[places][..., None].to(gradients.dtype)
        g = centred_by_context(gradients[places] * counts, counts)
        mates = counts.sum(0) - counts
        gradients[places] = less_mates(g, g.sum(0), mates, (counts > 0) & (mates >= MIN_MATES))
    return gradients
