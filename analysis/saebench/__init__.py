"""The current run's SAEs in, files as SAEBench's core evaluation writes them out."""
