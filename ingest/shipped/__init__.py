"""What comes with the package for a model: MODEL/layer_N/, SAEs in SAELens v6 format, and MODEL/tuned_lens.safetensors.

`ingest.sae.choosing` and `ingest.energies.translators` look here; and `ingest.model.loading`, for a model that is small
enough to come along itself, in MODEL/model/. And a sample of text, 128 documents of four kinds.
"""

from pathlib import Path

FOLDER = Path(__file__).parent

#: The folder of a model's own weights, with its configuration and tokenizer.
MODEL = "model"

#: The sample: a folder a category, in a checkout and in an installed package alike.
SAMPLE = FOLDER.parents[1] / "corpus"
