"""SAEs that a run lacks, trained: a model, layers and text in, in minutes, a folder of an SAE for every layer out.

1. A layer has an SAE if one was given for it, else if one ships with the package or is registered for the model.
2. For the others, SAEs that were trained here before are taken, else new ones are trained: on the text that was given
   for it, else on the corpus at hand together with the package's sample.
3. They stay in the cache, below a hash of model, BOS and settings and one of the texts. A training that was stopped
   goes on from its last round; a second process waits for the first.

A corpus that has grown keeps the SAEs that were trained on the smaller one, since another SAE would be another run. And
one that is small beside the sample is not trained on: its few texts would change little, and every other few texts
would cost the minutes again.

A hundred thousand tokens make SAEs to begin with, no more; what is said of them on held-out text says how good.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

from energy_lens.console import say
from energy_lens.errors import LARGEST_COUNT, ElwError, UsageError, require, require_at_most
from energy_lens.ingest.cluster import Cluster
from energy_lens.ingest.corpus import Document, discover
from energy_lens.ingest.model.bos import adds_bos, set_bos, wants_bos
from energy_lens.ingest.model.configuration import configuration_sha256
from energy_lens.ingest.model.loading import (
    DEFAULT_LAYERS,
    DEFAULT_MODEL,
    cache_folder,
    check_layers_of,
    default_layers,
    is_folder,
    load_tokenizer,
    locate,
    resolved,
    tokenizer_sha256,
)
from energy_lens.ingest.model.precision import load_as_begun
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import listed, load_saes
from energy_lens.ingest.sae.evaluation import EvaluationOptions
from energy_lens.ingest.sae.formats import CONFIG, load_sae
from energy_lens.ingest.sae.saving import save_sae
from energy_lens.ingest.shipped import SAMPLE
from energy_lens.ingest.training.activation_store import STORE_VERSION
from energy_lens.ingest.training.progress import TrainingBar
from energy_lens.ingest.training.saes import MOST_FEATURES, TrainingConfig, train_saes
from energy_lens.warehouse.files import whole
from energy_lens.warehouse.locks import NoLocksError, lock

#: Version of what is trained from equal settings and texts; raise it when SAEs of before are not to be found again.
VERSION = 1

#: Tokens that are shuffled together, and whose training is lost at most when it is stopped.
ROUND_TOKENS = 32_768

#: Tokens of a step, and times that each token is trained on.
BATCH_SIZE, PASSES = 512, 4

#: Held-out tokens on which the SAEs are measured.
HELD_OUT_TOKENS = 16_384

#: Bytes of text that are read for a token to train on: enough for any tokenizer, and no more of a large corpus.
BYTES_PER_TOKEN = 8

#: A corpus of less than this share of the sample's bytes is not trained on.
SMALL = 0.1

#: What a folder of trained SAEs says of itself.
RECORD = "trained.json"


@dataclass(frozen=True)
class MissingSaes:
    """How SAEs are trained that a run lacks."""

    d_sae: int = 2048  #: features
    tokens: int = 100_000  #: distinct tokens to train on, or all there are
    k: int = 8  #: active features a token, or all there are

    def __post_init__(self) -> None:
        """Raises UsageError for fewer tokens than features, and for more of either than can be trained."""
        least = max(self.d_sae, 2 * BATCH_SIZE)
        require(self.d_sae >= 1, f"An SAE of {self.d_sae} features cannot be trained: it takes at least one.")
        require_at_most("The number of features", self.d_sae, MOST_FEATURES)
        require(
            self.tokens >= least,
            f"--sae-tokens is {self.tokens:,}; SAEs of {self.d_sae:,} features take at least {least:,}.",
        )
        require_at_most("--sae-tokens", self.tokens, LARGEST_COUNT)

    def config(self, context_length: int) -> TrainingConfig:
        """The trainer's settings: smaller steps than over millions of tokens, and more passes."""
        return TrainingConfig(
            d_sae=self.d_sae, ks=(min(self.k, self.d_sae),), tokens=self.tokens, passes=PASSES, batch_size=BATCH_SIZE,
            round_contexts=-(-ROUND_TOKENS // (context_length - 2)), context_length=context_length,
        )  # fmt: skip


class CompleteSaes(NamedTuple):
    """An SAE for every layer."""

    folders: tuple[Path, ...]  #: as `choose_saes` takes them: those that were given, and the others'
    notes: list[str]  #: what a user should know of those that were trained, each said already


def complete_saes(
    model_name: str,
    layers: Sequence[int] | None,
    folders: Sequence[Path],
    corpus: Callable[[], Sequence[Document]],
    text: Sequence[Document] | None = None,
    how: MissingSaes | None = None,
    dtype: str = "auto",
    bos: str = "auto",
    context_length: Callable[[], int] = lambda: 128,
    cluster: Cluster | None = None,
) -> CompleteSaes:
    """The SAEs of a run, those that it lacks trained.

    layers: None for those of the given SAEs, else the model's default ones. folders: SAEs that were given.
    corpus: the one at hand, asked for where something is to be trained. text: to train on instead; None: the corpus
    at hand and the package's sample. dtype, bos: as an ingest has them; context_length: asked for where something is
    to be trained, on contexts of at most 128 tokens. cluster: whose workers harvest what is trained on; None: this
    process does.
    Raises UsageError for layers that the model lacks, text that is too short, or several registered SAEs of a layer,
    ElwError where the cache cannot be written.
    """
    name = resolved(model_name)
    located = cache(lambda: locate(name))  # its weights are hashed where something depends on them
    if layers:
        check_layers_of(name, layers)
    given = {sae.layer: sae for sae in load_saes(folders)} if folders else {}
    of_model = DEFAULT_LAYERS if name == DEFAULT_MODEL else ()
    wanted = tuple(sorted(set(layers or given or of_model or default_layers(name, located()[0]))))
    others = {} if all(layer in given for layer in wanted) else _at_hand(name, [n for n in wanted if n not in given])
    missing = [layer for layer in wanted if layer not in given and layer not in others]
    if not missing:
        # Those of the package are found without their folders, as long as they are all there is.
        alone = not folders and all(source == "shipped" for source, _ in others.values())
        return CompleteSaes(() if alone else (*folders, *(Path(sae.source) for _, sae in others.values())), [])
    used = [sae for layer, sae in given.items() if layer in wanted] + [sae for _, sae in others.values()]
    model_folder, model_sha256 = located()
    training = _Training(
        name, dtype, wants_bos(bos, used, lambda: adds_bos(load_tokenizer(name, model_folder))),
        (how or MissingSaes()).config(min(128, context_length())),
        {
            "model": model_sha256,
            "tokenizer": tokenizer_sha256(model_folder),
            "configuration": configuration_sha256(model_folder) if is_folder(name) else "",
        },
        cluster,
    )  # fmt: skip
    places, notes = training.places(missing, corpus(), text)
    return CompleteSaes((*folders, *(Path(sae.source) for _, sae in others.values()), *places), notes)


def _at_hand(model_name: str, layers: Sequence[int]) -> dict[int, tuple[str, SparseAutoencoder]]:
    """(source, SAE) by layer of those that ship with the package, else of those that are registered for the model."""
    by_layer: dict[int, tuple[str, SparseAutoencoder]] = {}
    for source, sae in listed(model_name):
        other = by_layer.get(sae.layer)
        if sae.layer not in layers or (other and other[0] == "shipped"):
            continue
        if other:
            raise UsageError(
                f"{other[1].source} and {sae.source} are both registered for layer {sae.layer} of {model_name}: name "
                "one with --sae."
            )
        by_layer[sae.layer] = source, sae
    return by_layer


@dataclass(frozen=True)
class _Training:
    """What SAEs are trained with, apart from layers and text."""

    model_name: str
    dtype: str
    bos: bool
    config: TrainingConfig
    identity: Mapping[str, str]  #: of the model: what its numbers depend on
    cluster: Cluster | None  #: whose workers harvest

    def places(
        self, layers: Sequence[int], corpus: Sequence[Document], text: Sequence[Document] | None
    ) -> tuple[list[Path], list[str]]:
        """A folder for each layer, found or trained, and sentences on them."""
        sample = [] if text is not None else discover([SAMPLE])
        own = _enough(text if text is not None else corpus, self.config.tokens)
        if _n_bytes(own) < SMALL * _n_bytes(sample):
            own = []
        documents = list({document.sha256: document for document in (*own, *sample)}.values())
        folder = self.folder / _digest(sorted((document.category, document.sha256) for document in documents))
        found = _found(folder, layers)
        notes = [self._note(list(found.values()), "")] if found else []
        grown = {} if text is not None else self._of_smaller([n for n in layers if n not in found], corpus)
        if grown:
            notes.append(self._note(list(grown.values()), " on a part of this corpus (--train-on trains others)"))
        left = [layer for layer in layers if layer not in found and layer not in grown]
        trained: list[SparseAutoencoder] = []
        if left:
            about = {"model": self.model_name, "of_corpus": text is None, "documents": sorted(d.sha256 for d in own)}
            trained, note = self._train(left, documents, folder, about)
            notes.append(note)
        for note in notes:
            say(note)
        places = {**found, **grown, **{sae.layer: sae for sae in trained}}
        return [Path(places[layer].source) for layer in layers], notes

    @property
    def folder(self) -> Path:
        """Of all SAEs that were trained with these settings, whatever on."""
        key = _digest([VERSION, STORE_VERSION, dict(self.identity), self.bos, asdict(self.config)])
        return cache_folder() / "saes" / "trained" / key

    def _of_smaller(self, layers: Sequence[int], corpus: Sequence[Document]) -> dict[int, SparseAutoencoder]:
        """By layer, the SAEs that were trained on a corpus that this one has grown from: on the largest of such."""
        at_hand = {document.sha256 for document in corpus}
        grown_from = []
        for record in self.folder.glob(f"*/{RECORD}") if layers else ():
            try:
                about = json.loads(record.read_text(encoding="utf-8"))
                if about["of_corpus"] and about["documents"] and at_hand.issuperset(about["documents"]):
                    grown_from.append((-len(about["documents"]), record.parent))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a folder that says nothing of itself is none of ours
        found: dict[int, SparseAutoencoder] = {}
        for _, folder in sorted(grown_from):
            found = {**_found(folder, layers), **found}
        return found

    def _train(
        self, layers: Sequence[int], documents: Sequence[Document], folder: Path, about: Mapping[str, object]
    ) -> tuple[list[SparseAutoencoder], str]:
        """Train SAEs on documents into a folder, which keeps what is said `about` them; and a sentence on them.

        Another process that trains there is waited for; what it has trained is not trained again.
        """
        # One folder a set of layers: their residuals are of the same tokens.
        scratch = folder / f".training-{'-'.join(map(str, layers))}"
        with _writing(folder, scratch), lock(folder / ".lock", "elw ingest --train-saes", _wait):
            if len(found := _found(folder, layers)) == len(layers):
                return list(found.values()), self._note(list(found.values()), "")
            with whole(folder / RECORD) as (record,):
                record.write_text(json.dumps(about), encoding="utf-8")
            begun = (scratch / "precision").exists()
            started = time.monotonic()
            say(
                f"No SAE is at hand for layer {_listed(layers)} of {self.model_name}: training on up to "
                f"{self.config.tokens:,} tokens{', from where it was stopped' * begun} …"
            )
            held_out = EvaluationOptions(HELD_OUT_TOKENS, self.config.context_length, ce=False)
            # What was begun in a precision is ended in it, whatever is asked for now.
            model = load_as_begun(
                scratch, self.model_name, "auto" if begun else self.dtype, held_out.context_length, max(layers)
            )
            set_bos(model, self.bos)
            remedy = "give more text with --train-on, or leave it out to train on the corpus and the package's sample"
            with TrainingBar() as bar:
                saes = train_saes(
                    model, documents, layers, self.config, scratch, bar.update, held_out, remedy, self.cluster
                )
            for sae in saes:
                save_sae(sae, folder / f"layer_{sae.layer}")
            shutil.rmtree(scratch, ignore_errors=True)
        trained = _found(folder, layers)
        return list(trained.values()), self._note(list(trained.values()), f" in {time.monotonic() - started:,.0f} s")

    def _note(self, saes: Sequence[SparseAutoencoder], circumstance: str) -> str:
        """How good SAEs became that were trained here, and how to get better ones; one line."""
        tokens = min(int(sae.metadata["training"]["tokens"]) for sae in saes)
        explained = sorted(1 - sae.metadata["fvu"] for sae in saes if sae.metadata.get("fvu") is not None)
        if explained:
            low, high = f"{100 * explained[0]:.0f}", f"{100 * explained[-1]:.0f}"
            how_good = (
                f"they explain {low if low == high else f'{low} to {high}'} % of the variance of held-out text, with "
                f"{self.config.ks[0]} of {self.config.d_sae:,} features active a token"
            )
        else:
            how_good = (
                "how good they are is not known, since nothing was held out: that takes 3 documents in a category"
            )
        layers = [sae.layer for sae in saes]
        words = ["elw", "sae", "train", "TEXT", "--model", self.model_name, "--layers", ",".join(map(str, layers))]
        return (
            f"SAEs of layer {_listed(layers)} of {self.model_name} were trained on {tokens:,} tokens{circumstance}: "
            f"{how_good}. For better ones, train on more text ({shlex.join(words)} --output DIR), or take published "
            "ones (elw sae pull, elw sae import), and name them with --sae."
        )


def _enough(documents: Sequence[Document], n_tokens: int) -> list[Document]:
    """Documents with enough text for so many tokens, in turn from each category and by content; all if there is less.

    They are chosen by content alone, so that a corpus gives the same ones wherever it lies.
    """
    by_category: dict[str, list[Document]] = defaultdict(list)
    for document in sorted(documents, key=lambda document: document.sha256):
        by_category[document.category].append(document)
    chosen: list[Document] = []
    n_bytes = 0
    for document in filter(None, chain(*zip_longest(*(by_category[name] for name in sorted(by_category))))):
        if n_bytes >= BYTES_PER_TOKEN * n_tokens:
            break
        chosen.append(document)
        n_bytes += document.n_bytes
    return chosen


def _found(folder: Path, layers: Sequence[int]) -> dict[int, SparseAutoencoder]:
    """By layer, the SAEs that a folder holds."""
    places = {layer: folder / f"layer_{layer}" for layer in layers}
    return {layer: load_sae(place) for layer, place in places.items() if (place / CONFIG).exists()}


@contextmanager
def _writing(folder: Path, scratch: Path) -> Iterator[None]:
    """Make the folders, and tell what the disk says in a sentence, and an interruption what it leaves."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        yield
    except NoLocksError as error:
        raise ElwError(
            f"{error.filename} cannot be locked ({error.strerror}), since its file system knows no locks: set "
            "ELW_CACHE to a folder on a disk of this machine."
        ) from error
    except OSError as error:
        raise ElwError(
            f"{folder} cannot be written ({error.strerror or error}): make room, or set ELW_CACHE to a folder that "
            "has some."
        ) from error
    except KeyboardInterrupt:
        say("The training was stopped: the same command goes on from its last round.")
        raise


def _wait(holder: str) -> None:
    say(f"These SAEs are being trained by {holder}: waiting for it …")


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _n_bytes(documents: Sequence[Document]) -> int:
    return sum(document.n_bytes for document in documents)
