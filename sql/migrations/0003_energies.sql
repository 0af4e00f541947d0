-- Decoder gradients of the energies logit_lens and attention.

ALTER TABLE activations ADD COLUMN IF NOT EXISTS g_logit_lens FLOAT;
ALTER TABLE activations ADD COLUMN IF NOT EXISTS g_attention  FLOAT;
COMMENT ON COLUMN activations.g_logit_lens IS 'The same for the logit_lens energy of its layer; NULL, as the others, in a run without that energy.';
COMMENT ON COLUMN activations.g_attention IS 'The same for the attention energy of the next block.';

COMMENT ON COLUMN energies.energy IS 'nll, logit_lens, attention (nats) or hopfield (squared activation units).';
