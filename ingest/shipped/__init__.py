"""SAEs that come with the package: MODEL/layer_N/ in SAELens v6 format, read by `ingest.sae`."""
