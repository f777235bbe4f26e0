"""A configuration -> what it names: one text, documents, or the examples of dialogues."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from minigpt.config import DocumentsConfig, RunConfig
from minigpt.data.corpora import Corpus, kind_of, load_corpus
from minigpt.data.dialogue_files import Dialogues, holds_dialogues, read_dialogues
from minigpt.data.dialogues import Dialogue, examples, same_beginnings
from minigpt.data.documents import Document, Documents, data_checksum, parted, read_documents, with_validation
from minigpt.errors import ConfigError, counted, named, passed, quoted

# The settings of `DocumentsConfig` that say nothing of how a source of this kind is read.
_FOREIGN = {
    "documents": ("turns", "learned"),
    "dialogues": ("text_field", "prompt_field", "completion_field", "max_characters", "longer", "keywords"),
}


def load_data(config: RunConfig, dialogues: Dialogues | None = None) -> Corpus | Documents:
    """The text, or the documents, that a configuration names; what `train` learns from.

    The documents of dialogues are their examples: see `data.dialogues.examples`. `dialogues` are those of
    `data.source`, if they were read before.

    Raises:
        ConfigError: if a setting is for sources of another kind; or as `read_documents`.
        MissingFileError, DataError: as `load_corpus`, `read_documents` and `read_dialogues`.
    """
    d, source, val_data = config.documents, config.data.source, config.data.val_data
    kind = kind_of(d.separate, source)
    check_fit(d, source)
    if kind == "dialogues":
        dialogues = _named_dialogues(config, dialogues)
        return _as_documents(dialogues, d, _belonging(dialogues))
    if kind == "documents":
        if fitting_kind(d, source) == "dialogues":
            raise ConfigError(
                f"{source} holds dialogues, and these settings would read it as documents",
                f"minigpt train --preset chat --data {quoted(source)} goes on with GPT-2 or another model, --preset "
                f"chat-shakespeare begins with nothing; other settings need {passed('separate', 'dialogues')}",
            )
        documents = read_documents(source, d)
        return with_validation(documents, read_documents(val_data, d)) if val_data else documents
    if val_data and kind_of(d.separate, val_data) != "text":
        raise ConfigError(
            f"{named('val_data', val_data)} holds separate documents, and {source} is read as one text",
            f"name a text to validate, or add {passed('separate', 'on')}",
        )
    corpus = load_corpus(source)
    return corpus.with_validation(load_corpus(val_data)) if val_data else corpus


def fitting_kind(d: DocumentsConfig, source: str) -> Literal["text", "documents", "dialogues"]:
    """What a source is to be read as: what its name says, except that records may be dialogues."""
    kind = kind_of(d.separate, source)
    may_be = kind == "documents" and d.separate == "auto" and not d.text_field and not d.completion_field
    return "dialogues" if may_be and holds_dialogues(source) else kind


def held_out_dialogues(config: RunConfig, dialogues: Dialogues | None = None) -> list[Dialogue] | None:
    """The dialogues that validate in a run of these settings, whole, in the order in which they were read.

    Args:
        config: the settings. With a `data.checksum`, it is that of a run.
        dialogues: those of `data.source`, if they were read before.

    Returns:
        None if the run was trained on others.

    Raises:
        ConfigError: if the settings name no dialogues.
        MiniGPTError: as `load_data`, and as `data.documents.split`.
    """
    d = config.documents
    if kind_of(d.separate, config.data.source) != "dialogues":
        raise ConfigError(
            f"{config.data.source} is not read as dialogues",
            f"name dialogues, or add {passed('separate', 'dialogues')}",
        )
    dialogues = _named_dialogues(config, dialogues)
    same = _belonging(dialogues)
    documents = _as_documents(dialogues, d, same)
    if config.data.checksum not in ("", data_checksum(documents)):
        return None
    _, validating = parted(documents, d, config.seed)
    held_out = {document.dialogue for document in validating}
    among = dialogues.items if dialogues.validation is None else dialogues.validation
    sums = {dialogue.checksum(): dialogue for dialogue in among}
    return [dialogue for checksum, dialogue in sums.items() if same[checksum] in held_out]


def check_fit(d: DocumentsConfig, source: str) -> None:
    """Raise ConfigError if a setting was changed that says nothing of a source of this kind."""
    kind, usual = kind_of(d.separate, source), DocumentsConfig()
    changed = [name for name, value in vars(d).items() if name != "separate" and value != getattr(usual, name)]
    if kind == "text" and d.separate == "auto" and changed:
        way = "dialogues" if changed[0] in _FOREIGN["documents"] else "on"
        raise ConfigError(
            f"{named(changed[0], getattr(d, changed[0]))} is for separate documents, and {source} is read as one text",
            f"add {passed('separate', way)}, or leave {named(changed[0])} out",
        )
    if foreign := [name for name in changed if name in _FOREIGN.get(kind, ())]:
        raise ConfigError(
            f"{named(foreign[0], getattr(d, foreign[0]))} would change nothing: {source} is read as {kind}",
            f"leave {named(foreign[0])} out",
        )


def _named_dialogues(config: RunConfig, read: Dialogues | None = None) -> Dialogues:
    dialogues = read or read_dialogues(config.data.source)
    return dialogues.with_validation(read_dialogues(config.data.val_data)) if config.data.val_data else dialogues


def _belonging(dialogues: Dialogues) -> dict[str, str]:
    """Which of all dialogues belong together: see `same_beginnings`."""
    return same_beginnings([*dialogues.items, *(dialogues.validation or ())])


def _as_documents(dialogues: Dialogues, d: DocumentsConfig, same: Mapping[str, str]) -> Documents:
    def replies(found: list[Dialogue]) -> list[Document]:
        documents = (document for dialogue in found for document in examples(dialogue, d.turns))
        return [replace(document, dialogue=same[document.dialogue]) for document in documents]

    items = replies(dialogues.items)
    validation = None if dialogues.validation is None else replies(dialogues.validation)
    count = len(items) + len(validation or [])
    described = (
        f"{dialogues.described}; {counted(count, 'reply', 'replies')}, each after {counted(d.turns, 'turn')} at most"
    )
    return Documents(items, described, blank=0, cut=0, validation=validation)
