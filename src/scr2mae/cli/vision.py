"""Masked autoencoders of images: pretrain, finetune, probe, embed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from scr2mae._paper import scheme_names
from scr2mae.cli import options as opt
from scr2mae.cli.files import check_exists, check_output, replacing
from scr2mae.cli.process import is_first_process, last_losses, loading, results

if TYPE_CHECKING:
    import numpy as np

    from scr2mae.extra.vision.datasets import Images

DataPath = Annotated[
    opt.InPath,
    opt.doc(
        "Folder of image files (one subfolder per class), folder in MNIST idx or CelebA format, or .npz file."
    ),
]
ModelPath = Annotated[opt.InPath, opt.doc("Folder of the pretrained network.")]


@opt.options("Data")
class Reading:
    """How images are read."""

    image_size: opt.PositiveInt | None = None
    """Side that images in files are scaled and cut to; 224 by default, 64 for CelebA, with --model its own."""
    gray: bool = False
    """Read image files as gray, not RGB."""
    workers: opt.NonNegativeInt = 0
    """Threads that decode images ahead."""

    def open(self, place: Path, *splits: str, size: int | None = None, like: Images | None = None) -> Images:
        """Open the first of some splits that exists, or all images, with the classes of others."""
        from scr2mae.extra import vision

        found = vision.image_splits(place)
        wanted = next((split for split in splits if split in found), None)
        if found and wanted is None:
            raise ValueError(f"{place} has the splits {found}; expected {' or '.join(splits)}.")
        options: dict[str, Any] = {
            "size": self.image_size or size,
            "classes": getattr(like, "classes_", None),
        }
        if not (place / "list_attr_celeba.txt").is_file():
            options["n_channels"] = 1 if self.gray else 3
        given = {name: value for name, value in options.items() if value is not None}
        return vision.open_images(place, split=wanted, **given)


@opt.options("Network")
class Network:
    """The network and its masking scheme."""

    network: Literal["vit", "mlp", "unet"] = "vit"
    """Kind of network."""
    preset: Literal["base", "tiny"] = "base"
    """Size of a ViT."""
    patch_size: opt.PositiveInt = 16
    """Side of a ViT's patches."""
    width: opt.PositiveInts | None = None
    """MLP: widths of its two hidden layers, 512 64 by default. U-Net: its base channels, 16 by default."""
    scheme: Annotated[str, Parameter(choices=scheme_names("vision"))] = "r2mae"
    """Masking scheme, with the paper's ratios."""
    mask_ratio: opt.MaskRatio | None = None

    def check(self) -> None:
        """Raise for options that do not go together."""
        opt.check_masking(self.scheme, self.mask_ratio)
        if self.width and len(self.width) != {"mlp": 2, "unet": 1, "vit": 0}[self.network]:
            raise opt.UsageError("--width takes two numbers for an MLP, one for a U-Net and none for a ViT")

    def build(self, images: Images) -> Any:
        """Make a network for the size and the channels of images."""
        import numpy as np

        from scr2mae.extra import vision

        n_channels, height, width = images.batch(np.arange(1))["image"].shape[1:]
        if self.network != "unet" and height != width:
            raise ValueError(f"Images must be square for this network, got {height} x {width}.")
        if self.network == "mlp":
            n_hidden, n_latent = self.width or (512, 64)
            return vision.MaskedMLP(
                n_hidden=n_hidden, n_latent=n_latent, image_size=height, n_channels=n_channels
            )
        if self.network == "unet":
            return vision.MaskedUNet(base_channels=(self.width or (16,))[0], n_channels=n_channels)
        config = vision.vit_config(
            self.preset, image_size=height, patch_size=self.patch_size, n_channels=n_channels
        )
        return vision.R2ViTMAE(config)


