"""What a model does on data: values of chosen nodes, gradients, and the moments of units.

Every function here runs a program in evaluation mode on its task's batches and changes nothing of
it. Only what is asked for is kept; a value is freed as soon as no node needs it.
"""

from fxcompress.layers.inputs import Read, window_of
from fxcompress.layers.signals import places_of, unit_signals
from fxcompress.stats.data import require_data
from fxcompress.stats.gradients import Gradients, gradients
from fxcompress.stats.moments import Features, Grams, Moments, aligned, moments
from fxcompress.stats.observe import observe
from fxcompress.stats.pairs import Paired, paired_moments

__all__ = [
    "Features",
    "Gradients",
    "Grams",
    "Moments",
    "Paired",
    "Read",
    "aligned",
    "gradients",
    "moments",
    "observe",
    "paired_moments",
    "places_of",
    "require_data",
    "unit_signals",
    "window_of",
]
