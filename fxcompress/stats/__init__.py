"""What a model does on data: values of chosen nodes, gradients, and the moments of units.

Everything here runs a program in evaluation mode on its task's batches and changes nothing of it.
Only what is asked for is kept; a value is freed as soon as no node needs it. What is summed is a
`Statistic`: of shares of the data it may be gathered apart, stored, and merged.
"""

from fxcompress.layers.inputs import Read, window_of
from fxcompress.layers.signals import places_of, unit_signals
from fxcompress.stats.collect import collect
from fxcompress.stats.cross import Cross
from fxcompress.stats.data import require_data
from fxcompress.stats.gradient_sums import GradientSums
from fxcompress.stats.gradients import Gradients, gradients
from fxcompress.stats.gram import Gram
from fxcompress.stats.moments import Features, Grams, Moments, UnitMoments, aligned, moments
from fxcompress.stats.observe import observe
from fxcompress.stats.pairs import Paired, UnitPairs, paired_moments
from fxcompress.stats.powers import Powers
from fxcompress.stats.ranges import Range
from fxcompress.stats.statistic import Statistic, Sums
from fxcompress.stats.walk import Walk, Wanted

__all__ = [
    "Cross",
    "Features",
    "GradientSums",
    "Gradients",
    "Gram",
    "Grams",
    "Moments",
    "Paired",
    "Powers",
    "Range",
    "Read",
    "Statistic",
    "Sums",
    "UnitMoments",
    "UnitPairs",
    "Walk",
    "Wanted",
    "aligned",
    "collect",
    "gradients",
    "moments",
    "observe",
    "paired_moments",
    "places_of",
    "require_data",
    "unit_signals",
    "window_of",
]
