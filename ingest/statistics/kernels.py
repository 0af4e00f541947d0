"""Activations of a slice in, sums over its cells, pairs and features out, in one pass each.

What numpy would make a dozen passes and arrays of. Activations are sorted by feature, document, context and token, so
a cell (feature and context), a pair (feature and document) and a feature are each a stretch: bounds [stretch + 1] say
where stretches of the next smaller kind begin.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.compiled import compiled

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@compiled
def placed_sums(place: Integers, values: Floats, n: int) -> Floats:
    """Σ over the values at each place [column, n]. place: [value]. values: [column, value]."""
    sums = np.zeros((len(values), n))
    for column in range(len(values)):
        for i in range(len(place)):
            sums[column, place[i]] += values[column, i]
    return sums


@compiled
def add_rows(sums: NDArray[np.number], place: Integers, rows: NDArray[np.number]) -> None:
    """Add rows [row, column] to those of sums [n, column] at their places [row]."""
    for row in range(len(place)):
        for column in range(rows.shape[1]):
            sums[place[row], column] += rows[row, column]


@compiled
def linear_forms(place: Integers, coefficients: Floats, values: Floats) -> Floats:
    """Σ over terms of a value times the coefficient of its place [value].

    place: [value]. coefficients: [term, n]. values: [term, value].
    """
    forms = np.zeros(len(place))
    for term in range(len(values)):
        for i in range(len(place)):
            forms[i] += coefficients[term, place[i]] * values[term, i]
    return forms


@compiled
def stable_order(keys: NDArray[np.int32], first: int, n_keys: int) -> Integers:
    """Places of values by key, equal keys as they come. keys: [value] from `first` on, n_keys of them."""
    at = np.zeros(n_keys + 1, dtype=np.int64)
    for i in range(len(keys)):
        at[keys[i] - first + 1] += 1
    at = np.cumsum(at)
    order = np.empty(len(keys), dtype=np.int64)
    for i in range(len(keys)):
        key = keys[i] - first
        order[at[key]] = i
        at[key] += 1
    return order


@compiled
def pair_sums(pairs: Integers, a: NDArray[np.float32], g: NDArray[np.float32]) -> Floats:
    """Σa·g, Σg, Σg² of pairs [3, pair]. pairs: bounds among activations."""
    sums = np.zeros((3, len(pairs) - 1))
    for pair in range(len(pairs) - 1):
        ag = total = squares = 0.0
        for i in range(pairs[pair], pairs[pair + 1]):
            value = np.float64(g[i])
            ag += a[i] * value
            total += value
            squares += value * value
        sums[0, pair], sums[1, pair], sums[2, pair] = ag, total, squares
    return sums


@compiled
def activity_sums(
    cells: Integers,
    cell_pairs: Integers,
    place: NDArray[np.int32],
    a: NDArray[np.float32],
    counted: NDArray[np.bool_],
    n_counted: Floats,
) -> Floats:
    """Active tokens, Σa, Σa², Σã² and counted active tokens of pairs [5, pair].

    cells: bounds among activations. cell_pairs: among cells. counted: [token]. n_counted: of a cell's context [cell].
    """
    sums = np.zeros((5, len(cell_pairs) - 1))
    for pair in range(len(cell_pairs) - 1):
        for cell in range(cell_pairs[pair], cell_pairs[pair + 1]):
            counted_a = counted_a2 = n = 0.0
            for i in range(cells[cell], cells[cell + 1]):
                value = np.float64(a[i])
                sums[0, pair] += 1
                sums[1, pair] += value
                sums[2, pair] += value * value
                if counted[place[i]]:
                    counted_a += value
                    counted_a2 += value * value
                    n += 1
            sums[3, pair] += counted_a2 - counted_a * counted_a / max(n_counted[cell], 1.0)
            sums[4, pair] += n
    return sums


@compiled
def discrete_sums(
    cells: Integers,
    cell_pairs: Integers,
    place: NDArray[np.int32],
    a: NDArray[np.float32],
    at_tokens: Floats,
    n_counted: Floats,
) -> Floats:
    """Sums of pairs for a gradient that is one number a token [13, pair].

    In order: active tokens, Σa, Σa², Σa·g, Σg, Σg², Σã²; counted tokens, contexts with them, ΣS_c, ΣS_c² and the two
    of the control. at_tokens: g, what is tested, its control, whether g is defined, whether it counts [token, 5].
    n_counted: of a cell's context [cell].
    """
    sums = np.zeros((13, len(cell_pairs) - 1))
    for pair in range(len(cell_pairs) - 1):
        n_active = sum_a = sum_a2 = sum_ag = sum_g = sum_g2 = sum_ac2 = 0.0
        n_counted_tokens = n_contexts = sum_s = sum_s2 = null_s = null_s2 = 0.0
        for cell in range(cell_pairs[pair], cell_pairs[pair + 1]):
            counted_a = counted_a2 = s = null = n = 0.0
            for i in range(cells[cell], cells[cell + 1]):
                value, at = np.float64(a[i]), at_tokens[place[i]]
                g, defined, counts = at[0], at[3], at[4]
                n_active += defined
                sum_a += value * defined
                sum_a2 += value * value * defined
                sum_ag += value * g
                sum_g += g
                sum_g2 += g * g
                s += value * at[1]
                null += value * at[2]
                counted_a += value * counts
                counted_a2 += value * value * counts
                n += counts
            sum_ac2 += counted_a2 - counted_a * counted_a / max(n_counted[cell], 1.0)
            n_counted_tokens += n
            n_contexts += n > 0
            sum_s += s
            sum_s2 += s * s
            null_s += null
            null_s2 += null * null
        sums[0, pair], sums[1, pair], sums[2, pair], sums[3, pair] = n_active, sum_a, sum_a2, sum_ag
        sums[4, pair], sums[5, pair], sums[6, pair], sums[7, pair] = sum_g, sum_g2, sum_ac2, n_counted_tokens
        sums[8, pair], sums[9, pair], sums[10, pair] = n_contexts, sum_s, sum_s2
        sums[11, pair], sums[12, pair] = null_s, null_s2
    return sums


@compiled
def tested_sums(
    cells: Integers, cell_features: Integers, place: NDArray[np.int32], tested: Floats
) -> tuple[Floats, Floats]:
    """ΣS_c and ΣS_c² of features, where a is 1 wherever the feature is active, each [number, feature].

    cells: bounds among activations. cell_features: of features among cells. tested: numbers of tokens [token, number].
    """
    n_numbers = tested.shape[1]
    sums, squares = np.zeros((n_numbers, len(cell_features) - 1)), np.zeros((n_numbers, len(cell_features) - 1))
    s = np.zeros(n_numbers)
    for feature in range(len(cell_features) - 1):
        for cell in range(cell_features[feature], cell_features[feature + 1]):
            s[:] = 0
            for i in range(cells[cell], cells[cell + 1]):
                at = tested[place[i]]
                for k in range(n_numbers):
                    s[k] += at[k]
            for k in range(n_numbers):
                sums[k, feature] += s[k]
                squares[k, feature] += s[k] * s[k]
    return sums, squares


@compiled
def label_counts(
    pairs: Integers, pair_features: Integers, place: NDArray[np.int32], labels: NDArray[np.int8], n_labels: int
) -> tuple[Integers, Integers]:
    """Active tokens of features by label, and documents with them, each [label, feature].

    pairs: bounds among activations. pair_features: of features among pairs. labels: [token], −1 for none.
    """
    n_tokens = np.zeros((n_labels, len(pair_features) - 1), dtype=np.int64)
    n_documents = np.zeros_like(n_tokens)
    last = np.full(n_labels, -1, dtype=np.int64)  # pair in which a label was seen last
    for feature in range(len(pair_features) - 1):
        for pair in range(pair_features[feature], pair_features[feature + 1]):
            for i in range(pairs[pair], pairs[pair + 1]):
                label = labels[place[i]]
                if label >= 0:
                    n_tokens[label, feature] += 1
                    if last[label] != pair:
                        last[label] = pair
                        n_documents[label, feature] += 1
    return n_tokens, n_documents


@compiled
def counted_sizes(
    cells: Integers,
    cell_pairs: Integers,
    pair_features: Integers,
    place: NDArray[np.int32],
    counted: NDArray[np.bool_],
) -> Integers:
    """Counted active tokens of features, contexts and documents with them [3, feature]."""
    sizes = np.zeros((3, len(pair_features) - 1), dtype=np.int64)
    for feature in range(len(pair_features) - 1):
        for pair in range(pair_features[feature], pair_features[feature + 1]):
            of_pair = 0
            for cell in range(cell_pairs[pair], cell_pairs[pair + 1]):
                of_cell = 0
                for i in range(cells[cell], cells[cell + 1]):
                    of_cell += counted[place[i]]
                sizes[1, feature] += of_cell > 0
                of_pair += of_cell
            sizes[0, feature] += of_pair
            sizes[2, feature] += of_pair > 0
    return sizes


@compiled
def joint_counts(
    pairs: Integers,
    row_of_pair: Integers,
    feature_of_pair: Integers,
    a: NDArray[np.float32],
    g: NDArray[np.float32],
    a_edges: Floats,
    g_edges: Floats,
    n_rows: int,
) -> Integers:
    """Activations by row and cell of a joint histogram of a and g [row, cell].

    As many edges are below a value as there are bins to the left of it; a missing edge (NaN) is above all. pairs:
    bounds among activations. row_of_pair: where a pair's counts go, −1 for nowhere. feature_of_pair: row of its edges.
    """
    n_a, n_g = a_edges.shape[1] + 1, g_edges.shape[1] + 1
    counts = np.zeros((n_rows, n_a * n_g), dtype=np.int64)
    for pair in range(len(pairs) - 1):
        row, feature = row_of_pair[pair], feature_of_pair[pair]
        if row < 0:
            continue
        for i in range(pairs[pair], pairs[pair + 1]):
            a_bin = g_bin = 0
            for edge in range(n_a - 1):
                a_bin += not (a[i] <= a_edges[feature, edge] or np.isnan(a_edges[feature, edge]))
            for edge in range(n_g - 1):
                g_bin += not (g[i] <= g_edges[feature, edge] or np.isnan(g_edges[feature, edge]))
            counts[row, a_bin * n_g + g_bin] += 1
    return counts


@compiled
def unpacked_sums(place: Integers, scale: NDArray[np.float32], codes: NDArray[np.int8], n: int) -> Floats:
    """Σ of rows of scaled integers at each place [n, direction]. place, scale: [row]. codes: [row, direction]."""
    sums = np.zeros((n, codes.shape[1]))
    for row in range(len(place)):
        of_row = np.float64(scale[row])
        for k in range(codes.shape[1]):
            sums[place[row], k] += of_row * codes[row, k]
    return sums
