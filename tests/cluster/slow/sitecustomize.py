"""On a job's PYTHONPATH: every training step takes half a second longer, so that a minute's limit cuts it anywhere."""

import time

from steelgen.training.ema import WeightAverage

_update = WeightAverage.update


def _update_slowly(self, *arguments):
    time.sleep(0.5)
    _update(self, *arguments)


WeightAverage.update = _update_slowly
