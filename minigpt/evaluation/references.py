"""How close texts are to references, one for each: BLEU and chrF, as sacrebleu computes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from minigpt.errors import ConfigError, DataError, first_line


@dataclass(frozen=True)
class Nearness:
    """Scores from 0 to 100.

    Attributes:
        bleu: of words up to four in a row, over all texts (Papineni et al., 2002).
        chrf: of characters up to six in a row (Popović, 2015).
        signatures: sacrebleu's description of how it counted, to be quoted with the numbers (Post, 2018).
    """

    bleu: float
    chrf: float
    signatures: tuple[str, str]


def nearness(texts: Sequence[str], references: Sequence[str]) -> Nearness:
    """Compare each text with its reference.

    Args:
        texts: N texts.
        references: N texts that should have been written, in the same order.

    Raises:
        DataError: if there are not as many references as texts.
        ConfigError: if sacrebleu is not installed.
    """
    if len(texts) != len(references):
        raise DataError(
            f"{len(texts):,} texts and {len(references):,} references are no pairs",
            "give one reference for each text, in the same order",
        )
    try:
        library = import_module("sacrebleu")
    except ImportError as error:
        raise ConfigError(
            f"BLEU and chrF need a package that cannot be imported: {first_line(error, 100)}",
            'pip install "minigpt-torch[metrics]", or do without references',
        ) from None
    bleu, chrf = library.BLEU(), library.CHRF()
    scores = {metric: metric.corpus_score(list(texts), [list(references)]).score for metric in (bleu, chrf)}
    return Nearness(scores[bleu], scores[chrf], (f"BLEU|{bleu.get_signature()}", f"chrF|{chrf.get_signature()}"))
