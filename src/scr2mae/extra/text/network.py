"""RoBERTa as a masked language model, with the masking ratio as an argument."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scr2mae._utils.optional import require
from scr2mae.extra.networks import BatchLoss, make_curriculum, repeatable_dropout
from scr2mae.extra.text.config import roberta_config
from scr2mae.extra.text.corruption import corrupt
from scr2mae.extra.text.saving import TextNetwork, hidden_states
from scr2mae.masking import as_ratio_schedule, schedule_from_state, schedule_to_state
from scr2mae.nn.curriculum import Curriculum, scale_gradient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scr2mae.extra.text.tokenizer import BytePairTokenizer
    from scr2mae.masking import RatioSchedule

__all__ = ["MaskedLoss", "RobertaR2MAE"]

_NOT_ARGUMENTS = {"architectures", "dtype", "model_type", "transformers_version", "_name_or_path"}


@dataclass(frozen=True)
class MaskedLoss(BatchLoss):
    """Mean negative log-likelihood of the masked tokens in nats, their number, and how many were predicted correctly."""

    n_correct: Tensor
    n_scored: int


class RobertaR2MAE(TextNetwork):
    """RoBERTa as a masked language model, with the fraction of masked tokens as an argument of each call.

    ``network`` is a ``transformers.RobertaForMaskedLM``, whose weights and names are unchanged.

    Parameters
    ----------
    tokenizer
        Tokenizer, whose vocabulary is the network's.
    size
        ``"medium"`` (51.5 million parameters at the full vocabulary), ``"base"`` (124.7) or ``"tiny"``.
    mask_ratio
        Masking ratios of :func:`pretrain`: a float (fixed), a pair (R²MAE) or a schedule.
    curriculum
        ``"cl"``, ``"cl_k0"`` or settings of learned weights, one row per masked token; None for equal weights.
    seed
        Seed of the initial weights, and of masks, order and dropout unless a run has its own.
    options
        Additional arguments of ``transformers.RobertaConfig``.

    Raises
    ------
    ValueError
        If the size, an option or a ratio is out of range.
    ImportError
        If ``transformers`` is not installed.

    Notes
    -----
    Dong et al. (2025), appendix C.6. The curriculum is the paper's for DNA: an MLP (128, 128) on the detached
    state of each masked token, a sigmoid plus 0.5, Sinkhorn over tokens and ratios. For text it is an addition.

    Examples
    --------
    >>> from scr2mae.extra.text import BytePairTokenizer, RobertaR2MAE, pack, pretrain
    >>> documents = ["the cell divides and the cell rests"] * 40
    >>> tokenizer = BytePairTokenizer.train(documents, vocab_size=280)
    >>> model = RobertaR2MAE(tokenizer, size="tiny", mask_ratio=(0.15, 0.40))
    >>> blocks = pack(documents, tokenizer, length=16)
    >>> model = pretrain(model, blocks, max_epochs=1, batch_size=16, accelerator="cpu", enable_progress_bar=False)
    """

    def __init__(
        self,
        tokenizer: BytePairTokenizer,
        *,
        size: str = "medium",
        mask_ratio: float | Sequence[float] | RatioSchedule = (0.15, 0.40),
        curriculum: str | Curriculum | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        special = {"bos_token_id": tokenizer.start_id, "pad_token_id": tokenizer.pad_id}
        special["eos_token_id"] = tokenizer.end_id
        config = roberta_config(size, **{"vocab_size": len(tokenizer), **special, **options})
        if config.vocab_size != len(tokenizer):
            raise ValueError(
                f"The network's vocabulary has {config.vocab_size} tokens and the tokenizer's {len(tokenizer)}; "
                "leave vocab_size out, it follows the tokenizer."
            )
        self.tokenizer, self.size, self.seed = tokenizer, size, seed
        self.mask_ratio = mask_ratio
        self.curriculum_settings = settings = Curriculum.named(curriculum)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.network = require("transformers", extra="text").RobertaForMaskedLM(config)
            self.curriculum = make_curriculum(settings, config.hidden_size)
        self.ratio_schedule(seed)  # raises at once if the ratios are out of range

    def ratio_schedule(self, seed: int) -> RatioSchedule:
        """Return the schedule of ratios for a run with this seed.

        Parameters
        ----------
        seed
            Seed of the sequence of ratios.
        """
        if self.curriculum_settings is not None:
            return self.curriculum_settings.ratio_schedule(self.mask_ratio, seed=seed)
        return as_ratio_schedule(self.mask_ratio, seed=seed)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the last hidden states, shape ``(n_obs, length, hidden_size)``; nothing is masked.

        Parameters
        ----------
        tokens
            Token ids, shape ``(n_obs, length)``, padded.
        """
        return hidden_states(self, tokens)

    def training_loss(
        self,
        tokens: Tensor,
        *,
        ratio: float,
        seed: int,
        step: int,
        ratio_index: int | None = None,
        grad_scale: float = 1.0,
    ) -> MaskedLoss:
        """Mask a fraction of the tokens of a mini-batch and score the predictions.

        Parameters
        ----------
        tokens
            int64, shape ``(n_obs, length)``.
        ratio, seed, step
            As in :func:`corrupt`.
        ratio_index
            Index of the ratio in the curriculum's weights; None scores without weights.
        grad_scale
            Factor of the gradient that reaches the curriculum's network.

        Returns
        -------
        The mean over masked tokens, in float32 also under mixed precision.
        """
        masked = corrupt(tokens, ratio, tokenizer=self.tokenizer, seed=seed, step=step)
        with repeatable_dropout(self, tokens.device, seed=seed, step=step):
            states = self(masked.tokens).flatten(0, 1)[masked.positions]  # (n_masked, hidden_size)
            # The vocabulary is by far the widest layer, so only scored positions go through it.
            logits = self.network.lm_head(states).float()
        nll = nn.functional.cross_entropy(logits, masked.targets, reduction="none")
        n_correct = (logits.detach().argmax(dim=1) == masked.targets).sum()
        if ratio_index is not None and self.curriculum is not None:
            weights = scale_gradient(self.curriculum(states.detach()), grad_scale)
            nll = nll * weights[:, ratio_index]
        return MaskedLoss(nll.mean(), len(tokens), n_correct, len(nll))

    def _to_state(self) -> dict[str, Any]:
        """Return the settings that are saved beside weights and tokenizer."""
        mask_ratio = schedule_to_state(self.mask_ratio)
        if mask_ratio is None:
            warnings.warn(
                f"mask_ratio={self.mask_ratio!r} is not a schedule of scr2mae.masking and is not saved; "
                "set model.mask_ratio after loading to continue training.",
                UserWarning,
                stacklevel=4,
            )
        settings = self.curriculum_settings
        return {
            "size": self.size,
            "seed": self.seed,
            "mask_ratio": mask_ratio,
            "curriculum": None if settings is None else asdict(settings),
        }

    @classmethod
    def _from_state(
        cls, tokenizer: BytePairTokenizer, config: dict[str, Any], state: dict[str, Any]
    ) -> RobertaR2MAE:
        """Build a network with the settings of a saved one."""
        known = set(require("transformers", extra="text").RobertaConfig().to_dict()) - _NOT_ARGUMENTS
        return cls(
            tokenizer,
            size=state["size"],
            mask_ratio=0.15 if state["mask_ratio"] is None else schedule_from_state(state["mask_ratio"]),
            curriculum=Curriculum.from_dict(state["curriculum"]),
            seed=state["seed"],
            **{name: value for name, value in config.items() if name in known},
        )
