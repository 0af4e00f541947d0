INSERT INTO intervention_settings BY NAME
SELECT
    $run AS run_id,
    $intervention AS intervention_id,
    $identity AS identity,
    $layer AS layer,
    $kind AS kind,
    $value AS value,
    $edited AS edited,
    $features AS features,
    $dtype AS dtype,
    $seed AS seed,
    $n_contexts AS n_contexts,
    $n_probes AS n_probes,
    $n_directions AS n_directions,
    $path_points AS path_points,
    $hessian AS hessian,
    $version AS elw_version,
    now() AT TIME ZONE 'UTC' AS created_at
