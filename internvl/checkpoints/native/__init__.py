"""The layout of transformers' own InternVL: names, settings and tokenizer, for `convert`."""
