"""RoBERTa with a masking ratio redrawn for every mini-batch: tokenizer, packing, pretraining, fine-tuning."""

from scr2mae.extra.text.classifier import RobertaClassifier, fine_tune
from scr2mae.extra.text.config import SIZES, n_parameters, roberta_config
from scr2mae.extra.text.corpus import read_documents, stream_documents
from scr2mae.extra.text.corruption import Corruption, corrupt
from scr2mae.extra.text.glue import TASKS, GlueTask, LabeledText, average_rank, load_task, read_task
from scr2mae.extra.text.model import MaskedLoss, RobertaR2MAE
from scr2mae.extra.text.packing import TokenBlocks, pack
from scr2mae.extra.text.pretraining import LEARNING_RATES, VALIDATION_RATIOS, masked_losses, pretrain
from scr2mae.extra.text.tokenizer import SPECIAL_TOKENS, BytePairTokenizer

__all__ = [
    "LEARNING_RATES",
    "SIZES",
    "SPECIAL_TOKENS",
    "TASKS",
    "VALIDATION_RATIOS",
    "BytePairTokenizer",
    "Corruption",
    "GlueTask",
    "LabeledText",
    "MaskedLoss",
    "RobertaClassifier",
    "RobertaR2MAE",
    "TokenBlocks",
    "average_rank",
    "corrupt",
    "fine_tune",
    "load_task",
    "masked_losses",
    "n_parameters",
    "pack",
    "pretrain",
    "read_documents",
    "read_task",
    "roberta_config",
    "stream_documents",
]
