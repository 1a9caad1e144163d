"""RoBERTa with a masking ratio redrawn for every mini-batch: tokenizer, packing, pretraining, finetuning."""

from scr2mae.extra.text.classifier import RobertaClassifier
from scr2mae.extra.text.config import SIZES, n_parameters, roberta_config
from scr2mae.extra.text.corpus import read_documents, stream_documents
from scr2mae.extra.text.corruption import corrupt
from scr2mae.extra.text.glue import TASKS, average_rank, load_task, read_task
from scr2mae.extra.text.inference import embed, predict_proba, score
from scr2mae.extra.text.network import RobertaR2MAE
from scr2mae.extra.text.packing import TokenBlocks, pack
from scr2mae.extra.text.sentences import LabeledText
from scr2mae.extra.text.tokenizer import SPECIAL_TOKENS, BytePairTokenizer
from scr2mae.extra.text.training import (
    LEARNING_RATES,
    VALIDATION_RATIOS,
    finetune,
    finetune_scores,
    pretrain,
)

__all__ = [
    "LEARNING_RATES",
    "SIZES",
    "SPECIAL_TOKENS",
    "TASKS",
    "VALIDATION_RATIOS",
    "BytePairTokenizer",
    "LabeledText",
    "RobertaClassifier",
    "RobertaR2MAE",
    "TokenBlocks",
    "average_rank",
    "corrupt",
    "embed",
    "finetune",
    "finetune_scores",
    "load_task",
    "n_parameters",
    "pack",
    "predict_proba",
    "pretrain",
    "read_documents",
    "read_task",
    "roberta_config",
    "score",
    "stream_documents",
]
