"""The command line: parse, call the library, print.

A command is one module, whose `answer` is given what was typed, and does it. No command imports another. The files,
each of which imports only from those above it::

    streams         standard input, output and error: what is said, and how it looks
    parser          from a dataclass to a command line and back
    run_settings    what can be typed behind the commands that train
    settings        what can be typed behind all others
    models          --model and what belongs to it
    texts           prompts, corpora, and what tokens are called
    trainings       one training, from its corpus to what is said at its end
    quickstart      train the quick preset
    train           train, plan, replay
    verify_resume   kill a training, and show that nothing is lost
    generate        continue a text
    next_token      the most probable next tokens
    score           how probable whole texts are
    evaluate        loss and perplexity on a text
    evaluate_text   how varied texts are, and what of them is copied
    compare         several decoders or models on the same prompts
    tokens          how a text is cut into tokens
    import_model    any model to a run directory
    export_model    a model to the layout of the transformers library
    doctor          what this machine has, and what is fastest on it
    views           those of minigpt inspect
    inspect_model   look inside a model: which view, and its answer
    main            find the command, let it answer, turn errors into two lines
"""
