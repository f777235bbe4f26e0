"""How good a model is, and how good what it writes.

The files, each of which imports only from those above it::

    loss         loss, perplexity, bits per character, log-probability
    diversity    how varied texts are
    overlap      what of a text stands in a training set, word for word
    references   BLEU and chrF against references
    comparison   several decoders or models on the same prompts
"""
