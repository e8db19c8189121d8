"""Checkpoints as files: made to load, checked, converted, planned for, adapted, published.

commands.py        the sub-commands of `internvl`, each a call into the module of its name
adopt, merge_lora  published weights -> a self-contained folder
export             a model in memory -> such a folder
convert, native/   to transformers' own InternVL layout, and back
verify, headers    is a folder whole?            code_hashes: is its code ours?
publish            a folder -> the Hub           publish_checks, card
plan               does it fit?                  memory, device_map, engines, build_scaling
adapters, special_tokens, quantization           LoRA, new tokens, fewer bits
settings, tensors, staging                       what the above share: JSON files, weights, folders
published, build_variants, build_tokenizer       what was published, as data, and variants/ from it
"""
