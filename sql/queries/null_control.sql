-- @null_control: Do the tests keep their level on this run? Both rejected shares should be about 5 %.
-- share_rejected: with another context's gradient; share_reference_rejected: with another feature's decoder row.
-- $category: of documents (VARCHAR, default 'all')
SELECT energy, layer, n_tested, share_rejected, share_reference_rejected, share_specific
FROM null_control
WHERE category = $category AND gradient = 'decoder'
ORDER BY energy, layer
