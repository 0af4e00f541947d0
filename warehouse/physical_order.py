"""How bulk tables lie in the file: the columns by which their rows are sorted.

DuckDB keeps the smallest and largest value of every block of rows, so that a question about one feature of one layer
reads only the blocks that can hold it. Ingest sorts the rows of a group so; `elw compact` sorts those of all groups.
"""

from __future__ import annotations

#: Columns behind run_id by which each table that grows with the text is sorted; together they are its key.
SORTED_BY = {
    "activations": ("layer", "feature", "token_id"),
    "feature_moments": ("layer", "energy", "feature", "group_id"),
    "feature_histograms": ("layer", "energy", "feature", "group_id"),
    "feature_directions": ("layer", "energy", "feature", "group_id"),
    "feature_documents": ("layer", "energy", "feature", "document_id", "group_id"),
    "token_layers": ("layer", "token_id"),
    "gradients": ("energy", "layer", "token_id"),
    "energies": ("energy", "layer", "token_id"),
    "document_gradients": ("layer", "energy", "document_id", "group_id"),
    "tokens": ("token_id",),
}
