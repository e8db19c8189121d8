"""What VLMEvalKit's run.py is to do, as the file that its `--config` reads.

    benchmarks, mode, frame counts -> model with its class and settings, data sets with theirs

Classes of data sets were read off VLMEvalKit; those that begin with InternVL are ours, see
vlmevalkit_plugin.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl.evaluation.engines.selection import Choice, choose

ENGINE = "vlmevalkit"
MODEL_CLASS = "InternVL25Chat"
# Of the data sets whose own prompt is used: the beginnings of their names.
OWN_PROMPTS = ("MMMU_Pro",)

_BY_CLASS = {
    "ImageMCQDataset": """AI2D_TEST AI2D_TEST_NO_MASK SEEDBench2_Plus BLINK MMT-Bench_VAL
        MMT-Bench_VAL_MI RealWorldQA R-Bench-Dis MMBench_TEST_EN MMBench_TEST_CN MMBench_DEV_EN
        MMBench_DEV_CN MMBench_TEST_EN_V11 MMBench_DEV_EN_V11 MMStar MMMB_en MMMB_cn MMMB_pt MMMB_ar
        MMMB_tr MMMB_ru MMBench_dev_en MMBench_dev_cn MMBench_dev_pt MMBench_dev_ar MMBench_dev_tr
        MMBench_dev_ru""",
    "ImageVQADataset": "ChartQA_TEST TextVQA_VAL DocVQA_TEST DocVQA_VAL InfoVQA_TEST InfoVQA_VAL",
    "ImageYORNDataset": "MME HallusionBench POPE",
    "ConcatDataset": "MMMB MTL_MMBench_DEV",
    "MMMUDataset": "MMMU_DEV_VAL MMMU_TEST",
    "InternVLMMMUPro": "MMMU_Pro_10c MMMU_Pro_10c_COT MMMU_Pro_V MMMU_Pro_V_COT",
    "InternVLRefCOCO": "RefCOCO",
    "MathVista": "MathVista_MINI",
    "MathVision": "MathVision MathVision_MINI",
    "MathVerse": """MathVerse_MINI MathVerse_MINI_Vision_Only MathVerse_MINI_Vision_Dominant
        MathVerse_MINI_Vision_Intensive MathVerse_MINI_Text_Lite MathVerse_MINI_Text_Dominant""",
    "OlympiadBench": "OlympiadBench OlympiadBench_EN OlympiadBench_CN",
    "OCRBench": "OCRBench",
    "CharXiv": "CharXiv_reasoning_val CharXiv_descriptive_val",
    "VCRDataset": "VCR_EN_EASY_ALL VCR_EN_EASY_500 VCR_EN_EASY_100",
    "MUIRDataset": "MUIRBench",
    "MMERealWorld": "MME-RealWorld",
    "WildVision": "WildVision",
    "MMVet": "MMVet",
    "CRPE": "CRPE_RELATION CRPE_EXIST",
    "MTVQADataset": "MTVQA_TEST",
}
CLASSES = {key: name for name, keys in _BY_CLASS.items() for key in keys.split()}


@dataclass(frozen=True)
class Video:
    """How --config names a video data set.

    Attributes:
        cls: its class.
        dataset: its name there.
        options: what is always passed.
        subtitles: whether it takes `use_subtitle`.
    """

    cls: str
    dataset: str
    options: Mapping[str, Any] = field(default_factory=dict)
    subtitles: bool = False


VIDEOS = {
    "Video-MME": Video("VideoMME", "Video-MME", subtitles=True),
    "MVBench": Video("MVBench", "MVBench"),
    "MMBench-Video": Video("MMBenchVideo", "MMBench-Video", {"pack": False}),
    "MLVU_MCQ": Video("MLVU_MCQ", "MLVU_MCQ"),
    "LongVideoBench": Video("LongVideoBench", "LongVideoBench", subtitles=True),
    "CGBench_MCQ_Grounding_32frame_subs": Video(
        "CGBench_MCQ_Grounding", "CG-Bench_MCQ_Grounding", subtitles=True
    ),
}
# Presets of VLMEvalKit, whose names say frames and subtitles.
_PRESETS = frozenset(
    f"{name}_{rest}"
    for name, rests in {
        "Video-MME": ("8frame", "64frame", "8frame_subs"),
        "MVBench": ("8frame", "64frame"),
        "MMBench_Video": ("16frame_nopack", "64frame_nopack"),
        "LongVideoBench": ("8frame", "64frame", "8frame_subs"),
    }.items()
    for rest in rests
)


# ---------------------------------------------------------------------- the plan
@dataclass(frozen=True)
class Plan:
    """What run.py is given.

    Attributes:
        name: of the model, in file names.
        config: content of the file of `--config`.
        environment: variables to set.
        entries: name of an entry of `config["data"]` -> the choices it serves.
    """

    name: str
    config: Mapping[str, Any]
    environment: Mapping[str, str]
    entries: Mapping[str, tuple[Choice, ...]]


def make_plan(
    names: Sequence[str],
    model_path: str | Path,
    *,
    name: str = "InternVL",
    mode: str = "direct",
    frames: Sequence[int] = (),
    own_prompts: Sequence[str] = OWN_PROMPTS,
    local: Mapping[str, str] | None = None,
    turned: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Write down what run.py is to do.

    Args:
        names: benchmarks, or data sets of VLMEvalKit.
        model_path: folder with remote code, or Hub id.
        name: of the model.
        mode: "direct" or "cot".
        frames: frame counts of videos; those of the benchmark when empty.
        own_prompts: data sets (beginnings of names) whose own prompt is used.
        local: data sets of one's own: name of the TSV in $LMUData -> class.
        turned: data sets that insert subtitles when they are told not to.
        settings: more settings of InternVLChat (`use_lmdeploy`, `best_of_n`, `max_new_tokens`).

    Raises:
        ValueError: see `selection.choose`; or a data set whose class is not known.
    """
    chosen = choose(names, ENGINE, mode) if names else []
    data: dict[str, dict[str, Any]] = {}
    entries: dict[str, list[Choice]] = {}
    for each in chosen:
        for entry, fields in _entries(each, frames, turned):
            data[entry] = fields
            entries.setdefault(entry, []).append(each)
    for dataset, cls in (local or {}).items():
        data[dataset] = {"class": cls, "dataset": dataset}
        entries[dataset] = []
    if not data:
        raise ValueError("name at least one benchmark, or a data set of your own.")
    model = {
        "class": MODEL_CLASS,
        "model_path": str(model_path),
        "version": "V2.0",
        "use_postprocess": mode == "cot",
        "own_prompts": list(own_prompts),
        "max_new_tokens": 4096,
        **(settings or {}),
    }
    return Plan(
        name,
        {"model": {name: model}, "data": data},
        {"USE_COT": "1" if mode == "cot" else "0"},
        {entry: tuple(each) for entry, each in entries.items()},
    )


