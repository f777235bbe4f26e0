"""The command line: parse, call the library, print.

A command is one module. Its function `answer` gets the settings that were typed, and does the work. No command imports
another. The files, each of which imports only from those above it::

    streams         standard input, output and error: everything that is printed, and how it looks
    parser          from a dataclass to a command line and back
    run_settings    the arguments of the commands that train
    settings        the arguments of all other commands
    models          --model and what belongs to it
    texts           prompts, corpora, and the texts that stand for tokens
    decoders        --setting: how to decode
    trainings       one training, from its corpus to the summary at its end
    quickstart      train the quick preset
    train           train, plan, replay
    verify_resume   kill a training, resume it, and show that nothing is lost
    generate        continue a text
    chat            talk with a model
    next_token      the most probable next tokens
    score           how probable whole texts are
    evaluate        loss and perplexity on a text
    evaluate_text   how varied texts are, and how much of them is copied
    chat_report     how evaluate-chat shows its numbers
    evaluate_chat   how well a model replies, and what goes wrong
    compare         several decoders or models on the same prompts
    explore         a page that runs a model
    tokens          how a text is cut into tokens
    import_model    write any model as a run directory
    export_model    write a model in the layout of the transformers library
    doctor          what this machine has, and what is fastest on it
    views           the views of minigpt inspect
    inspect_model   look inside a model: find the view, and print its answer
    main            find the command, run it, turn errors into two lines
"""
