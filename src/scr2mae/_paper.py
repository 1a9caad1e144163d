"""Settings of the paper: its eleven masking schemes per domain, and its runs on cells.

Importing this module does not load PyTorch, so the command line can list the names quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from scr2mae.masking import RatioSchedule
    from scr2mae.nn.curriculum import Curriculum

__all__ = [
    "ATLASES",
    "DOMAINS",
    "SCHEME_NAMES",
    "Domain",
    "PaperSettings",
    "Scheme",
    "paper",
    "scheme_names",
    "schemes",
]

SCHEME_NAMES = (
    "mae",
    "mae_low",
    "mae_high",
    "mdlm",
    "dynamic",
    "r2mae",
    "r2mae_dynamic",
    "cl",
    "cl_k0",
    "r2mae_cl",
    "r2mae_cl_k0",
)
_COMBINATIONS = ("r2mae_dynamic", "cl", "cl_k0", "r2mae_cl", "r2mae_cl_k0")


@dataclass(frozen=True)
class Domain:
    """Masking ratios of the schemes in one domain."""

    low: float  # range of R²MAE
    high: float
    default: float
    fixed_low: float | None  # None if the paper has no such row
    fixed_high: float
    combinations: bool  # whether R²MAE + Dynamic and the curricula exist
    rate: float | None = None  # share of the fall of Dynamic per step; None if it takes the whole run


_CELLS = Domain(0.1, 0.5, 0.25, 0.10, 0.50, True)
DOMAINS = {
    "single_cell": _CELLS,
    "hlca": replace(_CELLS, rate=1 / 300_000),
    "sea_ad": replace(_CELLS, rate=1 / 150_000),
    "dna": Domain(0.05, 0.30, 0.15, 0.05, 0.30, True),
    "vision": Domain(0.6, 0.9, 0.75, 0.5, 0.9, False),
    "text": Domain(0.15, 0.40, 0.15, None, 0.40, True),
}


def scheme_names(domain: str) -> tuple[str, ...]:
    """Return the names of a domain's schemes, in the order of ``SCHEME_NAMES``."""
    d = DOMAINS[domain]
    absent = (() if d.combinations else _COMBINATIONS) + (() if d.fixed_low is not None else ("mae_low",))
    return tuple(name for name in SCHEME_NAMES if name not in absent)


class Scheme(NamedTuple):
    """Masking schedule and curriculum of one row in the paper's tables.

    Attributes
    ----------
    mask_ratio
        Schedule of the masking ratio.
    curriculum
        ``"cl"`` or ``"cl_k0"``, whose times are shares of the run; settings, where they are steps; or None.
    """

    mask_ratio: RatioSchedule
    curriculum: str | Curriculum | None = None


def schemes(
    domain: str = "single_cell", *, seed: int = 0, curriculum: Curriculum | None = None
) -> dict[str, Scheme]:
    """Return the masking schemes compared in the paper, with the paper's ratios.

    Parameters
    ----------
    domain
        ``"single_cell"``, ``"dna"``, ``"vision"`` or ``"text"``, whose Dynamic schedules and curricula follow the length
        of the run; or ``"hlca"`` or ``"sea_ad"``, with the paper's steps on these atlases. For images there are neither
        curricula nor R²MAE + Dynamic, whose ratios would exceed 1; for text there is no fixed ratio below the default.
    seed
        Random seed for the schedules.
    curriculum
        Settings of the curricula in place of the domain's; k = 0 keeps its gradient at +1.

    Returns
    -------
    Schemes by name, in the order of the paper's tables.

    Raises
    ------
    ValueError
        If the domain is unknown.

    Notes
    -----
    Dong et al. (2025), Tables 1 to 4 and 6. The definition of R²MAE + Dynamic is inferred. The paper has it and the
    curricula for cells and DNA only, so those of text are inferred too.

    Examples
    --------
    >>> import scr2mae
    >>> scr2mae.schemes("vision")["r2mae"].mask_ratio
    UniformRatio(low=0.6, high=0.9, seed=0)
    >>> ratio, curriculum = scr2mae.schemes()["r2mae_cl"]
    >>> curriculum
    'cl'
    >>> round(scr2mae.schemes("hlca")["dynamic"].mask_ratio(243_000, 243_000), 3)  # the paper's rate ends above 0.1
    0.176
    """
    from scr2mae.masking import DecayRatio, FixedRatio, MDLMRatio, UniformDecayRatio, UniformRatio

    if domain not in DOMAINS:
        raise ValueError(f"domain must be one of {list(DOMAINS)}, got {domain!r}.")
    d = DOMAINS[domain]
    default, uniform = FixedRatio(d.default), UniformRatio(d.low, d.high, seed=seed)
    rows = {
        "mae": Scheme(default),
        "mae_high": Scheme(FixedRatio(d.fixed_high)),
        "mdlm": Scheme(MDLMRatio(seed=seed)),
        "dynamic": Scheme(DecayRatio(d.high, d.low, d.rate)),
        "r2mae": Scheme(uniform),
    }
    if d.fixed_low is not None:
        rows["mae_low"] = Scheme(FixedRatio(d.fixed_low))
    if d.combinations:
        rows["r2mae_dynamic"] = Scheme(UniformDecayRatio(d.low, d.high, seed, d.rate))
        for name in ("cl", "cl_k0"):
            chosen = _curriculum(name, domain, curriculum)
            rows[name] = Scheme(default, chosen)
            rows[f"r2mae_{name}"] = Scheme(uniform, chosen)
    return {name: rows[name] for name in scheme_names(domain)}


