"""One model that learns from an ensemble: distillation (Hinton, Vinyals and Dean, 2015).

Several models make different mistakes, so the mean of their probabilities is usually better than each. It costs as many
passes as there are models; a student that learns from it costs one. With q, the text's next token as a distribution (1
for it, 0 for all others), p_k, the probabilities of teacher k of K, and w, the weight of the teachers, the student
learns

    (1 - w) q + w (p_1 + ... + p_K) / K

by cross-entropy, which is linear in what is learned: so the loss is (1 - w) x that of the text + w x that of the
teachers. The second differs from the KL divergence from the ensemble by a number that no weight changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from minigpt.config import DEFAULT_PRESET, FINE_TUNING, PRESETS, GPTConfig, RunConfig
from minigpt.data.batches import Batch
from minigpt.data.corpora import kind_of
from minigpt.data.tokens import IGNORED
from minigpt.errors import ConfigError, MissingFileError, either, named, quoted
from minigpt.formats.lora_files import base_checksum
from minigpt.formats.source import Source, open_source
from minigpt.model import GPT
from minigpt.parameters import with_text
from minigpt.tokenizers import Tokenizer, check_has_tokenizer
from minigpt.training.document_mask import document_mask
from minigpt.training.kernels import Kernels
from minigpt.training.kernels import kernels as exchanged


@dataclass(frozen=True)
class Teachers:
    """The teachers of a run, which stay as they are and are no part of its model; without any, nothing changes.

    Attributes:
        models: in evaluation mode, none of whose parameters ask for a gradient.
        weight: w, their share in what is learned.
        kernels: by which they compute, as the run does.
    """

    models: Sequence[GPT] = ()
    weight: float = 0.0
    kernels: Kernels = "torch"

    def mixed(self, loss: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        """The loss to learn from, a scalar: what the text alone gives, `loss`, mixed with what the teachers give.

        Args:
            loss: the mean over the targets of the batch that count.
            logits: the student's, (B, T, V), of the ids that have text.
            batch: inputs and targets, int64 (B, T).
        """
        if not self.models:
            return loss
        taught = self.probabilities(batch, logits.size(-1))
        losses = F.cross_entropy(logits.float().flatten(0, 1), taught.flatten(0, 1), reduction="none")  # (B * T,)
        counts = (batch.targets != IGNORED).flatten()
        of_teachers = losses.masked_fill(~counts, 0).sum() / counts.sum().clamp(min=1)
        return (1 - self.weight) * loss + self.weight * of_teachers

    def probabilities(self, batch: Batch, vocab_size: int) -> Tensor:
        """The mean of their probabilities of each next token: float32 (B, T, V), V the ids that have text.

        The caller's `autocast` decides the number format of the matrix products.
        """
        total = torch.zeros(*batch.inputs.shape, vocab_size, device=batch.inputs.device)
        for model in self.models:
            # Not under no_grad, where only torch's kernels compute: frozen parameters keep nothing for a backward pass.
            with document_mask(model, batch.positions) as cache, exchanged(model, self.kernels):
                logits = with_text(model(batch.inputs, cache), vocab_size)
            total += logits.float().softmax(-1)
        return total / len(self.models)

    @cached_property
    def checksums(self) -> list[str]:
        """What their weights are, one after the other."""
        return [base_checksum(model) for model in self.models]


NO_TEACHERS = Teachers()


def find_teachers(
    config: RunConfig, tokenizer: Tokenizer, own: Path | None = None, resumed: bool = False
) -> list[Source]:
    """Where the teachers lie that a run asks, which are seen to fit it; none of their weights is read.

    Args:
        config: the run's.
        tokenizer: the run's.
        own: the run directory.
        resumed: whether the run has learned from them before: others, trained now, would not be the same.

    Raises:
        MissingFileError: if some of them are not there; the second line trains these.
        ConfigError: if a teacher is the run itself, gives a text other ids, or reads less of it at once.
    """
    found, missing = [], []
    for name in config.train.asked:
        if own is not None and own.resolve() in (Path(name).resolve(), Path(name).resolve().parent):
            raise ConfigError(f"{name} is this run, which cannot be its own teacher", f"name others as {_FLAG}")
        try:
            found.append(open_source(name))
        except MissingFileError:
            missing.append(name)
    if missing:
        parts = [part for name in missing if "," in name for part in name.split(",")]
        train = "train it: " + " && ".join(_how_to_train(name, config) for name in missing)
        if parts:
            train = f"name each by itself: {' '.join(named('teachers', part) for part in parts)}"
        raise MissingFileError(
            f"this run learns from {', '.join(missing)}, and from {Path.cwd()} no such model is found",
            either("put it back" if resumed and not parts else train, f"name where it lies now as {_FLAG}"),
        )
    for source in found:
        name = source.name
        theirs = check_has_tokenizer(source.tokenizer(needs_text=True), source.name)
        if theirs.fingerprint() != tokenizer.fingerprint():
            raise ConfigError(
                f"the teacher {name} has another tokenizer than this run: {_kind(theirs)} there, {_kind(tokenizer)} "
                "here, and the same text gives other ids",
                f"name models as {_FLAG} that were trained on the same data, with the same tokenizer",
            )
        context, window = source.config.block_size, config.model.block_size
        if context < window:
            raise ConfigError(
                f"the teacher {name} reads {context} tokens at once, and this run's windows have {window}",
                f"choose {named('block_size')} <= {context}, or name a teacher with a longer context as {_FLAG}",
            )
    return found


def load_teachers(config: RunConfig, sources: Sequence[Source], device: torch.device, by: Kernels) -> Teachers:
    """The teachers with their weights on a device; those of an adapter are merged. No random number is drawn."""
    models = []
    for source in sources:
        loaded, _ = source.load_for_text(block_size=config.model.block_size, dropout=0.0)
        models.append(loaded.to(device).eval().requires_grad_(False))
    return Teachers(models, config.train.teacher_weight, by)


def shapes_of(config: RunConfig) -> list[GPTConfig]:
    """The shapes of the teachers that a run asks, as it loads them."""
    m = config.model
    shapes = [open_source(name).config for name in config.train.asked]
    return [replace(shape, block_size=min(shape.block_size, m.block_size), dropout=0.0) for shape in shapes]


_FLAG = named("teachers")


def _kind(tokenizer: Tokenizer) -> str:
    return f"{type(tokenizer).__name__} {tokenizer.fingerprint()[:12]} with {tokenizer.vocab_size:,} tokens"


def _seed_in(name: str) -> str:
    """The seed in the name of a folder PRESET-SEED, or ""."""
    seed = Path(name).name.rpartition("-")[2]
    return seed if seed.isascii() and seed.isdecimal() else ""


def _own_number(name: str, names: Sequence[str]) -> int:
    """For a teacher whose name has no seed, one that no other has: else several would become the same model."""
    taken, others = {_seed_in(one) for one in names}, [one for one in dict.fromkeys(names) if not _seed_in(one)]
    return [number for number in range(1, len(names) + 1) if str(number) not in taken][others.index(name)]


def _how_to_train(name: str, config: RunConfig) -> str:
    """The command that trains a teacher: of a folder PRESET-SEED, by that preset and, if it may differ, that seed.

    What decides the run's tokenizer, what it reads and what validates is as in the run, where the preset has it not.
    """
    data, documents, kind = config.data, config.documents, kind_of(config.documents.separate, config.data.source)
    named_preset, seed = Path(name).name.rpartition("-")[0], _seed_in(name)
    chosen = named_preset if named_preset in PRESETS else FINE_TUNING[kind] if config.init_from else DEFAULT_PRESET
    usual = PRESETS[chosen][1]
    words = ["--preset", chosen] if chosen in (named_preset, *FINE_TUNING.values()) else []
    wanted: dict[str, tuple[object, object]] = {
        "--data": (data.source, usual.data.source),
        "--init-from": (config.init_from, usual.init_from),
        "--val-data": (data.val_data, usual.data.val_data),
    }
    if not config.init_from:
        wanted["--tokenizer"] = data.tokenizer, usual.data.tokenizer
    if kind == "text" and not data.val_data:
        wanted["--val-fraction"] = data.val_fraction, usual.data.val_fraction
    for key, value in vars(documents).items():
        if kind != "text" or key == "separate":
            wanted[f"--documents.{key}"] = value, getattr(usual.documents, key)
    window, theirs = config.model.block_size, usual.model.block_size
    if chosen != named_preset or theirs < window:
        wanted["--model.block_size"] = window + (window % 2 if usual.train.short_windows else 0), theirs
    words += [str(word) for flag, (own, other) in wanted.items() if own != other for word in (flag, own)]
    if kind == "text" or data.val_data:
        seed = seed or str(_own_number(name, config.train.teachers))
    else:  # the seed chooses the documents that validate, so the batches make it another model
        seed, place = str(config.seed), list(dict.fromkeys(config.train.teachers)).index(name)
        words += ["--train.batch_size", str(usual.train.batch_size + place)] * (place > 0)
    return " ".join(map(quoted, ["minigpt", "train", *words, "--seed", seed, "--out", name]))
