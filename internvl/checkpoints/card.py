"""README.md of a folder that was written here: where its weights come from, how to use it.

The licence and the languages are those that the source's own card states; nothing is guessed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.checkpoints.tensors import write_text

logger = logging.getLogger(__name__)

_BODY = """
# {name}

{origin}

```python
from transformers import AutoModel, AutoProcessor, AutoTokenizer

path = "."  # this folder, or its Hub id
model = AutoModel.from_pretrained(path, dtype="auto", trust_remote_code=True).eval()
{use}
```

The folder is self-contained: it carries the code that the snippet runs, for transformers 4.57
and 5.x. That needs torch, transformers, pillow and numpy{needs}.
"""
_CHAT = """tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)

tiles = processor.image_processor("photo.jpg", return_tensors="pt")["pixel_values"]
print(model.chat(tokenizer, tiles, "<image>\\nWhat is in the picture?", {"max_new_tokens": 256}))"""
_ENCODER = """# pixel_values (N, 3, S, S), normalised: last_hidden_state is (N, 1 + patches, width)
print(model.config.image_size, model.config.hidden_size)"""


def source_card(folder: Path) -> dict[str, Any]:
    """What the YAML header of a folder's README.md states; {} without one."""
    import yaml
    from huggingface_hub import metadata_load

    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        return metadata_load(path) or {}
    except (ValueError, yaml.YAMLError) as error:
        logger.warning("the header of %s is not valid and is left out: %s", path, error)
        return {}


def write_card(
    folder: Path,
    config: dict[str, Any],
    *,
    name: str,
    origin: str,
    base_model: str | None = None,
    source: dict[str, Any] | None = None,
) -> None:
    """Write README.md.

    Args:
        folder: where to.
        config: content of config.json.
        name: title.
        origin: a sentence on where the weights come from.
        base_model: Hub id of the source.
        source: header of the source's card, see `source_card`.
    """
    from huggingface_hub import ModelCardData

    chat = config["model_type"] == hub.CHAT_TYPE
    stated = source or {}
    inherited = {
        key: stated[key]
        for key in ("license", "license_name", "license_link", "language", "datasets")
        if stated.get(key)
    }
    tags = ["internvl", *(["custom_code"] if chat else ["custom_code", "vision-encoder"])]
    header = ModelCardData(
        **inherited,
        base_model=base_model or stated.get("base_model"),
        library_name="transformers",
        pipeline_tag="image-text-to-text" if chat else "image-feature-extraction",
        tags=tags,
    )
    llm = config.get("llm_config", {}).get("model_type")
    body = _BODY.format(
        name=name,
        origin=origin,
        use=_CHAT if chat else _ENCODER,
        needs=", and sentencepiece for the tokenizer" if llm == "internlm2" else "",
    )
    if not chat:
        body = body.replace("AutoModel, AutoProcessor, AutoTokenizer", "AutoModel")
    write_text(folder / "README.md", f"---\n{header.to_yaml()}\n---\n{body}")
