"""The quality classifier: a random forest on hidden vectors of documents, trained, kept on disk, and read back.

A reconstruction: the report names a Transformer's hidden vector and, in its references, random forests (R8); what it
says of sizes and thresholds has not survived. A score is the forest's probability of "high", the mean over its trees
of the share of high labels in the leaf that a vector falls into: the same number as scikit-learn's ``predict_proba``.

On disk: ``forest.npz`` (plain arrays, nothing pickled) and ``manifest.json`` with its hash, the identity of the vectors
it was trained on (others are refused), of the labels, and the evaluation. Costs 0.15 ms of CPU a document (200 trees),
beside the vectors, which cost far more. Reading needs no scikit-learn. Knows nothing of torch: vectors are arrays here.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ncvc.corpus.quality.forest import CURE, Forest, check_vectors
from ncvc.randomness import mix
from ncvc.settings import settings_from
from ncvc.storage import atomic_directory, check_file, file_record, read_manifest, write_manifest

FORMAT, VERSION = "ncvc-quality-classifier", 1
FOREST_FILE = "forest.npz"
RECONSTRUCTION = (
    "A reconstruction after the report's Discussion (R8, R102-R104); prompt and sizes are not the report's."
)


@dataclass(frozen=True, kw_only=True)
class VectorSettings:
    """Which model makes the vectors: its directory, the most tokens of a text it reads, texts at once, where it runs.

    ``threads`` are those of one worker. Raises ``ValueError`` naming the setting.
    """

    model: str
    max_tokens: int
    batch_size: int
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", str(self.model))
        found = [
            f"vectors.{name}={getattr(self, name)}: must be at least 1; conf/judge.yaml has a value."
            for name in ("max_tokens", "batch_size", "threads")
            if getattr(self, name) < 1
        ]
        if not self.model:
            found.append("vectors.model is empty: name a model directory (of ncvc or of transformers).")
        if found:
            raise ValueError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class ForestSettings:
    """How the forest is grown and held against labels it has not seen; ``conf/judge.yaml`` has the values.

    ``held_out`` is the share of labelled texts kept for the report. ``class_weight`` "balanced" counts a rare class
    as much as a frequent one. Fewer labels of a class than ``min_labels_per_class`` are refused.
    """

    trees: int
    max_depth: int | None
    min_samples_leaf: int
    class_weight: str | None
    held_out: float
    min_labels_per_class: int
    seed: int

    def __post_init__(self) -> None:
        found = []
        if self.trees < 10:
            found.append(f"forest.trees={self.trees}: must be at least 10, so that every text has trees without it.")
        if self.max_depth is not None and self.max_depth < 1:
            found.append(f"forest.max_depth={self.max_depth}: must be at least 1; set null for no limit.")
        if self.min_samples_leaf < 1:
            found.append(f"forest.min_samples_leaf={self.min_samples_leaf}: must be at least 1.")
        if self.class_weight not in (None, "balanced"):
            found.append(f"forest.class_weight={self.class_weight!r}: must be balanced or null.")
        if not 0 < self.held_out < 1:
            found.append(f"forest.held_out={self.held_out}: must lie between 0 and 1, both excluded; 0.2 is usual.")
        if self.min_labels_per_class < 2:
            found.append(f"forest.min_labels_per_class={self.min_labels_per_class}: must be at least 2.")
        if not 0 <= self.seed < 2**32:
            found.append(f"forest.seed={self.seed}: must lie from 0 to {2**32 - 1}.")
        if found:
            raise ValueError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class QualityClassifierSettings:
    """``classifier`` of a curation: the classifier's directory, the least score that is kept, the vectors' model."""

    directory: str
    threshold: float
    vectors: VectorSettings

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(
                f"classifier.threshold={self.threshold}: a score lies between 0 and 1; report.md beside the "
                "classifier shows what each threshold removes."
            )
        object.__setattr__(self, "directory", str(self.directory))
        if isinstance(self.vectors, Mapping):
            built = settings_from(VectorSettings, self.vectors, path="classifier.vectors")
            object.__setattr__(self, "vectors", built)
        elif not isinstance(self.vectors, VectorSettings):
            raise ValueError(
                f"classifier.vectors={self.vectors!r}: must be a group of settings: "
                f"{', '.join(field.name for field in fields(VectorSettings))}."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides which documents are kept, from the classifier's manifest: plain JSON values."""
        manifest = read_manifest(Path(self.directory).expanduser(), manifest_format=FORMAT, version=VERSION)
        return {
            "threshold": self.threshold,
            "device": self.vectors.device,
            "max_tokens": self.vectors.max_tokens,
            "vectors": manifest.get("vectors"),
            "forest_sha256": manifest.get("files", {}).get(FOREST_FILE, {}).get("sha256"),
        }


def is_kept(scores: np.ndarray, *, threshold: float) -> np.ndarray:
    """Which scores [documents] reach the threshold; compared in float32, as scores are kept."""
    return np.asarray(scores, np.float32) >= np.float32(threshold)


def held_out_rows(text_hashes: Sequence[str], *, share: float, seed: int) -> np.ndarray:
    """Which texts are held out [documents], by their sha256 alone: copies of a text never stand on both sides."""
    draws = [mix(seed, int(text_hash[:16], 16)) / 2**64 for text_hash in text_hashes]
    return np.array(draws, dtype=np.float64) < share


