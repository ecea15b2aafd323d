"""Train, fine-tune and evaluate a module on a task; renew BatchNorm's statistics.

A plain loop for captured modules and any other: what recovery after compression needs, and small
enough to be replaced by one's own.
"""

from fxcompress.train.batches import call
from fxcompress.train.evaluation import evaluate
from fxcompress.train.statistics import recalibrate
from fxcompress.train.trainer import Progress, Trainer

__all__ = ["Progress", "Trainer", "call", "evaluate", "recalibrate"]
