"""Against sacrebleu asked directly, and without it."""

import sys

import pytest

from minigpt.errors import ConfigError, DataError
from minigpt.evaluation.references import nearness

TEXTS = ["the cat sat on the mat today", "a film that nobody will remember for long"]
REFERENCES = ["the cat sat on a mat today", "a film that everybody will remember for very long"]


def test_scores_are_those_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs sacrebleu: pip install 'minigpt-torch[metrics]'")
    found = nearness(TEXTS, REFERENCES)
    assert found.bleu == sacrebleu.corpus_bleu(TEXTS, [REFERENCES]).score
    assert found.chrf == sacrebleu.corpus_chrf(TEXTS, [REFERENCES]).score
    assert 0 < found.bleu < found.chrf < 100
    assert nearness(TEXTS, TEXTS).bleu == pytest.approx(100)
    assert [signature[:5] for signature in found.signatures] == ["BLEU|", "chrF|"]
    assert all(f"version:{sacrebleu.__version__}" in signature for signature in found.signatures)


def test_pairs_are_needed():
    with pytest.raises(DataError, match="2 texts and 1 references are no pairs"):
        nearness(TEXTS, REFERENCES[:1])


def test_without_sacrebleu(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ConfigError) as caught:
        nearness(TEXTS, REFERENCES)
    assert 'pip install "minigpt-torch[metrics]"' in caught.value.how
