"""Measuring a student beside its teacher: alignment, retrieval, fewer dimensions and bits, tasks, cost."""

from pipeline.evaluate import bootstrap, collection, metrics, mteb_tasks, plots, tasks
from pipeline.evaluate.bootstrap import bootstrap_means, interval
from pipeline.evaluate.cost import cost
from pipeline.evaluate.datasets import StudentVectors, heldout_pairs
from pipeline.evaluate.evaluation import evaluate, needs_of_teacher

__all__ = [
    "StudentVectors",
    "bootstrap",
    "bootstrap_means",
    "collection",
    "cost",
    "evaluate",
    "heldout_pairs",
    "interval",
    "metrics",
    "mteb_tasks",
    "needs_of_teacher",
    "plots",
    "tasks",
]
