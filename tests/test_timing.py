"""Times are fair: turns, an equal warm-up, a spread, and no figures from a busy machine."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from ssl_nb.runs import timing
from ssl_nb.runs.timing import BusyMachine, Spread, against, in_words, interleave, quiet, spread, times_as_fast

BENCHMARKS = sorted((Path(__file__).parent.parent / "nbs" / "benchmarks").glob("*.ipynb"))


def code(path):
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_pieces_take_turns_after_an_equal_warm_up_and_no_one_always_goes_first():
    order = []
    times = interleave({name: lambda name=name: order.append(name) for name in "abc"}, repeats=6, warm=2)
    assert "".join(order[:6]) == "aabbcc"
    rounds = ["".join(order[i : i + 3]) for i in range(6, len(order), 3)]
    assert len(rounds) == 6 and all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert sorted(r[0] for r in rounds) == list("aabbcc")
    assert all(t.shape == (6,) and (t >= 0).all() for t in times.values())
    with pytest.raises(ValueError, match="repeats is 0"):
        interleave({"a": order.clear}, repeats=0)


def test_a_short_piece_is_called_until_the_sample_is_long_enough(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def work():
        clock[0] += 0.25

    assert interleave({"a": work}, repeats=2, warm=1, sample=1.0)["a"].tolist() == [0.25, 0.25]
    assert clock[0] == 0.25 + 2 * 1.0  # a warm-up, and two samples of four calls


def test_load_leaves_out_the_work_of_this_process(monkeypatch):
    begun = time.perf_counter()
    monkeypatch.setattr(timing, "_busy_seconds", lambda: 1000 + time.process_time() + 1.5 * (time.perf_counter() - begun))
    monkeypatch.setattr(timing.Path, "exists", lambda self: True)
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: sum(range(3_000_000)))  # own work, while it looks
    assert timing.other_load(0.1) == pytest.approx(1.5, rel=0.01)


def test_a_busy_machine_is_refused_unless_that_is_allowed(monkeypatch):
    monkeypatch.setattr(timing, "other_load", lambda seconds: 1.3)
    with pytest.raises(BusyMachine, match=r"1\.3 of \d+ cores.*busy=true"):
        quiet()
    assert quiet(allow=True) == 1.3
    monkeypatch.setattr(timing, "other_load", lambda seconds: 0.05)
    assert quiet() == 0.05


def test_a_ratio_is_taken_round_by_round_and_noise_is_called_noise():
    ratio = times_as_fast([1.0, 2.0, 4.0], [3.0, 6.0, 12.0])  # a slow round slows both
    assert ratio == Spread(3.0, 3.0, 3.0) and "within noise" not in in_words(ratio)
    assert "equal within noise" in in_words(spread([0.97, 1.04, 1.1]))


def test_a_verdict_needs_every_round():
    assert against("a", Spread(3.1, 3.05, 3.2), least=3).verdict == "reproduced"
    assert against("a", Spread(1.1, 1.0, 1.2), most=2).verdict == "reproduced"
    for found in (Spread(3.1, 2.9, 3.2), Spread(2.0, 1.0, 2.5)):
        assert against("a", found, least=3).verdict != "reproduced"
    with pytest.raises(ValueError, match="give one of the two"):
        against("a", spread([1.0]))


def test_the_range_of_six_rounds_holds_the_median_in_95_of_100_cases():
    rounds = np.random.default_rng(0).exponential(size=(4000, 6))  # a skewed distribution with the median log 2
    inside = (rounds.min(1) <= np.log(2)) & (np.log(2) <= rounds.max(1))
    assert inside.mean() > 0.95


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_benchmark_measures_by_the_same_rules(path):
    text = code(path)
    assert "quiet(busy or scale == \"smoke\")" in text and "busy: bool = False" in text
    assert "min(times" not in text and "best_of" not in text  # medians with a spread
    assert ".copy_(source)" not in text  # bandwidth is defined once, in ssl_nb.runs.timing
