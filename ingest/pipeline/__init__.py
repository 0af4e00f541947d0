"""The five steps of an ingest, a file a step; the ingest lock is held here alone, while plan and groups are committed.

1. `run`       find the documents; settle model, SAEs, energies and precision: together they are the run's identity.
2. `planning`  in one transaction write the plan: documents, contexts, groups; a run that exists is continued.
3. `calibration`  before the first group, measure each gradient's mean and spread on a seeded sample, and store them
   with the SAEs' quartiles: the bins of mutual information.
4. `groups`, `rows`, `commits`  group by group: run the model, take statistics, commit all in one transaction. The file
   is open only then.
5. `statistics.finish`  fill feature_statistics.

Killed anywhere, the same command goes on where it stood, and ends with the same tables.
"""

from energy_lens.ingest.model.loading import DTYPES
from energy_lens.ingest.pipeline.options import IngestOptions
from energy_lens.ingest.pipeline.run import IngestSummary, ingest

__all__ = ["DTYPES", "IngestOptions", "IngestSummary", "ingest"]
