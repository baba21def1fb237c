"""From labelled texts to a classifier on disk with its report: vectors, forest, baseline, held-out figures, costs.

The same labels, texts and settings give the same directory, byte for byte. Costs the vectors, and minutes for a forest
on 100,000 of them (float32 in memory: 0.8 GB at 2,048 numbers each). Knows nothing of torch: what makes the vectors is
handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ncvc.corpus.quality.character_statistics import character_statistics
from ncvc.corpus.quality.classifier import ForestSettings, check_labels, held_out_rows, save_classifier, train_forest
from ncvc.corpus.quality.classifier_report import agreement, best_threshold, check_held_out, evaluation, write_report
from ncvc.corpus.quality.label_log import Labelling
from ncvc.corpus.quality.labels import HIGH, Sample, SampledDocument
from ncvc.storage import hash_json

_TEXTS_AT_ONCE = 512


class Vectors(Protocol):
    """Texts to vectors, float32 [documents, hidden]; ``identity`` is all that decides them."""

    identity: dict[str, Any]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [documents, hidden], in the order of ``texts``."""
        ...


@dataclass(frozen=True)
class Costs:
    """Documents per second and per CPU second of every step, by its name."""

    steps: dict[str, dict[str, float]]

    def measured(self, name: str, call: Callable[[], np.ndarray], *, documents: int) -> np.ndarray:
        """What ``call`` returns; its time is noted."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.steps[name] = {"per_second": documents / max(wall, 1e-9), "per_cpu_second": documents / max(cpu, 1e-9)}
        return result


def train_and_report(
    sample: Sample,
    *,
    labelling: Labelling,
    again: Mapping[str, Labelling],
    vectors: Vectors,
    settings: ForestSettings,
    output: Path,
    workers: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """Train on the labelled documents of ``sample``; write ``output/classifier`` and ``output/report.*``.

    ``again`` are further rounds of labels by a description, for the agreement. Returns the report. Raises
    ``ValueError`` naming the counts when the labels show one class only or too few of one, before any vector is made.
    """
    labels = labelling.file.labels()
    documents = [document for document in sample.documents if document.key in labels]
    high = np.array([labels[document.key] == HIGH for document in documents], dtype=bool)
    held = held_out_rows([document.text_sha256 for document in documents], share=settings.held_out, seed=settings.seed)
    check_labels(high[~held], settings=settings)
    check_held_out(high[held])
    costs = Costs({})
    texts = [document.text for document in documents]
    hidden = costs.measured(
        "hidden vectors", lambda: _all_vectors(vectors, texts, progress=progress), documents=len(texts)
    )
    statistics = costs.measured("character statistics", lambda: character_statistics(texts), documents=len(texts))
    trained = train_forest(hidden[~held], high[~held], settings=settings, workers=workers)
    scores = costs.measured("forest", lambda: trained.forest.probability(hidden[held]), documents=int(held.sum()))
    plain = _regression(statistics, high, held, settings=settings)
    found = evaluation(
        forest=scores,
        baseline=plain[held],
        high=high[held],
        characters=np.array([document.characters for document in documents])[held],
        forest_threshold=best_threshold(trained.out_of_bag, high[~held]),
        baseline_threshold=best_threshold(plain[~held], high[~held]),
    )
    told = _labelling_record(labelling, sample=sample)
    record = {
        "labelling": {**told, "failures": labelling.failures},
        "agreement": [{"with": name, **agreement(labels, other.file.labels())} for name, other in again.items()],
        "evaluation": found,
        "vectors": vectors.identity,
        "costs": costs.steps,
    }
    summary = {name: found[name] for name in ("held_out", "held_out_high", "forest_against_majority")}
    save_classifier(
        output / "classifier",
        trained,
        vectors=vectors.identity,
        labels={"sha256": _hash_of(documents, labels), **told},
        settings=settings,
        evaluation={**summary, "forest": found["forest"]["chosen"], "baseline": found["baseline"]["chosen"]},
    )
    write_report(output, record)
    return record


def _all_vectors(vectors: Vectors, texts: Sequence[str], *, progress: bool) -> np.ndarray:
    from tqdm import tqdm

    def parts() -> Iterator[np.ndarray]:
        with tqdm(total=len(texts), desc="vectors", unit="text", disable=not progress) as bar:
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                part = texts[start : start + _TEXTS_AT_ONCE]
                yield vectors(part)
                bar.update(len(part))

    return np.concatenate(list(parts()))


def _regression(features: np.ndarray, high: np.ndarray, held: np.ndarray, *, settings: ForestSettings) -> np.ndarray:
    """Probability of "high" of every text by a logistic regression fitted on those that are not held out."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight=settings.class_weight, max_iter=1000))
    fitted = model.fit(features[~held].astype(np.float64), high[~held])
    return fitted.predict_proba(features.astype(np.float64))[:, 1]


def _labelling_record(labelling: Labelling, *, sample: Sample) -> dict[str, Any]:
    labels = labelling.file.labels()
    return {
        "teacher": labelling.file.recipe["teacher"],
        "recipe_sha256": hash_json(labelling.file.recipe),
        "seen": sample.seen,
        "documents": labelling.documents,
        "valid": len(labels),
        "high": sum(label == HIGH for label in labels.values()),
        "rejections": labelling.file.rejections(),
    }


def _hash_of(documents: Sequence[SampledDocument], labels: Mapping[str, str]) -> str:
    return hash_json([[document.key, labels[document.key]] for document in documents])
