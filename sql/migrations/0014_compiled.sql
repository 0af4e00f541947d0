-- Whether a model's blocks were fused is no part of a run's identity: the numbers agree to rounding.

ALTER TABLE runs ADD COLUMN IF NOT EXISTS is_compiled BOOLEAN DEFAULT false;
COMMENT ON COLUMN runs.is_compiled IS 'Whether the model''s blocks were fused by torch.compile for some of the groups; their numbers are those of the others to rounding.';
