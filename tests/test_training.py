import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy import ToyMethod, ToySplit, toy_trainer

from ssl_nb.evaluators import OnlineProbe
from ssl_nb.training import (
    NotFiniteError,
    Trainer,
    fit,
    last_checkpoint,
    learning_rate,
    load_checkpoint,
    make_optimizer,
    save_checkpoint,
)


def silent(_):
    pass


def weights(trainer):
    return {key: value.clone() for key, value in trainer.method.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.fixture(scope="module", params=["adamw", "sgd", "lars"])
def whole(request):
    trainer = toy_trainer(optimizer=request.param, accumulate=2)
    trainer.run(silent)
    return request.param, weights(trainer), trainer.history.rows


@pytest.mark.parametrize("stop", [1, 3, 7, 8, 11])
def test_an_interrupted_run_ends_bit_identical(whole, stop, tmp_path):
    optimizer, expected, rows = whole
    first = toy_trainer(tmp_path, optimizer=optimizer, accumulate=2)
    for _ in range(stop):
        first.step()
        if first.step_number % first.checkpoint_every == 0:
            first.checkpoint()
    second = toy_trainer(tmp_path, optimizer=optimizer, accumulate=2)
    assert second.step_number == stop // 3 * 3
    second.run(silent)
    assert_same(weights(second), expected)
    assert second.history.rows == rows


def test_a_killed_process_goes_on_bit_identical(tmp_path):
    script = "from toy import toy_trainer; import sys; toy_trainer(sys.argv[1], epochs=100).run(lambda line: None)"
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(folder):
        return subprocess.Popen([sys.executable, "-c", script, folder], cwd=Path(__file__).parent)

    undisturbed = start(whole)  # in a process of its own too: threads that other tests have set would change the last bit
    for _ in range(2):  # killed twice, wherever it happens to be
        process = start(killed)
        before, deadline = last_checkpoint(killed), time.monotonic() + 120
        while last_checkpoint(killed) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert last_checkpoint(killed).name < "step-00000400"
    assert start(killed).wait(120) == 0 == undisturbed.wait(120)
    ends = [last_checkpoint(folder) for folder in (whole, killed)]
    assert [end.name for end in ends] == ["step-00000400"] * 2
    for name in ("model.safetensors", "state.safetensors"):
        assert ends[0].joinpath(name).read_bytes() == ends[1].joinpath(name).read_bytes()
    histories = [json.loads(end.joinpath("state.json").read_text())["history"] for end in ends]
    assert histories[0] == histories[1]


def test_half_a_checkpoint_never_looks_whole(tmp_path, monkeypatch):
    trainer = toy_trainer(tmp_path)
    good = trainer.checkpoint()
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space"):
        trainer.step()
        trainer.checkpoint()
    assert last_checkpoint(tmp_path) == good
    load_checkpoint(good, trainer._modules, trainer.optimizer)


def test_only_the_last_checkpoint_is_kept(tmp_path):
    trainer = toy_trainer(tmp_path)
    trainer.run(silent)
    assert [p.name for p in tmp_path.iterdir()] == [f"step-{trainer.total_steps:08d}"]


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    toy_trainer(tmp_path).checkpoint()
    with pytest.raises(ValueError, match=r"lr 0\.01, now 0\.5"):
        toy_trainer(tmp_path, lr=0.5)


def test_a_loss_that_is_not_finite_names_step_parts_and_checkpoint(tmp_path):
    trainer = toy_trainer(tmp_path)
    for _ in range(3):
        trainer.step()
    saved = trainer.checkpoint()
    with torch.no_grad():
        trainer.method.encoder.net[1].weight.fill_(math.nan)
    with pytest.raises(NotFiniteError) as error:
        trainer.step()
    for part in ("step 4", "gap nan", str(saved)):
        assert part in str(error.value)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    trainer = toy_trainer(tmp_path)
    saved = trainer.checkpoint()
    trainer.step()
    with torch.no_grad():
        trainer.method.encoder.net[1].weight[0, 0] = math.inf
    with pytest.raises(NotFiniteError, match="weight"):
        trainer.checkpoint()
    assert last_checkpoint(tmp_path) == saved


def test_accumulated_gradients_are_the_mean_of_the_micro_batches():
    # without dropout, batch statistics or views' noise, two micro-batches of 8 are one batch of 16
    def run(batch_size, accumulate):
        torch.manual_seed(0)
        method = ToyMethod()
        method.encoder.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8))
        method.views.views = lambda batch, generator: [batch / 255]
        method.loss = lambda views: type("S", (), dict(loss=method.encoder(views[0]).square().mean(), metrics={}))
        trainer = Trainer(method, ToySplit(), epochs=2, batch_size=batch_size, accumulate=accumulate, optimizer="sgd",
                          lr=0.1, device="cpu")
        trainer.run(silent)
        return weights(trainer)

    for a, b in zip(run(16, 1).values(), run(8, 2).values(), strict=True):
        torch.testing.assert_close(a, b)


