"""Apply a fitted probe to new cells and donors, and save it as a folder."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import norm

from scr2mae.data.columns import find_column, has_columns, key_name
from scr2mae.data.containers import check_anndata
from scr2mae.data.donors import warn_about_donors
from scr2mae.probe.calibration import Calibration
from scr2mae.probe.donors import interval_width, unit_means, warn_about_known_donors
from scr2mae.probe.features import Embedder, Features, surprises_by_donor
from scr2mae.probe.inputs import Kind, as_text
from scr2mae.probe.linear import LinearMap, log_odds
from scr2mae.probe.rejection import Rejection

Float = NDArray[np.float64]
UNKNOWN = "unknown"


@dataclass(eq=False)
class Probe:
    """Fitted linear probe; :func:`fit_probe` makes it and :meth:`Probe.load` reads it.

    Attributes
    ----------
    target, kind
        Column of ``adata.obs`` that it predicts, and "classification" or "regression".
    features
        Representation that it reads: its key, width, names if it has any, and the fingerprint of its model.
    donor_key
        Column with the donors of the fit, or several that together name a donor.
    donors
        Donors of the fit, sorted.
    is_cell_level
        Whether the target is a property of cells, such as cell type, and not of donors.
    linear
        Weights ``coef``, shape ``(n_features, n_outputs)``, ``intercept`` and the chosen ``penalty``.
    fold_maps
        Weights of each fold, fitted without its donors. Their spread shows how much predictions depend on the donors.
    classes
        Sorted classes, or None for regression.
    value_range
        Smallest and largest value in the fit, or None for classification.
    calibration
        Curves that turn log-odds into probabilities, or None.
    rejection
        Rule that marks cells as unknown, or None.
    scores
        Scores on held-out donors: one row per method, level and metric. Penalty and calibration were chosen
        without them.
    held_out
        Held-out prediction of each unit (donor, or donor and class); None if the target is a property of cells.
    reliability
        Held-out cells and units by predicted probability, before and after calibration; None for regression.
    design
        Association of the target with other columns over donors, from :func:`design_table`.
    model
        Model that embeds counts, if one is attached.
    """

    target: str
    kind: Kind
    features: Features
    donor_key: str | tuple[str, ...]
    donors: tuple[str, ...]
    is_cell_level: bool
    linear: LinearMap
    fold_maps: tuple[LinearMap, ...]
    classes: NDArray[Any] | None
    value_range: tuple[float, float] | None
    calibration: Calibration | None
    rejection: Rejection | None
    scores: pd.DataFrame
    held_out: pd.DataFrame | None = None
    reliability: pd.DataFrame | None = None
    design: pd.DataFrame | None = None
    model: Embedder | None = field(default=None, repr=False)

    def predict(
        self,
        adata: AnnData,
        *,
        model: Embedder | None = None,
        donor_key: str | Sequence[str] | None = None,
        key_added: str | None = None,
    ) -> pd.DataFrame:
        """Predict the target for each cell.

        Parameters
        ----------
        adata
            New cells, with the embedding of the fit in ``obsm``, or with raw counts if there is a model.
        model
            Model that embeds the counts. By default the attached one, if ``adata`` lacks the embedding.
        donor_key
            Column with the donors of the new cells, to warn about those of the fit and to compare cells with others of
            their donor. By default the column of the fit is used if ``adata`` has it.
        key_added
            Column of ``adata.obs`` to write the prediction to; it is the prefix of the other columns. None
            writes nothing.

        Returns
        -------
        One row per cell.

        - Classes: ``prediction``, "unknown" for rejected cells; ``probability`` of the most likely class; ``margin`` to the
          second one; ``unknown`` if the probe can reject.
        - Numbers: ``prediction``, and ``outside_range``, True outside the values of the fit.

        Raises
        ------
        ValueError
            If there are no cells, or the features or the model differ from those of the fit.
        KeyError
            If ``adata`` lacks the features and there is no model.
        """
        X, unknown = self._read(adata, model, donor_key)
        self._warn_about_donors(adata, donor_key)
        outputs = self.linear(X)
        frame = pd.DataFrame(index=adata.obs_names.copy())
        if self.classes is None:
            frame["prediction"] = outputs[:, 0]
            frame["outside_range"] = self._is_outside(outputs[:, 0])
        else:
            probabilities = self._probabilities(outputs)
            best = probabilities.argmax(axis=1)
            ordered = np.sort(probabilities, axis=1)
            names = self.classes[best].astype(object)
            if unknown is not None:
                names[unknown] = UNKNOWN
            frame["prediction"] = pd.Categorical(names)
            frame["probability"], frame["margin"] = ordered[:, -1], ordered[:, -1] - ordered[:, -2]
        if unknown is not None:
            frame["unknown"] = unknown
        if key_added is not None:
            for name in frame:
                column = key_added if name == "prediction" else f"{key_added}_{name}"
                adata.obs[column] = frame[name].to_numpy() if name != "prediction" else frame[name].array
        return frame

    def predict_proba(self, adata: AnnData, *, model: Embedder | None = None) -> pd.DataFrame:
        """Return the probability of each class for all cells, including rejected ones.

        Parameters
        ----------
        adata, model
            As in :meth:`predict`.

        Returns
        -------
        Cells by classes; rows sum to one.

        Raises
        ------
        ValueError
            If the target is a number, or as in :meth:`predict`.
        """
        if self.classes is None:
            raise ValueError(f"{self.target!r} is a number and has no probabilities; call predict().")
        X, _ = self._read(adata, model)
        return pd.DataFrame(self._probabilities(self.linear(X)), index=adata.obs_names, columns=self.classes)

    def predict_donors(
        self,
        adata: AnnData,
        donor_key: str | Sequence[str] | None = None,
        *,
        sample_key: str | Sequence[str] | None = None,
        model: Embedder | None = None,
        confidence: float = 0.9,
    ) -> pd.DataFrame:
        """Predict the target for each donor: average over its cells, without the rejected ones.

        Parameters
        ----------
        adata
            New cells, as in :meth:`predict`.
        donor_key
            Column with the donors of the new cells; by default that of the fit.
        sample_key
            Column with samples: predict each sample of a donor, such as before and after a treatment.
        model
            As in :meth:`predict`.
        confidence
            Coverage of the intervals.

        Returns
        -------
        One row per donor, or per donor and sample, with ``n_cells`` and ``n_unknown``.

        - Classes: ``prediction``, or "unknown" if all cells are rejected; its mean ``probability`` over cells; the interval
          ``low`` to ``high`` of that mean; and ``p_CLASS`` for each class. The interval covers the choice of
          cells and of training donors (by a jackknife over folds).
        - Numbers: ``prediction``; ``low`` and ``high``, the conformal interval of the donor's *value* from the errors on
          held-out donors, infinite if there are fewer than ``confidence / (1 - confidence)`` of them;
          ``outside_range``.

        Raises
        ------
        ValueError
            If the target is a property of cells, a donor is missing, or as in :meth:`predict`.
        KeyError
            If a column is missing.
        """
        if self.is_cell_level:
            raise ValueError(
                f"{self.target!r} is a property of cells, so a donor has no single value; call predict()."
            )
        if not 0 < confidence < 1:
            raise ValueError(f"Wanted confidence between 0 and 1, got {confidence}.")
        check_anndata(adata)
        keys = [donor_key or self.donor_key, *([] if sample_key is None else [sample_key])]
        groups = {key_name(key): as_text(find_column(adata.obs, key), repr(key_name(key))) for key in keys}
        warn_about_donors(groups[key_name(keys[0])], keys[0])
        X, unknown = self._read(adata, model, donor_key)
        self._warn_about_donors(adata, donor_key)
        members = pd.DataFrame(groups).groupby(list(groups), sort=True)
        unit = members.ngroup().to_numpy().astype(np.intp)
        index = members.size().index
        kept = np.ones(adata.n_obs, dtype=bool) if unknown is None else ~unknown
        counts = np.bincount(unit, minlength=len(index))
        n_kept = np.bincount(unit[kept], minlength=len(index))
        outputs = [each(X[kept]) for each in (self.linear, *self.fold_maps)]
        if self.classes is not None:
            outputs = [self._probabilities(each) for each in outputs]
        means, variance = unit_means(outputs[0], outputs[1:], unit[kept], n_units=len(index))
        frame = pd.DataFrame(index=index)
        spread = norm.ppf((1 + confidence) / 2) * np.sqrt(variance)
        if self.classes is None:
            frame["prediction"] = means[:, 0]
            assert self.held_out is not None
            width = interval_width(self.held_out["truth"] - self.held_out["prediction"], confidence)
            frame["low"], frame["high"] = means[:, 0] - width, means[:, 0] + width
            frame["outside_range"] = self._is_outside(means[:, 0])
        else:
            best = np.where(n_kept > 0, np.nan_to_num(means, nan=-1.0).argmax(axis=1), 0)
            at = np.arange(len(index)), best
            frame["prediction"] = np.where(n_kept > 0, self.classes[best].astype(object), UNKNOWN)
            frame["probability"] = means[at]
            frame["low"] = np.clip(means[at] - spread[at], 0, 1)
            frame["high"] = np.clip(means[at] + spread[at], 0, 1)
        frame["n_cells"], frame["n_unknown"] = counts, counts - n_kept
        for j, name in enumerate([] if self.classes is None else self.classes):
            frame[f"p_{name}"] = means[:, j]
        return frame

    def save(self, dir_path: str | Path, *, donor_names: bool = True, overwrite: bool = False) -> None:
        """Save the probe as a folder of safetensors and JSON, which may be inside the folder of its model.

        Parameters
        ----------
        dir_path
            Folder to make, such as ``"model/probes/disease"``.
        donor_names
            Whether to write the names of the donors. Without them, the loaded probe cannot warn when it predicts donors
            of its fit.
        overwrite
            Whether to replace a probe in an existing folder.

        Raises
        ------
        FileExistsError
            If the folder is not empty and ``overwrite`` is False.
        """
        from scr2mae.probe.saving import write_probe  # imports torch

        write_probe(self, dir_path, donor_names=donor_names, overwrite=overwrite)

    @classmethod
    def load(cls, dir_path: str | Path, *, model: Embedder | None = None) -> Self:
        """Load a saved probe, without unpickling anything.

        Parameters
        ----------
        dir_path
            Folder of the probe.
        model
            Model to attach, which then embeds counts.

        Returns
        -------
        The probe.

        Raises
        ------
        FileNotFoundError
            If the folder holds no probe.
        ValueError
            If the folder is damaged or holds something else, or the model is not that of the fit.
        """
        from scr2mae.probe.saving import read_probe

        return cls._with_model(read_probe(dir_path), model)

    @classmethod
    def from_hub(
        cls,
        repo: str,
        name: str,
        *,
        model: Embedder | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Self:
        """Download a probe that ``model.push_to_hub(probes=)`` uploaded, without unpickling anything.

        Parameters
        ----------
        repo, name
            Repository of the model, ``"owner/name"``, and name of the probe in it.
        model
            Model to attach, as in :meth:`load`.
        revision, token
            As in ``R2MAEModel.from_hub``.

        Returns
        -------
        The probe.

        Raises
        ------
        FileNotFoundError
            If there is no such repository or probe.
        ValueError
            If the probe is damaged, or the model is not that of the fit.
        """
        from scr2mae.probe.saving import download_probe

        return cls._with_model(download_probe(repo, name, revision=revision, token=token), model)

    @classmethod
    def _with_model(cls, attributes: dict[str, Any], model: Embedder | None) -> Self:
        probe = cls(**attributes)
        if model is not None:
            probe.features.check_model(model)
            probe.model = model
        return probe

    def summary(self) -> dict[str, str]:
        """Return the entries of the probe in a model card: name and text."""
        rows = {"Target": f"`{self.target}`, {self.kind}"}
        if self.classes is not None:
            rows["Classes"] = ", ".join(map(str, self.classes))
        name = key_name(self.donor_key)
        rows["Donors"] = f"{len(self.donors)} of `{name}`" if self.donors else f"`{name}`"
        shown = self.scores[(self.scores["method"] == "embedding") & self.scores["value"].notna()]
        for row in shown[~shown["metric"].str.endswith("_before")].to_dict("records"):
            name = str(row["metric"]).replace("_", " ").capitalize().replace("auroc", "AUROC")
            has_interval = row["ci_low"] == row["ci_low"]
            interval = f" ({row['ci_low']:.2f} to {row['ci_high']:.2f})" if has_interval else ""
            rows[f"{name} by {row['unit']}"] = f"{row['value']:.3f}{interval}, on held-out donors"
        return rows

    def _read(
        self, adata: AnnData, model: Embedder | None, donor_key: str | Sequence[str] | None = None
    ) -> tuple[Any, NDArray[np.bool_] | None]:
        """Return features, and which cells are unknown; None if the probe does not reject."""
        embedder = model if model is not None else self.model
        X = self.features.read(adata, embedder, embed=model is not None)
        if self.rejection is None:
            return X, None
        found = None
        if self.rejection.surprises is not None and embedder is not None:
            found = surprises_by_donor(embedder, adata, X, self._new_donors(adata, donor_key))
        unknown = self.rejection(X, found)
        if unknown.all():
            warnings.warn(
                f"All {len(unknown)} cells differ too much from those of the fit and are marked unknown; check whether "
                "tissue, species and protocol are the same, and whether the model of the probe embedded them.",
                stacklevel=3,
            )
        return X, unknown

    def _probabilities(self, outputs: Float) -> Float:
        if self.calibration is None:
            return np.asarray(softmax(outputs, axis=1))
        return self.calibration(log_odds(outputs))

    def _is_outside(self, values: Float) -> NDArray[np.bool_]:
        low, high = self.value_range or (-np.inf, np.inf)
        return (values < low) | (values > high)

    def _warn_about_donors(self, adata: AnnData, donor_key: str | Sequence[str] | None) -> None:
        if (donors := self._new_donors(adata, donor_key)) is not None:
            warn_about_known_donors(donors, self.donors)

    def _new_donors(self, adata: AnnData, donor_key: str | Sequence[str] | None) -> pd.Series | None:
        if donor_key is None and not has_columns(adata.obs, self.donor_key):
            return None
        return find_column(adata.obs, donor_key or self.donor_key)
