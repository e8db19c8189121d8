"""Prompt templates of the InternVL checkpoints as data, and the way from turns to token ids.

    turns -> render() -> [Piece(text, control), ...] -> encode() -> ids
                                                    `-> prompt_text() -> the prompt string

A control piece (`<|im_start|>`, `<img>`, `<IMG_CONTEXT>`, ...) becomes an id by lookup; everything
else, whatever it spells, is encoded as plain text. So no user can write a control token, and for
text that spells none the ids equal those of tokenising the whole prompt string, which is what the
official code does.

`chat_template()` writes the same template as Jinja for the processor. The processor cannot import
this file (the Hub loader resolves no import between folders); its `encoding.py` is the twin of
`encode()`, and a test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

IMG_START_TOKEN = "<img>"
IMG_END_TOKEN = "</img>"
IMG_CONTEXT_TOKEN = "<IMG_CONTEXT>"
IMAGE_TOKENS = (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN)
IMAGE_PLACEHOLDER = "<image>"
# The tags of the grounding format stay special in anybody's text: they are how a region is asked
# for.
GROUNDING_TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")

_SYSTEM_2_0 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
    "英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


class Piece(NamedTuple):
    """A stretch of the prompt: `text` repeated `repeat` times, looked up if `control`, else
    encoded as text."""

    text: str
    control: bool
    repeat: int = 1


@dataclass(frozen=True)
class Visual:
    """The place of one image or video frame in a message."""

    num_tiles: int


# The content of a turn: None or "" for the open turn that the model is to fill, or text with
# visuals in between.
Content = str | None | Sequence["str | Visual"]


@dataclass
class Conversation:
    """A prompt template, and (in the manner of FastChat, for tools that use it so) the messages of
    a dialogue.

    Attributes:
        name: key in config.json (`template`).
        system_template: text around the system message; `{system_message}` is its place.
        system_message: default system message.
        roles: header of a user turn and header of an assistant turn.
        sep: what closes the system message and a turn; `sep.strip()` is the end-of-turn token.
        sep2: what closes a user turn where it differs from `sep` (InternVL 1.1 only).
        role_suffix: what stands between the header and a non-empty message.
        open_suffix: what follows the header of a turn left open.
        control: the special tokens that occur in the fields above.
        messages: [role, message] pairs appended so far.
    """

    name: str
    system_template: str = "{system_message}"
    system_message: str = ""
    roles: tuple[str, str] = ("", "")
    sep: str = ""
    sep2: str | None = None
    role_suffix: str = ""
    open_suffix: str = ""
    control: tuple[str, ...] = ()
    messages: list[list[Any]] = field(default_factory=list)

    @property
    def end_of_turn(self) -> str:
        """The token that ends an answer."""
        return self.sep.strip()

    def system_prompt(self) -> str:
        """The system message in its frame, with the separator that follows it."""
        text = self.system_template.replace("{system_message}", self.system_message)
        return text + (self.sep if self.sep2 is None else self.sep2)

    def separator(self, role_index: int) -> str:
        """What closes a non-empty turn of the user (0) or the assistant (1)."""
        return self.sep2 if self.sep2 is not None and role_index == 0 else self.sep

    def append_message(self, role: str, message: Any) -> None:
        """Add a message; `role` is one of `roles`, None or "" opens the turn for the model."""
        self.messages.append([role, message])

    def get_prompt(self) -> str:
        """The prompt string of the messages appended so far, visuals unexpanded."""
        turns = [(role, message) for role, message in self.messages]
        return prompt_text(render(self, turns))

    def copy(self) -> Conversation:
        """A copy whose message list is its own."""
        return replace(self, messages=[list(pair) for pair in self.messages])


def _chatml(name: str, system_message: str, sep: str) -> Conversation:
    return Conversation(
        name=name,
        system_template="<|im_start|>system\n{system_message}",
        system_message=system_message,
        roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
        sep=sep,
        control=("<|im_start|>", "<|im_end|>"),
    )


# Only internvl2_5 puts a newline after the end-of-turn token.
TEMPLATES: dict[str, Conversation] = {
    template.name: template
    for template in (
        _chatml("internvl2_5", _SYSTEM_2_5, "<|im_end|>\n"),
        _chatml("internlm2-chat", _SYSTEM_2_0, "<|im_end|>"),
        _chatml("Hermes-2", _SYSTEM_2_0, "<|im_end|>"),
        Conversation(
            name="phi3-chat",
            system_template="<|system|>\n{system_message}",
            system_message=_SYSTEM_2_0,
            roles=("<|user|>\n", "<|assistant|>\n"),
            sep="<|end|>",
            control=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        ),
        Conversation(
            name="internvl_zh",
            system_template="{system_message}",
            roles=("<human>", "<bot>"),
            sep="</s>",
            sep2=" ",
            role_suffix=": ",
            open_suffix=":",
            control=("</s>",),
        ),
    )
}


def get_conv_template(name: str) -> Conversation:
    """Return a copy of the template called `name`.

    Raises:
        ValueError: there is no such template.
    """
    if name not in TEMPLATES:
        raise ValueError(
            f"template {name!r} is unknown, expected one of {sorted(TEMPLATES)}; set `template` "
            "in config.json to "
            "the one the checkpoint was trained with."
        )
    return TEMPLATES[name].copy()


def visual_pieces(
    num_tiles: int, num_image_token: int, image_tokens: tuple[str, str, str] = IMAGE_TOKENS
) -> list[Piece]:
    """One image of `num_tiles` tiles, `num_image_token` visual tokens each, between its two
    tags."""
    start, context, end = image_tokens
    return [Piece(start, True), Piece(context, True, num_tiles * num_image_token), Piece(end, True)]


def place_visuals(text: str | None, images: Iterator[int]) -> Content:
    """Put images in the places of the `<image>` tags of a question.

    Args:
        text: the question.
        images: tiles of each image; one is taken for every tag.

    Returns:
        The content of a turn, for `render`.

    Raises:
        ValueError: more tags than images.
    """
    if not text or IMAGE_PLACEHOLDER not in text:
        return text
    head, *tails = text.split(IMAGE_PLACEHOLDER)
    content: list[str | Visual] = [head]
    for tail in tails:
        num_tiles = next(images, None)
        if num_tiles is None:
            raise ValueError(
                f"the question has more {IMAGE_PLACEHOLDER} tags than there are images and frames; "
                "remove some."
            )
        content += [Visual(num_tiles), tail]
    return content


def _template_pieces(conversation: Conversation, text: str) -> Iterator[Piece]:
    """Split text of the template itself into its control tokens and the text between them."""
    pattern = "|".join(map(re.escape, conversation.control))
    for part in re.split(f"({pattern})", text) if pattern else [text]:
        if part:
            yield Piece(part, part in conversation.control)


def system_pieces(conversation: Conversation) -> list[Piece]:
    """The system message in its frame; what it spells is text, whoever set it."""
    before, after = replace(conversation, system_message="\0").system_prompt().split("\0")
    return [
        *_template_pieces(conversation, before),
        Piece(conversation.system_message, False),
        *_template_pieces(conversation, after),
    ]


def render(
    conversation: Conversation,
    turns: Sequence[tuple[str, Content]],
    num_image_token: int = 0,
    image_tokens: tuple[str, str, str] = IMAGE_TOKENS,
) -> list[Piece]:
    """Write turns in the frame of a template.

    Args:
        conversation: the template; its `system_message` opens the prompt, its `messages` are not
            looked at.
        turns: (role, content) pairs, role being one of `conversation.roles`. Content None or ""
            leaves the turn
            open: a bare header without separator, as the official code has it.
        num_image_token: visual tokens per tile.
        image_tokens: what opens an image, stands for a visual token, and closes the image.

    Returns:
        The pieces, adjacent text merged.

    Raises:
        ValueError: a role that is not one of the template's.
    """
    pieces = system_pieces(conversation)
    for role, content in turns:
        framed = frame_turn(conversation, role, content, num_image_token, image_tokens)
        pieces += [*framed.header, *framed.content, *framed.separator]
    return merge_text(pieces)


class FramedTurn(NamedTuple):
    """The pieces of one turn, text not merged: what opens it, what it says, what closes it."""

    header: list[Piece]
    content: list[Piece]
    separator: list[Piece]


def frame_turn(
    conversation: Conversation,
    role: str,
    content: Content,
    num_image_token: int = 0,
    image_tokens: tuple[str, str, str] = IMAGE_TOKENS,
) -> FramedTurn:
    """Write one turn in the frame of a template; the arguments are those of `render`.

    Raises:
        ValueError: a role that is not one of the template's.
    """
    if role not in conversation.roles:
        raise ValueError(
            f"role {role!r} is not of template {conversation.name!r}: {conversation.roles}."
        )
    if not content:
        opened = role + conversation.open_suffix
        return FramedTurn(list(_template_pieces(conversation, opened)), [], [])
    pieces: list[Piece] = []
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, str):
            pieces.append(Piece(part, False))
        else:
            pieces += visual_pieces(part.num_tiles, num_image_token, image_tokens)
    separator = conversation.separator(conversation.roles.index(role))
    return FramedTurn(
        list(_template_pieces(conversation, role + conversation.role_suffix)),
        pieces,
        list(_template_pieces(conversation, separator)),
    )


def merge_text(pieces: Sequence[Piece]) -> list[Piece]:
    """Join adjacent text pieces, so that the tokenizer sees the runs it would see in the whole
    string."""
    merged: list[Piece] = []
    for piece in pieces:
        if not piece.text or not piece.repeat:
            continue
        if merged and not piece.control and not merged[-1].control:
            merged[-1] = Piece(merged[-1].text + piece.text, False)
        else:
            merged.append(piece)
    return merged


def prompt_text(pieces: Sequence[Piece]) -> str:
    """The prompt as one string, every visual token written out."""
    return "".join(piece.text * piece.repeat for piece in pieces)


def encode(pieces: Sequence[Piece], tokenizer: Any, *, add_bos: bool = True) -> list[int]:
    """Encode pieces: control by lookup, text as text; the beginning-of-sequence token follows the
    tokenizer.

    Args:
        pieces: what `render()` returned.
        tokenizer: any transformers tokenizer, slow or fast.
        add_bos: False for pieces from the middle of a prompt.

    Returns:
        The ids of the prompt.

    Raises:
        ValueError: a control token that the tokenizer does not have.
    """
    known = tokenizer.get_added_vocab()
    runs = list(_split_grounding(pieces, known))
    ids = beginning_of_sequence(tokenizer) if add_bos else []
    strip_next = False
    for index, piece in enumerate(runs):
        if piece.control:
            token = control_id(piece.text, known, tokenizer)
            ids += [token] * piece.repeat
            strip_next = _strips(tokenizer, token, "rstrip")
            continue
        text = piece.text.lstrip() if strip_next else piece.text
        strip_next = False
        follower = runs[index + 1] if index + 1 < len(runs) else None
        if follower is not None and follower.control:
            token = control_id(follower.text, known, tokenizer)
            text = text.rstrip() if _strips(tokenizer, token, "lstrip") else text
        if text:
            ids += tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def _split_grounding(pieces: Sequence[Piece], known: dict[str, int]) -> Iterator[Piece]:
    """Cut the grounding tags out of the text; those that the tokenizer lacks stay part of it."""
    tags = [tag for tag in GROUNDING_TAGS if tag in known]
    pattern = "|".join(map(re.escape, tags))
    for piece in pieces:
        if piece.control or not pattern:
            yield piece
            continue
        for part in re.split(f"({pattern})", piece.text):
            if part:
                yield Piece(part, part in tags)


def control_id(token: str, known: dict[str, int], tokenizer: Any) -> int:
    """Look a control token up, in the added tokens first and then in the vocabulary.

    Raises:
        ValueError: the tokenizer does not have it.
    """
    if token in known:
        return known[token]
    index = tokenizer.convert_tokens_to_ids(token)
    if index is None or tokenizer.convert_ids_to_tokens(index) != token:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no token {token!r}, which the prompt "
            "needs; use the tokenizer "
            "of the checkpoint, or correct `template` in config.json."
        )
    return index


def beginning_of_sequence(tokenizer: Any) -> list[int]:
    """The id that the tokenizer puts before a sequence, if it puts one."""
    ids = tokenizer("")["input_ids"]
    return [int(ids[0])] if ids and ids[0] == tokenizer.bos_token_id else []


def _strips(tokenizer: Any, token: int, side: str) -> bool:
    """Whether an added token swallows the white space on that side of it (Phi-3's do)."""
    added = tokenizer.added_tokens_decoder.get(token)
    return bool(added is not None and getattr(added, side, False))


_CHAT_TEMPLATE = """\
{#- Template %(name)s of InternVL, generated from conversation.py: edit there. -#}
{%%- set count = namespace(images=0, seen=0) -%%}
{%%- for message in messages -%%}
    {%%- if message['content'] is not string and message['content'] is iterable -%%}
        {%%- for item in message['content'] -%%}
            {%%- if item['type'] in ('image', 'image_url') -%%}
                {%%- set count.images = count.images + 1 -%%}
            {%%- endif -%%}
        {%%- endfor -%%}
    {%%- endif -%%}
{%%- endfor -%%}
{%%- set labels = (image_labels is not defined or image_labels) and count.images > 1 -%%}
{%%- set turns = messages -%%}
{%%- set system = %(system_message)s -%%}
{%%- if messages and messages[0]['role'] == 'system' -%%}
    {%%- set turns = messages[1:] -%%}
    {%%- set content = messages[0]['content'] -%%}
    {%%- set system = content if content is string else content | map(attribute='text') | join -%%}
{%%- endif -%%}
{{- %(system_prefix)s + system + %(system_suffix)s -}}
{%%- for message in turns -%%}
    {%%- if message['role'] == 'user' -%%}
        {{- %(user)s -}}
    {%%- elif message['role'] == 'assistant' -%%}
        {{- %(assistant)s -}}
    {%%- else -%%}
        {{- raise_exception("unknown role '" + message['role'] + "'") -}}
    {%%- endif -%%}
    {%%- if not message['content'] -%%}
        {{- %(open_suffix)s -}}
    {%%- else -%%}
        {{- %(role_suffix)s -}}
        {%%- if message['content'] is string -%%}
            {{- message['content'] -}}
        {%%- else -%%}
            {%%- for item in message['content'] -%%}
                {%%- if item['type'] == 'text' -%%}
                    {{- item['text'] -}}
                {%%- elif item['type'] in ('image', 'image_url') -%%}
                    {%%- set count.seen = count.seen + 1 -%%}
                    {{- ('Image-' + count.seen | string + ': ' if labels else '') + '<image>\\n' -}}
                {%%- elif item['type'] == 'video' -%%}
                    {{- '<video>\\n' -}}
                {%%- else -%%}
                    {{- raise_exception("unknown content type '" + item['type'] + "'") -}}
                {%%- endif -%%}
            {%%- endfor -%%}
        {%%- endif -%%}
        {{- %(user_separator)s if message['role'] == 'user' else %(assistant_separator)s -}}
    {%%- endif -%%}
{%%- endfor -%%}
{%%- if add_generation_prompt -%%}
    {{- %(assistant)s + %(open_suffix)s -}}
{%%- endif -%%}
"""


def chat_template(conversation: Conversation) -> str:
    """Write a template as the Jinja source of chat_template.jinja.

    String content is taken as typed, `<image>` being the placeholder of an image. In list content
    an image item becomes `<image>` and a line break, with the label `Image-k: ` before it when the
    dialogue has several (unless `image_labels=False`), and a video item `<video>` and a line break.
    """

    def literal(text: str) -> str:
        escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        return f"'{escaped}'"

    prefix, suffix = replace(conversation, system_message="\0").system_prompt().split("\0")
    user, assistant = conversation.roles
    return _CHAT_TEMPLATE % {
        "name": conversation.name,
        "system_message": literal(conversation.system_message),
        "system_prefix": literal(prefix),
        "system_suffix": literal(suffix),
        "user": literal(user),
        "assistant": literal(assistant),
        "role_suffix": literal(conversation.role_suffix),
        "open_suffix": literal(conversation.open_suffix),
        "user_separator": literal(conversation.separator(0)),
        "assistant_separator": literal(conversation.separator(1)),
    }
