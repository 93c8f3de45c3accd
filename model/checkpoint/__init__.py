"""A checkpoint: one folder with everything that a model needs to run.

    config.json               format version, model configuration, tokenizer, training provenance
    model.safetensors         the weights under the authors' names (above 4 GB in shards, with an index)
    tokenizer.tiktoken        the tokenizer's ranks
    chat_template.jinja       the chat template, if the model was tuned on conversations

It holds data only: no pickle is read, and the chat template runs in a sandbox.
"""
