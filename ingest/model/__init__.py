"""A language model: found, loaded, proved, hooked, unembedded."""
