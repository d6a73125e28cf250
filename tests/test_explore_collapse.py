"""CollapseLab without a browser: measures and words on made features, live changes, threads, bad input."""
import threading
import time
from dataclasses import replace

import pytest
import torch
from toy import ToyMethod

pytest.importorskip("anywidget")

from ssl_nb import data, methods
from ssl_nb.explore import collapse_lab
from ssl_nb.explore.collapse_lab import CollapseLab
from ssl_nb.explore.collapse_settings import METHODS, Settings, build_method, lab_views, presets
from ssl_nb.explore.live_run import LiveRun, diagnosis, measure, principal_plane, sphere

NOISE = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture
def lab():
    made = CollapseLab()
    yield made
    made.close()


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.01)


# -- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features, words", [
    (torch.ones(50, 64), "complete collapse: feature std .000 against 1/sqrt(d) = .125"),
    (torch.zeros(50, 64), "complete collapse: feature std .000"),
    (torch.ones(400, 64) + 0.03 * NOISE, "complete collapse: feature std .004 against 1/sqrt(d) = .125"),
    (NOISE[:, :9] @ torch.linalg.qr(NOISE[:64]).Q[:9],
     "dimensional collapse: 9 of 64 directions hold 99 % of the variance, 55 are dead"),
    (NOISE[:, :1].sign() * torch.ones(64) + 0.01 * NOISE, "dimensional collapse: 1 of 64 directions holds"),
    (torch.ones(400, 64) + NOISE / 3, "narrow cone: feature std .039"),
    (NOISE, "no collapse seen: 63 of 64"),
    (NOISE[:, :2], "no collapse seen: 2 of 2"),
    (NOISE[:, :3], "no collapse seen: 3 of 3"),
    (NOISE[:20], "no collapse seen: 19 of 19"),  # no more directions than images, less one
])
def test_diagnosis(features, words):
    assert diagnosis(measure(features)).startswith(words)


def test_alignment_and_eigenspaces():
    seen = measure(NOISE, (NOISE, NOISE), torch.eye(64))
    assert seen.alignment == pytest.approx(0, abs=1e-6) and torch.allclose(seen.eigenspaces, torch.ones(64))
    assert measure(NOISE).eigenspaces is None


def test_plane_is_continuous_and_within_the_circle():
    z = torch.nn.functional.normalize(NOISE * torch.linspace(3, 0.1, 64), dim=1)
    before = principal_plane(z)
    assert before.norm(dim=1).max() <= 1
    assert torch.allclose(principal_plane(z, -before), -before, atol=1e-5)
    assert (principal_plane(z + 0.001 * NOISE, before.flip(1)) - before.flip(1)).abs().max() < 0.1


def test_sphere_turns_about_the_vertical_axis():
    assert torch.allclose(sphere(torch.eye(3), 90), torch.tensor([[0, 0, -1.0], [0, 1, 0], [1, 0, 0]]), atol=1e-6)


# -- settings and runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs, words", [
    (dict(method="byoll"), "did you mean 'byol'"), (dict(predictor="mpl"), "did you mean 'mlp'"),
    (dict(temperature=0), "temperature is 0"),
    (dict(momentum=1.5), "momentum is 1.5"), (dict(width=1), "width is 1"), (dict(lr=float("nan")), "lr is nan"),
    (dict(method="byol", projector="none"), "choose 'linear'")])
