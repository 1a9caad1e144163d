"""The hub, against a server on this machine: what goes up comes down, nothing else does, and errors say what to do."""

import inspect
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from scr2mae import R2MAEModel
from scr2mae._utils.model_folder import read_folder
from scr2mae._utils.optional import require
from scr2mae._utils.optional import require as require_of_extra
from scr2mae.model.state import FORMAT
from scr2mae.probe import Probe, fit_probe

pytest.importorskip("huggingface_hub")

REPO = "ann/blood"


@pytest.fixture
def with_donors(train_tiny, adata):
    return train_tiny(adata, setup={"donor_key": "donor", "batch_key": "batch"})


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_model_that_was_pushed_embeds_alike_when_it_is_loaded(fake_hub, trained, adata):
    commit = trained.push_to_hub(REPO)
    for revision in (None, "main", commit):
        loaded = R2MAEModel.from_hub(REPO, revision=revision, accelerator="cpu")
        np.testing.assert_array_equal(
            loaded.get_latent_representation(adata), trained.get_latent_representation(adata)
        )
    assert loaded.is_trained_
    assert set(loaded.history_) == set(trained.history_)


def test_data_can_be_attached_to_a_model_from_the_hub(fake_hub, trained, simulate):
    trained.push_to_hub(REPO)
    loaded = R2MAEModel.from_hub(REPO, adata=simulate(), accelerator="cpu")
    assert loaded.get_latent_representation().shape == (120, 4)
    assert loaded.split_.sha256 == trained.split_.sha256
    with pytest.raises(ValueError, match="genes of adata are not the model's"):
        R2MAEModel.from_hub(REPO, adata=simulate(n_vars=50))


def test_a_push_uploads_safetensors_json_and_a_card_only(fake_hub, trained):
    trained.push_to_hub(REPO)
    _, files = fake_hub.repositories[REPO].tree("main")
    kinds = sorted(name.rpartition(".")[2] for name in files if name != ".gitattributes")
    assert kinds == ["json", "md", "safetensors"]


def test_a_second_push_replaces_the_weights_and_keeps_other_files(fake_hub, trained, reference):
    trained.push_to_hub(REPO)
    repository = fake_hub.repositories[REPO]
    repository.commit({**repository.tree("main")[1], "notes.txt": b"mine"}, branch="main")
    reference.push_to_hub(REPO, commit_message="with covariates")
    _, files = repository.tree("main")
    assert len([name for name in files if name.endswith(".safetensors")]) == 1
    assert files["notes.txt"] == b"mine"
    assert repository.messages[-1] == "with covariates"
    assert R2MAEModel.from_hub(REPO).spec.continuous == ("age",)


def test_the_same_weights_can_be_pushed_twice(fake_hub, trained):
    trained.push_to_hub(REPO)
    trained.push_to_hub(REPO)
    assert R2MAEModel.from_hub(REPO).is_trained_


def test_a_branch_is_made_and_main_stays_as_it_was(fake_hub, trained, reference):
    trained.push_to_hub(REPO)
    reference.push_to_hub(REPO, revision="covariates")
    assert R2MAEModel.from_hub(REPO).spec.continuous == ()
    assert R2MAEModel.from_hub(REPO, revision="covariates").spec.continuous == ("age",)


def test_a_commit_gives_its_model_after_main_has_moved(fake_hub, trained, reference):
    first = trained.push_to_hub(REPO)
    reference.push_to_hub(REPO)
    assert R2MAEModel.from_hub(REPO, revision=first).spec.continuous == ()


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_private_unless_it_is_asked_not_to_be(fake_hub, trained, private):
    trained.push_to_hub(REPO, **({} if private else {"private": False}))
    assert fake_hub.repositories[REPO].private is private


def test_the_token_is_sent_and_written_nowhere(fake_hub, trained, cache):
    trained.push_to_hub(REPO, token="hf_secret")
    R2MAEModel.from_hub(REPO, token="hf_secret")
    assert fake_hub.tokens == {"Bearer hf_secret"}
    stored = [path for path in cache.parent.rglob("*") if path.is_file()]
    assert stored
    assert not any(b"hf_secret" in path.read_bytes() for path in stored)


def test_names_of_donors_stay_at_home_unless_asked_for(fake_hub, with_donors):
    with_donors.push_to_hub(REPO)
    _, files = fake_hub.repositories[REPO].tree("main")
    assert not any(b"donor0" in content for content in files.values())
    loaded = R2MAEModel.from_hub(REPO)
    assert loaded.get_latent_representation(with_donors.adata).shape[1] == 4
    with_donors.push_to_hub(REPO, group_names=True)
    document = json.loads(fake_hub.repositories[REPO].tree("main")[1]["model.json"])
    assert document["split"]["groups"] == with_donors.split_.groups


