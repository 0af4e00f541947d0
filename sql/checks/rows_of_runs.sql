-- Every row belongs to a run of this file.
-- Rows of run_energies are looked after by energies_of_runs, so that a file of before that table is checked for the rest.
WITH parts AS (
    SELECT 'activation_histogram' AS "table", run_id FROM activation_histogram GROUP BY ALL
    UNION ALL
    SELECT 'activation_intervals', run_id FROM activation_intervals GROUP BY ALL
    UNION ALL
    SELECT 'activation_quartiles', run_id FROM activation_quartiles GROUP BY ALL
    UNION ALL
    SELECT 'activations', run_id FROM activations GROUP BY ALL
    UNION ALL
    SELECT 'attractor_descents', run_id FROM attractor_descents GROUP BY ALL
    UNION ALL
    SELECT 'attractor_settings', run_id FROM attractor_settings GROUP BY ALL
    UNION ALL
    SELECT 'attractor_shifts', run_id FROM attractor_shifts GROUP BY ALL
    UNION ALL
    SELECT 'attractor_sweeps', run_id FROM attractor_sweeps GROUP BY ALL
    UNION ALL
    SELECT 'attractors', run_id FROM attractors GROUP BY ALL
    UNION ALL
    SELECT 'basins', run_id FROM basins GROUP BY ALL
    UNION ALL
    SELECT 'calibration', run_id FROM calibration GROUP BY ALL
    UNION ALL
    SELECT 'contexts', run_id FROM contexts GROUP BY ALL
    UNION ALL
    SELECT 'critical_doses', run_id FROM critical_doses GROUP BY ALL
    UNION ALL
    SELECT 'document_aliases', run_id FROM document_aliases GROUP BY ALL
    UNION ALL
    SELECT 'document_gradients', run_id FROM document_gradients GROUP BY ALL
    UNION ALL
    SELECT 'documents', run_id FROM documents GROUP BY ALL
    UNION ALL
    SELECT 'dose_statistics', run_id FROM dose_statistics GROUP BY ALL
    UNION ALL
    SELECT 'dose_summaries', run_id FROM dose_summaries GROUP BY ALL
    UNION ALL
    SELECT 'effect_statistics', run_id FROM effect_statistics GROUP BY ALL
    UNION ALL
    SELECT 'energies', run_id FROM energies GROUP BY ALL
    UNION ALL
    SELECT 'feature_activity', run_id FROM feature_activity GROUP BY ALL
    UNION ALL
    SELECT 'feature_classes', run_id FROM feature_classes GROUP BY ALL
    UNION ALL
    SELECT 'feature_directions', run_id FROM feature_directions GROUP BY ALL
    UNION ALL
    SELECT 'feature_documents', run_id FROM feature_documents GROUP BY ALL
    UNION ALL
    SELECT 'feature_histograms', run_id FROM feature_histograms GROUP BY ALL
    UNION ALL
    SELECT 'feature_logits', run_id FROM feature_logits GROUP BY ALL
    UNION ALL
    SELECT 'feature_moments', run_id FROM feature_moments GROUP BY ALL
    UNION ALL
    SELECT 'feature_neighbours', run_id FROM feature_neighbours GROUP BY ALL
    UNION ALL
    SELECT 'feature_statistics', run_id FROM feature_statistics GROUP BY ALL
    UNION ALL
    SELECT 'feature_tokens', run_id FROM feature_tokens GROUP BY ALL
    UNION ALL
    SELECT 'gradients', run_id FROM gradients GROUP BY ALL
    UNION ALL
    SELECT 'histogram_cells', run_id FROM histogram_cells GROUP BY ALL
    UNION ALL
    SELECT 'intervention_contexts', run_id FROM intervention_contexts GROUP BY ALL
    UNION ALL
    SELECT 'intervention_doses', run_id FROM intervention_doses GROUP BY ALL
    UNION ALL
    SELECT 'intervention_features', run_id FROM intervention_features GROUP BY ALL
    UNION ALL
    SELECT 'intervention_settings', run_id FROM intervention_settings GROUP BY ALL
    UNION ALL
    SELECT 'interventions', run_id FROM interventions GROUP BY ALL
    UNION ALL
    SELECT 'layer_energies', run_id FROM layer_energies GROUP BY ALL
    UNION ALL
    SELECT 'layer_losses', run_id FROM layer_losses GROUP BY ALL
    UNION ALL
    SELECT 'layer_tokens', run_id FROM layer_tokens GROUP BY ALL
    UNION ALL
    SELECT 'logit_histogram', run_id FROM logit_histogram GROUP BY ALL
    UNION ALL
    SELECT 'native_attractors', run_id FROM native_attractors GROUP BY ALL
    UNION ALL
    SELECT 'native_basins', run_id FROM native_basins GROUP BY ALL
    UNION ALL
    SELECT 'native_patches', run_id FROM native_patches GROUP BY ALL
    UNION ALL
    SELECT 'native_settings', run_id FROM native_settings GROUP BY ALL
    UNION ALL
    SELECT 'plan', run_id FROM plan GROUP BY ALL
    UNION ALL
    SELECT 'plan_groups', run_id FROM plan_groups GROUP BY ALL
    UNION ALL
    SELECT 'predictor_statistics', run_id FROM predictor_statistics GROUP BY ALL
    UNION ALL
    SELECT 'reference_rows', run_id FROM reference_rows GROUP BY ALL
    UNION ALL
    SELECT 'sae_quality', run_id FROM sae_quality GROUP BY ALL
    UNION ALL
    SELECT 'saes', run_id FROM saes GROUP BY ALL
    UNION ALL
    SELECT 'staged_groups', run_id FROM staged_groups GROUP BY ALL
    UNION ALL
    SELECT 'token_layers', run_id FROM token_layers GROUP BY ALL
    UNION ALL
    SELECT 'tokens', run_id FROM tokens GROUP BY ALL
)
SELECT p."table", p.run_id
FROM parts AS p
ANTI JOIN runs AS r ON r.run_id = p.run_id
