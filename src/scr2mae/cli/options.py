"""Types of arguments, and groups of options that several commands share.

An option is documented by ``doc`` in the signature of a command, or by the string below a field of a group.
Annotations are evaluated here at once, since cyclopts reads those of inherited fields in the module of the subclass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from cyclopts import Group, Parameter

from scr2mae._utils.files import as_path
from scr2mae.cli.files import check_free, check_output, check_writable

T = TypeVar("T")

_TITLES = (
    *("Run", "Data", "Tokens", "Windows", "Network", "Methods", "Training"),
    *("Splits and probes", "Kept probe", "Messages"),
)


class UsageError(Exception):
    """Arguments that are valid one by one but not together."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def options(title: str) -> Callable[[type[T]], type[T]]:
    """Make a dataclass whose fields are options, under a title in the help."""
    group = Parameter(name="*", group=Group(title, sort_key=_TITLES.index(title)))
    return lambda cls: group(dataclass(frozen=True, kw_only=True)(cls))


def doc(text: str, **settings: Any) -> Parameter:
    """Return the text of an option in the help, with further settings of cyclopts."""
    return Parameter(help=text, **settings)


def given(group: Any, *without: str) -> dict[str, Any]:
    """Return the options of a group that have a value, as keyword arguments."""
    return {name: value for name, value in vars(group).items() if value is not None and name not in without}


def one(parse: Callable[[str], Any], metavar: str) -> Parameter:
    """Return the settings of an option with one value; ``parse`` raises ValueError for a bad one."""
    return Parameter(converter=lambda _, tokens: parse(tokens[0].value), n_tokens=1, metavar=metavar)


def _several(parse: Callable[[str], Any], metavar: str, join: Callable[[Any], Any] = tuple) -> Parameter:
    return Parameter(
        converter=lambda _, tokens: join([parse(token.value) for token in tokens]),
        n_tokens=-1,
        consume_multiple=(1, None),
        metavar=f"{metavar}...",
    )


def number(kind: type, is_valid: Callable[[Any], bool], wanted: str) -> Callable[[str], Any]:
    """Return a parser of numbers in a range."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not is_valid(value):
            raise ValueError(f"expected {wanted}, got {text!r}")
        return value

    return parse


_positive_int = number(int, lambda value: value >= 1, "a whole number of at least 1")
_non_negative_int = number(int, lambda value: value >= 0, "a whole number of at least 0")
_positive_float = number(float, lambda value: 0 < value < float("inf"), "a number above 0")
fraction = number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _path(text: str) -> Path:
    if not text:
        raise ValueError("the path is empty; give the path of a file or folder")
    return as_path(text)


def _devices(text: str) -> int | list[int] | str:
    """Parse ``--devices``."""
    try:
        if text == "auto":
            return text
        if "," in text:
            return [_non_negative_int(part) for part in text.split(",") if part]
        return _positive_int(text)
    except ValueError as error:
        raise ValueError(
            f"expected 'auto', a number of devices, or positions such as '0,2' or '1,', got {text!r}"
        ) from error


def _obsm_key(text: str) -> str:
    if not text.strip() or "/" in text:  # a slash would open a group inside the HDF5 file
        raise ValueError(f"expected a name without '/', got {text!r}")
    return text


def check_masking(scheme: str, mask_ratio: float | tuple[float, ...] | None) -> None:
    """Raise if a masking ratio is given beside a scheme other than the default."""
    if mask_ratio is not None and scheme != "r2mae":
        raise UsageError("--mask-ratio stands in place of --scheme; give one of the two")


def _mask_ratio(ratios: list[float]) -> float | tuple[float, ...]:
    if len(ratios) > 2 or ratios != sorted(ratios):
        raise ValueError(f"takes one number, or a low and a high one; got {' '.join(map(str, ratios))}")
    return ratios[0] if len(ratios) == 1 else tuple(ratios)


InPath = Annotated[Path, one(_path, "PATH")]
InPaths = Annotated[tuple[Path, ...], _several(_path, "PATH")]
OutPath = Annotated[Path, one(_path, "PATH"), Parameter(alias="-o")]
Name = Annotated[str, Parameter(metavar="NAME")]
Names = Annotated[tuple[str, ...], _several(str, "NAME")]
Key = Annotated[
    str | tuple[str, ...],
    _several(str, "NAME", lambda names: names[0] if len(names) == 1 else tuple(names)),
]
ObsmKey = Annotated[str, one(_obsm_key, "NAME")]
PositiveInt = Annotated[int, one(_positive_int, "N")]
PositiveInts = Annotated[tuple[int, ...], _several(_positive_int, "N")]
NonNegativeInt = Annotated[int, one(_non_negative_int, "N")]
PositiveFloat = Annotated[float, one(_positive_float, "NUMBER")]
Fraction = Annotated[float, one(fraction, "FRACTION")]
Fractions = Annotated[tuple[float, ...], _several(fraction, "FRACTION")]
Seeds = Annotated[tuple[int, ...], _several(_non_negative_int, "N")]

# Options whose help is the same in every command.
Force = Annotated[bool, doc("Replace the output if it exists.")]
Seed = Annotated[NonNegativeInt, doc("Random seed.")]
Layer = Annotated[Name, doc("Layer of raw counts; X by default.")]
MaskRatio = Annotated[
    float | tuple[float, float],
    _several(fraction, "RATIO", _mask_ratio),
    doc("Fraction to mask: two numbers for a range (R²MAE), one for a fixed fraction."),
]
Accelerator = Annotated[
    Literal["auto", "cpu", "gpu", "mps"], doc("Accelerator; auto uses the fastest available.")
]
Accumulate = Annotated[
    PositiveInt,
    doc("Mini-batches per optimizer step, each with a ratio of its own.", name="--accumulate"),
]


@options("Messages")
class Messages:
    """How much goes to stderr."""

    quiet: Annotated[bool, Parameter(alias="-q")] = False
    """Show no progress, only warnings and errors."""
    debug: bool = False
    """Show the traceback of an error."""


@options("Data")
class Counts:
    """Where a file has its counts; None is where the data of the model had them."""

    layer: Name | None = None
    """Layer of raw counts, or X; by default where the data of the model had them."""
    use_raw: bool = False
    """Read the counts from raw, as in files of CELLxGENE, with the genes of raw."""


@options("Network")
class Widths:
    """Widths and layers of an ``R2MAEModel``."""

    encoder: Literal["linear+mlp", "mlp"] | None = None
    """linear+mlp: principal components beside the hidden layers, the default; mlp: the paper's network."""
    n_hidden: PositiveInt | None = None
    """Width of the hidden layers."""
    n_latent: PositiveInt | None = None
    """Width of the embedding."""
    n_layers: PositiveInt | None = None
    """Number of hidden layers in the encoder."""
    n_layers_decoder: NonNegativeInt | None = None
    """Number of hidden layers in the decoder."""


