"""A checkpoint: one folder with everything that a model needs to run.

    config.json               format version, model configuration, tokenizer, training provenance
    model.safetensors         the weights under the authors' names (above 4 GB in shards, with an index)
    tokenizer.tiktoken        the tokenizer's ranks
    chat_template.jinja       the chat template, if the model was tuned on conversations

Only data is read: no pickle, and the chat template runs in a sandbox. An exported checkpoint also has files for Hugging
Face's tools (`model.huggingface`), of which tokenizer.json is read where there are no ranks.
"""
