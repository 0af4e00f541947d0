-- Energies logit_lens, tuned_lens and attention: their decoder gradients, and how far a lens is from the model's output.

ALTER TABLE activations ADD COLUMN IF NOT EXISTS g_logit_lens FLOAT;
ALTER TABLE activations ADD COLUMN IF NOT EXISTS g_tuned_lens FLOAT;
ALTER TABLE activations ADD COLUMN IF NOT EXISTS g_attention  FLOAT;
COMMENT ON COLUMN activations.g_logit_lens IS 'The same for the logit_lens energy of its layer; NULL, as the others, in a run without that energy.';
COMMENT ON COLUMN activations.g_tuned_lens IS 'The same for the tuned_lens energy of its layer.';
COMMENT ON COLUMN activations.g_attention IS 'The same for the attention energy of the next block.';

ALTER TABLE runs ADD COLUMN IF NOT EXISTS energy_units VARCHAR[];
UPDATE runs
SET energy_units = list_transform(energies, lambda e: CASE e WHEN 'hopfield' THEN 'squared activation units' ELSE 'nats' END)
WHERE energy_units IS NULL;
COMMENT ON COLUMN runs.energy_units IS 'Units of each of them, in the same order.';

COMMENT ON COLUMN energies.energy IS 'nll, logit_lens, tuned_lens, attention (nats) or hopfield (squared activation units).';

ALTER TABLE energies ADD COLUMN IF NOT EXISTS kl_to_output FLOAT;
COMMENT ON COLUMN energies.kl_to_output IS 'KL(p||q) in nats of the model''s own next-token distribution p and the q that a lens reads; NULL for other energies.';
