"""What the subcommands of ``scr2mae vision`` do."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scr2mae.cli.command import UsageError, loading
from scr2mae.cli.files import check_free, check_writable, replacing
from scr2mae.cli.training import check_checkpoints, mask_ratio, trainer_options

if TYPE_CHECKING:
    import numpy as np

    from scr2mae.extra.vision.datasets import Images

__all__ = ["embed", "finetune", "pretrain", "probe"]


def _check_training(args: argparse.Namespace) -> None:
    """Refuse whatever would stop the run later, before anything heavy is loaded."""
    _check_exists(args.input)
    if args.batch_size == 1:
        raise UsageError("--batch-size must be at least 2")
    check_free(args.output, folder=True, force=args.force)
    check_writable(args.output)
    check_checkpoints(args)


def _check_exists(place: Path) -> None:
    if not place.exists():
        raise FileNotFoundError(f"No file or folder {place}.")


def _open(
    args: argparse.Namespace, place: Path, *splits: str, size: int | None = None, **options: Any
) -> Images:
    """Open the first of some splits, or images that are not split."""
    from scr2mae.extra import vision

    found = vision.image_splits(place)
    wanted = next((split for split in splits if split in found), None)
    if found and wanted is None:
        raise ValueError(f"{place} has the splits {found}; expected {' or '.join(splits)}.")
    size = args.image_size or size
    if size is not None:
        options["size"] = size
    if not (place / "list_attr_celeba.txt").is_file():
        options["n_channels"] = 1 if args.gray else 3
    return vision.open_images(place, split=wanted, **options)


def _train_options(args: argparse.Namespace) -> dict[str, Any]:
    return {"seed": args.seed, "n_workers": args.workers, **trainer_options(args)}


def _recipe(args: argparse.Namespace, name: str) -> Any:
    from scr2mae.extra import vision

    given = {
        key: value for key in ("max_epochs", "batch_size", "lr") if (value := getattr(args, key)) is not None
    }
    return replace(vision.RECIPES[name], **given)


def _build(args: argparse.Namespace, images: Images) -> Any:
    """Make a network for images of the size and channels that there are."""
    import numpy as np

    from scr2mae.extra import vision

    n_channels, height, width = images.batch(np.arange(1))["image"].shape[1:]
    sizes = args.width
    if args.network != "unet" and height != width:
        raise ValueError(f"Images must be square for this network, got {height} x {width}.")
    if args.network == "mlp":
        n_hidden, n_latent = sizes or (512, 64)
        return vision.MaskedMLP(
            n_hidden=n_hidden, n_latent=n_latent, image_size=height, n_channels=n_channels
        )
    if args.network == "unet":
        return vision.MaskedUNet(base_channels=(sizes or [16])[0], n_channels=n_channels)
    config = vision.vit_config(
        args.preset, image_size=height, patch_size=args.patch_size, n_channels=n_channels
    )
    return vision.R2ViTMAE(config)


def pretrain(args: argparse.Namespace) -> str:
    """Pretrain on images, a share of each hidden."""
    ratio, sizes = mask_ratio(args), args.width
    if sizes and len(sizes) != {"mlp": 2, "unet": 1, "vit": 0}[args.network]:
        raise UsageError("--width takes two numbers for an MLP, one for a U-Net and none for a ViT")
    _check_training(args)
    with loading():
        import torch

        from scr2mae import schemes
        from scr2mae.extra import vision
    images = _open(args, args.input, "train")
    torch.manual_seed(args.seed)
    network = _build(args, images)
    scheme = schemes("vision", seed=args.seed)[args.scheme].mask_ratio
    vision.pretrain(
        network,
        images,
        mask_ratio=scheme if ratio is None else ratio,
        recipe=_recipe(args, args.network),
        validation=None if args.validation is None else _open(args, args.validation, "validation", "test"),
        augment=None if args.no_augment or args.network != "vit" else vision.PretrainAugment(),
        **_train_options(args),
    )
    return _finish(network, args, len(images))


def finetune(args: argparse.Namespace) -> str:
    """Finetune a pretrained ViT-MAE on labeled images."""
    _check_training(args)
    with loading():
        import torch

        from scr2mae.extra import vision
    network = vision.from_pretrained(args.model)
    if not isinstance(network, vision.R2ViTMAE):
        raise ValueError(
            f"{args.model} holds a {type(network).__name__}; only a ViT is finetuned, others are probed."
        )
    images = _open(args, args.input, "train", size=network.image_size)
    labels = _classes_of(images, args.input)
    classes = getattr(images, "classes_", None)
    validation = None
    if args.validation is not None:
        options = {} if classes is None else {"classes": classes}
        validation = _open(args, args.validation, "validation", "test", size=network.image_size, **options)
    n_classes = len(classes) if classes else int(labels.max()) + 1
    torch.manual_seed(args.seed)
    classifier = vision.ViTMAEClassifier.from_network(network, n_classes)
    vision.finetune(
        classifier,
        images,
        recipe=_recipe(args, "finetune"),
        validation=validation,
        augment=None if args.no_augment else vision.FinetuneAugment(n_classes),
        **_train_options(args),
    )
    classifier.about = {"classes": classes}
    text = _finish(classifier, args, len(images))
    if validation is None:
        return text
    correct = vision.predict_proba(classifier, validation).argmax(axis=1) == _classes_of(
        validation, args.validation
    )
    return f"{text}\nvalidation_accuracy\t{correct.mean():.4f}"


def _finish(network: Any, args: argparse.Namespace, n_images: int) -> str:
    """Save the network, say what came out: one quantity a line."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    if getattr(rank_zero_only, "rank", 0):
        return ""  # one of several processes writes
    network.save_pretrained(args.output, overwrite=True)
    history = network.history_
    rows: dict[str, Any] = {"model": args.output, "images": n_images, "epochs": len(history["train_loss"])}
    for name in ("train_loss", "validation_loss"):
        if name in history:
            rows[name] = f"{history[name][name].iloc[-1]:.4f}"
    return "\n".join(f"{name}\t{value}" for name, value in rows.items())