@opt.options("Training")
class Training:
    """Options of the commands that train."""

    max_epochs: opt.PositiveInt | None = None
    """Passes over the images; the paper's by default."""
    batch_size: opt.PositiveInt | None = None
    """Images per mini-batch and device; the paper's by default."""
    accumulate_grad_batches: opt.Accumulate = 1
    lr: opt.PositiveFloat | None = None
    """Learning rate, for a ViT per 256 images; the paper's by default."""
    validation: opt.InPath | None = None
    """Images scored after each epoch."""
    no_augment: bool = False
    """Leave images as they are."""
    seed: opt.Seed = 0

    def check(self, input: Path, run: opt.Run) -> None:
        """Check paths and options before heavy libraries are loaded."""
        if self.batch_size == 1:
            raise opt.UsageError("--batch-size must be at least 2")
        check_exists(input, self.validation)
        run.check()

    def arguments(self, recipe: str, reading: Reading) -> dict[str, Any]:
        """Return the arguments of the functions that train, with changes of the paper's recipe."""
        from scr2mae.extra import vision

        changes = {name: getattr(self, name) for name in ("max_epochs", "batch_size", "lr")}
        changes = {name: value for name, value in changes.items() if value is not None}
        return {
            "recipe": replace(vision.RECIPES[recipe], **changes),
            "accumulate_grad_batches": self.accumulate_grad_batches,
            "seed": self.seed,
            "n_workers": reading.workers,
        }


def pretrain(
    input: DataPath,
    /,
    *,
    run: opt.Run,
    reading: Reading = Reading(),
    network: Network = Network(),
    training: Training = Training(),
) -> str:
    r"""Pretrain a ViT-MAE, an MLP or a U-Net on images.

    Examples
    --------
    scr2mae vision pretrain imagenet/train -o vit/ --workers 8 \
        --precision bf16-mixed
    scr2mae vision pretrain photos/ -o vit/ --preset tiny --image-size 64 \
        --patch-size 8 --max-epochs 100
    scr2mae vision pretrain mnist/ -o mlp/ --network mlp --width 512 64 \
        --mask-ratio 0.5
    scr2mae vision pretrain celeba/ -o unet/ --network unet --width 16
    scr2mae vision pretrain photos/ -o vit/ --checkpoint-dir run1/ --resume run1/
    """
    network.check()
    training.check(input, run)
    with loading():
        import torch

        from scr2mae import schemes
        from scr2mae.extra import vision

    images = reading.open(input, "train")
    torch.manual_seed(training.seed)
    built = network.build(images)
    scheme = schemes("vision", seed=training.seed)[network.scheme].mask_ratio
    validation = training.validation
    vision.pretrain(
        built,
        images,
        mask_ratio=scheme if network.mask_ratio is None else network.mask_ratio,
        validation=None if validation is None else reading.open(validation, "validation", "test"),
        augment=None if training.no_augment or network.network != "vit" else vision.PretrainAugment(),
        **training.arguments(network.network, reading),
        **run.arguments,
    )
    return _save(built, run, len(images))


def finetune(
    input: DataPath,
    /,
    *,
    model: ModelPath,
    run: opt.Run,
    reading: Reading = Reading(),
    training: Training = Training(),
) -> str:
    r"""Finetune all weights of a pretrained ViT as a classifier, on one folder per class.

    Examples
    --------
    scr2mae vision finetune imagenet/train --model vit/ -o classifier/ \
        --validation imagenet/val
    """
    training.check(input, run)
    with loading():
        import torch

        from scr2mae.extra import vision

    network = vision.from_pretrained(model)
    if not isinstance(network, vision.R2ViTMAE):
        raise ValueError(
            f"{model} holds a {type(network).__name__}; only a ViT is finetuned, others are probed."
        )
    images = reading.open(input, "train", size=network.image_size)
    labels = _labels_of(images, input)
    classes = getattr(images, "classes_", None)
    validation = None
    if training.validation is not None:
        validation = reading.open(
            training.validation, "validation", "test", size=network.image_size, like=images
        )
    n_classes = len(classes) if classes else int(labels.max()) + 1
    torch.manual_seed(training.seed)
    classifier = vision.ViTMAEClassifier.from_network(network, n_classes)
    vision.finetune(
        classifier,
        images,
        validation=validation,
        augment=None if training.no_augment else vision.FinetuneAugment(n_classes),
        **training.arguments("finetune", reading),
        **run.arguments,
    )
    classifier.about = {"classes": classes}
    text = _save(classifier, run, len(images))
    if validation is None:
        return text
    predicted = vision.predict_proba(classifier, validation).argmax(axis=1)
    accuracy = (predicted == _labels_of(validation, training.validation)).mean()
    return f"{text}\n{results(validation_accuracy=f'{accuracy:.4f}')}"


