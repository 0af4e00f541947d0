-- Attribution of every feature that fires, with curvature where the run has probes, since that is what roles come from;
-- beside its density. The positive control only where nothing else was run.
SELECT
    energy,
    layer,
    feature,
    n_active / n_tokens AS density,
    coalesce(attribution_curvature, attribution) AS attribution,
    attribution_curvature IS NOT NULL AS has_curvature,
    coalesce(role, 'neither') AS role,
    units_of(energy) AS units
FROM efas
WHERE gradient = 'decoder'
    AND category = 'all'
    AND n_active > 0
    AND (
        NOT is_control(energy)
        OR (SELECT bool_and(is_control) FROM run_energies WHERE run_id = (SELECT run_id FROM current_run))
    )
ORDER BY energy, layer, feature
