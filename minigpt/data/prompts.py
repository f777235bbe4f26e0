"""Prompts made of examples: a model that only continues text is shown the pattern that it shall continue.

    instruction                  Translate English to French.

    examples, each an            English: sea
    input and its output         French: mer

    the query, and the           English: bread
    place for its output         French:

This is in-context learning (Brown et al., 2020): no weight changes. A model goes on after its answer, with an example
of its own, so decoding stops at the separator: `generate(..., stop=separator)`.
"""

from collections.abc import Sequence

from minigpt.errors import InputError, brief


def few_shot_prompt(
    examples: Sequence[tuple[str, str]],
    query: str,
    *,
    instruction: str = "",
    input_label: str = "Input:",
    output_label: str = "Output:",
    separator: str = "\n\n",
) -> str:
    """A prompt that shows what to do by examples, and ends where the answer to `query` begins.

    It ends with the output label and no space, for to GPT-2 a space is the beginning of the word after it.

    Args:
        examples: pairs (input, output); none makes a prompt of the instruction and the query alone.
        query: the input whose output is wanted.
        instruction: what stands above the examples; nothing if empty.
        input_label: what comes before each input, on its line.
        output_label: what comes before each output, on the next line.
        separator: what comes after the instruction and each example. It is also the string to stop at.

    Raises:
        InputError: if the separator or a label is empty, something is not a text, an example is not a pair of texts,
            or a text holds the separator, which would end it too early.
    """
    must_be_there = {"separator": separator, "input_label": input_label, "output_label": output_label}
    for name, text in {"instruction": instruction, "query": query, **must_be_there}.items():
        if not isinstance(text, str):
            raise InputError(f"{name} is {brief(text)}, not a text", 'give it as a string: "..."')
        if not text and name in must_be_there:
            raise InputError(f"{name} is empty", "give it at least one character, or leave it out")
    if not isinstance(examples, Sequence):
        raise InputError(f"examples = {brief(examples)} cannot be used", "give a list of pairs (input, output)")
    parts = [instruction] if instruction else []
    for number, example in enumerate(examples):
        pair = isinstance(example, list | tuple) and len(example) == 2
        if not pair or not all(isinstance(text, str) for text in example):
            raise InputError(
                f"example {number} is {brief(example)}, not a pair of texts", "give each example as (input, output)"
            )
        parts.append(f"{input_label} {example[0]}\n{output_label} {example[1]}")
    parts.append(f"{input_label} {query}\n{output_label}")
    for part in parts:
        if separator in part:
            raise InputError(
                f"{part[:60]!r} holds the separator {separator!r}: what comes after it would look like another example",
                "take it out of the text, or choose a separator that occurs in none",
            )
    return separator.join(parts)