def probe(
    input: DataPath,
    /,
    *,
    model: ModelPath,
    test: Annotated[opt.InPath | None, opt.doc("Test images; the test split by default.")] = None,
    max_epochs: Annotated[opt.PositiveInt, opt.doc("Passes over the embeddings.")] = 15,
    seed: Annotated[opt.NonNegativeInt, opt.doc("Random seed for the classifier.")] = 0,
    accelerator: opt.Accelerator = "auto",
    reading: Reading = Reading(),
    messages: opt.Messages = opt.Messages(),
) -> str:
    """Fit a linear classifier to the embeddings of training images and score it on test images.

    Examples
    --------
    scr2mae vision probe mnist/ --model mlp/
    scr2mae vision probe photos/train --model vit/ --test photos/test
    """
    check_exists(input, test)
    with loading():
        import torch

        from scr2mae._utils.compat import torch_device
        from scr2mae.extra import vision

    network = vision.from_pretrained(model)
    size = getattr(network, "image_size", None)
    train_images = reading.open(input, "train", size=size)
    if test is None and "test" not in vision.image_splits(input):
        raise ValueError(f"{input} has no test split; give test images with --test.")
    test_images = reading.open(test or input, "test", size=size, like=train_images)
    y_train, y_test = _labels_of(train_images, input), _labels_of(test_images, test or input)
    device = str(torch_device(accelerator, "auto"))
    x_train, x_test = (
        vision.embed(network, each, device=device, n_workers=reading.workers)
        for each in (train_images, test_images)
    )
    torch.manual_seed(seed)
    head = vision.LinearHead(x_train.shape[1], int(y_train.max()) + 1, normalize=True)
    vision.fit_head(
        head,
        x_train,
        y_train,
        recipe=replace(vision.RECIPES["linear"], max_epochs=max_epochs),
        seed=seed,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    accuracy = (head.predict(torch.from_numpy(x_test)).numpy() == y_test).mean()
    return results(images_train=len(train_images), images_test=len(test_images), accuracy=f"{accuracy:.4f}")


def embed(
    input: DataPath,
    /,
    *,
    model: ModelPath,
    output: Annotated[opt.OutPath, opt.doc("File for the embeddings (.npy).")],
    force: opt.Force = False,
    split: Annotated[
        Literal["train", "validation", "test"], opt.doc("Split to embed, if the images are split.")
    ] = "train",
    accelerator: opt.Accelerator = "auto",
    reading: Reading = Reading(),
    messages: opt.Messages = opt.Messages(),
) -> str:
    """Embed whole images and write a NumPy array with one row per image.

    Examples
    --------
    scr2mae vision embed photos/ --model vit/ -o embeddings.npy
    scr2mae vision embed mnist/ --model mlp/ --split test -o embeddings.npy
    """
    check_exists(input)
    check_output(output, force=force)
    with loading():
        import numpy as np

        from scr2mae._utils.compat import torch_device
        from scr2mae.extra import vision

    network = vision.from_pretrained(model)
    images = reading.open(input, split, size=getattr(network, "image_size", None))
    features = vision.embed(
        network, images, device=str(torch_device(accelerator, "auto")), n_workers=reading.workers
    )
    with replacing(output) as part, part.open("wb") as file:
        np.save(file, features)
    return results(output=output, images=len(features), width=features.shape[1])


def _save(network: Any, run: opt.Run, n_images: int) -> str:
    """Save the network and return the results of its training."""
    if not is_first_process():
        return ""
    network.save_pretrained(run.output, overwrite=True)
    epochs = len(network.history_["train_loss"])
    return results(model=run.output, images=n_images, epochs=epochs, **last_losses(network.history_))


def _labels_of(images: Images, place: Path | None) -> np.ndarray:
    if images.labels is None or images.labels.dim() != 1:
        raise ValueError(f"{place} has no classes; put the images of each class in a subfolder.")
    return images.labels.numpy()


COMMANDS = (pretrain, finetune, probe, embed)
