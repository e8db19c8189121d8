"""What the tests of conversion share: altered sources, and transformers' own processor."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer, InternVLProcessor
from transformers.processing_utils import ProcessorMixin

from tests import support

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1012,
    "eos_token_id": 1013,
    "hidden_size": 64,
    "intermediate_size": 160,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 1001,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e6,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": 1018,
}


def altered(source: Path, folder: Path, *, llm: Any = None, vision: Any = None, **top: Any) -> Path:
    """A copy of a checkpoint with other fields in its config.json."""
    shutil.copytree(source, folder)
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields["llm_config"] |= llm or {}
    fields["vision_config"] |= vision or {}
    (folder / "config.json").write_text(json.dumps(fields | top), encoding="utf-8")
    return folder


def llama_checkpoint(folder: Path) -> Path:
    """A random checkpoint whose decoder is a Llama, as those of the 40B and the 76B are."""
    source = support.checkpoint("qwen2")
    fields = json.loads((source / "config.json").read_text(encoding="utf-8"))
    fields |= {"llm_config": LLAMA, "template": "Hermes-2", "torch_dtype": "float32"}
    config = support.configuration.InternVLChatConfig.from_dict(fields)
    support.modeling.InternVLChatModel(config).save_pretrained(folder)
    for path in source.iterdir():
        if "token" in path.name or path.name in ("vocab.json", "merges.txt"):
            shutil.copy(path, folder)
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


class ImagesOnly(InternVLProcessor):
    """transformers' InternVLProcessor without its video processor, which needs torchvision.

    The attributes are those of its own `__init__`; everything it does is inherited.
    """

    attributes = ["image_processor", "tokenizer"]  # noqa: RUF012  (the contract of 4.57)

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 256,
        chat_template: str | None = None,
    ) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        for name in ("start_image_token", "end_image_token", "video_token"):
            setattr(self, name, getattr(tokenizer, name))
            setattr(self, f"{name}_id", getattr(tokenizer, f"{name}_id"))
        self.image_token = tokenizer.context_image_token
        self.image_token_id = tokenizer.context_image_token_id
        self.image_ids = [self.image_token_id, self.start_image_token_id, self.end_image_token_id]
        image, video = re.escape(self.image_token), re.escape(self.video_token)
        self.multimodal_pattern = re.compile(f"(?P<image>{image})|(?P<video>{video})")


def native_processor(folder: Path) -> ImagesOnly:
    """The native processor of a folder, from its files and with transformers' Auto classes."""
    settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    return ImagesOnly(
        AutoImageProcessor.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        image_seq_length=settings["image_seq_length"],
        chat_template=(folder / "chat_template.jinja").read_text(encoding="utf-8"),
    )
