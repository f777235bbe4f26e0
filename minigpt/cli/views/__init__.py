"""The views of `minigpt inspect`.

The files, each of which imports only from those above it::

    settings    what can be typed behind each view
    frame       what views share: a prompt with its model, and the ways to hand out an answer
    shape       size, arch, embed: what a model is, without a prompt
    text        tokens, loss: a text, token by token
    decoding    next, steps, beams: how a continuation is chosen
    heads       attn, heads: what attention looks at
    stream      lens, why: the residual stream
    edits       ablate, patch: what changes without a part, or with one of another pass
    runs        trainings side by side
"""
