"""Samples that are in the corpus twice, to the letter or nearly.

    turns -> units -> digest ............................... equal: a copy
                   -> shingles -> MinHash -> LSH -> Jaccard . similar enough: nearly a copy

Samples are compared with those before them that were kept, so the first in the order of the corpus
stays, whatever the order of processing, and no chain of similar samples pulls unlike ones out.
Samples of other images or videos are never copies of each other: a thousand photos may well have
the question and the answer in common. Exercises that differ in their numbers are not copies either.

`find_duplicates` holds all signatures in memory, about 2 kB a sample. What does not fit one
machine goes through datatrove's blocks: `signature_step`, `bucket_step`, `cluster_step`, in three
jobs, and then `read_copies`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from internvl.filtering.rules.text import units
from internvl.filtering.verdict import Record, Verdict
from internvl.settings import unknown_names

EXACT, NEAR = "exact_duplicate", "near_duplicate"
SIMILARITY = 0.85
_MEDIA = ("image", "images", "video", "videos", "clip")
_TAGS = re.compile("<image>|<video>")
_SHINGLE = 5  # units, as in datatrove's MinHash
_CANDIDATES = 0.99
_LETTERS = str.maketrans("0123456789", "ghijklmnop")
_BASE = np.uint64(0x9E3779B97F4A7C15)


# ---------------------------------------------------------------------- one sample
def media_of(record: Record) -> str:
    """What tells the sample's images and videos from those of others; empty without any."""
    named: list[Any] = [record.row[name] for name in _MEDIA if record.row.get(name)]
    for message in record.row.get("messages") or ():
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)):
            named += [item for item in content if isinstance(item, Mapping) and _is_media(item)]
    return json.dumps(named, sort_keys=True, default=_digest) if named else ""


def _is_media(item: Mapping[str, Any]) -> bool:
    return item.get("type") != "text"


def _digest(value: Any) -> str:
    data = value if isinstance(value, (bytes, bytearray)) else repr(value).encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def content_units(record: Record) -> list[str]:
    """All turns as units: case, blanks and punctuation do not make another sample."""
    return [unit for turn in record.turns for unit in units(_TAGS.sub(" ", turn.text))]


def content_key(record: Record) -> bytes:
    """A digest that is equal for copies.

    Blanks and case do not matter. Signs do: "2 + 3" is not "2 - 3".
    """
    said = [[turn.role, " ".join(turn.text.lower().split())] for turn in record.turns]
    whole = json.dumps([said, media_of(record)], ensure_ascii=True).encode()
    return hashlib.blake2b(whole, digest_size=16).digest()


def shingles(words: list[str], n: int = _SHINGLE) -> np.ndarray:
    """Hashes of all n-grams of units, sorted, each once; (S,) uint32."""
    codes = np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint64, len(words))
    if len(codes) < n:
        return np.empty(0, np.uint32)
    count = len(codes) - n + 1
    mixed = np.zeros(count, np.uint64)
    for offset in range(n):  # polynomial of the codes modulo 2**64; wrapping is wanted
        mixed = mixed * _BASE + codes[offset : offset + count]
    mixed ^= mixed >> np.uint64(31)
    mixed *= _BASE
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Shingles that both have over shingles that one has."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / max(1, len(first) + len(second) - shared)


# ---------------------------------------------------------------------- one machine
def find_duplicates(
    records: Iterable[Record],
    *,
    near: bool = True,
    similarity: float = SIMILARITY,
    min_shingles: int = 20,
    same_numbers: bool = True,
    permutations: int = 128,
    seed: int = 1,
) -> Iterator[tuple[str, Verdict]]:
    """Look for copies of earlier samples.

    Args:
        records: the corpus, in the order that decides which copy stays.
        near: whether samples that are nearly equal count.
        similarity: Jaccard similarity of their shingles, from which on they do.
        min_shingles: of a sample that can be nearly equal to another; short ones are alike
            without being copies.
        same_numbers: whether two have to have the same numbers to be nearly equal.
        permutations: of MinHash; more find more of the pairs at the threshold.
        seed: of the permutations.

    Yields:
        (key of the sample, verdict), in the order of the samples; the note names the one that
        stays.

    Raises:
        ImportError: `near`, and datasketch is not installed.
        ValueError: a similarity out of (0, 1].
    """
    _check_similarity(similarity)
    kept: dict[bytes, str] = {}
    index = _Index(similarity, permutations, seed) if near else None
    for record in records:
        name = record.key or record.where
        first = kept.setdefault(content_key(record), name)
        if first != name:
            yield record.key, Verdict(EXACT, 1.0, 1.0, None, f"It is {first} again.")
            continue
        if index is None:
            continue
        words = content_units(record)
        hashed = shingles(words)
        if len(hashed) < min_shingles:
            continue
        same = _same(record, words if same_numbers else [])
        found = index.find_or_add(name, same, hashed)
        if found is not None:
            other, score = found
            note = f"It is nearly {other}: {score:.0%} of their {_SHINGLE}-word sequences agree."
            yield record.key, Verdict(NEAR, round(score, 4), similarity, None, note)