def _entries(
    choice: Choice, frames: Sequence[int], turned: Sequence[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Entries of a data set: one, or for a video one per frame count, with and without subtitles
    where the report has both."""
    key = choice.key
    if key in _PRESETS:
        return [(key, {})]
    if key in CLASSES:
        return [(key, {"class": CLASSES[key], "dataset": key})]
    if key not in VIDEOS:
        raise ValueError(
            f"no class is known for VLMEvalKit's data set {key!r}; known are "
            f"{', '.join([*CLASSES, *VIDEOS])}."
        )
    video, found = VIDEOS[key], []
    for count in frames or choice.benchmark.frames:
        for subtitles in _subtitles(choice, video):
            fields = {"class": video.cls, "dataset": video.dataset, "nframe": count}
            fields |= video.options
            if video.subtitles:
                fields["use_subtitle"] = subtitles != (video.dataset in turned)
            suffix = "_subs" if subtitles else ""
            found.append((f"{video.dataset}_{count}frame{suffix}", fields))
    return found


def _subtitles(choice: Choice, video: Video) -> tuple[bool, ...]:
    if choice.key.endswith("_subs"):
        return (True,)
    with_and_without = any("w sub" in column for column in choice.columns)
    return (False, True) if video.subtitles and with_and_without else (False,)
