"""Metrics of how well scores separate pathogenic variants from others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["variant_metrics"]


def variant_metrics(
    y: ArrayLike,
    score: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    max_fpr: float = 0.001,
    shared_negatives: bool = False,
) -> pd.DataFrame:
    """Evaluate a ranking of variants, overall and by class.

    Parameters
    ----------
    y
        True or 1 for pathogenic, shape (n,).
    score
        Higher for more likely pathogenic, shape (n,): the negative of the scores of :func:`scr2mae.extra.dna.score`.
    groups
        Class of each variant, such as its consequence, shape (n,); a missing value belongs to no class. None for no classes.
    max_fpr
        Largest false positive rate of the partial AUROC, in (0, 1]: 0.001 in the paper.
    shared_negatives
        Whether to compare the positives of each class with all negatives instead of those of the class.

    Returns
    -------
    Indexed by ``"all"`` and the classes: ``n``, ``n_positive``, ``auroc``, ``auprc`` (average precision) and ``pauroc``,
    standardized so that chance is 0.5 (McClish 1989). NaN where a class lacks positives or negatives.

    Raises
    ------
    ValueError
        If lengths differ, ``y`` is not binary, a score is missing, or a class is named ``"all"``.
    """
    y, score = np.asarray(y), np.asarray(score, dtype=float)
    if y.ndim != 1 or y.shape != score.shape:
        raise ValueError(f"y and score must have the same length, got shapes {y.shape} and {score.shape}.")
    if not len(y):
        raise ValueError("There are no variants.")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"y must hold 0 and 1 or booleans, got {pd.unique(y)[:6].tolist()}.")
    if n_missing := int(np.isnan(score).sum()):
        raise ValueError(
            f"{n_missing} of {len(score)} scores are NaN; pass the variants whose status is 'scored'."
        )
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must lie in (0, 1], got {max_fpr!r}.")
    positive = y.astype(bool)
    rows = {"all": _evaluate(positive, score, max_fpr)}
    if groups is not None:
        labels = pd.Series(np.asarray(groups, dtype=object))
        if len(labels) != len(y):
            raise ValueError(f"groups must have the length of y, {len(y)}, got {len(labels)}.")
        if (labels == "all").any():
            raise ValueError(
                "A class is named 'all', which is the name of the row of all variants; rename it."
            )
        for name in sorted(labels.dropna().unique(), key=str):
            inside = (labels == name).to_numpy()
            if shared_negatives:
                inside = (inside & positive) | ~positive
            rows[name] = _evaluate(positive[inside], score[inside], max_fpr)
    return pd.DataFrame.from_dict(rows, orient="index").astype({"n": int, "n_positive": int})


def _evaluate(positive: np.ndarray, score: np.ndarray, max_fpr: float) -> dict[str, float]:
    """Return the numbers of variants, and areas under curves if both classes are there."""
    counts = {"n": len(positive), "n_positive": int(positive.sum())}
    if positive.all() or not positive.any():
        return counts | dict.fromkeys(("auroc", "auprc", "pauroc"), np.nan)
    return counts | {
        "auroc": float(roc_auc_score(positive, score)),
        "auprc": float(average_precision_score(positive, score)),
        "pauroc": float(roc_auc_score(positive, score, max_fpr=max_fpr)),
    }
