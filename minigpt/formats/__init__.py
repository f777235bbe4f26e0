"""Models and files: reading a model from files of any common format, and writing it.

The files, each of which imports only from those above it::

    hub               downloading a model from the hub into the cache
    weights           tensors to and from files, one at a time; errors name every mismatch
    gpt2_names        GPT-2's weights under our names and those of the transformers library
    tokenizer_files   tokenizers to and from the files of the transformers library
    lora_files        adapters to and from files of the PEFT library
    config_json       config.json, the transformers library's description of a model's shape, read and written
    run_directory     the run directory, written and read
    source            where a model lies, found once; it gives its shape, its tokenizer, and the model
    pretrained        loading a model by name, and writing one for transformers: `load_model`, `save_hf`
    parity            minigpt and transformers on the same ids, compared layer by layer
"""
