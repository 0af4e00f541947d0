"""A language model in, findings out: whether everything that this package does with a model holds for this one."""