def test_settings_refuse(knobs, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        Settings(**knobs)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_from_every_other(digits, method):
    run = LiveRun(digits.train[:200], Settings(batch_size=32), sample=digits.test[:40])
    run.step(2)
    weights = {k: v.clone() for k, v in run.method.encoder.state_dict().items()}
    run.apply(replace(run.settings, method=method))
    assert all(torch.equal(v, weights[k]) for k, v in run.method.encoder.state_dict().items())
    run.step(2)
    run.measure()
    assert run.steps == 4 and run.records[-1]["alignment"] > 0
    if run.method.teacher is not None:  # a new teacher started as the student was, not as a stranger
        own = torch.cat([p.flatten() for p in torch.nn.Sequential(run.method.encoder, run.method.projector).parameters()])
        theirs = torch.cat([p.flatten() for p in run.method.teacher.parameters()])
        assert torch.nn.functional.cosine_similarity(own, theirs, dim=0) > 0.99


def test_change_and_back_leaves_no_trace(digits):
    one, other = (LiveRun(digits.train[:200], Settings(batch_size=32), sample=digits.test[:40]) for _ in range(2))
    one.step(8)
    other.step(3)
    other.apply(replace(other.settings, temperature=1.0))
    other.apply(replace(other.settings, temperature=0.2))
    other.step(5)
    assert all(torch.equal(a, b) for a, b in zip(one.method.parameters(), other.method.parameters(), strict=True))
    assert one.trainer.step_number == other.trainer.step_number


def test_training_and_measuring_leave_the_global_seed_alone(digits):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    run = LiveRun(digits.train[:100], Settings(batch_size=32), sample=digits.test[:40])
    run.step()
    run.measure()
    assert torch.equal(before, torch.get_rng_state())


def test_records_stay_few(digits, monkeypatch):
    run = LiveRun(digits.train[:100], Settings(batch_size=32), sample=digits.test[:40])
    run.measure()
    run.records = [{"step": -i} for i in range(2000, 0, -1)]
    run.measure()
    assert len(run.records) < 1100 and run.records[-1]["step"] == 0
    run.step(3)
    assert len(run.trainer.history.rows) == 1


def test_views_of_strength_zero_are_the_image(digits):
    images = digits.train["images"][:4]
    for view in lab_views(8, 0)(images, torch.Generator()):
        assert torch.allclose(view, images / 255, atol=1e-6)


def test_run_refuses(digits):
    with pytest.raises(TypeError, match="split is a Tensor; pass an ssl_nb Split"):
        LiveRun(digits.train["images"])
    with pytest.raises(ValueError, match="15 images to train on, fewer than a batch of 128"):
        LiveRun(digits.train[:20])
    with pytest.raises(ValueError, match="the split has 3 images"):
        LiveRun(digits.train[:3])
    with pytest.raises(TypeError, match="method is a str"):
        LiveRun(method="simclr")
    run = LiveRun(digits.train[:100], Settings(batch_size=32), sample=digits.test[:40])
    with pytest.raises(ValueError, match="batch_size 256 is more than the 100 images"):
        run.apply(replace(run.settings, batch_size=256))


# -- presets --------------------------------------------------------------------------------------------------------


def test_complete_collapse_shows(lab):
    lab.load("complete collapse")
    lab.run(120)
    a, b = (run.measures for run in lab.runs)
    assert b.spread < 0.2 < 0.6 < a.spread
    assert "stop-gradient" in lab.alt and "step 120" in lab.alt


def test_recovery_turns_the_knobs_by_itself_and_again_after_reset(lab, monkeypatch):
    monkeypatch.setitem(presets, "recovery", replace(presets["recovery"], then=(4, presets["recovery"].then[1])))
    lab.load("recovery")
    for _ in range(2):
        assert not any(run.settings.stop_gradient for run in lab.runs)
        lab.run(6)
        assert lab.runs[0].settings.stop_gradient and lab.runs[1].settings.method == "simclr"
        assert lab.knobs["stop_gradient"].value  # the shown knob followed
        lab.reset()


@pytest.mark.parametrize("name", presets)
def test_every_preset_starts_and_draws(lab, name):
    lab.preset.value = name
    lab.run(2)
    assert not lab.error and not lab.message and presets[name].watch.split(".")[0][:10] in lab.words.value
    titles = [panel.title for panel in lab.panels()]
    assert titles[:5] == [
        "Loss", "Feature std", "Spectrum, centered", "RankMe; effective rank: dots", "Alignment against uniformity"]
    assert ("Eigenspaces of the predictor" in titles) == (name == "eigenspaces")


# -- knobs ----------------------------------------------------------------------------------------------------------


def test_knobs_turn_the_chosen_run(lab):
    lab.target.value = "B"
    assert lab.knobs["stop_gradient"].value is False
    lab.knobs["lr"].value = 1e-2
    assert [run.settings.lr for run in lab.runs] == [1e-3, pytest.approx(1e-2)]
    lab.target.value = "both"
    lab.knobs["strength"].value = 0.9
    assert [run.settings.strength for run in lab.runs] == [0.9, 0.9] and lab.runs[0].settings.stop_gradient
    lab.reset()
    assert [run.settings.strength for run in lab.runs] == [0.9, 0.9] and lab.runs[0].steps == 0


def test_absent_knobs_are_off_and_say_why(lab):
    assert lab.knobs["temperature"].disabled and "simsiam has no temperature" in lab.knobs["temperature"].tooltip
    lab.knobs["method"].value = "simclr"
    assert not lab.knobs["temperature"].disabled and lab.knobs["stop_gradient"].disabled
    lab.knobs["projector"].value = "none"
    assert lab.runs[0].measures.dim == 64 and lab.knobs["width"].disabled
    lab.knobs["method"].value = "moco"  # needs a projector: refused, and the knob goes back
    assert "choose 'linear'" in lab.message and lab.knobs["method"].value == "simclr" and not lab.error


def test_rounding_by_a_slider_is_no_change(lab):
    lab.knobs["weight_decay"].value = 1.01e-4
    assert lab.runs[0].settings.weight_decay == 1e-4 and lab._is_preset()
    lab.knobs["weight_decay"].value = 1.023e-4  # a notch
    assert lab.runs[0].settings.weight_decay == 1.023e-4 and not lab._is_preset()


def test_another_width_begins_another_record(lab):
    lab.run(5)
    lab.knobs["width"].value = 8
    assert len(lab.runs[0].records) == 1 and len(lab.runs[1].records) == 2


def test_threads_are_given_back(lab):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        lab.run(1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_sphere_for_three_dimensions(lab):
    assert lab.turn.disabled
    lab.target.value = "both"
    lab.knobs["width"].value = 3
    assert not lab.turn.disabled and lab.panels()[5].note == "embedding, on the sphere"
    still = lab.panels()[5].marks[1].x
    lab.turn.value = 90
    assert not torch.equal(torch.as_tensor(lab.panels()[5].marks[1].x), torch.as_tensor(still))


def test_representation_and_one_run(lab):
    lab.of.value = "representation"
    assert lab.panels()[5].note.startswith("representation")
    lab.two.value = False
    assert len(lab.runs) == 1 and len(lab.panels()) == 7 and lab.runs[0].of == "representation"
    lab.two.value = True
    assert len(lab.runs) == 2


# -- threads --------------------------------------------------------------------------------------------------------


def test_one_thread_pause_and_reset(lab):
    before = threading.active_count()
    lab.frame_steps.value = 1
    lab.start()
    first = lab._thread
    lab.start()
    assert lab._thread is first and lab.running and lab.go.disabled
    until(lambda: lab.runs[1].steps > 2)
    lab.knobs["lr"].value = 1e-2
    until(lambda: lab.runs[0].settings.lr == pytest.approx(1e-2))
    lab.reset()
    assert lab.running and lab._thread is not first and not first.is_alive()
    until(lambda: lab.runs[1].steps > 2)
    assert lab.runs[0].settings.lr == pytest.approx(1e-2)
    lab.pause()
    assert not lab.running
    lab._thread.join(30)
    steps = lab.runs[0].steps
    time.sleep(0.1)
    assert lab.runs[0].steps == steps and lab.halt.disabled and not lab.error
    assert threading.active_count() <= before + 1  # the timer of the still


def test_kernel_is_not_blocked_and_step_ends_the_thread(lab):
    lab.frame_steps.value = 50
    lab.start()
    lab.knobs["lr"].value = 2e-3  # returns although a frame of 50 steps is under way
    assert lab.runs[0].steps < 50 and lab.running
    lab.step()
    assert not lab.running and lab.runs[0].steps == lab.runs[1].steps
    assert lab.runs[0].records[-1]["step"] == lab.runs[0].steps


def test_broken_loss_pauses_with_a_message():
    lab = CollapseLab(settings=Settings(method="vicreg", optimizer="sgd", lr=100, batch_size=32))
    lab.start()
    lab._thread.join(60)
    assert "Run A broke and training is paused: the loss is" in lab.message and not lab.running and not lab.error
    lab.knobs["lr"].value = 1e-3
    lab.reset()
    lab.run(2)
    assert lab.runs[0].steps == 2 and not lab.message
    lab.close()


# -- one's own ------------------------------------------------------------------------------------------------------


def test_own_split(digits):
    lab = CollapseLab(digits.train[:400], settings=Settings(batch_size=32))
    lab.run(3)
    assert len(lab.runs[0].split) == 300 and len(lab.runs[0].sample) == 100 and not lab.error


def test_own_method(digits):
    own = ToyMethod()
    split = data.image_split(torch.randint(0, 256, (80, 1, 4, 4), dtype=torch.uint8), torch.arange(80) % 4)
    lab = CollapseLab(split, own, settings=Settings(batch_size=16))
    start = own.encoder.net[1].weight.detach().clone()
    assert len(lab.runs) == 1 and lab.two.disabled and "your own" in lab.knobs["method"].tooltip
    lab.run(3)
    assert lab.runs[0].method is own and not torch.equal(start, own.encoder.net[1].weight)
    assert "ToyMethod" in lab.alt and "Loss parts (B dashed)" in [p.title for p in lab.panels()]
    lab.knobs["lr"].value = 1e-2
    lab.run(1)
    lab.reset()
    assert torch.equal(start, own.encoder.net[1].weight) and not lab.error
    lab.close()


@pytest.mark.parametrize("given, words", [
    (dict(preset="complte collapse"), "did you mean 'complete collapse'?"), (dict(split=torch.zeros(3)), "pass an ssl_nb Split"),
    (dict(method="simclr"), "pass an ssl_nb Method"), (dict(nonsense=1), "unexpected keyword argument 'nonsense'")])
def test_bad_arguments_become_a_message(given, words):
    lab = CollapseLab(**given)
    assert words in lab.error and not [c for c in lab.children if c is lab.canvas]


def test_masked_method_has_no_alignment(digits):
    from ssl_nb import encoders

    vit = encoders.create("vit", in_chans=1, img_size=8, embed_dim=32, depth=1, num_heads=2, patch_size=2)
    own = methods.create("mae", encoder=vit)
    lab = CollapseLab(digits.train[:200], own, settings=Settings(batch_size=32))
    lab.run(1)
    assert not lab.error and lab.runs[0].measures.alignment != lab.runs[0].measures.alignment


def test_module_is_lazy():
    assert collapse_lab.CollapseLab is __import__("ssl_nb.explore", fromlist=["CollapseLab"]).CollapseLab
    assert build_method(Settings()).encoder.num_features == 64