def test_a_probe_goes_up_with_its_model_and_comes_down(fake_hub, with_donors, adata, train_tiny, simulate):
    probe = fit_probe(
        adata, model=with_donors, target="cell_type", kind="classification", donor_key="donor", n_bootstrap=0
    )
    with_donors.push_to_hub(REPO, probes={"types": probe})
    _, files = fake_hub.repositories[REPO].tree("main")
    assert not any(b"donor0" in content for content in files.values())
    card = files["README.md"].decode()
    assert "## Probe `types`" in card
    assert "| Target | `cell_type`, classification |" in card
    assert "Probe.from_hub('ann/blood', 'types', revision='main', model=model)" in card
    fake_hub.requests.clear()
    again = Probe.from_hub(REPO, "types", model=R2MAEModel.from_hub(REPO, accelerator="cpu"))
    assert again.predict(adata)["probability"].equals(
        probe.predict(adata.copy(), donor_key="chemistry")["probability"]
    )
    with_donors.push_to_hub(REPO, probes={"types": probe})
    weights = [name for name in fake_hub.repositories[REPO].tree("main")[1] if name.startswith("probes/")]
    assert len(weights) == 2
    with pytest.raises(FileNotFoundError):
        Probe.from_hub(REPO, "other")
    with pytest.raises(ValueError, match="Wanted a name of letters"):
        with_donors.push_to_hub(REPO, probes={"../types": probe})
    other = train_tiny(simulate(), model={"seed": 3})
    with pytest.raises(ValueError, match="belongs to another model"):
        other.push_to_hub(REPO, probes={"types": probe})


def test_a_pickle_beside_the_model_is_not_downloaded(fake_hub, trained, tmp_path, cache):
    trained.push_to_hub(REPO)
    repository, bomb = fake_hub.repositories[REPO], pickle.dumps(Bomb(tmp_path / "went_off"))
    _, files = repository.tree("main")
    beside = dict.fromkeys(("model.pt", "pytorch_model.bin", "weights-0.pkl", "config.py"), bomb)
    repository.commit({**files, **beside}, branch="main")
    fake_hub.requests.clear()
    R2MAEModel.from_hub(REPO)
    assert {name.rpartition(".")[2] for name in fake_hub.downloads()} == {"json", "safetensors"}
    assert not any(path.read_bytes() == bomb for path in cache.rglob("*") if path.is_file())
    assert not (tmp_path / "went_off").exists()


@pytest.mark.parametrize("name", ["model.pt", "../model.json", "weights-0.safetensors"])
def test_weights_of_another_name_are_refused_before_they_are_downloaded(fake_hub, trained, name, tmp_path):
    trained.push_to_hub(REPO)
    repository = fake_hub.repositories[REPO]
    _, files = repository.tree("main")
    document = json.loads(files["model.json"])
    document["weights"]["file"] = name
    bomb = pickle.dumps(Bomb(tmp_path / "went_off"))
    repository.commit({"model.json": json.dumps(document).encode(), name: bomb}, branch="main")
    with pytest.raises(ValueError, match="not a file name of a model"):
        R2MAEModel.from_hub(REPO)
    assert fake_hub.downloads() == {"model.json"}
    assert not (tmp_path / "went_off").exists()


def test_a_pickle_under_the_name_of_the_weights_is_refused_unopened(fake_hub, trained, tmp_path):
    trained.push_to_hub(REPO)
    repository = fake_hub.repositories[REPO]
    _, files = repository.tree("main")
    weights = next(name for name in files if name.endswith(".safetensors"))
    repository.commit({**files, weights: pickle.dumps(Bomb(tmp_path / "went_off"))}, branch="main")
    with pytest.raises(ValueError, match="its hash is not the one in its name"):
        R2MAEModel.from_hub(REPO)
    assert not (tmp_path / "went_off").exists()


def test_a_model_that_was_downloaded_loads_without_a_connection(fake_hub, trained, monkeypatch, adata):
    from huggingface_hub import constants

    commit = trained.push_to_hub(REPO)
    R2MAEModel.from_hub(REPO)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    for revision in (None, commit):
        loaded = R2MAEModel.from_hub(REPO, revision=revision)
        np.testing.assert_array_equal(
            loaded.get_latent_representation(adata), trained.get_latent_representation(adata)
        )


