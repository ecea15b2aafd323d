"""What a model does on data: values of chosen nodes, gradients, and the moments of units.

Every function here runs a program in evaluation mode on its task's batches and changes nothing of
it. Only what is asked for is kept; a value is freed as soon as no node needs it.
"""

from fxcompress.calibrate.data import require_data
from fxcompress.calibrate.gradients import Gradients, gradients
from fxcompress.calibrate.moments import Features, Grams, Moments, lined, moments
from fxcompress.calibrate.observe import observe
from fxcompress.calibrate.pairs import Paired, paired_moments
from fxcompress.calibrate.reads import Read, window_of
from fxcompress.calibrate.signals import places_of, unit_signals

__all__ = [
    "Features",
    "Gradients",
    "Grams",
    "Moments",
    "Paired",
    "Read",
    "gradients",
    "lined",
    "moments",
    "observe",
    "paired_moments",
    "places_of",
    "require_data",
    "unit_signals",
    "window_of",
]
