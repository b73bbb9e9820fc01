"""The color histogram of an input: counted shard by shard through Ray, added up on the driver."""

from contextlib import closing

import numpy as np

from igpt_core.images.palette import ColorHistogram
from pipeline.engine.dispatch import dispatch_shards
from pipeline.engine.progress import Mode, Progress
from pipeline.engine.stage import Stage
from pipeline.shards import Plan
from pipeline.training.error_budget import check_error_budget


def count_colors(
    plan: Plan, stage: Stage, *, location: str, max_error_fraction: float, progress: Mode
) -> tuple[ColorHistogram, int, int]:
    """Counts the colors of every readable image of a plan; returns the histogram, how many images
    were read and how many failed.

    Holds the distinct colors only, 2^24 at most, whatever the number of images.

    Args:
        location: of the input, for people.
        max_error_fraction: of the images that may fail.

    Raises OverErrorBudget as soon as it is sure that more images fail than may.
    """
    named = "igpt quantize of the same input names each in its errors/"
    clock = Progress(
        total=plan.rows, done=0, errors=0, shards=len(plan.shards), shards_done=0, mode=progress
    )
    total = ColorHistogram.total([])
    clock.show()
    with closing(clock), closing(dispatch_shards(plan, plan.shards, [stage])) as found:
        for shard in found:
            colors = np.asarray(shard["colors"], np.uint32)
            counts = np.asarray(shard["counts"], np.int64)
            total = ColorHistogram.total([total, ColorHistogram(colors, counts)])
            clock.add(shard)
            if plan.rows is not None:  # else they are not counted before the end
                check_error_budget(
                    clock.errors, plan.rows, max_error_fraction, location, named=named
                )
    check_error_budget(clock.errors, clock.done, max_error_fraction, location, named=named)
    clock.show(final=True)
    return total, clock.done - clock.errors, clock.errors