@pytest.mark.parametrize("name", ["a/b/c", "two words", "", "ann/--x", "/absolute"])
def test_a_malformed_name_is_an_error_before_any_request(fake_hub, trained, name):
    with pytest.raises(ValueError, match="repo must be 'owner/name'"):
        R2MAEModel.from_hub(name)
    with pytest.raises(ValueError, match="repo must be 'owner/name'"):
        trained.push_to_hub(name)
    assert fake_hub.requests == []


def test_a_repository_that_is_not_there_says_so(fake_hub):
    with pytest.raises(FileNotFoundError, match=r"No repository 'ann/nothing' on the hub, or it is private"):
        R2MAEModel.from_hub("ann/nothing")


def test_a_revision_that_is_not_there_says_so(fake_hub, trained):
    trained.push_to_hub(REPO)
    with pytest.raises(FileNotFoundError, match="ann/blood has no branch, tag or commit 'v9'"):
        R2MAEModel.from_hub(REPO, revision="v9")


def test_a_repository_of_something_else_says_so(fake_hub, trained):
    trained.push_to_hub(REPO)
    fake_hub.repositories[REPO].commit({"model.pt": b"x"}, branch="main")
    with pytest.raises(FileNotFoundError, match="is not a scr2mae model"):
        R2MAEModel.from_hub(REPO)
    fake_hub.repositories[REPO].commit({"model.json": b"{}"}, branch="main")
    with pytest.raises(ValueError, match="does not describe a scr2mae model"):
        R2MAEModel.from_hub(REPO)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_says_that_a_token_is_needed(fake_hub, trained, status):
    fake_hub.refuse = status
    with pytest.raises(PermissionError, match="pass token="):
        trained.push_to_hub(REPO)


def test_no_connection_says_so(cache, trained, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.utils._http.time.sleep", lambda seconds: None
    )  # between its attempts
    with pytest.raises(
        ConnectionError, match="did not answer and ann/blood at 'main' was not downloaded before"
    ):
        R2MAEModel.from_hub(REPO)
    with pytest.raises(ConnectionError, match="could not be reached"):
        trained.push_to_hub(REPO)


def test_a_model_that_is_not_trained_is_not_pushed(fake_hub, adata):
    with pytest.raises(RuntimeError, match="not trained yet"):
        R2MAEModel(adata, n_hidden=16, n_latent=4).push_to_hub(REPO)
    assert fake_hub.requests == []


def test_the_missing_extra_is_named(monkeypatch, trained):
    for name in [name for name in sys.modules if name.startswith("huggingface_hub.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"needs huggingface_hub; pip install 'scr2mae\[hub\]'"):
        R2MAEModel.from_hub(REPO)
    with pytest.raises(ImportError, match=r"needs huggingface_hub; pip install 'scr2mae\[hub\]'"):
        trained.push_to_hub(REPO)


def test_other_modalities_name_their_extras_by_the_same_function():
    assert require_of_extra is require


def test_links_are_followed_only_when_asked_for(trained, tmp_path):
    trained.save(tmp_path / "model")
    weights = next((tmp_path / "model").glob("*.safetensors"))
    weights.rename(tmp_path / "blob")
    weights.symlink_to(tmp_path / "blob")
    with pytest.raises(FileNotFoundError, match="lacks its weights"):
        read_folder(tmp_path / "model", FORMAT)
    tensors, _, _ = read_folder(tmp_path / "model", FORMAT, follow_links=True)
    assert {name.partition(".")[0] for name in tensors} == {"module", "split"}


def test_the_methods_name_their_arguments():
    options = {"private", "revision", "commit_message", "license", "group_names", "card", "probes", "token"}
    assert set(inspect.signature(R2MAEModel.push_to_hub).parameters) == {"self", "repo", *options}
    options = {"revision", "adata", "accelerator", "device", "token"}
    assert set(inspect.signature(R2MAEModel.from_hub).parameters) == {"repo", *options}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "OfflineModeIsEnabled",
            ConnectionError,
            "offline mode .HF_HUB_OFFLINE., so ann/blood cannot be reached",
        ),
        ("LocalTokenNotFoundError", PermissionError, "needs a token to write; run 'hf auth login'"),
    ],
)
def test_offline_mode_and_a_missing_token_are_explained(
    name: str, error: type[Exception], message: str
) -> None:
    from huggingface_hub import errors

    from scr2mae.model.hub import _readable_errors

    with pytest.raises(error, match=message), _readable_errors("ann/blood", "main"):
        raise getattr(errors, name)("theirs")
