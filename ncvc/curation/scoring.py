"""The quality classifier as a step of a curation.

Imports datatrove when it is imported, and torch in the worker that scores; import it inside functions only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from datatrove.data import Document, DocumentsPipeline

from ncvc.corpus.quality.classifier import QualityClassifierSettings, is_kept
from ncvc.curation.plan import Shard
from ncvc.curation.step import EachBatch, drop


class Score(EachBatch):
    """Drop what scores below the threshold, in the sources that are to be classified; the score stays in metadata."""

    name = "classifier"

    def __init__(self, settings: QualityClassifierSettings, shards: Sequence[Shard], chosen: Sequence[bool]) -> None:
        super().__init__()
        self.settings = settings
        self.taking_part = [chosen[shard.source] for shard in shards]

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield every document in order, scored and perhaps marked."""
        return super().run(data, rank, world_size) if self.taking_part[rank] else data

    def change_all(self, documents: list[Document]) -> None:
        """Score them."""
        scores = _scorer(self.settings)([document.text for document in documents])
        for document, score, kept in zip(
            documents, scores, is_kept(scores, threshold=self.settings.threshold), strict=True
        ):
            document.metadata["quality_score"] = round(float(score), 4)
            if not kept:
                words = f"score {score:.3f} is below {self.settings.threshold}"
                drop(document, stage="classifier", reason="low quality", detail=words)


@functools.lru_cache(maxsize=1)
def _scorer(settings: QualityClassifierSettings) -> Callable[[Sequence[str]], np.ndarray]:
    from ncvc.model.quality_scorer import open_scorer

    return open_scorer(settings)
