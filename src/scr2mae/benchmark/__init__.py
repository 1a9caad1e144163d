"""Comparison of embeddings on held-out donors: methods by tasks, with the paper's score and rank."""

from scr2mae.benchmark.results import Benchmark
from scr2mae.benchmark.runner import run
from scr2mae.benchmark.table import mean_scores, score_and_rank
from scr2mae.benchmark.tasks import Task, tasks

__all__ = ["Benchmark", "Task", "mean_scores", "run", "score_and_rank", "tasks"]
