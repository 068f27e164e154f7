"""A classifier that sees a box's size and position and nothing of the image, so that shortcuts show (our design).

Where it does well, place and size give the answer away, and a model's figure says little about what it saw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NAME = "box_geometry"


def features(boxes: np.ndarray) -> np.ndarray:
    """Unit boxes (n, 4) x1 y1 x2 y2 -> (n, 6): middle x, middle y, width, height, area, log of width / height."""
    low, high = boxes[:, :2].astype(float), boxes[:, 2:].astype(float)
    size = np.maximum(high - low, 1e-6)
    area = size.prod(axis=1, keepdims=True)
    aspect = np.log(size[:, :1] / size[:, 1:])
    return np.concatenate([(low + high) / 2, size, area, aspect], axis=1)


class BoxGeometry:
    """A random forest on `features`, all classes weighted alike.

    Args:
        boxes: (n, 4) unit boxes to learn from, n >= 1.
        categories: their n classes; others than `classes` are not learned.
        classes: the candidates; one that is never among `categories` gets probability 0.
        seed: of the forest.
    """

    def __init__(self, boxes: np.ndarray, categories: Sequence[str], classes: Sequence[str], seed: int) -> None:
        from sklearn.ensemble import RandomForestClassifier

        index = {name: i for i, name in enumerate(classes)}
        known = np.array([c in index for c in categories], bool)
        assert known.any(), "no box to learn from"
        self.classes = len(classes)
        self.forest = RandomForestClassifier(
            n_estimators=100, min_samples_leaf=3, class_weight="balanced", random_state=seed, n_jobs=-1
        )
        self.forest.fit(features(boxes[known]), [index[c] for c in categories if c in index])

    def probabilities(self, boxes: np.ndarray) -> np.ndarray:
        """(n, 4) unit boxes -> (n, classes) float32."""
        out = np.zeros((len(boxes), self.classes), np.float32)
        if len(boxes):
            out[:, self.forest.classes_] = self.forest.predict_proba(features(boxes))
        return out
