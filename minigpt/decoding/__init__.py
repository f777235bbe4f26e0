"""From a prompt to its completion: ids in, ids out.

The files, each of which imports only from those above it::

    options       everything that can be asked of a decoder, checked
    filters       what happens to the logits before a token is drawn, in order
    constraints   words that must appear: how much of them a sequence has
    one_call      the forward pass for one token of each row, of a packed model, in one operation
    one_token     the same for any model, in few operations
    sampling      the next token: greedy or drawn
    beam_search   the best sequence instead of the best token
    speculative   several tokens a step, guessed and then checked: the same text, sooner
    request       one call, checked: how far each prompt may go, and what ends it
    batch         the rows that are written side by side, and who takes the place of one that is done
    generate      prompts to completions, at once or as a stream
"""
