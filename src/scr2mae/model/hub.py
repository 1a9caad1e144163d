"""Models on the Hugging Face hub, as safetensors and JSON, and export to scvi-tools' own layout.

``scvi.hub`` is not used: it unpickles what it downloads.
"""

from __future__ import annotations

import re
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scr2mae._utils.compat import torch_device
from scr2mae._utils.files import as_path, atomic_write
from scr2mae._utils.model_folder import FolderFormat, read_folder, read_index, weights_file
from scr2mae._utils.optional import require
from scr2mae.masking import schedule_to_state
from scr2mae.model.base import NOT_TRAINED, CellModel
from scr2mae.model.card import TAGS, model_card
from scr2mae.model.saving import from_state, to_state, write_state
from scr2mae.model.state import FORMAT, ModelState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from anndata import AnnData

_WEIGHTS = "weights-*.safetensors"
_CARD = "README.md"
_PROBES = "probes"
_MAIN = "main"
_UNAUTHORIZED = (401, 403)


class HubMixin(CellModel):
    """``push_to_hub``, ``from_hub`` and ``export_scvi``."""

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = True,
        revision: str | None = None,
        commit_message: str = "Upload a scr2mae model",
        license: str | None = None,
        group_names: bool = False,
        card: bool = True,
        probes: Mapping[str, Any] | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Upload the trained model to the Hugging Face hub in one commit, with a card that describes its training.

        Parameters
        ----------
        repo
            ``"owner/name"``; created if it does not exist.
        private
            Whether a new repository is private. The visibility of an existing one is not changed.
        revision
            Branch; created if it does not exist. None for ``main``.
        commit_message
            First line of the commit.
        license
            License of the weights as the hub spells it, such as ``"cc-by-4.0"``; None for no license.
        group_names
            Whether to upload the names of the donors (or other groups) on each side of the split. Names of batches and
            of other covariates' categories are always uploaded, since the model needs them.
        card
            Whether to write ``README.md``; False keeps the existing one.
        probes
            Kept probes (:class:`scr2mae.probe.Probe`) of this model to upload with it and to describe in the card, by a
            name of letters, digits, ``-`` and ``_``. Names of their donors are uploaded only with ``group_names``.
        token
            Access token; if None, use the one of ``hf auth login``.

        Returns
        -------
        Hash of the commit, for :meth:`from_hub`.

        Raises
        ------
        ImportError
            If ``huggingface_hub`` is not installed.
        RuntimeError
            If the model is not trained.
        ValueError
            If ``repo`` is not the name of a repository, or a probe has another model or an invalid name.
        PermissionError
            If the token does not allow writing.
        ConnectionError
            If the hub cannot be reached.
        """
        hub = require("huggingface_hub", extra="hub")
        if not self.is_trained_:
            raise RuntimeError(NOT_TRAINED)
        branch, kept = revision or _MAIN, dict(probes or {})
        for name, probe in kept.items():
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"Wanted a name of letters, digits, '-' and '_' for a probe, got {name!r}.")
            probe.features.check_model(self)
        with tempfile.TemporaryDirectory() as folder, _readable_errors(repo, branch):
            state = to_state(self)
            if state.document["split"] is not None and not group_names:
                anonymous = {**state.document["split"], "groups": {}}
                state = replace(state, document={**state.document, "split": anonymous})
            write_state(type(self), folder, state)
            for name, probe in kept.items():
                probe.save(Path(folder) / _PROBES / name, donor_names=group_names)
            api = hub.HfApi(token=token, library_name="scr2mae", library_version=version("scr2mae"))
            repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
            if branch != _MAIN:
                api.create_branch(repo, branch=branch, exist_ok=True)
            if card:
                about = {name: probe.summary() for name, probe in kept.items()}
                text = _card(hub, state, repo=repo, branch=branch, license=license, probes=about)
                (Path(folder) / _CARD).write_text(text, encoding="utf-8")
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=branch,
                commit_message=commit_message,
                allow_patterns=[FORMAT.index, _WEIGHTS, _CARD, f"{_PROBES}/*"],
                delete_patterns=[_WEIGHTS, *(f"{_PROBES}/{name}/{_WEIGHTS}" for name in kept)],
            )
        return str(commit.oid)

    @classmethod
    def from_hub(
        cls,
        repo: str,
        *,
        revision: str | None = None,
        adata: AnnData | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        token: str | bool | None = None,
    ) -> Self:
        """Download a model from the Hugging Face hub and load it. Nothing is unpickled.

        Only ``model.json`` and the weights file listed in it are downloaded, into the cache of
        ``huggingface_hub``, and the hash of the weights is verified. Without a connection, a model that was
        downloaded before is loaded.

        Parameters
        ----------
        repo
            ``"owner/name"``.
        revision
            Branch, tag or commit; None for ``main``. A commit, as :meth:`push_to_hub` returns it, always gives the same
            model.
        adata
            Data to attach, with the genes of the model; None for a model without data of its own.
        accelerator, device
            Device of the model.
        token
            Access token; if None, use the one of ``hf auth login``.

        Returns
        -------
        The model, ready to embed.

        Raises
        ------
        ImportError
            If ``huggingface_hub`` is not installed.
        FileNotFoundError
            If there is no such repository or revision, or no model in it.
        PermissionError
            If the repository is gated or the token does not allow reading.
        ConnectionError
            If the hub cannot be reached and the model was not downloaded before.
        ValueError
            If ``repo`` is not the name of a repository, the model is damaged or not an scr2mae model, or the
            genes of ``adata`` are not the model's.
        """
        branch, place = revision or _MAIN, torch_device(accelerator, device)
        folder = download(repo, branch, FORMAT, token=token)
        tensors, document, _ = read_folder(folder, FORMAT, follow_links=True)
        model = from_state(cls, ModelState(tensors, document), adata=adata, place=repo)
        model.to_device(place)
        return model

    def export_scvi(self, dir_path: str | Path, *, overwrite: bool = False) -> None:
        """Write ``model.pt`` as scvi-tools does, for programs that read that layout. It is a pickle.

        Use :meth:`save` for everything else: a pickle can run code when it is opened.

        Parameters
        ----------
        dir_path
            Folder of ``model.pt``; made if it does not exist.
        overwrite
            Whether to replace an existing ``model.pt``.

        Raises
        ------
        FileExistsError
            If there is a ``model.pt`` and ``overwrite`` is False.
        ValueError
            If the model has new categories of a query, or ``mask_ratio`` is a function defined by the user.

        Notes
        -----
        Keys and their meaning are those of ``scvi.model.base.BaseModelClass.save`` in scvi-tools 1.4:
        ``model_state_dict``, ``var_names`` and ``attr_dict``, the last with the registry and the arguments of the class.
        """
        if self.n_new_categories_ is not None:
            raise ValueError(
                "This model has new categories of a query, which scvi-tools' layout cannot describe; export its reference."
            )
        if schedule_to_state(self.mask_ratio) is None:
            raise ValueError(
                f"mask_ratio={self.mask_ratio!r} is not a schedule of scr2mae.masking; set model.mask_ratio to one, a float or a pair."
            )
        path = as_path(dir_path) / "model.pt"
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} already exists; choose another folder or pass overwrite=True.")
        # Other programs cannot read the last two, and the loader does without them.
        public = {
            name: value
            for name, value in vars(self).items()
            if name.endswith("_") and name not in ("split_", "n_new_categories_")
        }
        public["history_"] = None if self.history_ is None else dict(self.history_)
        arguments = {**self.init_params_, "mask_ratio": self.mask_ratio, "curriculum": self.curriculum}
        layout = {
            "model_state_dict": {name: t.detach().cpu() for name, t in self.module.state_dict().items()},
            "var_names": self.spec.var_names.astype(object),
            "attr_dict": {
                **public,
                "registry_": self.registry,
                "init_params_": {"non_kwargs": arguments, "kwargs": {}},
            },
        }
        with atomic_write(path) as part:
            torch.save(layout, part)


@contextmanager
def _readable_errors(repo: str, revision: str) -> Iterator[None]:
    """Convert errors of ``huggingface_hub`` to built-in ones that say what failed and what to do."""
    require("huggingface_hub", extra="hub")
    from huggingface_hub import errors

    # The base of all errors of the HTTP library, which differs between versions of huggingface_hub.
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
            f"{repo} at {revision!r} is not a scr2mae model, or an incomplete one: {error}"
        ) from error
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in _UNAUTHORIZED:
            raise PermissionError(
                f"The hub refused access to {repo}; pass token= with the right to it, or run 'hf auth login'."
            ) from error
        raise
    except errors.LocalTokenNotFoundError as error:
        raise PermissionError(
            "The hub needs a token to write; run 'hf auth login' with a token that may write, or pass token=."
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"huggingface_hub is in offline mode (HF_HUB_OFFLINE), so {repo} cannot be reached; unset it, or load a folder."
        ) from error
    except http_error as error:
        raise ConnectionError(f"The hub could not be reached: {error}") from error
    except RuntimeError as error:
        # From httpx, where an older huggingface_hub retries on the connection that it closed after the first try.
        if "client has been closed" not in str(error):
            raise
        raise ConnectionError(
            f"The hub did not answer and {repo} at {revision!r} was not downloaded before; check the connection."
        ) from error


def _card(
    hub: Any,
    state: ModelState,
    *,
    repo: str,
    branch: str,
    license: str | None,
    probes: Mapping[str, Mapping[str, str]],
) -> str:
    """Return the model card with its header."""
    header = hub.ModelCardData(
        license=license, library_name="scr2mae", tags=TAGS, model_name=repo.rpartition("/")[2]
    )
    versions = {name: version(name) for name in ("scr2mae", "scvi-tools", "torch", "anndata")}
    body = model_card(state, repo=repo, revision=branch, versions=versions, probes=probes)
    return f"---\n{header.to_yaml()}\n---\n\n{body}"


def download(
    repo: str,
    revision: str | None,
    form: FolderFormat,
    *,
    subfolder: str | None = None,
    token: str | bool | None,
) -> Path:
    """Download only the two files of a model or probe into the cache; return their folder."""
    branch = revision or _MAIN
    with _readable_errors(repo, branch):
        hub = require("huggingface_hub", extra="hub")
        options = {"token": token, "library_name": "scr2mae", "library_version": version("scr2mae")}
        options["subfolder"] = subfolder
        folder = Path(hub.hf_hub_download(repo, form.index, revision=branch, **options)).parent
        document = read_index(folder, form, follow_links=True)
        name = weights_file(document, place=f"{form.index} of {repo}")
        # The snapshot is named by its commit, so that the weights are of the same commit, whatever is pushed in between.
        depth = 0 if subfolder is None else len(Path(subfolder).parts)
        commit = [folder, *folder.parents][depth].name
        hub.hf_hub_download(repo, name, revision=commit, **options)
    return folder
