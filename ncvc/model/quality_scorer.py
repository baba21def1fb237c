"""Texts to quality scores: the classifier of a configuration with the model that makes its vectors, in one call.

Costs the forward passes of ``document_vectors``; the forest is small beside them. Opened in the worker that uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ncvc.corpus.quality.classifier import QualityClassifier, QualityClassifierSettings
from ncvc.model.document_vectors import open_vectors


def open_scorer(settings: QualityClassifierSettings) -> Callable[[Sequence[str]], np.ndarray]:
    """The probability of high quality of cleaned texts, float32 [documents], as a function.

    Raises ``OSError`` or ``ValueError`` with the cure when model or classifier are missing or damaged, or do not belong
    together.
    """
    vectors = open_vectors(settings.vectors)
    classifier = QualityClassifier.load(Path(settings.directory).expanduser(), vectors=vectors.identity)

    def scores(texts: Sequence[str]) -> np.ndarray:
        return classifier.scores(vectors(texts))

    return scores
