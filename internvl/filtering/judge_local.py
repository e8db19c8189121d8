"""An LLM in this process: a folder or Hub id of a text model, or a GGUF file, by transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from internvl.filtering.judge_client import Prompt, Reply, Sampling


class LocalModel:
    """Answers prompts in batches of similar length.

    Args:
        model: folder, Hub id, or a file that ends in .gguf.
        sampling: how answers are drawn; temperature 0 is greedy.
        batch: prompts at a time.
        dtype: of the weights; "auto" for that of the checkpoint.
        device_map: "auto" for all accelerators, the CPU if there is none.

    Raises:
        ImportError: a GGUF file, and gguf is not installed.
        ValueError: the tokenizer has no chat template.
    """

    def __init__(
        self, model: str, sampling: Sampling, *, batch: int = 8, dtype: str = "auto",
        device_map: str = "auto",
    ) -> None:  # fmt: skip
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = Path(model)
        where: dict[str, Any] = {"pretrained_model_name_or_path": model}
        if path.suffix == ".gguf":
            where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        self.tokenizer = AutoTokenizer.from_pretrained(**where, padding_side="left")
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"the tokenizer of {model} has no chat template; the judge has to be a model that "
                "was trained on instructions."
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=dtype, device_map=device_map
        ).eval()
        self.name, self.sampling, self.batch = f"local {model} {dtype}", sampling, batch

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        """(place of the prompt, answer), the longest prompts first."""
        encoded = [self._encode(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda place: -len(encoded[place]))
        longest = getattr(self.model.config, "max_position_embeddings", None)
        room = longest - self.sampling.max_tokens if longest else None
        fitting = [place for place in order if room is None or len(encoded[place]) <= room]
        for place in order[: len(order) - len(fitting)]:
            reason = f"{len(encoded[place])} tokens do not fit into {longest} beside an answer"
            yield place, Reply("", refused=f"{reason}; lower judge.max_characters.")
        for start in range(0, len(fitting), self.batch):
            places = fitting[start : start + self.batch]
            yield from zip(places, self._generate([encoded[p] for p in places]), strict=True)

    def _encode(self, prompt: Prompt) -> list[int]:
        messages = [dict(message) for message in prompt.messages]
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _generate(self, prompts: list[list[int]]) -> Iterator[Reply]:
        import torch

        inputs = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        settings: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
        if self.sampling.temperature > 0:
            settings = {"do_sample": True, "temperature": self.sampling.temperature}
        with torch.inference_mode():
            made = self.model.generate(
                **inputs.to(self.model.device), **settings, top_k=None,
                max_new_tokens=self.sampling.max_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
            )  # fmt: skip
        for prompt, row in zip(prompts, made[:, inputs["input_ids"].shape[1] :], strict=True):
            new = row[row != self.tokenizer.pad_token_id]
            text = str(self.tokenizer.decode(new, skip_special_tokens=True))
            yield Reply(text, len(prompt) + len(new))
