"""How close texts are to references, one for each: BLEU and chrF as sacrebleu computes them, METEOR as nltk does."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from minigpt.errors import ConfigError, DataError, counted, first_line
from minigpt.evaluation.diversity import words

WORDNET = Path("/usr/share/wordnet")  # where the package wordnet-base of Debian and Ubuntu lays its files
WITHOUT_SYNONYMS = "METEOR (exact, stem)"
# WordNet's table of lexicographer files, which that package leaves out (lexnames(5wn)). METEOR needs none of the names,
# but nltk's reader begins with them.
_LEXNAMES = {
    "adj": "all pert",
    "adv": "all",
    "noun": "Tops act animal artifact attribute body cognition communication event feeling food group location motive "
    "object person phenomenon plant possession process quantity relation shape state substance time",
    "verb": "body change cognition communication competition consumption contact creation emotion motion perception "
    "possession social stative weather",
    "adj ": "ppl",
}


@dataclass(frozen=True)
class Nearness:
    """Scores from 0 to 100.

    Attributes:
        bleu: of words up to four in a row, over all texts (Papineni et al., 2002).
        chrf: of characters up to six in a row (Popović, 2015).
        signatures: sacrebleu's description of how it counted, to be quoted with the numbers (Post, 2018).
        chrf_each: chrF of each text alone; `chrf` is not their mean, because it counts all texts together.
    """

    bleu: float
    chrf: float
    signatures: tuple[str, str]
    chrf_each: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Meteor:
    """METEOR of texts, from 0 to 100 (Lavie and Agarwal, 2007).

    Attributes:
        name: "METEOR"; where WordNet is not at hand, `WITHOUT_SYNONYMS`, a lower score of its own.
        signature: how it was counted, to be quoted with the numbers.
        each: the score of each text; the score of all is their mean.
    """

    name: str
    signature: str
    each: tuple[float, ...] = field(repr=False)


def nearness(texts: Sequence[str], references: Sequence[str]) -> Nearness:
    """Compare each text with its reference.

    Args:
        texts: N texts.
        references: N texts that should have been written, in the same order.

    Raises:
        DataError: if there are not as many references as texts.
        ConfigError: if sacrebleu is not installed.
    """
    _check_pairs(texts, references)
    library = _imported("sacrebleu", "BLEU and chrF need")
    bleu, chrf = library.BLEU(), library.CHRF()
    scores = {metric: metric.corpus_score(list(texts), [list(references)]).score for metric in (bleu, chrf)}
    each = tuple(chrf.sentence_score(text, [own]).score for text, own in zip(texts, references, strict=True))
    return Nearness(scores[bleu], scores[chrf], (f"BLEU|{bleu.get_signature()}", f"chrF|{chrf.get_signature()}"), each)


def meteor(texts: Sequence[str], references: Sequence[str]) -> Meteor:
    """METEOR of each text against its reference: words that are equal, have one stem, or are synonyms, and their order.

    Synonyms are WordNet's: nltk's own copy if it was downloaded, else the one at `WORDNET`. Nothing is downloaded.
    Arguments and errors are those of `nearness`, with nltk in the place of sacrebleu.
    """
    _check_pairs(texts, references)
    library, version = _imported("nltk.translate.meteor_score", "METEOR needs"), _imported("nltk", "").__version__
    synonyms, source = _synonyms()
    scores = [
        100 * float(library.meteor_score([words(own)], words(text), wordnet=synonyms))
        for text, own in zip(texts, references, strict=True)
    ]
    name = "METEOR" if source else WITHOUT_SYNONYMS
    signature = f"METEOR|nltk:{version}|stem:porter|synonyms:{source or 'none'}|case:lower|words:minigpt"
    return Meteor(name, signature, tuple(scores))


def _check_pairs(texts: Sequence[str], references: Sequence[str]) -> None:
    if len(texts) != len(references):
        raise DataError(
            f"{counted(len(texts), 'text')} and {counted(len(references), 'reference')} are no pairs",
            "give one reference for each text, in the same order",
        )


def _imported(name: str, need: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{need} a package that cannot be imported: {first_line(error, 100)}",
            'pip install "minigpt-torch[metrics]", or do without references',
        ) from None


class _NoSynonyms:
    """Stands for WordNet where there is none."""

    def synsets(self, word: str) -> list[Any]:
        """No word has one."""
        return []


@cache
def _synonyms() -> tuple[Any, str]:
    """What knows synonyms, and the name of its source; "" if there is none."""
    corpora = import_module("nltk.corpus")
    try:
        corpora.wordnet.ensure_loaded()
        return corpora.wordnet, f"WordNet {corpora.wordnet.get_version()}"
    except LookupError:
        pass
    if not (WORDNET / "data.noun").is_file():
        return _NoSynonyms(), ""

    class Reader(corpora.WordNetCorpusReader):  # type: ignore[misc, name-defined]
        """nltk's, over the files of a package that has no lexnames and no index of senses."""

        def open(self, file: str) -> Any:
            return io.StringIO(_lexnames()) if file == "lexnames" else super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """Other languages refer to this map; there are none."""

    paths = import_module("nltk.data").path  # the folders that nltk may read
    paths += [str(WORDNET)] * (str(WORDNET) not in paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no other languages
        reader = Reader(str(WORDNET), None)
    return reader, f"WordNet {reader.get_version()}"


def _lexnames() -> str:
    """The table as WordNet has it: number, name, part of speech."""
    numbers = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}
    names = [(kind.strip(), name) for kind, listed in _LEXNAMES.items() for name in listed.split()]
    return "".join(f"{number:02}\t{kind}.{name}\t{numbers[kind]}\n" for number, (kind, name) in enumerate(names))
