"""Embeddings compared on donors held out: methods times tasks, with the paper's score and rank."""

from scr2mae.benchmark._result import Benchmark
from scr2mae.benchmark._run import run
from scr2mae.benchmark._table import mean_scores, score_and_rank
from scr2mae.benchmark._tasks import Task, tasks

__all__ = ["Benchmark", "Task", "mean_scores", "run", "score_and_rank", "tasks"]
