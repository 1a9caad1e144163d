"""RoBERTa that is told how many tokens to hide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scr2mae._utils.optional import require
from scr2mae.extra.text import saved
from scr2mae.extra.text.config import roberta_config
from scr2mae.extra.text.corruption import corrupt
from scr2mae.extra.training import BatchLoss, decay_groups, repeatable_dropout
from scr2mae.masking import as_ratio_schedule
from scr2mae.nn.curriculum import Curriculum, CurriculumWeights, scale_gradient

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scr2mae.extra.text.tokenizer import BytePairTokenizer
    from scr2mae.masking import RatioSchedule
    from scr2mae.train.provenance import History

__all__ = ["MaskedLoss", "RobertaR2MAE"]


@dataclass(frozen=True)
class MaskedLoss(BatchLoss):
    """Loss of a mini-batch.

    Attributes
    ----------
    loss
        Mean over hidden tokens, or over labels, of the negative log-likelihood in nats.
    n_obs_minibatch
        Sequences.
    n_correct, n_scored
        How many were predicted right, and how many there were.
    """

    n_correct: Tensor
    n_scored: int


class RobertaR2MAE(nn.Module):
    """RoBERTa as a masked language model, with the share of hidden tokens an argument of each call.

    ``network`` is a ``transformers.RobertaForMaskedLM``, whose weights and names are left as they are.

    Parameters
    ----------
    tokenizer
        Its vocabulary is the network's.
    size
        ``"medium"`` (51.5 million parameters at the full vocabulary), ``"base"`` (124.7) or ``"tiny"``.
    mask_ratio
        What :func:`pretrain` draws ratios from: a float (fixed), a pair (R²MAE) or a schedule.
    curriculum
        ``"cl"``, ``"cl_k0"`` or settings of learned weights, one row a hidden token; None for equal weights.
    seed
        Seed of the initial weights, and of masks, order and dropout unless a run has its own.
    options
        Further arguments of ``transformers.RobertaConfig``.

    Raises
    ------
    ValueError
        If the size, an option or a ratio is out of range.
    ImportError
        If ``transformers`` is not installed.

    Notes
    -----
    Dong et al. (2025), appendix C.6. The curriculum is the one the paper has for DNA: an MLP (128, 128) on the detached
    state of each hidden token, a sigmoid plus 0.5, Sinkhorn over tokens and ratios. For text it is an addition.

    Examples
    --------
    >>> from scr2mae.extra.text import BytePairTokenizer, RobertaR2MAE, pack, pretrain
    >>> documents = ["the cell divides and the cell rests"] * 40
    >>> tokenizer = BytePairTokenizer.train(documents, vocab_size=280)
    >>> model = RobertaR2MAE(tokenizer, size="tiny", mask_ratio=(0.15, 0.40))
    >>> blocks = pack(documents, tokenizer, length=16)
    >>> trainer = pretrain(model, blocks, max_epochs=1, batch_size=16, accelerator="cpu", enable_progress_bar=False)
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
        self.curriculum_settings = Curriculum.named(curriculum)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.network: Any = require("transformers", extra="text").RobertaForMaskedLM(config)
            self.curriculum = self._build_curriculum(config.hidden_size)
        self.history_: History = {}
        self.ratio_schedule(seed)  # says at once if the ratios are out of range

    def _build_curriculum(self, width: int) -> CurriculumWeights | None:
        settings = self.curriculum_settings
        if settings is None:
            return None
        return CurriculumWeights(
            width, settings.n_ratios, hidden=(128, 128), offset=0.5, n_iter=settings.n_iter
        )

    def ratio_schedule(self, seed: int) -> RatioSchedule:
        """Return the schedule of ratios for a run of this seed.

        Parameters
        ----------
        seed
            Seed of the sequence of ratios.
        """
        if self.curriculum_settings is not None:
            return self.curriculum_settings.ratio_schedule(self.mask_ratio, seed=seed)
        return as_ratio_schedule(self.mask_ratio, seed=seed)

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that there are positions for."""
        return int(self.network.config.max_position_embeddings) - int(self.network.config.pad_token_id) - 1

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the last hidden states, shape ``(n_obs, length, hidden_size)``; masks nothing by itself.

        Parameters
        ----------
        tokens
            Numbers of tokens, shape ``(n_obs, length)``.
        """
        return self.network.roberta(
            tokens, attention_mask=(tokens != self.tokenizer.pad_id).long()
        ).last_hidden_state

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
        """Hide a share of the tokens of a mini-batch and score what the network makes of them.

        Parameters
        ----------
        tokens
            int64, shape ``(n_obs, length)``.
        ratio, seed, step
            As in :func:`corrupt`.
        ratio_index
            Column of the curriculum's weights that belongs to the ratio; None scores without weights.
        grad_scale
            What the gradient that reaches the curriculum's network is multiplied by.

        Returns
        -------
        The mean over hidden tokens, whose size does not depend on how many there are; float32 under mixed precision.
        """
        hidden = corrupt(tokens, ratio, tokenizer=self.tokenizer, seed=seed, step=step)
        with repeatable_dropout(self, tokens.device, seed=seed, step=step):
            states = self(hidden.tokens).flatten(0, 1)[hidden.positions]  # (n_hidden, hidden_size)
            # The vocabulary is the widest layer by far, so only what is scored goes through it.
            logits = self.network.lm_head(states).float()
        nll = nn.functional.cross_entropy(logits, hidden.targets, reduction="none")
        n_correct = (logits.detach().argmax(dim=1) == hidden.targets).sum()
        if ratio_index is not None and self.curriculum is not None:
            weights = scale_gradient(self.curriculum(states.detach()), grad_scale)
            nll = nll * weights[:, ratio_index]
        return MaskedLoss(nll.mean(), len(tokens), n_correct, len(nll))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups: matrices decay, biases and normalization do not.

        Parameters
        ----------
        weight_decay
            Decay of the matrices.
        """
        return decay_groups(self, weight_decay)

    def save(self, dir_path: str | Path, *, overwrite: bool = False) -> None:
        """Write the network as ``transformers`` reads it, with tokenizer, schedule and curves beside it.

        Parameters
        ----------
        dir_path
            Folder to make.
        overwrite
            Whether an earlier model there may be replaced.

        Raises
        ------
        FileExistsError
            If the folder is not empty, and ``overwrite`` is False or it holds something else.
        """
        saved.save(self, dir_path, overwrite=overwrite)

    @classmethod
    def load(cls, dir_path: str | Path) -> RobertaR2MAE:
        """Read a model that :meth:`save` wrote; nothing is unpickled.

        Parameters
        ----------
        dir_path
            Its folder.

        Returns
        -------
        The model.

        Raises
        ------
        FileNotFoundError
            If a part is missing.
        ValueError
            If a part is damaged, or tokenizer and network do not fit.
        """
        return saved.load(cls, dir_path)
