"""What is done with a run that is there: features edited, attractors found, tests repeated by permutation."""
