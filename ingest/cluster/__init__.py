"""Ray's workers: a job and its tasks in, results out, wherever there is a processor for them.

Whoever has work that falls into tasks of no order hands it to a `Crew`; which work that is, this room does not know.
"""

from energy_lens.ingest.cluster.crew import Crew
from energy_lens.ingest.cluster.frames import PackedFrames
from energy_lens.ingest.cluster.job import Job, Report, Task
from energy_lens.ingest.cluster.options import LOCAL, Cluster
from energy_lens.ingest.cluster.processor import processor
from energy_lens.ingest.cluster.session import Connection, connected

__all__ = ["LOCAL", "Cluster", "Connection", "Crew", "Job", "PackedFrames", "Report", "Task", "connected", "processor"]
