"""`elw intervene`: features of the current run in, measured effects and how well each score predicts them out.

1. Choose features: the top by a score, random ones that fire as often, listed ones, all of a class; and contexts, a
   seeded sample in turn from each category and half. Both are stored before anything is measured (`planning`).
2. Batch by batch of contexts, one transaction each: run them unpatched, take predictions, run every patch (`work`);
   here, or by the workers of a cluster (`processing`).
3. Finish: intervals over documents, and the agreement of each predictor with the measurement (`effects`).

Killed anywhere, the same command goes on where it stood.
"""

from __future__ import annotations

from pathlib import Path

from energy_lens.analysis.attractors.landscape import StoredLandscape
from energy_lens.analysis.current_run import CurrentRun, check_feature
from energy_lens.analysis.interventions.choosing import Request
from energy_lens.analysis.interventions.effects import Intervened, renew_effects
from energy_lens.analysis.interventions.options import InterventionOptions
from energy_lens.analysis.interventions.planning import plan_layer, settled
from energy_lens.analysis.interventions.processing import Instruments, process, process_on
from energy_lens.analysis.interventions.work import prepare
from energy_lens.ingest.model.loading import DTYPES, ModelOnDemand
from energy_lens.warehouse.database import Warehouse, ingest_lock


def intervene(path: Path, options: InterventionOptions) -> list[Intervened]:
    """Intervene on features of the current run and store what happens, layer by layer.

    Raises UsageError when there is no run, no such layer or feature, or when the model or an SAE is another now;
    KeyboardInterrupt after Ctrl-C: what is committed stays, and the same call goes on.
    """
    request = Request.parse(options.features)
    current = CurrentRun(path)
    layers = request.layers(current, options.layers)
    saes = {layer: current.sae(layer) for layer in layers}
    for layer, feature in request.listed:
        check_feature(saes[layer], feature)
    with ingest_lock(path, "elw intervene"):
        with Warehouse(path, writable=True, create=False) as warehouse:  # migrates before the model is loaded
            renew_effects(warehouse, current.run_id)
        landscapes = {}
        if options.shift:
            later = [layer for layer in current.facts.layers if layer > layers[0]]
            landscapes = {layer: StoredLandscape.read(current, layer) for layer in later}
        options, loaded = settled(current, options, request, layers)
        plans = [plan_layer(path, current, options, request, layer) for layer in layers]
        n_new_patches: dict[int, int] = {}
        if unfinished := [plan for plan in plans if not plan.is_finished]:
            current.check_model()
            model = ModelOnDemand(
                current.facts.model,
                DTYPES[options.dtype],
                lambda model: prepare(model, current.has_bos, options),
                loaded,
            )
            del loaded  # so that it can be forgotten
            instruments = Instruments(path, current, options, model, saes, landscapes)
            if options.cluster is None:
                n_new_patches = process(instruments, unfinished)
            else:
                n_new_patches = process_on(options.cluster, instruments, unfinished)
    return [
        Intervened(plan.run_id, plan.intervention_id, plan.layer, n_new_patches.get(plan.layer, 0)) for plan in plans
    ]
