"""A calibrated run in, where its finished groups are written in place of its warehouse out: `elw ingest --stage`."""

from __future__ import annotations

from energy_lens.ingest.pipeline.groups import GroupTables
from energy_lens.ingest.pipeline.options import IngestOptions
from energy_lens.warehouse.digests import calibration_sha256, group_sha256, plan_digests
from energy_lens.warehouse.plan import Group
from energy_lens.warehouse.plan_tables import read_plan
from energy_lens.warehouse.runs import StoredRun, find_run, open_again
from energy_lens.warehouse.staging.groups import (
    StagedGroup,
    StageHeader,
    find_groups,
    is_of,
    stage_group,
    stage_plan,
)
from energy_lens.warehouse.staging.registered import register_groups


class Stage:
    """Where the groups of one run are written; it holds no warehouse open, and may be handed to another process."""

    def __init__(self, destination: str, run: StoredRun, plan: str, calibration: str, shard: str | None) -> None:
        self.destination = destination
        self._identity, self._plan, self._calibration, self._shard = run.identity, plan, calibration, shard
        self._hashes = {document.document_id: document.sha256 for document in run.documents.values()}
        self.is_compiled = False  #: the model's blocks are fused

    def header(self, group: Group, cpu: str | None = None) -> StageHeader:
        """What is told of a group. cpu: the kind of processor that computed it."""
        return StageHeader(
            identity=self._identity,
            plan_sha256=self._plan,
            calibration_sha256=self._calibration,
            group_id=group.group_id,
            group_sha256=group_sha256(group, self._hashes),
            n_tokens=group.n_tokens,
            cpu=cpu,
            shard=self._shard,
            is_compiled=self.is_compiled,
        )

    def write(self, tables: GroupTables) -> StagedGroup:
        """Write a group, all of it or nothing that counts. Raises ElwError when it cannot be written."""
        return stage_group(self.destination, self.header(tables.group, tables.cpu), tables.frames)

    def finished(self, groups: list[Group]) -> list[StagedGroup]:
        """Those of the groups that lie there already, as of an ingest that was killed before it took note of them."""
        found = {staged.group_id: staged for staged in find_groups(self.destination, self._identity, self._calibration)}
        there = [(group, found[group.group_id]) for group in groups if group.group_id in found]
        return [staged.registered for group, staged in there if is_of(staged, self.header(group))]


def open_stage(options: IngestOptions, run: StoredRun) -> tuple[Stage, StoredRun]:
    """The stage of a run, its plan staged, and the run with what it finds finished there.

    Raises ElwError when it cannot be written.
    """
    assert options.stage is not None
    with open_again(options.db, run) as warehouse:
        calibration = calibration_sha256(warehouse, run.run_id)
        assert calibration is not None
        plan = plan_digests(warehouse, run.run_id).sha256
        stage = Stage(options.stage, run, plan, calibration, str(options.shard) if options.shard else None)
        header = {"identity": run.identity, "plan_sha256": plan, "calibration_sha256": calibration}
        stage_plan(options.stage, header, read_plan(warehouse, run.run_id))
        left = [group for group in run.groups if group.group_id not in run.done]
        with warehouse.transaction():
            if not register_groups(warehouse, run.run_id, stage.finished(left)):
                return stage, run
        found = find_run(warehouse, run.identity)
    assert found is not None
    return stage, found
