"""What comes with the package for a model: MODEL/layer_N/, SAEs in SAELens v6 format, and MODEL/tuned_lens.safetensors.

`ingest.sae.choosing` and `ingest.energies.translators` look here.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