def _curriculum(name: str, domain: str, settings: Curriculum | None) -> str | Curriculum | None:
    """Return the name of a curriculum if its network resolves it, else its settings."""
    if settings is None and domain not in ATLASES:
        return name
    from scr2mae.nn.curriculum import Curriculum

    if settings is None:
        return Curriculum.named(name, domain=domain)
    return settings if name == "cl" else replace(settings, schedule=replace(settings.schedule, final=1.0))


@dataclass(frozen=True)
class PaperSettings:
    """The paper's runs on cells, as keyword arguments.

    Attributes
    ----------
    preprocess
        Of :func:`scr2mae.datasets.preprocess`.
    setup
        Of :meth:`scr2mae.R2MAEModel.setup_anndata`: the columns of an atlas.
    model
        Of :class:`scr2mae.R2MAEModel`: widths and layers.
    train
        Of :meth:`scr2mae.R2MAEModel.train`.
    benchmark
        Of :func:`scr2mae.benchmark.run`: the settings above, the rows of the table and the protocol of the probes.
    """

    preprocess: Mapping[str, Any]
    setup: Mapping[str, Any]
    model: Mapping[str, Any]
    train: Mapping[str, Any]
    benchmark: Mapping[str, Any]


ATLASES: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "hlca": {"preprocess": {"min_genes": 20}, "setup": {"donor_key": "donor_id", "batch_key": "dataset"}},
        "sea_ad": {"preprocess": {}, "setup": {"donor_key": "donor_id"}},
    }
)
_MODEL = {"encoder": "mlp", "n_hidden": 1000, "n_latent": 512, "n_layers": 2, "n_layers_decoder": 1}
_TRAIN = {
    "max_epochs": 50,
    "batch_size": 400,
    "plan_kwargs": {"optimizer": "Adam", "lr": 1e-3, "weight_decay": 1e-4, "averaging": None},
    "precision": "32-true",
    "integration": False,
}
_SPLIT = {"train_size": 0.9, "split_key": False}  # the benchmark has its own


def paper(atlas: str | None = None) -> PaperSettings:
    """Return the settings of the paper's runs on cells.

    Parameters
    ----------
    atlas
        ``"hlca"`` or ``"sea_ad"`` for the paper's columns, and for its steps of Dynamic and the curricula; None for any
        other data, where these follow the length of the run.

    Returns
    -------
    Arguments of the functions that preprocess, set up, train and compare.

    Raises
    ------
    ValueError
        If the atlas is unknown.

    Notes
    -----
    Dong et al. (2025), appendix C.8. The documentation's page on reproducing the paper lists each setting, and which are
    inferred: the widths, one training seed and one split of donors, and that scVI trains for as many epochs as the masked
    autoencoders; the heuristic of scvi-tools is made for 20,000 cells and gives four on HLCA.

    Examples
    --------
    >>> import scr2mae
    >>> settings = scr2mae.paper("hlca")
    >>> settings.train["max_epochs"], settings.train["batch_size"]
    (50, 400)
    >>> settings.benchmark["schemes"]
    'hlca'
    """
    if atlas is not None and atlas not in ATLASES:
        raise ValueError(f"atlas must be one of {list(ATLASES)} or None, got {atlas!r}.")
    own: Mapping[str, Any] = {"preprocess": {}, "setup": {}} if atlas is None else ATLASES[atlas]
    return PaperSettings(
        preprocess={"n_top_genes": 5000, **own["preprocess"]},
        setup=dict(own["setup"]),
        model=dict(_MODEL),
        train=_TRAIN | _SPLIT,
        benchmark={
            "methods": ("lognorm", "scvi", *SCHEME_NAMES),
            "schemes": atlas or "single_cell",
            "model_kwargs": dict(_MODEL),
            "train_kwargs": dict(_TRAIN),
            "scvi_train_kwargs": {"max_epochs": _TRAIN["max_epochs"]},
            "seeds": (0,),
            "n_splits": 1,
            "protocol": "paper",
            "scale": False,
            **own["setup"],
        },
    )
