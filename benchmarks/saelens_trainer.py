"""Train a TopK SAE with the sae-lens package on stored residuals; run by `sae_training.py` in another environment.

    python saelens_trainer.py RESIDUALS OUTPUT LEARNING_RATE K D_SAE

Its own defaults wherever it has any, except for the batch, which is elw's, and for activations, which are scaled to a
mean norm of √d as elw's are (none is the default, and learns worse from residuals of this size).
Prints the seconds that training took.
"""

import sys
import time

import torch
from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from safetensors.torch import load_file

BATCH, SCALED = 1024, "expected_average_only_in"


def main() -> None:
    path, output, rate, k, d_sae = sys.argv[1:]
    x = load_file(path)["train"]
    torch.manual_seed(0)
    config = TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=int(d_sae), k=int(k), normalize_activations=SCALED)
    config.metadata.model_name, config.metadata.hook_name = "smollm2-135m", "blocks.15.hook_resid_post"
    sae = TopKTrainingSAE(config)
    n_steps = len(x) // BATCH
    batches = (x[i * BATCH : (i + 1) * BATCH].float() for _ in range(3) for i in range(n_steps))
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=n_steps * BATCH, train_batch_size_samples=BATCH, n_batches_for_norm_estimate=50,
            lr=float(rate), lr_end=float(rate) / 10,
        ),
        sae,
        batches,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.fit()
    print(time.perf_counter() - started)
    sae.save_inference_model(output)


if __name__ == "__main__":
    main()
