"""A random forest as plain arrays: the probabilities of scikit-learn's, from a file that holds no code.

``Forest.from_sklearn`` takes a fitted forest of two classes apart, ``probability`` gives its ``predict_proba`` digit by
digit, ``to_bytes`` and ``from_file`` keep it as .npz without pickle. Costs numpy only; grows nothing itself.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

CURE = "restore the classifier from a complete copy, or train it again with python -m ncvc.judge"
_ROWS = 1024  # documents that go through the forest at once


@dataclass(frozen=True, eq=False)
class Forest:
    """Binary decision trees laid end to end: node arrays [nodes], ``roots`` [trees].

    Inner nodes send a vector left when ``vector[feature] <= threshold``, else right. A leaf is its own left and right.
    ``high`` is the share of high labels among the training texts of a node, weighted as the forest was trained.
    """

    roots: np.ndarray
    left: np.ndarray
    right: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    high: np.ndarray
    width: int

    @classmethod
    def from_sklearn(cls, forest: Any) -> Forest:
        """The same forest as a fitted ``RandomForestClassifier`` of the classes False and True."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in ("left", "right", "feature", "threshold", "high")}
        roots, start = [], 0
        for estimator in forest.estimators_:
            tree = estimator.tree_
            here = np.arange(tree.node_count)
            leaf = tree.children_left < 0
            roots.append(start)
            parts["left"].append(np.where(leaf, here, tree.children_left) + start)
            parts["right"].append(np.where(leaf, here, tree.children_right) + start)
            parts["feature"].append(np.where(leaf, 0, tree.feature))
            parts["threshold"].append(np.where(leaf, 0.0, tree.threshold))
            parts["high"].append(tree.value[:, 0, 1])
            start += tree.node_count
        whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        return cls(
            roots=np.array(roots, np.int32),
            left=whole["left"].astype(np.int32),
            right=whole["right"].astype(np.int32),
            feature=whole["feature"].astype(np.int32),
            threshold=whole["threshold"].astype(np.float64),
            high=whole["high"].astype(np.float64),
            width=int(forest.n_features_in_),
        )

    def probability(self, vectors: np.ndarray) -> np.ndarray:
        """Probability of "high" of each vector, float64 [documents]. Raises ``ValueError`` for unfit vectors."""
        vectors = check_vectors(vectors, width=self.width)
        found = np.zeros(len(vectors))
        for start in range(0, len(vectors), _ROWS):
            part = vectors[start : start + _ROWS]
            nodes = np.broadcast_to(self.roots[:, None], (len(self.roots), len(part)))  # [trees, documents]
            rows = np.arange(len(part))[None, :]
            while True:
                goes_left = part[rows, self.feature[nodes]] <= self.threshold[nodes]
                following = np.where(goes_left, self.left[nodes], self.right[nodes])
                if np.array_equal(following, nodes):
                    break
                nodes = following
            total = found[start : start + _ROWS]
            for leaves in nodes:  # one tree after the other, as sklearn adds: another order gives other last digits
                total += self.high[leaves]
        found /= len(self.roots)
        return found

    def to_bytes(self) -> bytes:
        """The arrays as an .npz file, the same bytes for the same forest (``np.savez`` writes the time of day)."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for field in fields(self):
                array = np.asarray(getattr(self, field.name))
                part = io.BytesIO()
                np.lib.format.write_array(part, array, allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{field.name}.npy", (1980, 1, 1, 0, 0, 0)), part.getvalue())
        return buffer.getvalue()

    @classmethod
    def from_file(cls, path: Path) -> Forest:
        """Read ``to_bytes``; raises ``ValueError`` naming the file for anything that is no such forest."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {field.name: archive[field.name] for field in fields(cls)}
            width = int(arrays.pop("width"))
            forest = cls(**arrays, width=width)
            problem = forest._problem()
        except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no forest ({type(error).__name__}: {error}); {CURE}.") from error
        if problem:
            raise ValueError(f"{path} is no forest: {problem}; {CURE}.")
        return forest

    def _problem(self) -> str | None:
        """What would make ``probability`` read outside its arrays or never end, if anything."""
        kinds: dict[str, type] = {"roots": np.int32, "left": np.int32, "right": np.int32, "feature": np.int32}
        kinds |= {"threshold": np.float64, "high": np.float64}
        nodes = self.left.size
        for name, kind in kinds.items():
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != kind or not array.size or (name != "roots" and array.size != nodes):
                return f"{name} has shape {array.shape} and type {array.dtype}"
        here = np.arange(nodes)
        leaf = (self.left == here) & (self.right == here)
        forward = (self.left > here) & (self.right > here) & (self.left < nodes) & (self.right < nodes)
        if not np.all(leaf | forward):
            return "a node's children do not follow it"
        if self.roots.min() < 0 or self.roots.max() >= nodes:
            return "a root lies outside the nodes"
        if self.feature.min() < 0 or self.feature.max() >= self.width:
            return f"a feature lies outside vectors of {self.width} numbers"
        if not (np.isfinite(self.threshold).all() and np.all((self.high >= 0) & (self.high <= 1))):
            return "a threshold or a share is not a number in range"
        return None


def check_vectors(vectors: np.ndarray, *, width: int | None = None) -> np.ndarray:
    """``vectors`` as float32 [documents, width]; raises ``ValueError`` for another shape or numbers not finite."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or (width is not None and vectors.shape[1] != width):
        raise ValueError(
            f"vectors of shape {vectors.shape} do not fit: [documents, {width or 'hidden'}] is read; make them with "
            "the model and the settings that the classifier was trained on."
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {len(vectors)} vectors are not finite (the first is number {bad[0]}): the vectors' model "
            "overflows or its weights are damaged; name another vectors.model."
        )
    return vectors
