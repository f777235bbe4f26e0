"""Exact resume: what a checkpoint contains, and how there is always a complete one on the disk.

::

    checkpoints/<run>/
      last/                    the newest checkpoint
        model.safetensors      weights
        state.safetensors      the optimizers' state, every random state, the losses since the last record
        manifest.json          how far the run has come, the versions that ran it, a checksum of every file
      previous/                the one before it
      diverged/                the state before a step with NaN or infinite numbers, if there was one
      .lock                    held while a process trains here

A checkpoint is written under another name, flushed to the disk, and renamed; only then is the one before the last
removed. So a power cut at any moment leaves at least one complete checkpoint, and the checksums tell which. One that
was complete but not yet renamed is renamed when the run is resumed.
"""

import errno
import hashlib
import json
import math
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from minigpt.config import RunConfig
from minigpt.errors import CheckpointError, MiniGPTError, MissingFileError, brief, named
from minigpt.formats.hub import OTHER_NAME
from minigpt.formats.lora_files import ANEW, save_adapter
from minigpt.formats.lora_files import CONFIG as ADAPTER_CONFIG
from minigpt.formats.lora_files import WEIGHTS as ADAPTER_WEIGHTS
from minigpt.formats.run_directory import LOCK, RunDirectory, check_resumable, read_config, versions
from minigpt.formats.weights import (
    StoredTensor,
    check_table,
    check_values,
    open_weights,
    read_metadata,
    save_weights,
    with_checksum,
    write_safetensors,
)
from minigpt.lora import adapters
from minigpt.model import GPT
from minigpt.parameters import own_tensors
from minigpt.system.downloads import sha256_of
from minigpt.system.files import (
    FETCH_AGAIN,
    check_no_links,
    leftovers,
    make_way,
    new_folder,
    open_to_append,
    read_json,
    remove,
    take_name,
    write_text,
)
from minigpt.training import steps
from minigpt.training.distributed import Processes, give_back, part_of, whole

if TYPE_CHECKING:
    from filelock import FileLock

SECTIONS = ("model", "data", "documents", "train")
LIFELONG = ("model.", "data.", "documents.", "train.optimizer", "train.lora_rank", "train.lora_alpha",
            "train.lora_targets", "train.freeze", "init_from", "seed")  # fmt: skip
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)  # what a file system without them says
DRAWING = ("processes", "device")  # of the circumstances, those that have random states of their own
PLACES = ("data.source", "data.val_data")  # where data lies, which may change: the checksum says what it is
FORMAT = 2  # of a checkpoint; another one is refused
WEIGHTS, STATE, MANIFEST = "model.safetensors", "state.safetensors", "manifest.json"
FILES = {WEIGHTS, STATE, MANIFEST}  # all that is removed with a checkpoint: what else lies in its folder is a person's
ROWS = "sequences"  # what a manifest calls `Progress.rows`
KEYS = {"format", "progress", "versions", "corpus", "log", "files", "base", "teachers", "laid_out_for"}  # of a manifest
FILE_KEYS = {"bytes", "sha256"}  # of a file in it
OTHER_VERSION = "resume it with the minigpt that wrote it; its weights can be used with any"
KEPT_BY = {"AdamW": ("exp_avg", "exp_avg_sq", "step"), "Muon": ("momentum_buffer",)}  # for each parameter


@dataclass
class Progress:
    """How far a run has come. With weights, optimizers and random states, its whole future follows from this.

    Attributes:
        step: steps taken, skipped ones too.
        rows: read, without those that fill up batches.
        tokens: targets learned from.
        evaluated: the step of the last evaluation.
        best_loss: the lowest validation loss so far.
        evaluations_since_best: evaluations since then.
        skipped: steps whose gradient was not finite, and which changed nothing.
        skipped_in_a_row: how many of them came last.
        losses: of the steps since the last record, each a scalar.
    """

    step: int = 0
    rows: int = 0
    tokens: int = 0
    evaluated: int = 0
    best_loss: float = math.inf
    evaluations_since_best: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    losses: list[Tensor] = field(default_factory=list)