def _same(record: Record, words: list[str]) -> bytes:
    """What two samples have in common if one can be nearly the other: media and numbers."""
    numbers = sorted(word for word in words if word.isdecimal())
    return hashlib.blake2b(json.dumps([media_of(record), numbers]).encode(), digest_size=8).digest()


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that `find_duplicates` does not have, before any work is done.

    Raises:
        ValueError: unknown names, or values of another type.
    """
    parameters = inspect.signature(find_duplicates).parameters
    known = {name: each.default for name, each in parameters.items() if name != "records"}
    if unknown := set(settings) - set(known):
        raise ValueError(unknown_names(unknown, set(known), "duplicates"))
    for name, value in settings.items():
        flag = isinstance(known[name], bool)
        if isinstance(value, bool) != flag or not isinstance(value, (bool, int, float)):
            raise ValueError(
                f"duplicates.{name} is {value!r}; expected a value like {known[name]!r}."
            )
    _check_similarity(settings.get("similarity", SIMILARITY))


def _check_similarity(similarity: float) -> None:
    if not 0 < similarity <= 1:
        raise ValueError(f"similarity is {similarity!r}; expected a number over 0 and up to 1.")


class _Index:
    """Samples that are kept: LSH for candidates, their shingles for certainty."""

    def __init__(self, similarity: float, permutations: int, seed: int) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise ImportError(
                "near duplicates need datasketch: pip install 'internvl[filter]', or set near to "
                "false."
            ) from error
        self.similarity = similarity
        self.empty = MinHash(num_perm=permutations, seed=seed, hashfunc=int)
        self.lsh = MinHashLSH(num_perm=permutations, params=_bands(similarity, permutations))
        self.samples: list[tuple[str, bytes, np.ndarray]] = []

    def find_or_add(self, name: str, same: bytes, hashed: np.ndarray) -> tuple[str, float] | None:
        """The earliest sample that is similar enough, with the similarity; else remember this."""
        sketch = self.empty.copy()
        sketch.update_batch(hashed.tolist())
        for number in sorted(self.lsh.query(sketch)):
            other, other_same, other_hashed = self.samples[number]
            if other_same != same:
                continue
            score = jaccard(hashed, other_hashed)
            if score >= self.similarity:
                return other, score
        self.lsh.insert(len(self.samples), sketch, check_duplication=False)
        self.samples.append((name, same, hashed))
        return None


def _bands(similarity: float, permutations: int) -> tuple[int, int]:
    """(bands, rows of each), such that 99 % of the pairs at the threshold are candidates.

    A candidate too many costs a comparison, one too few a duplicate; datasketch's own choice leaves
    out a third of them.
    """
    for rows in range(permutations, 1, -1):
        bands = permutations // rows
        if 1 - (1 - similarity**rows) ** bands >= _CANDIDATES:
            return bands, rows
    return permutations, 1


# ---------------------------------------------------------------------- clusters
def signature_step(folder: str | Path, *, seed: int = 1) -> Any:
    """datatrove's first step of MinHash with the units of this package as words.

    The text of a document has to be that of `cluster_text`. Runs in a task per shard.

    Args:
        folder: where signatures go.
        seed: of the permutations; the same for all tasks.
    """
    from datatrove.pipeline.dedup import MinhashDedupSignature

    return MinhashDedupSignature(str(folder), config=_config(seed), language=unit_tokenizer())


def bucket_step(signatures: str | Path, pairs: str | Path, *, seed: int = 1) -> Any:
    """The second step: pairs. Runs in 14 tasks, or a multiple."""
    from datatrove.pipeline.dedup import MinhashDedupBuckets

    return MinhashDedupBuckets(str(signatures), str(pairs), config=_config(seed))


def cluster_step(pairs: str | Path, clusters: str | Path, *, seed: int = 1) -> Any:
    """The third step: clusters of pairs. Runs in one task."""
    from datatrove.pipeline.dedup import MinhashDedupCluster

    return MinhashDedupCluster(
        str(pairs), str(clusters), config=_config(seed), save_cluster_id=True
    )


def cluster_text(record: Record) -> str:
    """The text of a document for datatrove: media first, then the units of all turns.

    datatrove compares texts only. The digest of the media stands between all words, so that
    samples of different images share no shingle.
    """
    words, media = content_units(record), media_of(record)
    if not media:
        return " ".join(words)
    mark = "media" + _digest(media.encode()).translate(_LETTERS)
    return " ".join(f"{mark} {' '.join(words[i : i + 4])}" for i in range(0, len(words), 4))


def read_copies(clusters: str | Path) -> dict[tuple[int, int], tuple[int, int]]:
    """What `cluster_step` found: (shard, document) of each copy -> the one that stays.

    datatrove itself keeps the root of its union-find, which depends on the order of the pairs;
    here the first document of the first shard stays.
    """
    members: dict[int, list[tuple[int, int]]] = {}
    for path in sorted(Path(clusters).glob("*.clusters")):
        for document, cluster in struct.iter_unpack("<II", path.read_bytes()):
            members.setdefault(cluster, []).append((int(path.stem), document))
    return {copy: min(group) for group in members.values() for copy in group if copy != min(group)}


def _config(seed: int) -> Any:
    """14 buckets of 8 hashes (datatrove's defaults): a pair of similarity 0.8 is found in 92 %."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.text import TextNormConfig

    plain = TextNormConfig(norm_numbers=False)  # exercises differ in their numbers
    return MinhashConfig(
        n_grams=_SHINGLE, num_buckets=14, hashes_per_bucket=8, seed=seed, norm_config=plain,
        hash_config=HashConfig(hash_fc="sha1"),  # xxhash 4 does not take text as 0.10.1 gives it
    )  # fmt: skip


def unit_tokenizer() -> Any:
    """datatrove's own word tokenizers need spaCy and the like, and know one language each."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class UnitTokenizer(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return units(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return text.splitlines()

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    return UnitTokenizer()
