"""The model class: set up data, train, embed, impute, save."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scr2mae._paper import paper
from scr2mae.model.attribution import AttributionMixin
from scr2mae.model.imputation import ImputationMixin
from scr2mae.model.predictive import PredictiveMixin
from scr2mae.model.pretrained import PretrainedMixin
from scr2mae.model.query import QueryMixin
from scr2mae.model.training import TrainingMixin

if TYPE_CHECKING:
    from typing import Self

    from anndata import AnnData

__all__ = ["R2MAEModel"]


class R2MAEModel(
    TrainingMixin, AttributionMixin, ImputationMixin, PredictiveMixin, QueryMixin, PretrainedMixin
):
    """Masked autoencoder of single-cell counts whose masking ratio is redrawn for every mini-batch.

    Parameters
    ----------
    adata
        Raw counts. If it was not set up with :meth:`setup_anndata`, that method's defaults are used.
    n_hidden
        Width of the hidden layers.
    n_latent
        Width of the embedding; by default 160, or 64 with ``encoder="mlp"``.
    n_layers
        Hidden layers of the encoder.
    encoder
        ``"linear+mlp"``: the hidden layers take fixed principal components of the visible counts as input, and the
        embedding concatenates the leading components (50 of log-normalized counts, 50 of Pearson residuals, or fewer if
        ``n_latent`` is below 160) and the layers' output. ``"mlp"``: the paper's network, hidden layers on
        ``log1p`` counts alone.
    n_layers_decoder
        Hidden layers of the decoder; by default 0 (a linear decoder), or 1 with ``encoder="mlp"``.
    mask_ratio
        Fraction of the genes masked at a step: a float (a plain masked autoencoder), a pair ``(low, high)`` from
        which it is drawn anew for every mini-batch (R²MAE), or a schedule of :mod:`scr2mae.masking`.
    curriculum
        Learned loss weights: ``"cl"`` (from easy to hard), ``"cl_k0"`` (easy throughout), settings
        (:class:`scr2mae.nn.curriculum.Curriculum`), or None.
    seed
        Seed for weight initialization, masking and shuffling; None for ``scvi.settings.seed`` or, without
        that, 0. Global random state is not modified.
    registry
        Registry of a saved model, for a model without data; :meth:`load` passes it.

    Notes
    -----
    Method: Dong, Wang & Kluger, arXiv 2509.21650. The defaults suit 1,000 to 100,000 cells and are measured on
    the documentation's benchmark page; :meth:`paper` gives the paper's widths.

    Examples
    --------
    >>> import scr2mae
    >>> adata = scr2mae.datasets.simulate_donors(n_donors=6, n_cells_per_donor=20, n_genes=100)
    >>> scr2mae.R2MAEModel.setup_anndata(adata, batch_key="batch", donor_key="donor")
    >>> model = scr2mae.R2MAEModel(adata, n_hidden=16, n_latent=4)
    >>> model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    >>> adata.obsm["X_r2mae"] = model.get_latent_representation()
    >>> adata.obsm["X_r2mae"].shape
    (120, 4)
    """

    @classmethod
    def paper(cls, adata: AnnData, **kwargs: Any) -> Self:
        """Build a model of the paper's size; train it with ``model.train(**scr2mae.paper().train)``.

        Parameters
        ----------
        adata
            Raw counts.
        kwargs
            Additional arguments of the class, such as those of a scheme: ``**scr2mae.schemes("hlca")["cl"]._asdict()``.

        Returns
        -------
        The model, not trained yet: 1000 hidden units, 512 latent dimensions, two encoder layers and one decoder layer
        (:func:`scr2mae.paper`).
        """
        return cls(adata, **{**paper().model, **kwargs})