COUNTS = Progress.__dataclass_fields__.keys() - {"rows", "losses"} | {ROWS}  # of a manifest


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Every random state that a process has, as tensors: Python's, NumPy's, torch's on the CPU and on its GPU."""
    _, words, spare = random.getstate()
    _, keys, place, has_spare, cached = np.random.get_state()
    states = {  # by way of NumPy: this is done at each step, and number by number it takes three times as long
        "python": torch.from_numpy(np.array(words, dtype=np.int64)),
        "python_spare": torch.tensor([math.nan if spare is None else spare], dtype=torch.float64),
        "numpy": torch.from_numpy(np.concatenate((keys, (place, has_spare))).astype(np.int64)),
        "numpy_spare": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Go back to what `random_states` gave.

    Raises:
        ValueError: if a generator cannot have such a state.
        RuntimeError: if one of torch's cannot.
    """
    spare = states["python_spare"].item()
    random.setstate((3, tuple(_twister(states["python"])), None if math.isnan(spare) else spare))
    *keys, place, has_spare = _twister(states["numpy"])
    np.random.set_state(("MT19937", np.array(keys, np.uint32), place, has_spare, states["numpy_spare"].item()))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _twister(state: Tensor) -> list[int]:
    """A Mersenne twister's 624 words, its place among them (NumPy itself accepts any), and NumPy's flag."""
    words, place, flag = state[:624], state[624], state[625:]
    if not words.any() or ((words < 0) | (words >= 2**32)).any() or not 0 <= place <= 624 or (flag >> 1).any():
        raise ValueError("a Mersenne twister has no such state")
    return state.tolist()


class RunLock:
    """Keeps every other training out of a run directory. The lock ends with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: FileLock | None = None

    def take(self) -> None:
        """Lock the folder, and release a folder that had this name before; make the folder if it does not exist.

        Where the file system has no locks, as some of clusters, a note says so, and nothing is locked.

        Raises:
            CheckpointError: if another process trains there, a link in it leads elsewhere, or something that is no file
                has the name of one.
        """
        from filelock import FileLock, Timeout

        self.release()
        folder = self.folder
        os.makedirs(os.path.realpath(folder), exist_ok=True)  # where it leads, if it is a link
        check_no_links(folder)
        for path in vars(RunDirectory(folder)).values():
            # A run's files have a suffix, its folders have none.
            if path.parent == folder and path.suffix and path.exists() and not path.is_file():
                raise CheckpointError(f"{path} is no file, but the run must write one there", "move it away")
        open_to_append(folder / LOCK).close()  # which refuses what the lock would follow
        lock = FileLock(folder / LOCK, blocking=False, fallback_to_soft=False)  # which takes a file for a lock
        try:
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            if isinstance(error, Timeout):
                raise CheckpointError(
                    f"another training is running in {folder}",
                    f"wait for it to end, stop it, or begin a run of its own with another {named('out')}",
                ) from None
            if getattr(error, "errno", None) not in (None, *NO_LOCKS):
                raise
            warnings.warn(f"{folder} is on a file system without locks: train there once at a time", stacklevel=1)
        self._lock, self._file = lock, os.lstat(folder / LOCK)

    def is_lost(self) -> bool:
        """Whether the locked file is no longer in the folder: the folder was removed, and perhaps made again."""
        with suppress(OSError):  # whatever is there instead
            return self._lock is None or not os.path.samestat(self._file, os.lstat(self.folder / LOCK))
        return True

    def release(self) -> None:
        """Let others in."""
        if self._lock:
            self._lock.release()
        self._lock = None


@contextmanager
def locked(folder: Path) -> Iterator[RunLock]:
    """A context in which a run directory is locked; see `RunLock.take`."""
    lock = RunLock(folder)
    try:
        lock.take()
        yield lock
    finally:
        lock.release()


def checkpoint_tensors(
    model: GPT, optimizers: Sequence[Optimizer], progress: Progress, states: Mapping[str, Sequence[Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors for the two files: (weights, state). Every process must call it, because each may have only a part.

    `states` are the random states by name, one of each rank.
    """
    give_back(model)  # else the optimizers' parameters are not the model's
    weights = {name: whole(tensor) for name, tensor in _kept(model).items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = {
        f"{type(optimizer).__name__}/{names[id(parameter)]}/{key}": whole(value)
        for optimizer in optimizers
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    state |= {f"random/{name}/{rank}": value for name, ranks in states.items() for rank, value in enumerate(ranks)}
    state |= {f"loss/{number}": loss for number, loss in enumerate(progress.losses)}
    return weights, state


def gathered_states(states: Mapping[str, Tensor], processes: Processes) -> dict[str, list[Tensor]]:
    """Each random state, of every rank; every process must ask."""
    return {name: processes.gathered(value) for name, value in states.items()}


def write_checkpoint(
    folder: Path, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], progress: Progress, facts: dict[str, Any]
) -> None:
    """Write into an empty folder what `checkpoint_tensors` gave, and a manifest with these facts, as JSON."""
    write_safetensors(folder / WEIGHTS, weights)
    write_safetensors(folder / STATE, state)
    counts = {key: value for key, value in asdict(progress).items() if key != "losses"}
    counts[ROWS] = counts.pop("rows")
    counts["best_loss"] = progress.best_loss if math.isfinite(progress.best_loss) else None
    content: dict[str, Any] = {"format": FORMAT, "progress": counts, "versions": {}, **facts}
    content["files"] = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in (WEIGHTS, STATE)
    }
    write_text(folder / MANIFEST, json.dumps({**content, "sha256": _seal(content)}, indent=1))


def replace_last(run: RunDirectory, *checkpoint: Any) -> list[str]:
    """Write a checkpoint (see `write_checkpoint`) that becomes `last/`, and make the former one `previous/`.

    Returns:
        Lines that say what was damaged, and what was moved aside because it is not minigpt's.

    Raises:
        OSError: if the disk is full or the folder cannot be written. Then `last/` and `previous/` are as they were, or
            if only their names could not be changed, the new one waits for its name.
    """
    lines = make_last(run)  # of the one before, whose name could not be changed
    run.path.mkdir(parents=True, exist_ok=True)
    with new_folder(run.following) as part:
        write_checkpoint(part, *checkpoint)
    return lines + _rotate(run)


def make_last(run: RunDirectory) -> list[str]:
    """Give a checkpoint that waits for its name, if there is one and it is whole, the name `last/`.

    If it is interrupted anywhere, there is at least one complete checkpoint, and the next call finishes the work.

    Returns:
        Lines, as `replace_last` does.

    Raises:
        CheckpointError: if it is of another format.
    """
    if not os.path.lexists(run.following):
        return []
    try:
        open_checkpoint(run.following)
    except _FormatError:
        raise
    except MiniGPTError as error:  # nothing is lost: a complete one has this name only between two renames
        return [f"damaged    {error.what}; {make_way(run.following, FILES) or 'it was removed'}"]
    whole = True
    try:
        open_checkpoint(run.last)
    except MiniGPTError as error:  # perhaps it was copied to `previous/`, and is half removed
        whole = isinstance(error, _FormatError)
    return _rotate(run, whole)


def _rotate(run: RunDirectory, whole: bool = True) -> list[str]:
    """Give the checkpoint that waits for its name the name `last/`; the former, if it is whole, is `previous/`."""
    former = [(run.last, run.previous)] if whole and run.last.exists() else []
    kept = [take_name(folder, name, FILES) for folder, name in (*former, (run.following, run.last))]
    return [f"moved      {place}" for place in kept if place]


class _FormatError(CheckpointError):
    """The checkpoint has another format, or says more than this one does; it is not damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk, every byte of which was compared with its checksum.

    Attributes:
        path: its folder.
        progress: how far the run had come.
        manifest: the content of `manifest.json`.
    """

    path: Path
    progress: Progress
    manifest: dict[str, Any]

    @property
    def order_batch_size(self) -> int:
        """The batch size for which documents were put in order (`data.loaders.document_loader`).

        Raises:
            CheckpointError: if the manifest does not have it, as for a run on a text.
        """
        found: int = self.manifest.get("laid_out_for", 0)
        if found == 0:
            raise CheckpointError(f"{self.path} does not say how its documents were put in order", FETCH_AGAIN)
        return found

    def check_data(self, checksum: str, config: RunConfig) -> None:
        """Raise CheckpointError if the data, given by their checksum, are not those of the run."""
        places = (config.data.source, config.data.val_data)
        flags = " or ".join(named(name) for name, place in zip(("source", "val_data"), places, strict=True) if place)
        if self.manifest["corpus"] != checksum:
            raise CheckpointError(
                f"{' or '.join(filter(None, places))} does not hold what {self.path} was trained on",
                f"name the former data's new place as {flags}, or start a new run: a resumed one must read what it "
                "would have read",
            )

    def check_base(self, base: str | None, name: str) -> None:
        """Raise CheckpointError if the base, given by its checksum, is not that of the adapter."""
        if self.manifest.get("base") != base:
            raise CheckpointError(
                f"the model {name} is not the one that the adapter in {self.path} is trained for",
                f"put the former one back, or name it as {named('init_from')}; a run that was trained further has its "
                f"former weights in previous/, until it saves again{ANEW}",
            )

    def check_teachers(self, checksums: list[str], names: Sequence[str]) -> None:
        """Raise CheckpointError if the teachers, given by their checksums, are not those of the run, in its order.

        A run that has teachers, and has asked none so far, may begin with any.
        """
        former = self.manifest.get("teachers")
        if former != [] and (former or []) != checksums:
            raise CheckpointError(
                f"the teachers {', '.join(names) or '(none)'} are not those that {self.path} has learned from",
                f"name the former ones' new places as {named('teachers')}, in the former order, or start a new run",
            )

    def restore_weights(self, model: GPT) -> None:
        """Read the weights into a whole model. They need not be finite: a diverged step is repeated from them.

        Raises:
            CheckpointError: if the model is of another architecture.
        """
        stored, targets = open_weights(self.path / WEIGHTS), _kept(model)
        check_table(targets, stored, self.path / WEIGHTS, "use the config.yaml that the run was started with")
        for name, target in targets.items():
            target.copy_(stored[name].read())

    def restore_optimizers(self, model: GPT, optimizers: Sequence[Optimizer]) -> None:
        """Read the optimizers' state, each process its part of it.

        The weights were read before, so they have the same names and shapes; see `_check_state`.
        """
        parameters = dict(model.named_parameters())
        kinds = {type(optimizer).__name__: optimizer for optimizer in optimizers}
        for name, stored in open_weights(self.path / STATE).items():
            kind, _, rest = name.partition("/")
            if kind in kinds:
                owner, _, key = rest.rpartition("/")
                parameter = parameters[owner]
                values = stored.read().to(parameter.device)
                whole_like = values.shape == parameter.shape  # a count of steps is not
                kinds[kind].state[parameter][key] = part_of(values, parameter) if whole_like else values

    def losses(self) -> list[Tensor]:
        """The losses of the steps since the last record."""
        stored = open_weights(self.path / STATE)
        return [loss.read() for name, loss in stored.items() if name.startswith("loss/")]

    def restore_random(self, rank: int, device: torch.device) -> bool:
        """Go back to the random states of a rank; false if the run had fewer processes, or none on such a device."""
        states = _random_of(open_weights(self.path / STATE), str(rank))
        if not states or (device.type == "cuda") != ("cuda" in states):
            return False
        restore_random_states(states, device)
        return True


def _foreign(path: Path, name: str) -> CheckpointError:
    what = f"{path / STATE} has no state of this run's under {brief(name)}"
    return CheckpointError(what, "resume with the minigpt and the settings that wrote it")


def _check_state(path: Path) -> None:
    """Check names, shapes and types of a state, and that each random state is possible for its generator.

    A name is Muon/h.0.mlp.c_fc.weight/momentum_buffer: kind, parameter, what is kept of it; or random/numpy/0: a
    generator of the process with that rank; or loss/3.

    Raises:
        CheckpointError: if not; it names the first entry that is wrong, or missing.
    """
    weights, state = open_weights(path / WEIGHTS), open_weights(path / STATE)
    drawn = {name: (tuple(like.shape), like.dtype) for name, like in random_states(torch.device("cpu")).items()}
    needed: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for name in state:
        kind, _, rest = name.partition("/")
        owner, _, key = rest.rpartition("/")
        if kind in KEPT_BY and owner in weights:
            whole_like = weights[owner].shape, weights[owner].dtype
            for part in KEPT_BY[kind]:
                needed[f"{kind}/{owner}/{part}"] = ((), torch.float32) if part == "step" else whole_like
        elif kind == "random" and key.isdecimal():
            needed |= {f"random/{of}/{key}": like for of, like in drawn.items()}
            if owner == "cuda":  # its length depends on the GPU that wrote it
                needed[name] = (state[name].shape, torch.uint8)
        elif kind == "loss" and key.isdecimal():
            needed[name] = ((), torch.float32)
    for name in [*needed, *state]:
        if name not in state or (state[name].shape, state[name].dtype) != needed.get(name):
            raise _foreign(path, name)
    _check_random(path, state)


def _random_of(state: Mapping[str, StoredTensor], rank: str) -> dict[str, Tensor]:
    """The random states of a rank, by name."""
    named = ((name.split("/"), stored) for name, stored in state.items() if name.startswith("random/"))
    return {of: stored.read() for (_, of, owner), stored in named if owner == rank}


def _check_random(path: Path, state: Mapping[str, StoredTensor]) -> None:
    """Check random states by setting them, and restore the present ones afterwards.

    Raises:
        CheckpointError: if a generator cannot have one of them; it names the first rank with such a state.
    """
    for rank in {name.rpartition("/")[2] for name in state if name.startswith("random/")}:
        states = _random_of(state, rank)
        device = torch.device("cuda" if "cuda" in states and torch.cuda.is_available() else "cpu")
        here = random_states(device)
        try:
            restore_random_states(states, device)
        except (ValueError, RuntimeError):
            raise _foreign(path, f"random/*/{rank}") from None
        finally:
            restore_random_states(here, device)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint, after comparing every byte with its checksum.

    Raises:
        MissingFileError: if the checkpoint, or one of its files, does not exist.
        CheckpointError: if a file is damaged, or the checkpoint has the format of another version of minigpt.
    """
    if not path.is_dir():
        raise MissingFileError(
            f"there is no checkpoint {path}", f"a training writes one every {named('save_interval')} steps"
        )
    manifest = read_json(path / MANIFEST)
    if manifest.pop("sha256", None) != _seal(manifest):  # which every format has
        raise CheckpointError(f"{path / MANIFEST} is damaged: it does not have its checksum", FETCH_AGAIN)
    if manifest.get("format") != FORMAT:
        what = f"{path} is a checkpoint of format {brief(manifest.get('format'))}; this minigpt reads {FORMAT}"
        raise _FormatError(what, OTHER_VERSION)
    if unknown := _unknown(manifest):  # nobody would read it
        what = f"{path / MANIFEST} says {brief(min(unknown))}, which this minigpt does not know"
        raise _FormatError(what, OTHER_VERSION)
    if not _says_all(manifest):  # a checksum is no signature: anybody can make one
        raise CheckpointError(f"{path / MANIFEST} does not say what a checkpoint's manifest must", OTHER_VERSION)
    for name, promised in manifest["files"].items():
        _check_file(path / name, promised["bytes"], promised["sha256"])
    counts = dict(manifest["progress"])
    best = counts.pop("best_loss")
    _check_state(path)
    progress = Progress(rows=counts.pop(ROWS), best_loss=math.inf if best is None else best, **counts)
    checkpoint = Checkpoint(path, progress, manifest)
    checkpoint.progress.losses = checkpoint.losses()
    return checkpoint


def _unknown(manifest: dict[str, Any]) -> set[str]:
    """What a manifest says, of the run's progress and of a file too, that this version would not read."""
    files = manifest.get("files")
    parts = [(manifest, KEYS), (manifest.get("progress"), COUNTS)]
    parts += [(file, FILE_KEYS) for file in files.values()] if isinstance(files, dict) else []
    return {key for part, known in parts if isinstance(part, dict) for key in part.keys() - known}


def _says_all(manifest: dict[str, Any]) -> bool:
    """Whether a manifest has all keys that it must have, no unknown file, and values of the right types."""
    match manifest:
        case {
            "files": dict(files),
            "progress": {"best_loss": best, **counts},
            "versions": dict(),
            "corpus": str(),
            "log": dict(marks),
        }:
            laid_out_for = manifest.get("laid_out_for", 1)
            return (
                files.keys() == {WEIGHTS, STATE}
                and counts.keys() == COUNTS - {"best_loss"}
                and (best is None or (type(best) in (int, float) and abs(best) <= sys.float_info.max))
                and all(type(n) is int and 0 <= n < 2**63 for n in [*counts.values(), *marks.values(), laid_out_for])
                and all(isinstance(file, dict) and file.keys() == FILE_KEYS for file in files.values())
                and all(isinstance(file["bytes"], int) for file in files.values())
            )
    return False


def _check_file(file: Path, size: int, sha256: str) -> None:
    found = file.stat().st_size if file.is_file() else 0
    if found != size:
        raise CheckpointError(f"{file} is damaged: {found:,} bytes instead of {size:,}", FETCH_AGAIN)
    try:
        checksum = sha256_of(file)
    except OSError as error:  # a bad sector
        raise CheckpointError(f"{file} cannot be read: {error.strerror}", FETCH_AGAIN) from None
    if checksum != sha256:
        raise CheckpointError(f"{file} is damaged: it does not have its checksum", FETCH_AGAIN)


def newest_checkpoint(run: RunDirectory) -> tuple[Checkpoint, str]:
    """`last/` if it is complete, else `previous/`; and a line that says so, "" for `last/`.

    Raises:
        MissingFileError: if the run has no checkpoint yet.
        CheckpointError: if both are damaged; the error names both. Or if `last/` has another format, because resuming
            from `previous/` would lose what another minigpt has done.
    """
    try:
        return open_checkpoint(run.last), ""
    except _FormatError:
        raise
    except MiniGPTError as error:
        if not run.previous.exists():
            raise
        last = error
    try:
        checkpoint = open_checkpoint(run.previous)
    except MiniGPTError as error:
        raise CheckpointError(f"{last.what}; and {error.what}", last.how) from None
    return checkpoint, f"{last.what}; going on from {run.previous}, step {checkpoint.progress.step}"


def clean(run: RunDirectory, print_line: Callable[[str], None]) -> None:
    """Tidy up after a killed process, in a run directory that is locked by this one.

    Unfinished files are removed; a complete checkpoint that was not renamed yet becomes `last/`, and such an adapter
    the best. A damaged one is removed, and a line says so.
    """
    for path in leftovers(run.path):
        remove(path)
    for line in [*make_last(run), *make_best(run)]:
        print_line(line)


def circumstances(processes: Processes, device: torch.device, kernels: str) -> dict[str, str]:
    """What the numbers of a run depend on besides its settings and data; by `kernels`, its steps really compute."""
    compiler = {"compiler": steps.compiler()} if kernels == "c" else {}
    return {**versions(), "processes": str(processes.size), "device": device.type, **compiler}


def checkpoint_to_resume(
    run: RunDirectory, config: RunConfig, checksum: str, here: Mapping[str, str], print_line: Callable[[str], None]
) -> tuple[Checkpoint | None, dict[str, list[Any]], list[str]]:
    """The checkpoint from which a run is resumed, or None if it was interrupted before the first.

    The settings are those from now on, `checksum` is that of the data, and `here` are the circumstances now.

    Returns:
        The checkpoint; the changed settings; and a line for each change, to be said only when the run goes on, because
        other checks may still refuse it, or nothing may be left to do.

    Raises:
        MissingFileError: if there is no run, or one that was imported, or whose checkpoints were removed.
        CheckpointError: if no checkpoint is complete, or the settings or the data are not those of the run.
    """
    changed = changes(read_config(run), config)
    check_resumable(run)
    begins = not run.last.exists() and not run.previous.exists()
    lines = [
        f"changed    {name}: {_shown(before)} before, {_shown(now)} from now on"
        for name, (before, now) in changed.items()
    ]
    if begins:
        print_line(f"resume     {run.path} has no checkpoint yet: it begins again at step 0")
        return None, changed, lines
    checkpoint, damage = newest_checkpoint(run)
    if damage:
        print_line(f"damaged    {damage}")
    checkpoint.check_data(checksum, config)
    drops = config.model.dropout or config.train.lora_dropout
    former = checkpoint.manifest["versions"]
    for name in [*former, *({"compiler"} & (here.keys() - former.keys()))]:
        unknown = "no kernels in C" if name == "compiler" else "not known"
        before, now = former.get(name, unknown), here.get(name, unknown)
        if now != before:
            drawn = ", and dropout is drawn anew" if name in DRAWING and drops else ""
            lines.append(f"changed    {name}: {before} before, {now} now; the last digits may differ{drawn}")
    print_line(f"resume     {run.path} at step {checkpoint.progress.step}")
    return checkpoint, changed, lines


def changes(before: RunConfig, now: RunConfig) -> dict[str, list[Any]]:
    """The settings in which two configurations of one run differ: name -> [before, now].

    Raises:
        CheckpointError: if some of them cannot change within a run; the error names all of these.
    """
    found = {
        f"{section}.{name}" if section else name: [value, getattr(_section(now, section), name)]
        for section in ("", *SECTIONS)
        for name, value in vars(_section(before, section)).items()
        # the vocabulary and the checksum follow from the corpus, which is compared by itself
        if name not in (*SECTIONS, "vocab_size", "checksum") and value != getattr(_section(now, section), name)
    }
    if OTHER_NAME.get(before.init_from) == now.init_from:  # gpt2 and openai-community/gpt2 are one model
        found.pop("init_from", None)
    places = (*PLACES, "init_from") if before.train.lora_rank else PLACES  # of an adapter's base there is a checksum
    fixed = [
        f"{name} is {_shown(was)} in the run and {_shown(is_now)} now"
        for name, (was, is_now) in found.items()
        if name.startswith(LIFELONG) and name not in ("model.dropout", *places)
    ]
    if fixed:
        raise CheckpointError(
            f"this run cannot go on with other settings: {'; '.join(fixed)}",
            "leave them as they were, or start a new run: model, data and optimizer cannot change during a run",
        )
    return found


def _shown(setting: object) -> object:
    """A setting's value as a line shows it, also an empty one."""
    setting = ", ".join(setting) if isinstance(setting, tuple) else setting
    return "none" if setting == "" else setting


def keep_best(run: RunDirectory, model: GPT, loss: float, step: int, base: str) -> list[str]:
    """Write the best weights of a run, or its best adapter, unless the existing ones have a lower validation loss.

    They may have, because a run that was killed and resumed repeats steps, and their evaluations. `base` says where an
    adapter's base comes from.

    Returns:
        Lines, as `replace_last` does.

    Raises:
        OSError: if they cannot be written; those that lie there are as they were.
    """
    lines = make_best(run)  # an adapter whose name could not be changed
    if loss >= stored_loss(run):
        return lines
    metadata = {"step": str(step), "val_loss": repr(loss)}
    if adapters(model):
        with new_folder(run.following_adapter) as part:
            save_adapter(model, part, base=base, metadata=metadata)
        lines += make_best(run)
    else:
        save_weights(model, run.best_weights, with_checksum(metadata, own_tensors(model)))
    return lines


def make_best(run: RunDirectory) -> list[str]:
    """Make an adapter that is not renamed yet, if there is one and it is whole and better, the best adapter.

    Returns:
        Lines, as `replace_last` does.
    """
    waiting, own = run.following_adapter, {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
    if not os.path.lexists(waiting):
        return []
    try:
        read_json(waiting / ADAPTER_CONFIG)
        check_values(waiting / ADAPTER_WEIGHTS)
        wrong = "" if _loss_of(waiting / ADAPTER_WEIGHTS) < stored_loss(run) else f"{waiting} is not the better adapter"
    except MiniGPTError as error:
        wrong = error.what
    if wrong:
        return [f"damaged    {wrong}; {make_way(waiting, own) or 'it was removed'}"]
    kept = take_name(waiting, run.adapter, own)
    return [f"moved      {kept}"] if kept else []


def stored_loss(run: RunDirectory) -> float:
    """The validation loss of a run's best weights; infinite if there are none, or they are damaged."""
    return min(_loss_of(path) for path in (run.best_weights, run.adapter / ADAPTER_WEIGHTS))


def _loss_of(weights: Path) -> float:
    """The validation loss in the header of a file; infinite if it is not there, or damaged."""
    with suppress(MiniGPTError, KeyError, ValueError):
        return float(read_metadata(weights)["val_loss"])
    return math.inf


def _kept(model: GPT) -> dict[str, Tensor]:
    """The weights of a model that a checkpoint contains: all, or if it has adapters, only theirs."""
    own = own_tensors(model)
    return {name: tensor for name, tensor in own.items() if ".lora_" in name} if adapters(model) else own


def _section(config: RunConfig, name: str) -> Any:
    return getattr(config, name) if name else config


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
