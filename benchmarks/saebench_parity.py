"""Does SAEBench's own core evaluation give the numbers that `elw export --format saebench` writes?

The two packages need not share an environment. Two steps, over one folder:

    python benchmarks/saebench_parity.py write DIR              here: a tiny GPT-2, SAEs of every kind, what we measure
    OTHER/bin/python benchmarks/saebench_parity.py check DIR    where sae-bench is: its classes read our files, and its
                                                                run_evals measures the same SAEs on the same tokens

There the model is TransformerLens' and the SAEs are SAELens', read from the folders that we wrote; contexts begin with
BOS, are full, and hold no massive norms, so that both leave out the same tokens. Every figure is compared: `check`
fails above TOLERANCE, relative to the larger of the figure and 1. On a CPU it takes about a minute, most of it imports.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

D_MODEL, D_SAE, K, LAYER, N_LAYERS, N_HEADS, VOCABULARY = 32, 96, 5, 1, 3, 4, 200
N_CONTEXTS, LENGTH = 32, 24  # two whole batches: SAEBench counts the tokens of those it asked for, got or not
BOS, PAD = 0, 1
TOLERANCE = 2e-5
ARCHITECTURES = ("standard", "topk", "jumprelu", "gated")


def main(step: str, folder: str) -> int:
    worst = {"write": write, "check": check}[step](Path(folder))
    if worst is None:
        return 0
    print(f"largest difference {worst:.1e}, at most {TOLERANCE:.0e} is expected")
    return int(worst > TOLERANCE)


# ------------------------------------------------------------------------------------------------ here


def write(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from energy_lens.analysis.current_run import RunFacts
    from energy_lens.analysis.saebench.measuring import measure
    from energy_lens.analysis.saebench.results import core_results
    from energy_lens.analysis.saebench.sample import Sample
    from energy_lens.ingest.sae.saving import save_sae

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=N_HEADS, n_positions=LENGTH,
        initializer_range=0.2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=BOS, eos_token_id=BOS,
    )  # fmt: skip
    module = GPT2LMHeadModel(config).eval()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in module.state_dict().items()}, folder / "model.safetensors")
    tokens = torch.randint(2, VOCABULARY, (N_CONTEXTS, LENGTH))
    tokens[:, 0] = BOS
    tokens[::3, 7] = BOS  # a special token amid the text
    save_file({"tokens": tokens}, folder / "tokens.safetensors")
    model = as_language_model(module)
    contexts = [ids.numpy().astype("int32") for ids in tokens]
    saes = [random_sae(architecture) for architecture in ARCHITECTURES]
    run = RunFacts(1, "gpt2", "", LENGTH, D_MODEL, "float32", False, [LAYER], ["nll"], "{}")
    sample = Sample(contexts, len(contexts), 0, False, 0)
    for sae, measurement in zip(saes, measure(model, saes, contexts), strict=True):
        save_sae(sae, folder / "saes" / sae.architecture)
        text = json.dumps(core_results(sae, measurement, sample, run), indent=2, allow_nan=False)
        (folder / f"{sae.architecture}_eval_results.json").write_text(text + "\n", encoding="utf-8")


def as_language_model(module: Any) -> Any:
    """The parts that a measurement uses; the tokenizer knows no more than which tokens are special."""
    from types import SimpleNamespace

    from energy_lens.ingest.model.language_model import LanguageModel

    tokenizer = SimpleNamespace(all_special_ids=[BOS, PAD], added_tokens_decoder={})
    transformer = module.transformer
    return LanguageModel(
        name="gpt2", sha256="", module=module.requires_grad_(False), tokenizer=tokenizer, blocks=transformer.h,
        final_norm=transformer.ln_f, unembedding=module.lm_head, d_model=D_MODEL, vocabulary_size=VOCABULARY, bos=BOS,
    )  # fmt: skip


def random_sae(architecture: str) -> Any:
    from energy_lens.ingest.sae.autoencoder import SparseAutoencoder

    rows = torch.randn(D_SAE, D_MODEL)
    rows /= rows.norm(dim=1, keepdim=True)
    encoder = (rows + 0.1 * torch.randn(D_SAE, D_MODEL)) * (0.2 + 0.2 * torch.rand(D_SAE, 1))
    biases = 0.2 * torch.randn(D_SAE) - 0.5
    biases[:3] = -100  # features that never fire
    return SparseAutoencoder(
        LAYER, K if architecture == "topk" else None, encoder.T.contiguous(), biases, rows,
        0.1 * torch.randn(D_MODEL), architecture=architecture, norm_median=1e6, model_name="gpt2",
        threshold=torch.rand(D_SAE) if architecture in ("jumprelu", "gated") else None,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ where SAEBench is


@torch.no_grad()
def check(folder: Path) -> float:
    import sae_lens
    from pydantic import TypeAdapter
    from sae_bench.evals.core.eval_output import CoreEvalOutput
    from sae_bench.evals.core.main import calculate_misc_metrics, replace_nans_with_negative_one, run_evals
    from sae_bench.sae_bench_utils.general_utils import _standardize_sae_cfg

    model = their_model(folder)
    worst = 0.0
    for path in sorted(folder.glob("*_eval_results.json")):
        text = path.read_text(encoding="utf-8")
        ours = TypeAdapter(CoreEvalOutput).validate_json(text)
        assert json.loads(ours.to_json()) == json.loads(text), "a key is lost or added on the way through SAEBench"
        sae = sae_lens.SAE.load_from_disk(folder / "saes" / path.name.partition("_")[0])
        _standardize_sae_cfg(sae.cfg)
        metrics, of_features = run_evals(sae, Store(folder), model, ours.eval_config, ignore_tokens={BOS, PAD})
        metrics["misc_metrics"] = calculate_misc_metrics(of_features)
        theirs = {(group, name): value for group, values in metrics.items() for name, value in values.items()}
        for name, values in replace_nans_with_negative_one(of_features).items():
            theirs |= {(name, i): round(value, 10) for i, value in enumerate(values)}
        mine = by_name(json.loads(text))
        assert mine.keys() == theirs.keys(), mine.keys() ^ theirs.keys()
        differences = {key: abs(mine[key] - theirs[key]) / max(1, abs(theirs[key])) for key in mine}
        furthest = max(differences, key=lambda key: differences[key])
        print(
            f"{path.name:31s} {len(differences)} figures; furthest {'.'.join(map(str, furthest))}: "
            f"ours {mine[furthest]:.9g}, theirs {theirs[furthest]:.9g}"
        )
        worst = max(worst, *differences.values())
    return worst


def by_name(results: dict[str, Any]) -> dict[tuple[Any, Any], float]:
    """Every figure of a file: by group and name, or name and feature."""
    groups, features = results["eval_result_metrics"], results["eval_result_details"]
    figures = {(group, name): value for group, values in groups.items() for name, value in values.items()}
    for entry in features:
        figures |= {(name, entry["index"]): value for name, value in entry.items() if name != "index"}
    return figures


class Store:
    """What run_evals asks of an activation store: the next contexts, and to begin again."""

    context_size = LENGTH

    def __init__(self, folder: Path) -> None:
        self._tokens = load_file(folder / "tokens.safetensors")["tokens"]
        self._at = 0

    def get_batch_tokens(self, n: int) -> torch.Tensor:
        batch = self._tokens[self._at : self._at + n]
        self._at += n
        return batch

    def reset_input_dataset(self) -> None:
        self._at = 0


def their_model(folder: Path) -> Any:
    """TransformerLens' model of the weights that we wrote."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import GPT2Config, GPT2LMHeadModel

    module = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=N_HEADS, n_positions=LENGTH)
    )
    module.load_state_dict(load_file(folder / "model.safetensors"))
    config = HookedTransformerConfig(
        n_layers=N_LAYERS, d_model=D_MODEL, n_ctx=LENGTH, d_head=D_MODEL // N_HEADS, n_heads=N_HEADS,
        d_mlp=4 * D_MODEL, act_fn="gelu_new", normalization_type="LN", d_vocab=VOCABULARY, eps=1e-5, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(config)
    model.load_state_dict(convert_gpt2_weights(module, config), strict=False)
    return model.eval()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
