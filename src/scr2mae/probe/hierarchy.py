"""Hierarchical labels: use the coarser label where the finer one is uncertain."""

from collections.abc import Mapping

import numpy as np
import pandas as pd


def roll_up(
    probabilities: pd.DataFrame, parents: Mapping[str, str], *, min_probability: float = 0.8
) -> pd.DataFrame:
    """Give each cell the finest label whose probability is high enough.

    Parameters
    ----------
    probabilities
        Cells by classes, from :meth:`Probe.predict_proba`.
    parents
        Maps a class, or a parent, to its parent.
    min_probability
        Probability that a label needs. A parent has the sum over its classes.

    Returns
    -------
    ``prediction``, ``probability`` and ``depth`` of each cell: 0 for a class, 1 for its parent and so on. A cell whose top-most label is too
    improbable keeps that label.

    Raises
    ------
    ValueError
        If the parents form a cycle or no class has one.

    Examples
    --------
    >>> import pandas as pd
    >>> from scr2mae.probe import roll_up
    >>> table = pd.DataFrame({"CD4 T": [0.95, 0.5], "CD8 T": [0.03, 0.45], "B": [0.02, 0.05]})
    >>> roll_up(table, {"CD4 T": "T", "CD8 T": "T"})["prediction"].tolist()
    ['CD4 T', 'T']
    """
    if not set(parents) & set(probabilities.columns.astype(str)):
        raise ValueError(
            f"No class has a parent; the classes are {probabilities.columns.astype(str).tolist()}."
        )
    values = probabilities.to_numpy()
    labels = probabilities.columns.astype(str).to_numpy(dtype=object)
    prediction, probability = labels[values.argmax(axis=1)], values.max(axis=1)
    depth = np.zeros(len(values), dtype=int)
    for level in range(1, len(parents) + 2):
        labels = np.array([parents.get(label, label) for label in labels], dtype=object)
        if level > len(parents):
            if any(label in parents for label in labels):
                raise ValueError(f"The parents form a circle: {dict(parents)}.")
            break
        sums = pd.DataFrame(values, columns=labels).T.groupby(level=0, sort=True).sum().T
        above = np.array([parents.get(label, label) for label in prediction], dtype=object)
        open_ = (probability < min_probability) & (above != prediction)
        at = sums.columns.get_indexer(pd.Index(above))
        prediction = np.where(open_, above, prediction)
        probability = np.where(open_, sums.to_numpy()[np.arange(len(values)), at], probability)
        depth += open_
    return pd.DataFrame(
        {"prediction": prediction, "probability": probability, "depth": depth}, index=probabilities.index
    )
