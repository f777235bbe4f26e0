"""The views of `minigpt inspect`.

The files, each of which imports only from those above it::

    settings    the arguments of each view
    frame       what views share: a prompt with its model, and printing or writing an answer
    shape       size, arch, embed: what a model is, without a prompt
    text        tokens, loss: a text, token by token
    decoding    next, temperature, steps, beams: how a continuation is chosen
    heads       attn, heads: what attention looks at
    stream      lens, why: the residual stream
    edits       ablate, patch: what changes without a part, or with a part of another pass
    runs        several runs side by side
"""
