"""How good a model is, and how good the texts are that it writes.

The files, each of which imports only from those above it::

    loss           loss, perplexity, bits per character, log-probability
    diversity      how varied texts are
    overlap        which parts of a text stand word for word in a training set
    references     BLEU, chrF and METEOR against references
    comparison     several decoders or models on the same prompts
    failures       what goes wrong in replies, by rules
    conversations  what a model makes of a dialogue's history, and what it replies
    arms           what several settings reply, compared
"""
