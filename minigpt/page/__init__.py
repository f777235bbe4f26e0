"""One page that runs a model in any browser, with no network: it is served to this machine alone, or is one file.

The files, each of which imports only from those above it::

    weights       a model's tensors as the bytes that the page reads: float32, float16 or int8
    contents      what the page is told of a model, and of its run
    server        the page at an address of this machine
    bundle        one script of several modules
    single_file   page, tokenizer and weights as one file that needs nothing else
    static        the page itself: plain ES modules, which need no build and load nothing from elsewhere

The modules in static/ that compute have no DOM in them, and most mirror a file of the package, name for name::

    errors.js         what a user can mend: errors.py
    numbers.js        softmax and its like, for rows of numbers
    taps.js           the points of a model that can be read: analysis/taps.py
    edits.js          what to change inside: analysis/edits.py
    tracing.js        reading and changing the values of a pass: analysis/tracing.py
    weights.js        tensors from bytes: weights.py
    engine.js         the forward pass: model.py and kv_cache.py
    options.js        what can be asked of a decoder: decoding/options.py
    filters.js        what may be chosen, and how likely: decoding/filters.py
    sampling.js       a text that grows, and the choice of one token: decoding/sampling.py
    generate.js       from a prompt to its continuation: decoding/generate.py
    beams.js          the best sequence instead of the best token: decoding/beam_search.py
    analysis.js       what is read off a pass: analysis/lens.py, attribution.py, heads.py and accounting.py
    tokenizer.js      text to ids and back: tokenizers.py
"""
