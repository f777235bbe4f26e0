"""`minigpt evaluate-chat`."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minigpt.chat import LONGEST, SHARE
from minigpt.cli.chat_report import markdown, printed
from minigpt.cli.decoders import Setting, parse_settings
from minigpt.cli.models import learned_before, load, model_source, trained_source, without_data
from minigpt.cli.settings import CHAT_SETTINGS, EvaluateChat
from minigpt.cli.streams import print_json, print_note, write_files
from minigpt.cli.texts import says_how_to_name_data, val_data_beside, with_val_data
from minigpt.config import DocumentsConfig, RunConfig
from minigpt.data.batches import encode
from minigpt.data.corpora import kind_of
from minigpt.data.dialogue_files import read_dialogues
from minigpt.data.dialogues import Dialogue, check_template
from minigpt.data.loaders import end_of_document
from minigpt.data.sources import held_out_dialogues, load_data
from minigpt.errors import InputError, counted, named
from minigpt.evaluation.arms import Arm, closeness, compared, true_arm, written_arm
from minigpt.evaluation.conversations import (
    Exchange,
    chosen,
    coherence,
    exchanges,
    num_readings,
    prompt_ids,
    write_replies,
)
from minigpt.evaluation.failures import MODES, catalogue, common_words, speakers
from minigpt.evaluation.loss import perplexity
from minigpt.formats.source import Source
from minigpt.model import GPT
from minigpt.system.files import check_output, write_text
from minigpt.tokenizers import Tokenizer, note_special
from minigpt.training.run import note_learned

OUTPUTS = (".md", ".json", ".png", ".svg")
_CANDIDATES = 10


def answer(settings: EvaluateChat) -> None:
    """Measure, then print or write."""
    for file in settings.out:
        check_output(file, OUTPUTS)
    decoders = parse_settings(settings.setting or CHAT_SETTINGS)
    source = model_source(settings.model)
    learner = trained_source(source, settings.adapter)
    dialogues, described = _dialogues(settings, learner)
    model, tokenizer = load(settings, source.name, settings.adapter)
    check_template(tokenizer, source.name)
    note_special(tokenizer, [message["content"] for one in dialogues for message in one.messages])
    turns = settings.turns or (learner.trained or RunConfig()).documents.turns
    length = settings.max_new_tokens or max(1, min(LONGEST, model.config.block_size // SHARE))  # as in a chat
    every = exchanges(dialogues)
    found = _with_room(every, model, tokenizer, length)
    taken = chosen(found, settings.replies, settings.seed)
    result = {
        "model": source.name,
        "adapter": settings.adapter,
        "data": described,
        "dialogues": len(dialogues),
        "true_replies": len(every),
        "without_room": len(every) - len(found),
        "measured": len(taken),
        "measured_dialogues": len({one.dialogue for one in taken}),
        "turns": turns,
        "max_new_tokens": length,
        "seeds": settings.seeds,
        "coherence": _coherence(settings, model, tokenizer, taken),
        **_compared(settings, _arms(settings, model, tokenizer, taken, turns, length, decoders), dialogues),
    }
    if settings.json:
        print_json(result)
    else:
        print("\n".join(printed(result, settings.show)))
    write_files(settings.out, lambda file: _write(file, result, settings.out))


def _dialogues(settings: EvaluateChat, source: Source) -> tuple[list[Dialogue], str]:
    """The dialogues to measure on, and what they are.

    Raises:
        InputError: if there are none that the model has not seen.
        MiniGPTError: as `without_data`, or `load_data`.
    """
    trained = source.trained
    spoken = trained is not None and kind_of(trained.documents.separate, trained.data.source) == "dialogues"
    if settings.data is None and not spoken:
        raise without_data(
            source,
            "is no run that was trained on dialogues, so none belong to it",
            "name some to measure it on: --data shakespeare-dialogues, or a file; or check --model",
        )
    config = trained if trained and spoken else RunConfig(documents=DocumentsConfig(separate="dialogues"))
    config = with_val_data(config, settings.val_data)
    if settings.data is not None:
        val_data = val_data_beside(config, settings.data)
        config = replace(config, data=replace(config.data, source=settings.data, val_data=val_data))
    with says_how_to_name_data() if settings.data is None else nullcontext():
        read = read_dialogues(config.data.source)
        held_out = held_out_dialogues(config, read) if trained and spoken else None
    if held_out is not None:
        if config.data.checksum and (before := learned_before(source)):
            note_learned(config, load_data(config, read), before)
        return held_out, f"held-out dialogues of {config.data.source}"
    if settings.data and settings.val_data:
        raise InputError(
            f"{settings.data} and --val-data {settings.val_data} are not what {source.name} was trained on",
            "leave --val-data out, to measure all of other data",
        )
    if settings.data is None:
        raise InputError(
            f"{config.data.source} has changed since {source.name} was trained on it",
            "name the former dialogues with --data; or name these with --data, to measure all of them",
        )
    if read.validation:
        return read.validation, f"what is there to validate of {read.described}"
    return read.items, f"all of {read.described}"


def _with_room(every: Sequence[Exchange], model: GPT, tokenizer: Tokenizer, length: int) -> list[Exchange]:
    """The exchanges where the turn before the reply leaves room for so many new tokens.

    Raises:
        InputError: if there is none, or the model does not know a character.
    """
    block_size = model.config.block_size
    if length >= block_size:
        raise InputError(
            f"{named('max_new_tokens', length)} leaves no room for a turn in block_size = {block_size}",
            f"lower {named('max_new_tokens')}",
        )
    # Raises one error for all that cannot be encoded.
    encode([one.document(1) for one in every], tokenizer, end_of_document(tokenizer), block_size, block_size)
    found = [one for one in every if prompt_ids(tokenizer, one.document(1), block_size - length) is not None]
    if not found:
        raise InputError(
            f"the turn before a reply is too long, before all {len(every):,} of them: in block_size = {block_size} it "
            f"leaves no room for {named('max_new_tokens', length)}",
            f"lower {named('max_new_tokens')}",
        )
    return found


def _coherence(settings: EvaluateChat, model: GPT, tokenizer: Tokenizer, taken: Sequence[Exchange]) -> Any:
    """What histories tell the model; None for a single dialogue, which has nothing to be compared with."""
    there = len({one.dialogue for one in taken})
    if there < 2 and settings.candidates is None:
        print_note("coherence is not measured: there is one dialogue, and it is compared with the history of another")
        return None
    candidates = settings.candidates or min(_CANDIDATES, there)
    with _bar(num_readings(len(taken), settings.history, candidates), "reading") as advance:
        found = coherence(
            model, tokenizer, taken, histories=settings.history, candidates=candidates, seed=settings.seed,
            batch_size=settings.batch_size, advance=advance,
        )  # fmt: skip
    return [one.to_dict() for one in found]


def _arms(
    settings: EvaluateChat,
    model: GPT,
    tokenizer: Tokenizer,
    taken: Sequence[Exchange],
    turns: int,
    length: int,
    decoders: Sequence[Setting],
) -> list[Arm]:
    """The true replies, and those that the model writes with each setting."""
    with _bar(2 * len(taken), "reading") as advance:
        arms = [true_arm(model, tokenizer, taken, turns, settings.batch_size, advance)]
    with _bar(3 * len(decoders) * len(taken) * settings.seeds, "step") as advance:  # a reply is written, and read twice
        for decoder in decoders:
            written = write_replies(
                model, tokenizer, taken, turns, {**decoder.options, "max_new_tokens": length}, draws=settings.seeds,
                seed=settings.seed, batch_size=settings.batch_size, advance=advance,
            )  # fmt: skip
            arms.append(written_arm(decoder.name, model, tokenizer, written, turns, settings.batch_size, advance))
    return arms


@contextmanager
def _bar(total: int, unit: str) -> Iterator[Callable[[int], object]]:
    with tqdm(total=total, unit=unit, leave=False, disable=None, delay=1) as bar:
        yield bar.update


def _compared(settings: EvaluateChat, arms: Sequence[Arm], dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    """All numbers and texts of the arms, the true replies first."""
    common, names = common_words(dialogues), speakers(dialogues)
    failures = [catalogue(arm.spoken, names, common) for arm in arms]
    measured = [arm.measured(common, own) for arm, own in zip(arms, failures, strict=True)]
    near = [closeness(arm) for arm in arms[1:]]
    if near[0].missing:
        print_note(near[0].missing)
    (true,) = compared(measured[:1], settings.seed)
    written = compared([{**own.measured, **rest} for own, rest in zip(near, measured[1:], strict=True)], settings.seed)
    whole: list[Mapping[str, float | None]] = [{}, *(own.whole for own in near)]
    rows: list[dict[str, Any]] = [
        {
            "setting": arm.name,
            "whole": {**scores, **{f"distinct-{n}": arm.distinct(n) for n in (1, 2, 3)}},
            "measures": {name: one.to_dict() for name, one in own.items()},
            "failures": {mode: sum(mode in one for one in found) for mode in MODES},
            "replies": _replies(arm, found),
        }
        for arm, scores, own, found in zip(arms, whole, [true, *written], failures, strict=True)
    ]
    return {
        "loss": arms[0].loss,
        "perplexity": perplexity(arms[0].loss),
        "tokens": sum(arms[0].tokens),
        "arms": rows,
        "signatures": near[0].signatures,
    }


def _replies(arm: Arm, failures: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    columns = zip(arm.spoken, arm.truth, arm.log_probs, arm.tokens, failures, strict=True)
    return [
        {"dialogue": one.dialogue, "turn": one.turn, "before": one.messages[-1]["content"], "reply": one.text}
        | {"true_reply": truth, "log_prob": log_prob, "num_tokens": count, "gain": one.gain, "failures": dict(found)}
        for one, truth, log_prob, count, found in columns
    ]


def _write(path: Path, result: dict[str, Any], out: Sequence[Path]) -> None:
    match path.suffix.lower():
        case ".json":
            write_text(path, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
        case ".md":
            beside = [file for file in out if file.suffix.lower() in (".png", ".svg")]
            pictures = [file.name for file in beside if file.absolute().parent == path.absolute().parent]
            write_text(path, "\n".join(markdown(result, pictures)) + "\n")
        case _:
            from minigpt.analysis.plots import dialogue_panels
            from minigpt.system.figures import save_figure

            shares = {
                arm["setting"]: {mode: count / len(arm["replies"]) for mode, count in arm["failures"].items()}
                for arm in result["arms"]
            }
            title = f"{result['model']}: {counted(result['measured'], 'reply', 'replies')} in "
            title += counted(result["measured_dialogues"], "dialogue")
            save_figure(dialogue_panels(result["coherence"] or [], shares, title), path)
