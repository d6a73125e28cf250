import fractions
import functools
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
from safetensors.torch import load_file, save_file
from torch import nn
from toy import ToyEncoder, ToyMethod, toy_split, toy_trainer

from ssl_nb import encoders, methods
from ssl_nb.batch import NotFiniteError
from ssl_nb.evaluators import Monitor, OnlineProbe, measure
from ssl_nb.training import (
    Trainer,
    decays,
    fit,
    identity,
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
    script = "from toy import toy_trainer; import sys; toy_trainer(sys.argv[1], epochs=40).run(lambda line: None)"
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(folder):
        return subprocess.Popen([sys.executable, "-c", script, folder], cwd=Path(__file__).parent)

    undisturbed = start(whole)  # in a process of its own too: threads that other tests have set would change the last bit
    for _ in range(2):  # killed twice, wherever it happens to be
        process = start(killed)
        before, deadline = last_checkpoint(killed), time.monotonic() + 900
        while last_checkpoint(killed) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert last_checkpoint(killed).name < "step-00000160"
    assert start(killed).wait(900) == 0 == undisturbed.wait(900)
    ends = [last_checkpoint(folder) for folder in (whole, killed)]
    assert [end.name for end in ends] == ["step-00000160"] * 2
    for name in ("model.safetensors", "state.safetensors"):
        assert ends[0].joinpath(name).read_bytes() == ends[1].joinpath(name).read_bytes()
    histories = [json.loads(end.joinpath("state.json").read_text())["history"] for end in ends]
    assert histories[0] == histories[1]


def test_half_a_checkpoint_never_looks_whole(tmp_path, monkeypatch):
    trainer = toy_trainer(tmp_path)
    good = trainer.checkpoint()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space"):
        trainer.step()
        trainer.checkpoint()
    assert last_checkpoint(tmp_path) == good
    load_checkpoint(good, trainer._modules, trainer.optimizer)


def test_only_the_last_checkpoint_is_kept(tmp_path):
    (tmp_path / ".step-00000003-1-1").mkdir()  # what a killed process leaves
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
        method.views = lambda batch, generator: [batch.x / 255]
        method.loss = lambda views, batch: type("S", (), dict(loss=method.encoder(views[0].x).square().mean(), metrics={}))
        trainer = Trainer(method, toy_split(), epochs=2, batch_size=batch_size, accumulate=accumulate, optimizer="sgd",
                          lr=0.1, device="cpu")
        trainer.run(silent)
        return weights(trainer)

    for a, b in zip(run(16, 1).values(), run(8, 2).values(), strict=True):
        torch.testing.assert_close(a, b)


def test_every_epoch_shows_every_image_once():
    trainer = toy_trainer()
    seen = []
    trainer.method.views = lambda batch, generator: seen.append(batch.x) or [batch.x / 255, batch.x / 255]
    trainer.run(silent)
    for epoch in itertools.batched(seen, 4) if hasattr(itertools, "batched") else zip(*[iter(seen)] * 4, strict=True):
        images = torch.cat(list(epoch)).flatten(1).tolist()
        assert sorted(images) == sorted(toy_split()["images"].flatten(1).tolist())


def test_schedule():
    assert learning_rate(0, 1.0, 0.1) == 0
    assert learning_rate(0.05, 1.0, 0.1) == pytest.approx(0.5)
    assert learning_rate(0.1, 1.0, 0.1) == pytest.approx(1)
    assert learning_rate(0.55, 1.0, 0.1) == pytest.approx(0.5)
    assert learning_rate(1, 1.0, 0.1) == pytest.approx(0)
    assert learning_rate(0, 1.0, 0.0) == 1


def test_no_step_has_rate_zero_and_the_rates_are_the_schedule_in_the_middle_of_each_step():
    for epochs in (1, 2, 7):
        trainer = toy_trainer(epochs=epochs, batch_size=64, lr=0.1, monitors=())
        trainer.run(silent)
        rates = [row["lr"] for row in trainer.history.rows]
        assert rates == [learning_rate((i + 0.5) / epochs, 0.1) for i in range(epochs)] and min(rates) > 0


def test_a_run_of_one_step_trains():
    trainer = toy_trainer(epochs=1, batch_size=64)
    before = weights(trainer)
    trainer.run(silent)
    assert not torch.equal(weights(trainer)["encoder.net.1.weight"], before["encoder.net.1.weight"])


def step_of(optimizer, **knobs):
    "What one step changes in a layer whose gradient is 1000 times its weight."
    layer = nn.Linear(3, 3)
    nn.init.eye_(layer.weight)
    layer(1000 * torch.eye(3)).diagonal().sum().backward()
    before = layer.weight.detach().clone()
    make_optimizer(layer, optimizer, lr=1.0, **knobs).step()
    return layer.weight.detach() - before


def test_lars_without_decay_is_lars():
    step = step_of("lars", weight_decay=0)
    torch.testing.assert_close(step, -0.001 * torch.eye(3))  # trust coefficient times the weight's norm, against the gradient
    torch.testing.assert_close(step, step_of("lars", weight_decay=1e-9))
    torch.testing.assert_close(step_of("sgd", weight_decay=0), -1000 * torch.eye(3))


class Oddities(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.rms = nn.LayerNorm([4, 4]), nn.RMSNorm([4, 4])
        self.plain, self.parametrized = nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.attention, self.token = nn.MultiheadAttention(4, 2), nn.Parameter(torch.zeros(1, 1, 4))
        self.again = self.plain


def test_decay_is_for_what_multiplies_the_input():
    small = dict(img_size=8, patch_size=4, depth=1, num_heads=2, embed_dim=16)
    vit = encoders.create("vit", in_chans=1, **small, reg_tokens=2, init_values=0.1)
    swav = methods.create("swav", encoder=ToyEncoder(), prototypes=4)
    for module in (vit, methods.create("mae", encoder=vit), swav, Oddities(),
                   encoders.create("convnet", in_chans=1, img_size=8)):
        groups = make_optimizer(module, weight_decay=0.1).param_groups
        decayed = {id(p) for g in groups for p in g["params"] if g["weight_decay"]}
        named = {name for name, p in module.named_parameters() if id(p) in decayed}
        assert len(groups) == 2 and sum(len(g["params"]) for g in groups) == len(list(module.parameters()))
        for name, p in module.named_parameters():
            alone = any(word in name for word in ("token", "pos_embed", "position", "gamma"))
            assert (name in named) == (p.ndim > 1 and not alone and not name.startswith(("norm.", "rms."))), name
    assert decays(nn.Linear(2, 1), "weight") and not decays(nn.Linear(2, 1), "bias")


def test_vectors_are_not_decayed():
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
    history = fit(ToyMethod(), toy_split(), epochs=3, batch_size=16, device="cpu", report=lines.append)
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert list(history.table()["step"]) == list(range(1, 13))
    assert len(history.series("loss")[0]) == 12
    with pytest.raises(KeyError, match="recorded: .*gap"):
        history.series("los")


NAN, INF = math.nan, math.inf
BAD_NUMBERS = dict(
    epochs=(0, -1, 2.0, 1.5, NAN, INF, "3", None, True), batch_size=(0, -1, 16.0, NAN), accumulate=(0, 1.5, INF),
    devices=(0, -1, 1.5, "2"), lr=(0, -1.0, NAN, INF, -INF, "0.1", None, 1j), weight_decay=(-1e-4, NAN, INF, None),
    warmup=(-0.1, 1.0, 2, NAN), clip=(-1, 0, NAN, INF, "1"), seed=(0.5, NAN, 2**63, None),
    checkpoint_every=(-1, 1.5, NAN, None), log_every=(-1, 2.5, NAN, None))


@pytest.mark.parametrize("name, value", [(name, value) for name, values in BAD_NUMBERS.items() for value in values])
def test_a_number_that_cannot_be_is_said_before_anything_is_built(name, value, monkeypatch):
    import lightning_fabric

    monkeypatch.setattr(lightning_fabric, "Fabric", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(ValueError, match=f"^{name} is .*; it must be "):
        toy_trainer(**{name: value})


@pytest.mark.parametrize("settings, message", [
    (dict(batch_size=65), "has 64 rows"), (dict(batch_size=33, accumulate=2), "= 66 rows"),
    (dict(batch_size=33, devices=2), "devices 2 = 66 rows"), (dict(optimizer="adam"), "choose adamw, sgd or lars")])
def test_settings_that_do_not_fit_are_said_before_anything_is_built(settings, message, monkeypatch):
    import lightning_fabric

    monkeypatch.setattr(lightning_fabric, "Fabric", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(ValueError, match=message):
        toy_trainer(**settings)


@pytest.mark.parametrize("knob", [dict(lr=-1.0), dict(weight_decay=-1.0), dict(momentum=1.0), dict(momentum=-0.1), dict(lr=NAN)])
def test_an_optimizer_checks_its_numbers(knob):
    with pytest.raises(ValueError, match=next(iter(knob))):
        make_optimizer(nn.Linear(2, 2), "sgd", **knob)


def test_a_monitor_is_called_at_steps_that_can_be_counted():
    with pytest.raises(ValueError, match="monitor 0: every is 0"):
        toy_trainer(monitors=(Monitor(None, None, every=0),))


def test_numbers_of_numpy_are_numbers_and_are_kept(tmp_path):
    import numpy as np

    toy_trainer(tmp_path, epochs=np.int64(3), lr=np.float32(0.01), seed=np.int32(1), checkpoint_every=np.int64(2)).run(silent)
    assert toy_trainer(tmp_path, epochs=3, lr=float(np.float32(0.01)), seed=1).step_number == 12


# -- clipping, modes, what is evaluated -----------------------------------------------------------------------------


def test_a_probe_changes_no_step_of_a_clipped_method():
    def run(probe):
        trainer = toy_trainer(clip=0.05, optimizer="sgd", lr=1.0)
        trainer = trainer if not probe else toy_trainer(clip=0.05, optimizer="sgd", lr=1.0, probe=OnlineProbe(8, 4))
        trainer.run(silent)
        return weights(trainer)

    assert_same(run(probe=False), run(probe=True))


def test_a_clipped_step_has_the_norm_that_was_asked_for():
    trainer = toy_trainer(clip=0.01, optimizer="sgd", weight_decay=0.0, lr=1.0)
    before = {name: p.detach().clone() for name, p in trainer.method.named_parameters()}
    rate = trainer.step()["lr"]
    moved = torch.cat([(p.detach() - before[name]).flatten() for name, p in trainer.method.named_parameters()]).norm()
    assert float(moved) == pytest.approx(0.01 * rate, rel=1e-3)


def test_frozen_batch_norm_stays_frozen_while_monitors_look():
    def look(method):
        assert not any(m.training for m in method.modules())
        return {"mean": float(encoders.embed(method.encoder, toy_split()["images"]).mean())}

    look.every = 1
    trainer = toy_trainer(monitors=(look,))
    norm = trainer.method.encoder.net[2].eval()
    trainer.run(silent)
    assert not norm.training and trainer.method.encoder.net[3].training
    assert torch.equal(norm.running_mean, torch.zeros(8)) and int(norm.num_batches_tracked) == 0


def test_a_method_that_was_put_into_evaluation_mode_between_steps_trains_on():
    trainer = toy_trainer()
    trainer.step()
    trainer.method.eval()
    trainer.step()
    assert all(m.training for m in trainer.method.modules())


def small_dino():
    torch.manual_seed(0)
    encoder = encoders.create("convnet", in_chans=1, img_size=4, channels=(4, 4, 8))
    views = lambda batch, generator: [batch.x / 255, batch.x.flip(-1) / 255]  # noqa: E731
    return methods.create("dino", encoder=encoder, out_dim=8, views=views)


def test_what_is_watched_and_kept_is_what_the_method_evaluates(tmp_path):
    method, split = small_dino(), toy_split()
    monitor = Monitor(split, split, k=5, every=4, evaluators=("knn", "feature_std"))
    settings = dict(epochs=2, batch_size=16, lr=0.05, device="cpu", folder=tmp_path, report=silent)
    history = fit(method, split, monitors=(monitor,), **settings)
    teacher, student = (float(measure(e, monitor, ("feature_std",))[0]) for e in (method.evaluated, method.encoder))
    assert method.evaluated is not method.encoder and teacher != student
    assert history.series("feature_std")[1][-1] == teacher
    kept = encoders.load(tmp_path)
    assert_same(kept.state_dict(), method.evaluated.state_dict())


# -- what a folder belongs to ---------------------------------------------------------------------------------------


def noisy(sigma):
    return lambda batch, generator: [batch.x / 255 + sigma * torch.randn(batch.x.shape, generator=generator) for _ in range(2)]


def work(name="simclr", sigma=0.1, split=None, width=8, probe=None, **knobs):
    torch.manual_seed(0)
    encoder = ToyEncoder()
    if width != 8:
        encoder.net[3] = nn.Linear(8, width)
    method = methods.create(name, encoder=encoder, projector=(8,), views=noisy(sigma), **knobs)
    return dict(method=method, split=split or toy_split(), epochs=1, batch_size=16, device="cpu", probe=probe, report=silent)


OTHER_WORK = [
    (dict(temperature=0.5), r"method\.made\.knobs\.temperature 0\.2, now 0\.5"), (dict(sigma=0.2), r"sigma 0\.1, now 0\.2"),
    (dict(name="barlow_twins"), r"method\.made\.name 'simclr', now 'barlow_twins'"), (dict(width=7), r"method\.encoder\.net\.3"),
    (dict(split=toy_split(seed=1)), r"split\.images torch.uint8"),
    (dict(probe=OnlineProbe(8, 4)), "probe absent, now .*OnlineProbe")]


@pytest.mark.parametrize("other, message", OTHER_WORK)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_is_refused_to_other_work(other, message, finished, tmp_path):
    if finished:
        fit(**work(), folder=tmp_path)
    else:
        first = work()
        first.pop("report")
        trainer = Trainer(first.pop("method"), first.pop("split"), folder=tmp_path, **first)
        trainer.step()
        trainer.checkpoint()
    with pytest.raises(ValueError, match=f"belongs to other work: .*{message}.*another folder, or delete that one"):
        fit(**work(**other), folder=tmp_path)
    assert len(fit(**work(), folder=tmp_path).rows) == 4  # the same work goes on


def test_the_labels_belong_to_the_work(tmp_path):
    fit(**work(), folder=tmp_path)
    split = toy_split()
    split = split.assign(labels=split["labels"].flip(0))
    with pytest.raises(ValueError, match="labels torch.int64"):
        fit(**work(split=split), folder=tmp_path)


def test_a_method_that_is_already_trained_takes_up_its_own_folder(tmp_path):
    same = work()
    rows = fit(**same, folder=tmp_path).rows
    trained = {key: value.clone() for key, value in same["method"].state_dict().items()}
    assert fit(**same, folder=tmp_path).rows == rows
    assert_same(same["method"].state_dict(), trained)


@pytest.mark.parametrize("name", methods.list(modality="image"))
def test_training_changes_no_methods_identity(name):
    def made():
        torch.manual_seed(0)
        vit, convnet = dict(patch_size=4, depth=1, embed_dim=16, num_heads=2), dict(channels=(4, 4, 8))
        kind = ("vit", vit) if name == "mae" else ("convnet", convnet)
        return methods.create(name, encoder=encoders.create(kind[0], in_chans=1, img_size=8, **kind[1]))

    split = toy_split()
    split = split.assign(images=split["images"].repeat(1, 1, 2, 2))
    method = made()
    before = identity(method=method)
    fit(method, split, epochs=1, batch_size=32, device="cpu", report=silent)
    assert identity(method=method) == before == identity(method=made())
    assert any(".made.knobs." in path for path in before) and not any("0x" in value for value in before.values())


SCRIPT = """
SIGMA = 0.1
def noise(x): return [x + SIGMA for _ in range(2)]
class Maker:
    def __init__(self, k): self.k = k
    def __call__(self, batch, generator): return noise(batch)
    @property
    def twice(self): return 2 * self.k
"""


def of_a_notebook(script=SCRIPT, k=1):
    names = {"__name__": "__main__"}
    exec(script, names)
    return identity(maker=names["Maker"](k), function=names["noise"], words={"b", "a", "c"})


def test_identity_sees_the_code_that_a_notebook_defines():
    same = of_a_notebook()
    assert of_a_notebook(SCRIPT.replace("(x)", "(picture)").replace("x +", "picture +")) == same  # a name is not the code
    for old, new in (("0.1", "0.2"), ("x + SIGMA", "x - SIGMA"), ("noise(batch)", "noise(batch)[:1]"), ("2 * self", "3 * self")):
        assert of_a_notebook(SCRIPT.replace(old, new)) != same, new
    assert of_a_notebook(k=2) != same


def test_identity_is_the_same_in_every_process():
    script = ("import json; from test_training import of_a_notebook, work, identity; "
              "print(json.dumps(identity(method=work()['method']) | of_a_notebook()))")
    start = lambda seed: subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent, stdout=subprocess.PIPE,  # noqa: E731
                                          env=os.environ | {"PYTHONHASHSEED": seed})
    found = [json.loads(process.communicate(timeout=900)[0].splitlines()[-1]) for process in [start("1"), start("2")]]
    assert found[0] == found[1] == identity(method=work()["method"]) | of_a_notebook()


@pytest.mark.parametrize("one, other", [
    (torch.zeros(2), torch.zeros(3)), (torch.zeros(2), torch.ones(2)), (torch.zeros(2).numpy(), torch.ones(2).numpy()),
    (torch.zeros(1).numpy()[0], torch.ones(1).numpy()[0]), ({"a": 1}, {"a": 2}), ({1}, {2}), (torch.relu, torch.tanh), (len, max),
    ((1, [2]), (1, [3])), (lambda: 1, lambda: 2), (lambda x=1: x, lambda x=2: x), (lambda *, x=1: x, lambda *, x=2: x),
    (functools.partial(max, 1), functools.partial(max, 2)), (functools.partial(max, key=len), functools.partial(max, key=abs)),
    (nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)), (nn.Dropout(0.1), nn.Dropout(0.2)), (nn.ReLU, nn.GELU),
    (nn.ReLU(), nn.GELU()), (torch.float, torch.half), (fractions.Fraction(1, 2), fractions.Fraction(1, 3)), (os, sys)])
def test_identity_tells_values_apart(one, other):
    assert identity(x=one) != identity(x=other) and identity(x=one) == identity(x=one)
    assert identity(x=nn.Linear(2, 2)) == identity(x=nn.Linear(2, 2).eval())  # weights and modes are not identity


def test_a_finished_run_with_nan_weights_is_not_returned(tmp_path):
    trainer = toy_trainer(tmp_path)
    trainer.run(silent)
    file = last_checkpoint(tmp_path) / "model.safetensors"
    state = load_file(file)
    for name in ("method.encoder.net.1.weight", "method.encoder.net.2.running_var"):
        broken = {key: value.clone() for key, value in state.items()}
        broken[name].view(-1)[0] = math.nan
        save_file(broken, file)
        with pytest.raises(NotFiniteError, match=f"{name} is not finite; delete that folder"):
            toy_trainer(tmp_path)
    save_file(state, file)
    assert toy_trainer(tmp_path).step_number == trainer.total_steps


def test_buffers_and_probes_that_are_not_finite_are_never_saved(tmp_path):
    for spoil in (lambda t: t.method.encoder.net[2].running_mean.fill_(math.nan),
                  lambda t: t.probe.linear.weight.data.fill_(math.inf)):
        trainer = toy_trainer(tmp_path / "run", probe=OnlineProbe(8, 4))
        spoil(trainer)
        with pytest.raises(NotFiniteError):
            trainer.checkpoint()
    assert last_checkpoint(tmp_path / "run") is None


# -- float16 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def scaled_loss(monkeypatch):
    "float16's loss scaling on a CPU, where Fabric has no float16: arithmetic stays float32, the scale doubles every two steps."
    import contextlib

    import lightning_fabric
    from lightning_fabric.plugins import MixedPrecision

    class Scaled(MixedPrecision):
        def forward_context(self):
            return contextlib.nullcontext()

        def convert_input(self, data):
            return data

    real = lightning_fabric.Fabric

    def fabric(precision, **settings):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        return real(plugins=[Scaled("16-mixed", "cpu", scaler)], **settings)

    return lambda: monkeypatch.setattr(lightning_fabric, "Fabric", fabric)


def test_the_scale_of_the_loss_is_resumed(tmp_path, scaled_loss):
    scaled_loss()
    whole = toy_trainer()
    whole.run(silent)
    first = toy_trainer(tmp_path)
    for _ in range(3):
        first.step()
    first.checkpoint()
    second = toy_trainer(tmp_path)
    assert second.fabric.strategy.precision.state_dict() == first.fabric.strategy.precision.state_dict()
    assert second.fabric.strategy.precision.state_dict()["scale"] == 2.0**11
    second.run(silent)
    assert second.fabric.strategy.precision.state_dict() == whole.fabric.strategy.precision.state_dict()
    assert_same(weights(second), weights(whole))


def test_clipping_comes_after_unscaling(scaled_loss):
    plain = toy_trainer(clip=0.05, optimizer="sgd", lr=1.0)
    plain.run(silent)
    scaled_loss()
    scaled = toy_trainer(clip=0.05, optimizer="sgd", lr=1.0)
    scaled.run(silent)
    for a, b in zip(weights(plain).values(), weights(scaled).values(), strict=True):
        torch.testing.assert_close(a, b)  # a scale of a power of two changes no digit


def test_checkpoint_folder_round_trip(tmp_path):
    module = torch.nn.Linear(2, 3)
    saved = save_checkpoint(tmp_path / "run", 7, module, extra={"a": torch.arange(3)}, facts={"b": 1.5})
    other = torch.nn.Linear(2, 3)
    facts, tensors = load_checkpoint(saved, other)
    assert facts["b"] == 1.5 and facts["step"] == 7 and torch.equal(tensors["a"], torch.arange(3))
    assert torch.equal(other.weight, module.weight)
    assert os.listdir(tmp_path / "run") == ["step-00000007"]
