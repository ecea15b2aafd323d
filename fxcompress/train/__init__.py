"""Train, fine-tune and evaluate a module on a task; renew BatchNorm's statistics; steps.

A plain loop for captured modules and any other: what recovery after compression needs, and small
enough to be replaced by one's own.
"""

from fxcompress.train.batches import call
from fxcompress.train.evaluation import evaluate
from fxcompress.train.recover import Recover
from fxcompress.train.statistics import recalibrate
from fxcompress.train.step import Context, Step
from fxcompress.train.trainer import Progress, Trainer

__all__ = ["Context", "Progress", "Recover", "Step", "Trainer", "call", "evaluate", "recalibrate"]
