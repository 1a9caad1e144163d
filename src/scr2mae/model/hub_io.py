"""Models on the Hugging Face hub, as safetensors and JSON; and, on request, in scvi-tools' own layout.

``scvi.hub`` is not used: it unpickles what it downloads.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scr2mae._utils.compat import torch_device
from scr2mae._utils.model_folder import read_folder, read_index, weights_file, write_folder
from scr2mae._utils.optional import require
from scr2mae.masking import schedule_to_state
from scr2mae.model import state as saved
from scr2mae.model.card import TAGS, model_card

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from torch import Tensor

    from scr2mae.model import R2MAEModel

__all__ = ["export_scvi", "from_hub", "push_to_hub"]

_METADATA = "model.json"
_WEIGHTS = "weights-*.safetensors"
_CARD = "README.md"
_MAIN = "main"
_UNAUTHORISED = (401, 403)


@contextmanager
def _clear_errors(repo: str, revision: str) -> Iterator[None]:
    """Say what was wanted and what to do where ``huggingface_hub`` says what a server answered."""
    require("huggingface_hub", extra="hub")
    from huggingface_hub import errors

    # The base of every error of the HTTP library, whichever one this version of huggingface_hub uses.
    http_error: Any = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(f"repo must be 'owner/name' of a repository on the hub, got {repo!r}.") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo} has no branch, tag or commit {revision!r}.") from error
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{repo} is gated; ask its owner for access and pass token= or run 'hf auth login'."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"No repository {repo!r} on the hub, or it is private; check the name, and pass token= or run 'hf auth login'."
        ) from error
    except errors.LocalEntryNotFoundError as error:  # a child of the next, so it comes first
        raise ConnectionError(
            f"The hub did not answer and {repo} at {revision!r} was not downloaded before; check the connection."
        ) from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo} at {revision!r} is not a scr2mae model, or not a whole one: {error}"
        ) from error
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in _UNAUTHORISED:
            raise PermissionError(
                f"The hub refused access to {repo}; pass token= with the right to it, or run 'hf auth login'."
            ) from error
        raise
    except http_error as error:
        raise ConnectionError(f"The hub could not be reached: {error}") from error
    except RuntimeError as error:
        # httpx, where an older huggingface_hub tries again on the connection that it closed after the first try.
        if "client has been closed" not in str(error):
            raise
        raise ConnectionError(
            f"The hub did not answer and {repo} at {revision!r} was not downloaded before; check the connection."
        ) from error


def push_to_hub(
    model: R2MAEModel,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    commit_message: str = "Upload a scr2mae model",
    license: str | None = None,
    group_names: bool = False,
    card: bool = True,
    token: str | bool | None = None,
) -> str:
    """Upload a trained model, with a card filled in from the record of its training, in one commit.

    Parameters
    ----------
    model
        A trained model.
    repo
        ``"owner/name"``; made if it does not exist.
    private
        Whether a repository that is made is private. The visibility of one that exists is not changed.
    revision
        Branch; made if it does not exist. None for ``main``.
    commit_message
        First line of the commit.
    license
        License of the weights as the hub spells it, such as ``"cc-by-4.0"``; None states none.
    group_names
        Whether the names of the donors (or other groups) on each side of the split are uploaded. Names of batches
        and of other covariates' categories always are: the model needs them.
    card
        Whether ``README.md`` is written; False keeps the one that is there.
    token
        Access token; None takes the one of ``hf auth login``.

    Returns
    -------
    Hash of the commit, for :func:`from_hub`.

    Raises
    ------
    ImportError
        If ``huggingface_hub`` is not installed.
    RuntimeError
        If the model is not trained.
    ValueError
        If ``repo`` is no name of a repository.
    PermissionError
        If the token gives no right to write.
    ConnectionError
        If the hub cannot be reached.
    """
    hub = require("huggingface_hub", extra="hub")
    if not model.is_trained_:
        raise RuntimeError("The model is not trained yet; call model.train() first.")
    branch = revision or _MAIN
    with tempfile.TemporaryDirectory() as folder, _clear_errors(repo, branch):
        tensors, metadata = saved.to_state(model)
        if metadata["split"] is not None and not group_names:
            metadata["split"] = {**metadata["split"], "groups": {}}
        write_folder(folder, saved.FORMAT, tensors, metadata, runs=metadata["runs"])
        api = hub.HfApi(token=token, library_name="scr2mae", library_version=version("scr2mae"))
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if branch != _MAIN:
            api.create_branch(repo, branch=branch, exist_ok=True)
        if card:
            text = _card_text(hub, model, metadata, repo=repo, branch=branch, license=license)
            (Path(folder) / _CARD).write_text(text, encoding="utf-8")
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=branch,
            commit_message=commit_message,
            allow_patterns=[_METADATA, _WEIGHTS, _CARD],
            delete_patterns=[_WEIGHTS],
        )
    return str(commit.oid)


def _card_text(
    hub: Any, model: R2MAEModel, metadata: dict[str, Any], *, repo: str, branch: str, license: str | None
) -> str:
    split = model.split_
    sides = ("train", "validation", "test")
    header = hub.ModelCardData(
        license=license, library_name="scr2mae", tags=TAGS, model_name=repo.rpartition("/")[2]
    )
    body = model_card(
        metadata,
        repo=repo,
        revision=branch,
        split_sizes={} if split is None else {side: len(getattr(split, side)) for side in sides},
        versions={name: version(name) for name in ("scr2mae", "scvi-tools", "torch", "anndata")},
    )
    return f"---\n{header.to_yaml()}\n---\n\n{body}"


def _download(repo: str, revision: str, *, token: str | bool | None) -> Path:
    """Fetch the two files of a model, and nothing else, into the cache; return their folder."""
    hub = require("huggingface_hub", extra="hub")
    options = {"token": token, "library_name": "scr2mae", "library_version": version("scr2mae")}
    metadata = Path(hub.hf_hub_download(repo, _METADATA, revision=revision, **options))
    folder = metadata.parent
    document = read_index(folder, saved.FORMAT, follow_links=True)
    name = weights_file(document, place=f"{_METADATA} of {repo}")
    # The folder is named by its commit, so the weights are of the same one, whatever is pushed in between.
    hub.hf_hub_download(repo, name, revision=folder.name, **options)
    return folder


def from_hub(
    cls: type[R2MAEModel],
    repo: str,
    *,
    revision: str | None = None,
    adata: AnnData | None = None,
    accelerator: str = "auto",
    device: int | str = "auto",
    token: str | bool | None = None,
) -> R2MAEModel:
    """Download a model into the cache of ``huggingface_hub`` and load it. Nothing is unpickled.

    Only ``model.json`` and the weights that it names are downloaded, whatever else the repository holds, and the
    hash of the weights is checked.

    Parameters
    ----------
    cls
        Class of the model.
    repo
        ``"owner/name"``.
    revision
        Branch, tag or commit; None for ``main``. A commit, as :func:`push_to_hub` returns it, always gives the same model.
    adata
        Data to attach, genes as in the model; None for a model that embeds what it is given.
    accelerator, device
        Where the model goes.
    token
        Access token; None takes the one of ``hf auth login``.

    Returns
    -------
    The model, ready to embed. Without a connection, the one that was downloaded before.

    Raises
    ------
    ImportError
        If ``huggingface_hub`` is not installed.
    FileNotFoundError
        If there is no such repository or revision, or no model in it.
    PermissionError
        If the repository is gated or the token gives no right to read it.
    ConnectionError
        If the hub cannot be reached and the model was not downloaded before.
    ValueError
        If ``repo`` is no name of a repository, the model is damaged or foreign, or the genes of ``adata`` are not its.
    """
    branch, place = revision or _MAIN, torch_device(accelerator, device)
    with _clear_errors(repo, branch):
        folder = _download(repo, branch, token=token)
    tensors, metadata, _ = read_folder(folder, saved.FORMAT, follow_links=True)
    model = saved.from_state(cls, tensors, metadata, adata=adata, place=repo)
    model.to_device(place)
    return model


def export_scvi(model: R2MAEModel, dir_path: str | Path, *, overwrite: bool = False) -> None:
    """Write ``model.pt`` as scvi-tools does, for programs that read that layout. It is a pickle.

    Parameters
    ----------
    model
        A model.
    dir_path
        Folder that receives ``model.pt``; made if it does not exist.
    overwrite
        Whether a ``model.pt`` that is there is replaced.

    Raises
    ------
    FileExistsError
        If there is a ``model.pt`` and ``overwrite`` is False.
    ValueError
        If the model was grown for a query, or its ``mask_ratio`` is a function of the user's own.

    Notes
    -----
    Keys and their meaning are those of ``scvi.model.base.BaseModelClass.save`` in scvi-tools 1.4:
    ``model_state_dict``, ``var_names`` and ``attr_dict``, the last with the registry and the arguments of the class.
    Use :meth:`scr2mae.R2MAEModel.save` for everything else: a pickle can run code when it is opened.
    """
    if model.n_new_categories_ is not None:
        raise ValueError(
            "This model was grown for a query, which scvi-tools' layout cannot describe; export its reference."
        )
    if schedule_to_state(model.mask_ratio) is None:
        raise ValueError(
            f"mask_ratio={model.mask_ratio!r} is no schedule of scr2mae.masking; set model.mask_ratio to one, a float or a pair."
        )
    path = Path(dir_path) / "model.pt"
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} already exists; choose another folder or pass overwrite=True.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.save(_scvi_layout(model), part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _scvi_layout(model: R2MAEModel) -> dict[str, Any]:
    weights: dict[str, Tensor] = {name: t.detach().cpu() for name, t in model.module.state_dict().items()}
    public = {name: value for name, value in vars(model).items() if name.endswith("_")}
    for ours in (
        "split_",
        "n_new_categories_",
    ):  # what no other program can read, and the loader does without
        public.pop(ours, None)
    arguments = {**model.init_params_, "mask_ratio": model.mask_ratio, "curriculum": model.curriculum}
    return {
        "model_state_dict": weights,
        "var_names": model.spec.var_names.astype(object),
        "attr_dict": {
            **public,
            "registry_": model.registry,
            "init_params_": {"non_kwargs": arguments, "kwargs": {}},
        },
    }
