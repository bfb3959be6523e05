"""The embedded text pool: a small T5, six drawn text tasks and six experts.

`tasks.py` draws prompts, `vocabulary.py` makes the tokenizer, `build.py` trains the models.
"""
