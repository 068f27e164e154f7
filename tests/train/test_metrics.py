"""Lines of the log: means, rates, and an interval that a checkpoint takes along."""

import json
import math
import time

import pytest

from medpclip.train.flops import Flops
from medpclip.train.metrics import KEYS, Interval, Row

FLOPS = Flops(image=100.0, region=10.0, text=1.0)


def row(loss: float, stepped: bool = True, keys: int = 3) -> Row:
    return Row({"loss": loss, "grad_norm": 2 * loss}, 8, 4, 10, 3, 0.5, 1, 2, 0.25, keys, stepped)


def test_a_line_has_means_rates_and_shares() -> None:
    interval = Interval(FLOPS, peak=1000.0, rows=[row(1.0), row(3.0, keys=KEYS - 1)])
    interval.started = time.monotonic() - 2.0
    line = interval.summary()
    assert (line["loss"], line["grad_norm"], line["texts"]) == (2.0, 4.0, 10.0)
    assert line["images_per_second"] == pytest.approx(8.0, rel=0.05)
    assert line["mfu"] == pytest.approx((16 * 100 + 8 * 10 + 20 * 1) / 2.0 / 1000.0, rel=0.05)
    assert line["region_hit_rate"] == 6 / 8 and line["prompt_sensitivity"] == 1 / 8
    assert line["truncation_rate"] == 2 / 20 and line["data_wait_share"] == pytest.approx(0.25, rel=0.05)
    assert (line["skipped"], line["skipped_steps"], line["keys"]) == (4, 0, 2)


def test_a_skipped_step_does_not_hide_the_others() -> None:
    line = Interval(FLOPS, 1.0, [row(1.0), row(math.nan, stepped=False), row(2.0)]).summary()
    assert line["loss"] == 1.5 and line["skipped_steps"] == 1
    assert math.isnan(Interval(FLOPS, 1.0, [row(math.nan, stepped=False)]).summary()["loss"])


def test_an_interval_goes_on_after_a_checkpoint_to_the_bit() -> None:
    rows = [row(0.1), row(math.nan, stepped=False), row(1 / 3)]
    whole = Interval(FLOPS, 1.0, rows)
    first, rest = Interval(FLOPS, 1.0, rows[:2]), Interval(FLOPS, 1.0)
    rest.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    rest.rows.append(rows[2])
    clock = ("images_per_second", "regions_per_second", "mfu", "data_wait_share")
    ours, expected = rest.summary(), whole.summary()
    assert {k: v for k, v in ours.items() if k not in clock} == {k: v for k, v in expected.items() if k not in clock}
    assert rest.started == pytest.approx(first.started, abs=0.5)
