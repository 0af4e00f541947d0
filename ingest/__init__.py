"""The model side: corpus, models, sparse autoencoders, energies, and the pipeline that fills a warehouse."""

import os

# torch's threads wait for each other some thousand times per batch. By default they spin, and when another program
# wants a core they spin for as long as it runs: several times slower than sleeping. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