def _classes_of(images: Images, place: Path) -> np.ndarray:
    if images.labels is None or images.labels.dim() != 1:
        raise ValueError(f"{place} has no classes; put the images of each class in a subfolder.")
    return images.labels.numpy()


def _device(accelerator: str) -> str:
    import torch

    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return "cuda"
    if accelerator == "gpu":
        raise ValueError("There is no CUDA device; use --accelerator cpu.")
    return "cpu" if accelerator == "auto" else accelerator


def probe(args: argparse.Namespace) -> str:
    """Fit a head on the embeddings of a network that stays as it is."""
    _check_exists(args.input)
    with loading():
        import torch

        from scr2mae.extra import vision
    network = vision.from_pretrained(args.model)
    size = getattr(network, "image_size", None)
    train = _open(args, args.input, "train", size=size)
    classes = getattr(train, "classes_", None)
    options = {} if classes is None else {"classes": classes}
    if args.test is None and "test" not in vision.image_splits(args.input):
        raise ValueError(f"{args.input} has no test split; give test images with --test.")
    test = _open(args, args.test or args.input, "test", size=size, **options)
    y_train, y_test = _classes_of(train, args.input), _classes_of(test, args.test or args.input)
    device = _device(args.accelerator)
    x_train, x_test = (
        vision.embed(network, each, device=device, n_workers=args.workers) for each in (train, test)
    )
    torch.manual_seed(args.seed)
    head = vision.LinearHead(x_train.shape[1], int(y_train.max()) + 1, normalize=True)
    recipe = replace(vision.RECIPES["linear"], max_epochs=args.max_epochs)
    vision.fit_head(
        head,
        x_train,
        y_train,
        recipe=recipe,
        seed=args.seed,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    right = head.predict(torch.from_numpy(x_test)).numpy() == y_test
    return f"images_train\t{len(train)}\nimages_test\t{len(test)}\naccuracy\t{right.mean():.4f}"


def embed(args: argparse.Namespace) -> str:
    """Write the embedding of each image to a file."""
    _check_exists(args.input)
    check_free(args.output, folder=False, force=args.force)
    check_writable(args.output.parent)
    with loading():
        import numpy as np

        from scr2mae.extra import vision
    network = vision.from_pretrained(args.model)
    splits = ("train",) if args.split is None else (args.split,)
    images = _open(args, args.input, *splits, size=getattr(network, "image_size", None))
    features = vision.embed(network, images, device=_device(args.accelerator), n_workers=args.workers)
    with replacing(args.output) as part, part.open("wb") as file:
        np.save(file, features)
    return f"output\t{args.output}\nimages\t{len(features)}\nwidth\t{features.shape[1]}"