def test_every_epoch_shows_every_image_once():
    trainer = toy_trainer()
    seen = []
    trainer.method.views.views = lambda batch, generator: seen.append(batch) or [batch / 255, batch / 255]
    trainer.run(silent)
    for epoch in itertools.batched(seen, 4) if hasattr(itertools, "batched") else zip(*[iter(seen)] * 4, strict=True):
        images = torch.cat(list(epoch)).flatten(1).tolist()
        assert sorted(images) == sorted(ToySplit().images.flatten(1).tolist())


def test_schedule():
    assert learning_rate(0, 1.0, 0.1) == 0
    assert learning_rate(0.05, 1.0, 0.1) == pytest.approx(0.5)
    assert learning_rate(0.1, 1.0, 0.1) == pytest.approx(1)
    assert learning_rate(0.55, 1.0, 0.1) == pytest.approx(0.5)
    assert learning_rate(1, 1.0, 0.1) == pytest.approx(0)
    assert learning_rate(0, 1.0, 0.0) == 1


def test_vectors_are_not_decayed():
    decay = {id(p): g["weight_decay"] for g in make_optimizer(ToyMethod(), "lars", 1.0, 0.1).param_groups for p in g["params"]}
    for parameter in ToyMethod().parameters():
        assert parameter.ndim in (1, 2)
    method = ToyMethod()
    groups = make_optimizer(method, "sgd", 1.0, 0.1).param_groups
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert {p.ndim: decay[id(p)] for p in method.parameters()} == {1: 0.0, 2: 0.1}


def test_online_probe_learns_and_leaves_the_encoder_alone():
    alone = toy_trainer()
    alone.run(silent)
    beside = toy_trainer(probe=OnlineProbe(8, 4))  # made now: a trainer seeds dropout when it is made
    beside.run(silent)
    assert_same(weights(alone), weights(beside))
    assert "probe_loss" in beside.history.rows[-1]


def test_precision_and_clipping_take_effect():
    free = toy_trainer()
    free.step()
    mixed = toy_trainer(precision="bf16-mixed")
    mixed.step()
    assert mixed.history.rows[0]["loss"] == pytest.approx(free.history.rows[0]["loss"], rel=0.05)
    assert mixed.history.rows[0]["loss"] != free.history.rows[0]["loss"]
    still = toy_trainer(clip=1e-12, optimizer="sgd", weight_decay=0.0)
    before = weights(still)
    still.run(silent)
    torch.testing.assert_close(weights(still)["encoder.net.1.weight"], before["encoder.net.1.weight"])


def test_report_gets_a_line_an_epoch_and_history_is_a_table():
    lines = []
    history = fit(ToyMethod(), ToySplit(), epochs=3, batch_size=16, device="cpu", report=lines.append)
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert list(history.table()["step"]) == list(range(1, 13))
    assert len(history.series("loss")[0]) == 12
    with pytest.raises(KeyError, match="recorded: .*gap"):
        history.series("los")


@pytest.mark.parametrize("settings, message", [
    (dict(epochs=0), "epochs is 0"), (dict(batch_size=65), "has 64 images"), (dict(lr=-1.0), "lr is -1.0"),
    (dict(warmup=1.0), "warmup is 1.0"), (dict(optimizer="adam"), "choose adamw, sgd or lars")])
def test_bad_settings_are_said_before_anything_runs(settings, message):
    with pytest.raises(ValueError, match=message):
        toy_trainer(**settings)


def test_checkpoint_folder_round_trip(tmp_path):
    module = torch.nn.Linear(2, 3)
    saved = save_checkpoint(tmp_path / "run", 7, module, extra={"a": torch.arange(3)}, facts={"b": 1.5})
    other = torch.nn.Linear(2, 3)
    facts, tensors = load_checkpoint(saved, other)
    assert facts["b"] == 1.5 and facts["step"] == 7 and torch.equal(tensors["a"], torch.arange(3))
    assert torch.equal(other.weight, module.weight)
    assert os.listdir(tmp_path / "run") == ["step-00000007"]