# --- training and the directory


@dataclass(frozen=True)
class TrainedForest:
    """A forest, its scores of its own training texts by the trees that did not see them (nan: all did), and by what."""

    forest: Forest
    out_of_bag: np.ndarray
    sklearn_version: str


def check_labels(high: np.ndarray, *, settings: ForestSettings) -> None:
    """Raise ``ValueError`` unless there are labels of both classes, and enough of each."""
    counts = {"high": int(np.count_nonzero(high)), "low": int(np.count_nonzero(~high))}
    told = f"{counts['high']:,} high and {counts['low']:,} low labels"
    if not len(high):
        raise ValueError("there are no labels to train on: the sample is empty; label more documents.")
    if 0 in counts.values():
        raise ValueError(
            f"{told}: a classifier needs both. Label more documents (labels.documents), or sharpen labels.prompt."
        )
    if min(counts.values()) < settings.min_labels_per_class:
        raise ValueError(
            f"{told}, but forest.min_labels_per_class={settings.min_labels_per_class}: label more documents "
            "(labels.documents), or lower that limit and read the report with care."
        )


def train_forest(vectors: np.ndarray, high: np.ndarray, *, settings: ForestSettings, workers: int = 1) -> TrainedForest:
    """Grow the forest on float32 [documents, hidden] and labels [documents] (True: high); any ``workers``, same trees.

    Raises ``ValueError`` for vectors that are not finite or labels that are too few, ``ModuleNotFoundError`` without
    scikit-learn.
    """
    vectors, high = check_vectors(vectors), np.asarray(high, dtype=bool)
    if len(vectors) != len(high):
        raise ValueError(f"{len(vectors)} vectors and {len(high)} labels: one label per vector is needed.")
    check_labels(high, settings=settings)
    try:
        import sklearn
        from sklearn.ensemble import RandomForestClassifier
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "training a quality classifier needs scikit-learn; pip install 'ncvc[quality]'"
        ) from error
    grown = RandomForestClassifier(
        n_estimators=settings.trees,
        max_depth=settings.max_depth,
        min_samples_leaf=settings.min_samples_leaf,
        class_weight=settings.class_weight,
        max_features="sqrt",
        random_state=settings.seed,
        n_jobs=workers,
        oob_score=True,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some inputs do not have OOB scores")  # they are nan, as told
        warnings.filterwarnings("ignore", message="invalid value encountered", category=RuntimeWarning)
        grown.fit(vectors, high)
    return TrainedForest(Forest.from_sklearn(grown), grown.oob_decision_function_[:, 1], sklearn.__version__)


@dataclass(frozen=True, eq=False)
class QualityClassifier:
    """A forest with the manifest that says what it was made of."""

    forest: Forest
    manifest: dict[str, Any]

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Probability of high quality, float32 [documents]."""
        return self.forest.probability(vectors).astype(np.float32)

    @classmethod
    def load(cls, directory: Path, *, vectors: Mapping[str, Any]) -> QualityClassifier:
        """Read a classifier for vectors of this identity; sklearn is not needed.

        Raises ``FileNotFoundError`` or ``ValueError`` for a missing, altered or truncated file, and for the identity of
        other vectors than it was trained on, naming what differs.
        """
        directory = Path(directory)
        manifest = read_manifest(directory, manifest_format=FORMAT, version=VERSION)
        try:
            record, trained_on = dict(manifest["files"][FOREST_FILE]), dict(manifest["vectors"])
            check_file(directory / FOREST_FILE, record, verify=True, cure=CURE)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{directory}/manifest.json lacks what a classifier needs ({error!r}); {CURE}.") from error
        given = json.loads(json.dumps(dict(vectors)))
        if given != trained_on:
            names = sorted(name for name in given.keys() | trained_on.keys() if given.get(name) != trained_on.get(name))
            told = "; ".join(f"{name} {given.get(name)!r}, trained on {trained_on.get(name)!r}" for name in names)
            raise ValueError(
                f"{directory} was trained on other vectors ({told}). Set vectors.model and vectors.max_tokens to those "
                "it was trained on, or train a classifier for these."
            )
        return cls(Forest.from_file(directory / FOREST_FILE), manifest)


def save_classifier(
    directory: Path,
    trained: TrainedForest,
    *,
    vectors: Mapping[str, Any],
    labels: Mapping[str, Any],
    settings: ForestSettings,
    evaluation: Mapping[str, Any],
) -> None:
    """Write the classifier's directory, whole or not at all; the same bytes for the same content.

    ``vectors`` is the identity of what made the vectors, ``labels`` says where the labels come from (hash, teacher).
    """
    with atomic_directory(Path(directory), manifest_format=FORMAT) as partial:
        (partial / FOREST_FILE).write_bytes(trained.forest.to_bytes())
        write_manifest(
            partial,
            {
                "format": FORMAT,
                "version": VERSION,
                "note": RECONSTRUCTION,
                "files": {FOREST_FILE: file_record(partial / FOREST_FILE)},
                "vectors": dict(vectors),
                "labels": dict(labels),
                "forest": asdict(settings),
                "nodes": int(trained.forest.left.size),
                "sklearn_version": trained.sklearn_version,
                "evaluation": dict(evaluation),
            },
        )