@options("Network")
class Paper:
    """The paper's settings, and its steps on an atlas."""

    paper: bool = False
    """Use the paper's genes, network, training and probes; options that are given replace them."""
    atlas: Literal["hlca", "sea_ad"] | None = None
    """One of the paper's atlases, a file of CELLxGENE."""

    def settings(self) -> Any:
        """Return the paper's settings, empty ones without ``--paper``."""
        from scr2mae._paper import PaperSettings, paper

        return paper(self.atlas) if self.paper else PaperSettings({}, {}, {}, {}, {})


@options("Training")
class Epochs:
    """Length of the training of an ``R2MAEModel``."""

    max_epochs: PositiveInt | None = None
    """Passes over the cells; chosen from their number by default."""
    batch_size: PositiveInt | None = None
    """Cells per mini-batch."""


@options("Run")
class Compute:
    """Accelerator, devices and precision, as in Lightning."""

    accelerator: Accelerator = "auto"
    devices: Annotated[int | list[int] | str, one(_devices, "N")] = "auto"
    """How many devices on each machine, or which: 2 or 0,3. Each takes --batch-size samples at a time."""
    precision: Annotated[str, Parameter(choices=("32-true", "16-mixed", "bf16-mixed"))] = "32-true"
    """Precision of the arithmetic."""


@options("Run")
class Output:
    """Where a run that trains writes to."""

    output: OutPath
    """Folder to save the network in."""
    force: bool = False
    """Replace a network, or the checkpoint of another run."""


@options("Run")
class Run(Messages, Compute, Output):
    """Output, devices and checkpoints of a run that trains."""

    checkpoint_dir: InPath | None = None
    """Folder for a checkpoint after every epoch."""
    resume: InPath | None = None
    """Checkpoint to continue from, or the --checkpoint-dir of an earlier run."""

    def check(self) -> None:
        """Raise if there is nothing to resume from, or if something would be replaced without --force."""
        check_output(self.output, folder=True, force=self.force)
        start = None if self.resume is None else _checkpoint(self.resume)
        if self.resume is not None and start is None:
            raise FileNotFoundError(
                f"No checkpoint {self.resume}; give a .ckpt file or the --checkpoint-dir of an earlier run."
            )
        if self.checkpoint_dir is None:
            return
        check_free(self.checkpoint_dir, folder=True, force=True)
        check_writable(self.checkpoint_dir)
        last = self.last_checkpoint
        if last is not None and not self.force and (start is None or not last.samefile(start)):
            raise FileExistsError(
                f"{last} exists; continue from it with --resume, or replace it with --force."
            )

    @property
    def last_checkpoint(self) -> Path | None:
        """Last checkpoint in the folder, if there is one."""
        return None if self.checkpoint_dir is None else _checkpoint(self.checkpoint_dir)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the functions that train."""
        rest = given(self, "output", "force", "quiet", "debug")
        return rest | {"enable_progress_bar": not self.quiet}


def _checkpoint(place: Path) -> Path | None:
    found = place / "last.ckpt" if place.is_dir() else place
    return found if found.is_file() else None
