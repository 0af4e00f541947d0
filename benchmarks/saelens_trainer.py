"""Train TopK SAEs with the sae-lens package on stored residuals; run by `sae_training.py` in another environment.

    python saelens_trainer.py < RUNS

RUNS has one run a line, a JSON object: residuals, output, layer, seed, passes, k, d_sae, learning_rate,
dead_feature_window, warm_up_steps, decay_steps. One line is printed for each, JSON too, and kept in its output as
`run.json`: the seconds that training took, its steps, and those at which the auxiliary loss had dead features to act
on. A run whose `run.json` is there is not done again.

Its own defaults wherever it has any, except for what a run names, for the batch, which is elw's, and for activations,
which are scaled to a mean norm of √d as elw's are (none is the default, and learns worse from residuals of this size).
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from safetensors.torch import load_file

BATCH, SCALED = 1024, "expected_average_only_in"
NORM_BATCHES = 50


class Watched(TopKTrainingSAE):
    """The package's SAE, which counts the steps that had dead features."""

    auxiliary_steps = 0

    def calculate_aux_loss(self, step_input: Any, *rest: Any, **named: Any) -> Any:
        self.auxiliary_steps += int(step_input.dead_neuron_mask.any())
        return super().calculate_aux_loss(step_input, *rest, **named)


def train(run: dict[str, Any]) -> dict[str, Any]:
    x = load_file(run["residuals"])["train"]
    torch.manual_seed(run["seed"])
    config = TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=run["d_sae"], k=run["k"], normalize_activations=SCALED)
    config.metadata.model_name = "smollm2-135m"
    config.metadata.hook_name = f"blocks.{run['layer']}.hook_resid_post"
    sae = Watched(config)
    generator = torch.Generator().manual_seed(run["seed"])
    permuted = (torch.randperm(len(x), generator=generator) for _ in range(run["passes"]))
    batches = [batch for order in permuted for batch in order.split(BATCH)[: len(x) // BATCH]]
    n_steps = len(batches)
    # The first ones are offered twice, since the norm is estimated on them before training begins.
    offered = (x[batch].float() for batch in batches[:NORM_BATCHES] + batches)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=n_steps * BATCH, train_batch_size_samples=BATCH,
            n_batches_for_norm_estimate=NORM_BATCHES,
            lr=run["learning_rate"], lr_end=run["learning_rate"] / 10,  # unused by its constant schedule, but required
            dead_feature_window=run["dead_feature_window"],
            lr_warm_up_steps=run["warm_up_steps"], lr_decay_steps=run["decay_steps"],
        ),
        sae,
        offered,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - started
    sae.save_inference_model(run["output"])
    return {"seconds": seconds, "steps": n_steps, "auxiliary_steps": sae.auxiliary_steps}


def main() -> None:
    for line in sys.stdin:
        run = json.loads(line)
        about = Path(run["output"]) / "run.json"
        if not about.exists():
            outcome = json.dumps(run | train(run))
            about.write_text(outcome, encoding="utf-8")
        print(about.read_text(encoding="utf-8"), flush=True)


if __name__ == "__main__":
    main()
