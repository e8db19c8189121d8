"""AutoProcessor of InternVL: messages and media in, model inputs out.

    messages --template--> parts --media in their places--> pieces --> input_ids, attention_mask
    images, videos -----------> tiles ------------------------------> pixel_values, num_tiles

The ids are those that `chat()` makes of the same dialogue; the pixels are those of the image and
video processors. Every mismatch between text and media is an error. The video processor is built
here rather than declared, because transformers cannot load one without torchvision.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from transformers import AutoTokenizer
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.utils import cached_file

# The Hub loader copies only what an entry file imports itself: name every sibling needed, also
# indirectly.
from .batching import encode_batch, expand, fill_places, read_images, read_videos
from .chat_messages import (
    Part,
    is_batch,
    normalize_messages,
    prompt_parts,
    render_parts,
    render_prompt,
)
from .encoding import (
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
    Piece,
    control_tokens,
    merge_text,
)
from .fetching import is_url  # noqa: F401
from .frame_sampling import SAMPLINGS  # noqa: F401
from .image_processing_internvl_chat import (
    InternVLChatImageProcessor,
    join_tiles,
    to_output,
)
from .image_sources import SourcePolicy  # noqa: F401
from .tiling import Grid  # noqa: F401
from .tokenizer_files import make_portable
from .video_decoding import Clip  # noqa: F401
from .video_processing_internvl_chat import InternVLChatVideoProcessor

VIDEO_CONFIG = "video_preprocessor_config.json"
FRAME_PREFIX = "Frame-{index}: "
_TEXT_OPTIONS = frozenset(
    {
        "add_special_tokens",
        "max_length",
        "pad_to_multiple_of",
        "padding",
        "padding_side",
        "return_attention_mask",
        "return_prompt",
        "return_tensors",
        "truncation",
    }
)
# What transformers' own callers pass to every processor and what says nothing here.
_IGNORED = frozenset(
    {
        "audio",
        "audio_kwargs",
        "data_format",
        "device",
        "do_sample_frames",
        "input_data_format",
        "load_audio_from_video",
        "return_mm_token_type_ids",
        "return_text_replacement_offsets",
        "return_token_type_ids",
        "sampling_rate",
        "sanitize_control_tokens",
        "verbose",
        "video_load_backend",
        "video_metadata",
    }
)
_NESTED = ("common_kwargs", "images_kwargs", "videos_kwargs", "text_kwargs")


class InternVLChatProcessor(ProcessorMixin):
    """Turns messages, or prompts with `<image>` and `<video>` in them, into model inputs.

    Args:
        image_processor: an InternVLChatImageProcessor.
        tokenizer: the checkpoint's tokenizer.
        image_seq_length: visual tokens Q per tile; equals the model's `num_image_token`.
        template: name of the prompt template that `chat_template` was generated from.
        frame_prefix: what stands before each frame of a video; `{index}` counts from 1.
        image_labels: write `Image-k: ` before each image item of a conversation with several.
        chat_template: Jinja source; from_pretrained reads chat_template.jinja.

    Attributes:
        video_processor: an InternVLChatVideoProcessor with the tile size and the normalisation of
            the images; from_pretrained reads video_preprocessor_config.json when there is one.
        return_num_tiles: False leaves `num_tiles` out of what is returned, for trainers that hand
            on every output and know only those of transformers' own models (GRPO of TRL).

    Raises:
        ValueError: an image processor of another kind, or a setting that cannot be followed.
    """

    attributes = ["image_processor", "tokenizer"]  # noqa: RUF012  (transformers' contract)
    tokenizer_class = "AutoTokenizer"
    if int(transformers.__version__.split(".")[0]) < 5:
        # 4.x demands the attribute; 5.x warns about it.
        image_processor_class = "AutoImageProcessor"
    # Saving copies the code, whichever way this class was loaded.
    _auto_class = "AutoProcessor"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 256,
        template: str = "internvl2_5",
        frame_prefix: str = FRAME_PREFIX,
        image_labels: bool = True,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        if not hasattr(image_processor, "tile_size"):
            raise ValueError(
                f"image_processor is a {type(image_processor).__name__}; expected "
                "InternVLChatImageProcessor, which cuts images into tiles."
            )
        if image_seq_length < 1:
            raise ValueError(f"image_seq_length={image_seq_length}; expected at least 1.")
        if "{index}" not in frame_prefix:
            raise ValueError(f"frame_prefix={frame_prefix!r} has no {{index}} in it.")
        self.image_seq_length = image_seq_length
        self.template = template
        self.frame_prefix = frame_prefix
        self.image_labels = image_labels
        self.return_num_tiles = True
        self.image_token = IMG_CONTEXT_TOKEN
        self.start_image_token, self.end_image_token = IMG_START_TOKEN, IMG_END_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
        self.video_processor = InternVLChatVideoProcessor(
            size=image_processor.size,
            image_mean=image_processor.image_mean,
            image_std=image_processor.image_std,
            resample=image_processor.resample,
            max_pixels=image_processor.max_pixels,
        )

    @property
    def model_input_names(self) -> list[str]:
        """Keys of what `__call__` returns."""
        return ["input_ids", "attention_mask", "pixel_values", "num_tiles"]

    def __call__(
        self, text: Any = None, images: Any = None, videos: Any = None, **options: Any
    ) -> BatchFeature:
        """Encode prompts and their media.

        Args:
            text: a prompt or a list of prompts as `apply_chat_template(..., tokenize=False)`
                renders them; their control tokens count as such. For text by strangers use
                `apply_chat_template(..., tokenize=True)`.
            images: one image, a list, or a list of lists (one per prompt), in the order of the
                `<image>` placeholders. Images of a flat list are dealt out to the prompts by their
                placeholders. What an image may be: see the image processor.
            videos: likewise for `<video>`, which becomes one line `Frame-i: <image>` per frame.
            **options: return_tensors (None, "np", "pt"); of the image processor, e.g. min_tiles,
                max_tiles (a number, or one per image), total_tiles (shared by the images of a
                prompt), use_thumbnail, upscale; of the video processor, e.g. num_frames, sampling,
                bound, fps, generator, timeout; for both allow_urls, max_pixels, do_normalize; of
                the text, padding (True by default), padding_side ("left"), max_length,
                pad_to_multiple_of, add_special_tokens; return_prompt=True adds the expanded prompts
                as `prompt`. They may also come grouped, as images_kwargs={...}, videos_kwargs,
                text_kwargs, common_kwargs.

        Returns:
            `input_ids` and `attention_mask` (B, T), padded on the left; with media also
            `pixel_values` (N, 3, S, S) in the order of the placeholders, and `num_tiles`, a list
            with the tiles of each image and frame.

        Raises:
            FileNotFoundError: a path that does not exist.
            TypeError: an unknown option.
            ValueError: placeholders and media that differ in number, media that cannot be read, a
                prompt longer than `max_length` with truncation asked for.
        """
        if text is None:
            raise ValueError(
                "the processor got no text; use processor.image_processor for images alone."
            )
        prompts = [text] if isinstance(text, str) else list(text)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError("text is not a string or a non-empty list of strings.")
        tokens = control_tokens(self.tokenizer)
        samples = [list(prompt_parts(prompt, tokens)) for prompt in prompts]
        for number, sample in enumerate(samples, start=1):
            if Piece(IMG_CONTEXT_TOKEN, True) in sample:
                raise ValueError(
                    f"prompt {number} spells {IMG_CONTEXT_TOKEN}; write <image> or <video>, the "
                    "processor puts the visual tokens in."
                )
        fill_places(samples, "image", images)
        fill_places(samples, "video", videos)
        return self._assemble(samples, self._split_options(options))

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Any = None,
        documents: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: Any = None,
        return_dict: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        images: Any = None,
        videos: Any = None,
        image_labels: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write messages in the frame of the chat template and, with tokenize=True, encode them.

        A message is {"role": "system" | "user" | "assistant", "content"}. In string content
        `<image>` and `<video>` of a user are placeholders, filled from `images` and `videos`. In
        list content the items {"type": "text", "text"}, {"type": "image", "image" | "path" | "url"
        | "base64"}, {"type": "image_url", "image_url": {"url"}} and {"type": "video", "video" |
        "path" | "url"} stand in their order, and a typed `<image>` is text. An image item may carry
        min_tiles and max_tiles, a video item num_frames, sampling, fps and bound. With
        tokenize=True nothing that a message says can become a control token.

        Args:
            conversation: a list of messages, or a list of such lists.
            chat_template: Jinja source or name, instead of the processor's.
            tools: for templates that use them; InternVL's do not.
            documents: likewise.
            add_generation_prompt: open the assistant's turn.
            continue_final_message: leave the last message open, for the model to go on with it.
            return_assistant_tokens_mask: not supported.
            tokenize: encode; otherwise return the prompt string, placeholders unexpanded.
            return_tensors: None, "np" or "pt".
            return_dict: return all model inputs rather than `input_ids` alone.
            processor_kwargs: options of `__call__`, where transformers 5 wants them.
            images: images for the places that name none, flat or per conversation.
            videos: videos for the places that name none.
            image_labels: overrides the setting of the processor.
            **kwargs: options of `__call__`, or variables of the template.

        Returns:
            The prompt (a list of prompts for a list of conversations), `input_ids`, or a
            BatchFeature as of `__call__`.

        Raises:
            ValueError: malformed messages, or as in `__call__`.
            TypeError: an unknown option.
        """
        if return_assistant_tokens_mask:
            raise ValueError("return_assistant_tokens_mask is not supported by this processor.")
        template = self._template_source(chat_template)
        for name, value in (("tools", tools), ("documents", documents)):
            if value is not None and name not in template:
                raise ValueError(f"{name} were given, but the chat template does not use them.")
        options, variables = self._sort_kwargs({**kwargs, **(processor_kwargs or {})}, template)
        if add_generation_prompt and continue_final_message:
            raise ValueError("add_generation_prompt and continue_final_message exclude each other.")
        variables |= {
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "image_labels": self.image_labels if image_labels is None else image_labels,
        }
        batched = is_batch(conversation)
        dialogues = [
            normalize_messages(each) for each in (conversation if batched else [conversation])
        ]
        if not tokenize:
            prompts = [render_prompt(messages, template, variables) for messages in dialogues]
            return prompts if batched else prompts[0]
        images = options.pop("images", images)
        videos = options.pop("videos", videos)
        tokens = control_tokens(self.tokenizer)
        samples = [render_parts(messages, template, variables, tokens) for messages in dialogues]
        fill_places(samples, "image", images)
        fill_places(samples, "video", videos)
        if return_tensors is not None:
            options["return_tensors"] = return_tensors
        encoded = self._assemble(samples, self._split_options(options))
        return encoded if return_dict else encoded["input_ids"]

    def get_number_of_image_patches(
        self, height: int, width: int, images_kwargs: dict[str, Any] | None = None
    ) -> int:
        """Tiles of an image of that size, thumbnail included (transformers calls them patches)."""
        return self.image_processor.get_number_of_image_patches(height, width, images_kwargs)

    def _get_num_multimodal_tokens(
        self, image_sizes: Any = None, video_sizes: Any = None, **kwargs: Any
    ) -> MultiModalData:
        """Count tokens, for vLLM: sizes are (height, width) and (frames, height, width).

        An image counts its visual tokens and its two tags, a video those of its frames.
        """
        counts: dict[str, list[int]] = {}
        if image_sizes is not None:
            patches = [self.get_number_of_image_patches(*size, kwargs) for size in image_sizes]
            counts["num_image_patches"] = patches
            counts["num_image_tokens"] = [2 + n * self.image_seq_length for n in patches]
        if video_sizes is not None:
            frames = [int(size[0]) for size in video_sizes]
            counts["num_video_tokens"] = [n * (2 + self.image_seq_length) for n in frames]
        return MultiModalData(**counts)

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The content of processor_config.json, the same on every version of transformers.

        The image and the video processor have files of their own, which other tools read too.
        """
        content: dict[str, Any] = {
            "frame_prefix": self.frame_prefix,
            "image_labels": self.image_labels,
            "image_seq_length": self.image_seq_length,
            "processor_class": type(self).__name__,
            "template": self.template,
        }
        auto_map = getattr(self, "auto_map", None) or {}
        if "AutoProcessor" in auto_map:
            content["auto_map"] = {"AutoProcessor": auto_map["AutoProcessor"]}
        return content

    def save_pretrained(
        self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Save settings, tokenizer, chat template and the code, so that the folder loads by itself.

        Args:
            save_directory: the folder.
            push_to_hub: upload afterwards; `repo_id`, `token` and so on as in transformers.
            **kwargs: for the upload.

        Returns:
            The JSON files written.
        """
        files = list(super().save_pretrained(save_directory) or [])
        files += list(self.image_processor.save_pretrained(save_directory) or [])
        files += list(self.video_processor.save_pretrained(save_directory) or [])
        make_portable(Path(save_directory))
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load from a folder or the Hub; further keywords are settings of the parts."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = loaded[0] if isinstance(loaded, tuple) else loaded
        where = {key: kwargs[key] for key in _HUB_OPTIONS if kwargs.get(key) is not None}
        file = cached_file(
            pretrained_model_name_or_path,
            VIDEO_CONFIG,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **where,
        )
        settings = processor.video_processor.to_dict()
        if file is not None:
            settings = json.loads(Path(file).read_text(encoding="utf-8"))
        own = {key: kwargs[key] for key in InternVLChatVideoProcessor._FIELDS if key in kwargs}
        processor.video_processor = InternVLChatVideoProcessor(**{**settings, **own})
        if processor.video_processor.tile_size != processor.image_processor.tile_size:
            raise ValueError(
                f"{VIDEO_CONFIG} has tiles of {processor.video_processor.tile_size} pixels and "
                f"preprocessor_config.json of {processor.image_processor.tile_size}; make them "
                "equal."
            )
        return loaded

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Load the parts: the image processor always as the class beside this file.

        So the code of the file's own auto_map is not run, and published CLIP-style files load too.
        """
        image_processor = InternVLChatImageProcessor.from_pretrained(
            pretrained_model_name_or_path, **kwargs
        )
        own = (
            set(InternVLChatImageProcessor._FIELDS)
            | set(InternVLChatVideoProcessor._FIELDS)
            | {"image_seq_length", "template", "frame_prefix", "image_labels", "chat_template"}
        )
        rest = {key: value for key, value in kwargs.items() if key not in own}
        return [
            image_processor,
            AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **rest),
        ]

    def _template_source(self, chat_template: str | None) -> str:
        """The template asked for by source or name, or the processor's own."""
        own = self.chat_template
        if isinstance(own, dict):
            source = own.get(chat_template or "default", chat_template)
        else:
            source = chat_template if chat_template is not None else own
        if source is None:
            raise ValueError(
                "the processor has no chat template; put the chat_template.jinja of template "
                f"{self.template!r} beside the checkpoint, or pass chat_template."
            )
        return source

    def _sort_kwargs(
        self, kwargs: dict[str, Any], template: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tell options of `__call__` from variables of the template."""
        known = self._known_options() | _IGNORED | set(_NESTED) | {"images", "videos"}
        options = {key: value for key, value in kwargs.items() if key in known}
        variables = {key: value for key, value in kwargs.items() if key not in known}
        unknown = sorted(key for key in variables if key not in template)
        if unknown:
            raise TypeError(
                f"unknown options {unknown}: neither options of the processor "
                f"({', '.join(sorted(self._known_options()))}) nor variables of the chat template."
            )
        return options, {**self.tokenizer.special_tokens_map, **variables}

    @staticmethod
    def _known_options() -> set[str]:
        image = InternVLChatImageProcessor._options()
        return set(_TEXT_OPTIONS | image | InternVLChatVideoProcessor._options())

    def _split_options(self, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Sort the options of a call by who takes them.

        Raises:
            TypeError: an option that nobody takes.
        """
        flat = {key: value for key, value in options.items() if key not in _NESTED}
        flat |= options.get("common_kwargs") or {}
        flat = {key: value for key, value in flat.items() if key not in _IGNORED}
        unknown = sorted(set(flat) - self._known_options())
        if unknown:
            raise TypeError(
                f"unknown options {unknown}; known are {', '.join(sorted(self._known_options()))}."
            )
        image, video = InternVLChatImageProcessor._options(), InternVLChatVideoProcessor._options()
        return {
            "image": {k: v for k, v in flat.items() if k in image}
            | (options.get("images_kwargs") or {}),
            "video": {k: v for k, v in flat.items() if k in video}
            | (options.get("videos_kwargs") or {}),
            "text": {k: v for k, v in flat.items() if k in _TEXT_OPTIONS}
            | (options.get("text_kwargs") or {}),
        }

    def _assemble(
        self, samples: list[list[Part]], options: dict[str, dict[str, Any]]
    ) -> BatchFeature:
        """Read the media, expand their places, encode."""
        return_tensors = options["text"].get("return_tensors")
        to_output(np.empty(0), return_tensors)  # refuse an unknown framework before the work
        image_options = dict(options["image"])
        normalize = image_options.pop("do_normalize", None)
        video_options = {k: v for k, v in options["video"].items() if k != "do_normalize"}
        stacks = read_images(samples, self.image_processor, image_options)
        stacks |= read_videos(samples, self.video_processor, video_options)
        pieces = [
            merge_text(list(expand(sample, stacks, self.image_seq_length, self.frame_prefix)))
            for sample in samples
        ]
        content = encode_batch(pieces, self.tokenizer, options["text"])
        ordered = [s for sample in samples for part in sample for s in stacks.get(id(part), [])]
        if ordered:
            # (N, S, S, 3), in reading order over the batch
            tiles = join_tiles(ordered, self.image_processor.tile_size)
            values = self.image_processor.to_pixels(tiles, do_normalize=normalize, **image_options)
            content["pixel_values"] = to_output(values, return_tensors)
            if self.return_num_tiles:
                content["num_tiles"] = [len(stack) for stack in ordered]
        return BatchFeature(content)


_HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
