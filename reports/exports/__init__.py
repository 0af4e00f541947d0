"""A run in, the files that other tools of the field read out: one module a format, what they share beside them."""
