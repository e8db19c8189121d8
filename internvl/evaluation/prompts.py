"""From a sample to the question that the model is sent, and to the tile limits of its images.

    Sample + prompt rule of the benchmark -> text -> with `<image>` tags -> with the CoT prompt

The wordings are those of VLMEvalKit's InternVLChat (V2.0) and, for the sets that it has not, of the
official scripts; tests compare them with recorded calls to the byte. Where we depart from them, the
line says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from internvl import answers, grounding
from internvl.evaluation.records import Sample

IMAGE = "<image>"
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "\u8bf7\u76f4\u63a5\u56de\u7b54\u9009\u9879\u5b57\u6bcd\u3002"
DIRECT_CN = "\u8bf7\u76f4\u63a5\u56de\u7b54\u95ee\u9898\u3002"
DETAIL = "Answer this question in detail."
# MMMU-Pro, prompts.yaml of the official repository.
_PRO_LETTER = "Answer with the option letter from the given choices directly."
_PRO_LAST_LINE = (
    "The last line of your response should be of the following format: 'Answer: $LETTER' "
    "(without quotes) where LETTER is one of options."
)
_PRO_READ = "Write out the multiple-choice question in the image and then solve it."
_PRO_COT = "Answer the preceding multiple choice question."
_STEPS = "Think step by step before answering."
_MVBENCH = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail "
    "and movement of objects, and the action and pose of persons. Based on your observations, "
    "select the best option that accurately addresses the question.\n"
)
# MIRB, evaluate_mirb.py: what is asked for, per task; `_concat` and `_text` variants alike.
_MIRB = {
    "analogy": "Answer with a single word.",
    "attribute": "Answer with a single word.",
    "plot_code": "Answer with a single word.",
    "plot": "Answer with a single word.",
    "sightseeing": "Answer with a single word.",
    "image_needles": "Answer with a single word.",
    "visual_chain": "Answer with a single word.",
    "codeu": "Answer with the option symbol.",
    "food": "Answer with the option symbol.",
    "image_jigsaw": "Answer with the option symbol.",
    "arxiv": "Answer with the paper title.",
    "count": "Answer with a single number.",
    "3d_scene": (
        "The following images are different views of the same 3D scene. Answer with a single "
        "number."
    ),
}
_CHINESE = re.compile("[\u4e00-\u9fff]")

Rule = Callable[[Sample], str]


# ---------------------------------------------------------------------- rules
def _question(sample: Sample) -> str:
    return sample.question


def _after(suffix: str, separator: str = "\n") -> Rule:
    def rule(sample: Sample) -> str:
        return f"{sample.question}{separator}{suffix}"

    return rule


def with_options(sample: Sample, pattern: str = "{letter}. {text}") -> str:
    """Hint, question and a line per option."""
    hint = sample.fields.get("hint")
    lines = [str(hint)] if hint else []
    lines.append(sample.question)
    lines += [pattern.format(letter=k, text=text) for k, text in sample.choices.items()]
    return "\n".join(lines)


def _letter(sample: Sample) -> str:
    text = with_options(sample)
    chinese = _CHINESE.search(text)
    if sample.choices:
        return f"{text}\n{LETTER_CN if chinese else LETTER}"
    return f"{text}\n{DIRECT_CN if chinese else 'Answer the question directly.'}"


def _grounding(sample: Sample) -> str:
    if "<ref>" in sample.question:  # the file has the whole question
        return sample.question
    return grounding.grounding_prompt(sample.question)


def _mathverse(sample: Sample) -> str:
    # "please directly answer the question and ..." would forbid the reasoning.
    return sample.question.replace("please directly answer the question and", "please")


def _mmmu_pro(sample: Sample) -> str:
    if not sample.choices or not sample.question:  # setting "vision": all is in the picture
        return f"{_PRO_LETTER} {_PRO_LAST_LINE}"
    return f"{with_options(sample)}\n{_PRO_LETTER}"


def _mmmu_pro_cot(sample: Sample) -> str:
    if not sample.choices or not sample.question:
        return f"{_PRO_READ} {_PRO_LAST_LINE} {_STEPS}"
    return f"{with_options(sample)}\n{_PRO_COT} {_PRO_LAST_LINE} {_STEPS}"


def _mantis(sample: Sample) -> str:
    if sample.choices:
        options = [f"({letter}) {text}" for letter, text in sample.choices.items()]
        return "\n".join([sample.question.strip(), *options, LETTER])
    return f"{sample.question.strip()}\n{SHORT}"


def _mirb(sample: Sample) -> str:
    task = str(sample.fields.get("task", ""))
    known = re.sub("_(concat|text)$", "", task)
    if known not in _MIRB:
        raise ValueError(
            f"the column `task` says {task!r}; expected a task of MIRB: {sorted(_MIRB)}."
        )
    return f"{sample.question}\n{_MIRB[known]}"


def _mmiu(sample: Sample) -> str:
    context = str(sample.fields.get("context", "")).strip()
    if not context:
        context = "\n".join(f"{letter}: {text}" for letter, text in sample.choices.items())
    return f"{sample.question}\n{context}\n{LETTER}"


def _mvbench(sample: Sample) -> str:
    options = "\n".join(f"({letter}) {text}" for letter, text in sample.choices.items())
    asked = f"Question: {sample.question}\nOptions:\n{options}"
    return f"{_MVBENCH}\n{asked}\nOnly give the best option."


RULES: Mapping[str, Rule] = {
    "question": _question,
    "own": _question,
    "short": _after(SHORT),
    "short_inline": _after(SHORT, " "),
    "yes_no": _after(f"Please answer yes or no. {SHORT}", " "),
    "letter": _letter,
    "mmmu": _letter,
    "video_letter": _letter,
    "detail": _after(DETAIL),
    "detail_inline": _after(DETAIL, " "),
    "grounding": _grounding,
    "mathverse": _mathverse,
    "mmmu_pro": _mmmu_pro,
    "mantis": _mantis,
    "mirb": _mirb,
    "mmiu": _mmiu,
    "mvbench": _mvbench,
}


# ---------------------------------------------------------------------- whole prompts
def text_of(sample: Sample, rule: str, *, cot: bool = False) -> str:
    """The question with what the benchmark adds to it, `<image>` tags not yet placed.

    Args:
        sample: the sample.
        rule: one of `RULES`.
        cot: ask for reasoning: MMMU-Pro's own prompt, or that of Figure 9, in place of the
            instruction to answer directly.

    Raises:
        ValueError: an unknown rule, or a sample that lacks what the rule needs.
    """
    if rule not in RULES:
        raise ValueError(f"no prompt rule {rule!r}; known are {sorted(RULES)}.")
    if not sample.question.strip() and rule != "mmmu_pro":  # there a picture may hold all of it
        raise ValueError(
            f"sample {sample.id} has no question, only images; columns beside them are "
            f"{sorted(sample.fields)}. Name the column of the question `question`."
        )
    if cot and rule == "mmmu_pro":
        return _mmmu_pro_cot(sample)
    text = RULES[rule](sample)
    return answers.with_cot(text, multiple_choice=bool(sample.choices)) if cot else text


def with_tags(text: str, images: int, *, frames: int = 0, label: str = "<Image-{}>") -> str:
    """Put one `<image>` per picture before a text, as VLMEvalKit does.

    Args:
        text: the question. As many `<image>` in it as there are images mark places (MuirBench,
            MMMU-Pro): they become `label`.
        images: how many; one has no label, several are `Image-1: <image>` ...
        frames: of a video, one line `Frame-1: <image>` each.
        label: what a place in the text is called.

    Raises:
        ValueError: `<image>` in the text that no picture belongs to.
    """
    places = text.count(IMAGE)
    if places and places == images:
        together = " ".join([IMAGE] * images)
        text = text.replace(together, "")
        for index in range(images):
            text = text.replace(IMAGE, label.format(index + 1), 1)
    elif places:
        raise ValueError(
            f"the question has {places} {IMAGE} but {images} images; the file should mark each "
            "image once, or none."
        )
    if frames:
        return "".join(f"Frame-{i + 1}: {IMAGE}\n" for i in range(frames)) + text
    if images == 1:
        return f"{IMAGE}\n{text}"
    return "".join(f"Image-{i + 1}: {IMAGE}\n" for i in range(images)) + text


def build(sample: Sample, rule: str, *, frames: int = 0, cot: bool = False) -> str:
    """The question as the model is sent it.

    Args:
        sample: the sample.
        rule: one of `RULES`.
        frames: of its video.
        cot: ask for reasoning.

    Raises:
        ValueError: as in `text_of` and `with_tags`; the sample is named.
    """
    label = "Image-{}" if rule == "mantis" else "<Image-{}>"
    try:
        text = text_of(sample, rule, cot=cot)
        return with_tags(text, len(sample.images), frames=frames, label=label)
    except ValueError as error:
        raise ValueError(f"sample {sample.id}: {error}") from error


def tile_limit(max_tiles: int, total_tiles: int, images: int) -> int:
    """Most tiles of each image when several share a budget: max(1, min(max, total // images))."""
    return max(1, min(max_tiles, total_tiles // max(1, images)))
