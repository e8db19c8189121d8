"""Tags of images and videos against what the row names: the checks of `internvl.data.schema`, as a
rule that lets the rest of the corpus pass on.
"""

from __future__ import annotations

from internvl.filtering.verdict import Record, Rule, Verdict


def tag_count(*, max_difference: int = 0) -> Rule:
    """`<image>` or `<video>` more or less often than the row has images or videos.

    Only what users say counts; in answers the tags are text. A lone image or video of the official
    format needs none: it comes first.

    Args:
        max_difference: tags too many or too few that are let pass.
    """

    def rule(record: Record) -> Verdict | None:
        asked = [turn.text for turn in record.turns if turn.role == "user"]
        lone_needs_tag = record.row.get("conversations") is None and "messages" in record.row
        for tag, media in (("<image>", record.images), ("<video>", record.videos)):
            tags = sum(text.count(tag) for text in asked)
            if tags == 0 and media == 1 and asked and not lone_needs_tag:
                continue
            if abs(tags - media) > max_difference:
                note = f"The user turns have {tags} {tag} tags, the row has {media}."
                return Verdict("tag_count", abs(tags - media), max_difference, None, note)
        return None

    return rule
