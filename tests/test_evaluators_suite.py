"""The suite: one pass over the images, one table, reasons in place of crashes; weights in files, and the shell."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from ssl_nb import data, disk, encoders, methods, training
from ssl_nb import evaluators as ev
from ssl_nb.cli import app


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_NB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def digits():
    sets = data.load("digits")
    return data.Data(sets.spec, sets.train[:400], sets.test[:200])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return encoders.create("convnet", in_chans=1, img_size=8, channels=(4, 8, 16, 32))


def counted(encoder):
    seen = []
    encoder.register_forward_hook(lambda module, images, out: seen.append(len(out)))
    return seen


def ask(*args, **kwargs):
    return ev.evaluate(*args, progress=False, **kwargs)


# ---- the table


def test_numbers_are_those_of_the_evaluators_themselves(network, digits):
    found = ask(network, digits).table.set_index("evaluator")
    train, test = (encoders.embed(network, split["images"]) for split in (digits.train, digits.test))
    split = train, digits.train["labels"], test, digits.test["labels"]
    assert found.value["knn"] == ev.knn(*split) and found.value["linear_probe"] == ev.linear_probe(*split)
    assert found.value["rankme"] == pytest.approx(ev.rankme(test), rel=1e-9)
    assert found.value["uniformity"] == pytest.approx(ev.uniformity(test))
    assert list(found.columns) == ["encoder", "protocol", "value", "low", "high", "of", "seconds", "note"]
    assert found.low["knn"] < found.value["knn"] < found.high["knn"] and found.of["knn"] == "examples"


def test_an_evaluator_of_ones_own_has_a_direction_and_a_rank(network, digits):
    largest = ev.Evaluator(lambda asked: ev.Score(float(asked.test.abs().max()), "largest"), "lower")
    ev.register("largest")(largest)
    try:
        found = ask({"network": network, "pixels": nn.Flatten()}, digits, ["largest"])
        values, ranks = found.values().loc["largest"].iloc[0], found.ranks().loc["largest"].iloc[0]
        assert ranks[values.idxmin()] == 1 and ranks[values.idxmax()] == 2
    finally:
        del ev.registry._own["largest"]


def test_the_full_suite_answers_for_a_network_and_for_pixels(network, digits):
    elsewhere = data.load("scenes", size=8, channels=1, n_train=100, n_test=100)
    found = ask({"pixels": nn.Flatten(), "network": network}, digits, "full", ood=elsewhere)
    assert set(found.table.evaluator) == set(ev.SUITES["full"]) and found.table.value.notna().all()
    assert set(found.table[found.table.evaluator == "ood_scores"].protocol.str.contains("fpr")) == {True, False}
    ranks = found.ranks()
    assert ranks.isin([1, 2]).all().all() and "two_nn" not in ranks.index.get_level_values(0)
    values = found.values()
    for row in ranks.index:  # the smaller is the better where the register says so
        lower = "fpr" in row[1] or row[0] in ("alignment", "uniformity", "self_cluster", "calibration")
        assert ranks.loc[row].idxmin() == (values.loc[row].idxmin() if lower else values.loc[row].idxmax())


def test_features_are_computed_once_and_again_only_for_other_weights_or_images(network, digits):
    seen = counted(network)
    first = ask(network, digits, ["rankme", "knn", "uniformity"]).table
    assert sorted(seen) == [2, 8, 8, 200, 400]  # the trial, eight of each split, test, train
    again = ask(network, digits, ["rankme", "knn", "uniformity"]).table
    assert seen[5:] == [2, 8, 8] and again.value.equals(first.value)
    with torch.no_grad():
        network.backbone.stem.conv.weight[0] += 0.5
    assert not ask(network, digits, ["rankme"]).table.value.equals(first.value[:1]) and max(seen[8:]) == 400
    before = len(seen)
    ask(network, digits, ["rankme"], keep=False)
    assert len(seen) == before + 3


def vit(**knobs):
    torch.manual_seed(0)
    return encoders.create("vit", in_chans=1, img_size=8, patch_size=2, depth=2, embed_dim=32, num_heads=4, **knobs)


def other_heads(encoder):
    for block in encoder.backbone.blocks:
        block.attn.num_heads, block.attn.head_dim, block.attn.scale = 2, 16, 16**-0.5


def edited_forward(encoder):
    forward = encoder.forward
    encoder.forward = lambda x: forward(x).sort(1).values


def hooked(encoder):
    encoder.register_forward_hook(lambda module, images, out: out.square())


def patched_attribute(encoder):
    encoder.backbone.norm.eps = 0.5


def hidden_buffer(encoder):
    encoder.mean += 0.3


@pytest.mark.parametrize("change", [other_heads, edited_forward, hooked, patched_attribute, hidden_buffer])
def test_a_change_that_weights_do_not_show_is_another_encoder(change, digits):
    def numbers(encoder, **options):
        return ask(encoder, digits, ["rankme", "uniformity", "feature_std"], **options).table.value.tolist()

    plain, changed = vit(), vit()
    change(changed)
    assert str(plain) == str(changed) or change is not other_heads  # the text of the network does not show it either
    first = numbers(plain)
    assert numbers(changed) == pytest.approx(numbers(changed, keep=False), rel=1e-6) != pytest.approx(first, rel=1e-3)
    change(plain)  # in place, on the module whose features were kept
    assert numbers(plain) == pytest.approx(numbers(changed), rel=1e-6) != pytest.approx(first, rel=1e-3)


def test_equal_weights_pooled_in_two_ways_are_two_encoders(digits):
    both = {kind: vit(global_pool=kind) for kind in ("avg", "max")}
    both["max"].load_state_dict(both["avg"].state_dict())
    kept, fresh = (ask(both, digits, ["rankme", "knn"], keep=keep).table.value.tolist() for keep in (True, False))
    assert kept == pytest.approx(fresh, rel=1e-6) and kept[0] != pytest.approx(kept[2], rel=1e-3)


class Shifted(nn.Module):
    "Pixels plus a buffer that is not saved."

    def __init__(self, shift):
        super().__init__()
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, x):
        return (x.flatten(1).float() / 255 + self.shift).relu()


def test_buffers_that_are_not_saved_count(digits):
    for shift in (0.0, -0.4):
        assert ask(Shifted(torch.full((64,), shift)), digits, ["rankme"]).table.value[0] == pytest.approx(
            ask(Shifted(torch.full((64,), shift)), digits, ["rankme"], keep=False).table.value[0])


def test_autocast_has_features_of_its_own(network, digits):
    plain = ask(network, digits, ["feature_std"]).table.value[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse, again = (ask(network, digits, ["feature_std"]).table.value[0] for _ in range(2))
        fresh = ask(network, digits, ["feature_std"], keep=False).table.value[0]
    assert coarse == again == fresh != plain and coarse == pytest.approx(plain, rel=0.05)
    assert ask(network, digits, ["feature_std"]).table.value[0] == plain


class Dead(nn.Module):
    "Zero for dark images, whatever its weight."

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x):
        x = x.flatten(1).float() / 255
        return (x.sum(1, keepdim=True) > 10) * x.pow(self.scale)


def test_weights_count_where_the_few_images_do_not_show_them(digits):
    few = torch.linspace(0, 199, 8).round().long()
    images = digits.test["images"].clone()
    images[few] = 0
    dark = data.Data(digits.spec, *[digits.test.assign(images=images)] * 2)
    one, two = (ask(Dead(scale), dark, ["feature_std"]).table.value[0] for scale in (1.0, 2.0))
    assert two == pytest.approx(ask(Dead(2.0), dark, ["feature_std"], keep=False).table.value[0]) and one != two


def test_features_that_do_not_come_again_are_not_kept(digits, tmp_path):
    class Random(nn.Module):
        def forward(self, x):
            return torch.randn(len(x), 8)

    class OfTheBatch(nn.Module):
        def forward(self, x):
            x = x.flatten(1).float()
            return x - x.mean(0)

    for encoder in (Random(), OfTheBatch()):
        ask(encoder, digits, ["rankme"])
        assert not list((tmp_path / "cache").glob("embeddings/*.safetensors"))


def test_a_kept_file_that_is_not_what_the_encoder_gives_is_not_used(network, digits, tmp_path):
    from safetensors.torch import load_file, save_file

    expected = ask(network, digits, ["rankme", "knn"]).table.value
    for file in (tmp_path / "cache" / "embeddings").glob("*.safetensors"):
        save_file({"features": load_file(file)["features"].flip(0).contiguous() + 1}, file)
    assert ask(network, digits, ["rankme", "knn"]).table.value.equals(expected)


def test_a_damaged_cache_and_one_that_cannot_be_written_cost_time_only(network, digits, tmp_path, monkeypatch):
    expected = ask(network, digits, ["rankme"]).table.value[0]
    for file in (tmp_path / "cache" / "embeddings").glob("*.safetensors"):
        file.write_bytes(b"torn")
    assert ask(network, digits, ["rankme"]).table.value[0] == expected
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SSL_NB_CACHE", str(tmp_path / "file"))
    assert ask(network, digits, ["rankme"]).table.value[0] == expected


def test_what_one_evaluator_refuses_is_a_row_with_its_reason(digits):
    class Zeros(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 8)

    table = ask(Zeros(), digits, "full").table.set_index("evaluator")
    assert math.isnan(table.value["two_nn"]) and "different rows" in table.note["two_nn"]
    assert table.value["rankme"] == 0 and table.note["rankme"] == ""


def test_the_mode_and_the_weights_of_the_encoder_are_left_alone(network, digits):
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ask(network, digits, "full")
    assert network.training and all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_comparisons_are_paired_and_corrected(network, digits):
    found = ask({"pixels": nn.Flatten(), "network": network, "twin": network}, digits, ["knn", "rankme"])
    pairs = found.compare("knn").set_index(["ours", "baseline"])
    assert pairs.difference["network", "twin"] == 0 and pairs.p_holm["network", "twin"] == 1
    assert (pairs.p_holm >= pairs.p).all()
    assert pairs.p_holm["pixels", "network"] == pytest.approx(3 * pairs.p["pixels", "network"])
    with pytest.raises(ValueError, match="evaluators with samples: knn"):
        found.compare("rankme")


def test_one_of_several_scores_is_compared_only_by_name(network, digits):
    found = ask({"pixels": nn.Flatten(), "network": network}, digits, ["retrieval"])
    with pytest.raises(ValueError, match="several of the scores of 'retrieval'.*rank_1.*map.*mrr"):
        found.compare("retrieval")
    with pytest.raises(ValueError, match="none of the scores"):
        found.compare("retrieval", "rank_2")
    values = found.values().droplevel("evaluator")
    for name in ("rank_1", "map", "mrr"):
        row = values[values.index.str.contains(name)]
        assert found.compare("retrieval", name).difference[0] == pytest.approx((row["pixels"] - row["network"]).item())


def test_balanced_scores_stand_beside_accuracy(network, digits):
    found = ask(network, digits, ["linear_probe", "balanced_accuracy", "macro_f1"]).table.set_index("evaluator")
    train, test = (encoders.embed(network, split["images"]) for split in (digits.train, digits.test))
    score = ev.linear_probe(train, digits.train["labels"], test, digits.test["labels"])
    assert found.value["balanced_accuracy"] == pytest.approx(score.notes["balanced_accuracy"])
    assert found.value["macro_f1"] == pytest.approx(score.notes["macro_f1"])
    assert found.low["balanced_accuracy"] < found.value["balanced_accuracy"] < found.high["balanced_accuracy"]


def test_intervals_are_over_groups_where_the_data_name_them(network, digits):
    from types import SimpleNamespace

    def twice(split):  # every image twice, and which it is
        which = torch.arange(len(split)).repeat(2)
        return split[which].assign(image=which)

    doubled = SimpleNamespace(spec=SimpleNamespace(group="image"), train=twice(digits.train), test=twice(digits.test))
    apart = SimpleNamespace(spec=SimpleNamespace(group=None), train=doubled.train, test=doubled.test)
    asked = ["knn", "balanced_accuracy", "shape_sensitivity", "rankme"]
    grouped, plain = (ask(nn.Flatten(), sets, asked).table.set_index("evaluator") for sets in (doubled, apart))
    width = {name: (grouped.high - grouped.low)[name] / (plain.high - plain.low)[name] for name in asked[:2]}
    assert all(1.2 < ratio < 1.7 for ratio in width.values()), width  # sqrt 2: half as many images as rows
    assert grouped.value.equals(plain.value) and list(grouped.of[:3]) == ["groups"] * 3 and plain.of["knn"] == "examples"


def test_network_probes_are_asked_by_name(network, digits):
    some = data.Data(digits.spec, digits.train[:100], digits.test[:50])
    found = ask(network, some, ["mlp_probe", "attentive_probe"])
    assert list(found.table.protocol.str.split(" ").str[0]) == ["offline_mlp", "offline_attentive"]
    assert not {"mlp_probe", "attentive_probe"} & set(ev.SUITES["full"])
    assert "encoder with tokens" in ask(nn.Flatten(), some, ["attentive_probe"]).table.note[0]


def test_it_draws_and_shows_itself(network, digits):
    one, two = ask(network, digits), ask({"pixels": nn.Flatten(), "network": network}, digits)
    assert len(one.figure().axes) == 2 and len(two.figure().axes[0].texts) == 2 * len(two.values())
    assert "knn@20" in repr(one) and "<table" in two._repr_html_() and "note" not in two._repr_html_()


@pytest.mark.parametrize(
    "encoder, options, reason",
    [
        (None, dict(suite=["rank_me"]), "did you mean 'rankme'"),
        (None, dict(suite="quik"), "did you mean 'quick'"),
        (None, dict(suite=[]), "names no evaluator"),
        (None, dict(suite=["ood_scores"]), "ood_scores needs ood="),
        (None, dict(k=401), "k=401 is more than the 400 rows"),
        (encoders.create("convnet", in_chans=3), {}, "does not take images of shape (1, 8, 8)"),
        (nn.Identity(), {}, "pool or flatten"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_embedded(encoder, options, reason, network, digits):
    seen = counted(network)
    with pytest.raises(ValueError) as error:
        ask(encoder or network, digits, **options)
    assert reason in str(error.value) and max(seen, default=0) <= 2


def test_unlabeled_data_leave_out_what_needs_labels(network, digits):
    splits = (s.assign(labels=torch.full_like(s["labels"], -1)) for s in (digits.train, digits.test))
    unlabeled = data.Data(digits.spec, *splits)
    assert set(ask(network, unlabeled).table.evaluator) == {"rankme", "effective_rank", "feature_std", "alignment", "uniformity"}
    with pytest.raises(ValueError, match="knn needs labels"):
        ask(network, unlabeled, ["knn"])


def test_a_monitor_asks_the_same_functions(network, digits):
    method = methods.create("simclr", encoder=network)
    seen = ev.Monitor(digits.train, digits.test, k=5, evaluators=("knn", "rankme", "alignment"))(method.eval())
    table = ask(network, digits, ["knn", "rankme", "alignment"], k=5).table
    assert list(seen) == ["knn@5", "rankme", "alignment"] and list(seen.values()) == pytest.approx(list(table.value))


# ---- Holm


def test_holm_is_the_step_down_by_hand():
    np.testing.assert_allclose(ev.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert list(ev.holm([0.9, 0.8])) == [1, 1] and len(ev.holm([])) == 0


def test_p_values_of_pairs_are_those_of_scipy():
    from scipy.stats import ttest_rel

    draw = np.random.default_rng(0)
    a, b, c = draw.normal(size=(3, 12)) + [[0], [0.5], [1]]
    found = ev.comparisons({"a": a, "b": b, "c": c}, of="seeds")
    assert list(found.p) == pytest.approx([ttest_rel(x, y).pvalue for x, y in ((a, b), (a, c), (b, c))])
    alone = ev.comparisons({"a": [0.5], "b": [0.6]})
    assert alone.p.isna().all() and alone.p_holm.isna().all() and alone.difference[0] == pytest.approx(-0.1)


# ---- weights in files


@pytest.mark.parametrize(
    "name, knobs", [("convnet", dict(channels=(4, 8, 16, 32))), ("vit", dict(depth=1, embed_dim=32)), ("resnet18", {})])
def test_a_file_of_weights_says_which_encoder_it_is(name, knobs, tmp_path):
    torch.manual_seed(0)
    encoder = encoders.create(name, in_chans=1, img_size=16, mean=(0.3,), std=(0.2,), **knobs)
    encoders.save(encoder, tmp_path / "deep" / "net.safetensors")
    again, images = encoders.load(tmp_path / "deep" / "net.safetensors"), torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(encoders.embed(again, images), encoders.embed(encoder, images))
    assert not again.training and again.made == json.loads(json.dumps(encoder.made))


def trained(network, digits, folder):
    method = methods.create("simclr", encoder=network)
    training.fit(method, digits.train, epochs=1, batch_size=100, device="cpu", folder=folder, report=lambda line: None)
    return method.encoder


def test_a_checkpoint_and_a_folder_above_it_are_enough(network, digits, tmp_path):
    encoder = trained(network, digits, tmp_path / "run" / "train")
    for path in (tmp_path / "run", tmp_path / "run" / "train", training.last_checkpoint(tmp_path / "run" / "train")):
        assert torch.equal(encoders.embed(encoders.load(path), digits.test), encoders.embed(encoder, digits.test))


def test_weights_that_cannot_be_loaded_are_told(network, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        encoders.load(tmp_path)
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        encoders.load(tmp_path / "torn.safetensors")
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="does not say which encoder"):
        encoders.load(tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="does not fit 'convnet'"):
        encoders.load(tmp_path / "plain.safetensors", name="convnet")
    with pytest.raises(ValueError, match="several encoders: plain, torn"):
        encoders.load(tmp_path)
    with pytest.raises(ValueError, match="only encoders of encoders.create"):
        encoders.save(nn.Flatten(), tmp_path / "flat.safetensors")


# ---- the shell


def shell(*words):
    done = CliRunner().invoke(app, ["evaluate", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def run_folder(network, digits, tmp_path):
    "A run as `reproduce` leaves it: one training, its parameters, its result."
    trained(network, digits, tmp_path / "run" / "train")
    (tmp_path / "run" / "parameters.json").write_text(json.dumps(dict(name="toy", parameters=dict(dataset="digits"))))
    (tmp_path / "run" / "result.json").write_text(json.dumps(dict(status="complete")))
    return tmp_path / "run"


def test_the_table_is_added_to_the_run_and_rows_asked_again_are_replaced(run_folder):
    code, out, _ = shell(run_folder, "--suite", "rankme,knn", "-k", 5)
    assert code == 0 and "knn@5" in out and "evaluation.csv" in out
    code, _, _ = shell(run_folder, "--suite", "knn,uniformity", "--data", "digits")
    assert code == 0
    table = pd.read_csv(run_folder / "evaluation.csv")
    assert sorted(table.evaluator) == ["knn", "rankme", "uniformity"]
    assert set(table.data) == {"digits"} and set(table.encoder) == {"train"}
    assert "knn@20" in set(table.protocol.str[:6]) and table.value.between(-10, 500).all()


def test_several_targets_stand_side_by_side(run_folder, network, tmp_path):
    encoders.save(network, tmp_path / "other.safetensors")
    code, out, _ = shell(run_folder, tmp_path / "other.safetensors", "--suite", "rankme", "--csv", tmp_path / "all.csv")
    assert code == 0 and set(pd.read_csv(tmp_path / "all.csv").encoder) == {"train", "other"}


@pytest.mark.parametrize(
    "words, reason",
    [
        (["nowhere"], "the data set is not known"),
        (["nowhere", "--data", "digits"], "holds no weights"),
        (["other.safetensors", "--data", "digitz"], "did you mean 'digits'"),
        (["other.safetensors", "--data", "digits", "--suite", "rank_me"], "rankme"),
        (["other.safetensors", "--data", "digits", "--suite", "knn", "-k", 5000], "k=5000"),
        (["other.safetensors", "--data", "scenes", "--ood", "digits", "--suite", "ood_scores"], "does not take images"),
    ],
)
def test_mistakes_in_the_shell_are_one_line_and_exit_code_2(words, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoders.save(encoders.create("vit", in_chans=1, img_size=24, depth=1, embed_dim=32), "other.safetensors")
    code, _, err = shell(*words)
    assert code == 2 and reason in err and "Traceback" not in err and err.count("\n") == 1


# ---- the cache


def test_a_digest_sees_values_types_shapes_and_order():
    x = torch.arange(6.0)
    same = [disk.digest(x), disk.digest(x.clone()), disk.digest(x.view(1, 6)[0])]
    other = [disk.digest(y) for y in (x.double(), x.view(2, 3), x.flip(0), x[:5], {"x": x}, torch.arange(6))]
    assert len(set(same)) == 1 and len(set(same + other)) == 7
    assert disk.digest([x, 1], 2) != disk.digest([x], 1, 2) and disk.digest({"a": {"b": x}}) != disk.digest({"a": "b"}, x)
    with pytest.raises(TypeError, match="ndarray"):
        disk.digest(np.arange(5000))  # its text shows six numbers
    assert disk.digest("a", "bc") != disk.digest("ab", "c") and disk.digest(torch.zeros(0)) != disk.digest(torch.zeros(0, 2))
