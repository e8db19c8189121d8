"""Tokenizer of the InternLM2 checkpoints (2B, 8B, 26B, 1.5): sentencepiece, without a fast twin.

Ids are those of the official tokenizer. Three things differ, on purpose: decoding is the inverse of
encoding (the official one puts a space before every special token and cuts the first character of
what it joined), both transformers lines decode alike, and text never becomes a token that was added
to the vocabulary, not even text that spells the placeholder whose id such a token took over
(`[UNUSED_TOKEN_145]` has the id of `<|im_end|>`). One character does not survive: sentencepiece
writes spaces as U+2581, which therefore comes back as a space.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer

VOCAB_FILES_NAMES = {"vocab_file": "tokenizer.model"}


class InternLM2Tokenizer(PreTrainedTokenizer):
    """Byte-fallback BPE of InternLM2 and InternLM2.5.

    Args:
        vocab_file: path of tokenizer.model.
        unk_token: unknown token.
        bos_token: token that starts a sequence.
        eos_token: token that ends one.
        pad_token: padding token.
        sp_model_kwargs: options of `sentencepiece.SentencePieceProcessor`.
        add_bos_token: put `bos_token` before every encoded text.
        add_eos_token: put `eos_token` after it.
        clean_up_tokenization_spaces: remove spaces before punctuation when decoding.

    Raises:
        ValueError: there is no tokenizer.model.
    """

    vocab_files_names = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    _auto_class = "AutoTokenizer"

    def __init__(
        self,
        vocab_file: str | None = None,
        unk_token: Any = "<unk>",
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        pad_token: Any = "</s>",
        sp_model_kwargs: dict[str, Any] | None = None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        clean_up_tokenization_spaces: bool = False,
        **kwargs: Any,
    ) -> None:
        if vocab_file is None or not os.path.isfile(vocab_file):
            raise ValueError(
                f"InternLM2Tokenizer needs the checkpoint's tokenizer.model, got {vocab_file!r}; "
                "download it with the other files of the checkpoint."
            )
        self.vocab_file = vocab_file
        self.sp_model_kwargs = sp_model_kwargs or {}
        # Before the base class, which asks for the vocabulary while it adds tokens.
        self.sp_model = sentencepiece.SentencePieceProcessor(**self.sp_model_kwargs)
        self.sp_model.Load(vocab_file)
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            sp_model_kwargs=self.sp_model_kwargs,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **kwargs,
        )
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token

    @property
    def vocab_size(self) -> int:
        """Number of pieces of the sentencepiece model; `len(tokenizer)` counts added tokens too."""
        return self.sp_model.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        """Ids by token; an added token takes the place of the piece whose id it has."""
        pieces = {self.convert_ids_to_tokens(index): index for index in range(self.vocab_size)}
        return pieces | self.added_tokens_encoder

    # ------------------------------------------------------------------ text -> ids
    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        pieces = self.sp_model.encode(text, out_type=str)
        if not any(self._is_reserved(piece) for piece in pieces):
            return pieces
        return [
            part
            for piece in pieces
            for part in (self._spell(piece) if self._is_reserved(piece) else [piece])
        ]

    def _is_reserved(self, piece: str) -> bool:
        """Whether a piece of plain text would become a special token, or one of another name."""
        index = self._added_tokens_encoder.get(piece)
        if index is None:
            index = self.sp_model.piece_to_id(piece)
        token = self._added_tokens_decoder.get(index)
        if token is None or index == self.sp_model.unk_id():
            return False
        return token.special or token.content != piece

    def _spell(self, piece: str) -> list[str]:
        """Write a piece in single characters, or in bytes where the vocabulary lacks one."""
        unknown = self.sp_model.unk_id()
        parts = []
        for character in piece:
            if self.sp_model.piece_to_id(character) != unknown:
                parts.append(character)
                continue
            in_bytes = [f"<0x{byte:02X}>" for byte in character.encode()]
            known = all(self.sp_model.piece_to_id(part) != unknown for part in in_bytes)
            parts += in_bytes if known else [character]
        return parts

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp_model.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < self.vocab_size:
            raise ValueError(
                f"id {index} is neither one of the {self.vocab_size} pieces of tokenizer.model nor "
                "an added token; ids and tokenizer belong to different checkpoints."
            )
        return self.sp_model.id_to_piece(index)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put `<s>` before and, if so set, `</s>` after one text, or two joined."""
        before = [self.bos_token_id] if self.add_bos_token else []
        after = [self.eos_token_id] if self.add_eos_token else []
        return [*before, *token_ids_0, *(token_ids_1 or []), *after]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 where `build_inputs_with_special_tokens` puts a token, 0 elsewhere."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(
                token_ids_0=token_ids_0, token_ids_1=token_ids_1, already_has_special_tokens=True
            )
        text = [0] * (len(token_ids_0) + len(token_ids_1 or []))
        return [*[1] * self.add_bos_token, *text, *[1] * self.add_eos_token]

    # ------------------------------------------------------------------ ids -> text
    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens: added ones as they are, runs of pieces as sentencepiece decodes them."""
        parts, run = [], []
        for token in tokens:
            if token in self._added_tokens_encoder:
                parts += [self._decode_pieces(run), token]
                run = []
            else:
                run.append(token)
        return "".join([*parts, self._decode_pieces(run)])

    def _decode_pieces(self, pieces: list[str]) -> str:
        return self.sp_model.decode(pieces) if pieces else ""

    def _decode(self, *args: Any, **kwargs: Any) -> str:
        # 4.57 would put spaces around added tokens; 5.x knows no such option.
        kwargs["spaces_between_special_tokens"] = False
        return super()._decode(*args, **kwargs)

    # ------------------------------------------------------------------ files
    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write tokenizer.model.

        Raises:
            ValueError: `save_directory` is not a folder.
        """
        if not os.path.isdir(save_directory):
            raise ValueError(f"{save_directory} is not a folder; create it before saving into it.")
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = os.path.join(save_directory, prefix + VOCAB_FILES_NAMES["vocab_file"])
        if os.path.isfile(self.vocab_file) and os.path.abspath(target) != os.path.abspath(
            self.vocab_file
        ):
            shutil.copyfile(self.vocab_file, target)
        elif not os.path.isfile(self.vocab_file):  # the file it was read from is gone
            with open(target, "wb") as file:
                file.write(self.sp_model.serialized_model_proto())
        return (target,)
