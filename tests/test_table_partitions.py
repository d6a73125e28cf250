"""Tables: named columns, vertical partitions as views, their contrastive objective, and tables with other columns."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import needs

from ssl_nb import data
from ssl_nb.data import Data, Spec, Split
from ssl_nb.data.column_sets import column_sets, column_transfer, feature_incremental, take_columns
from ssl_nb.encoders import Transformer
from ssl_nb.objectives import nt_xent
from ssl_nb.objectives.vertical_partition import vertical_partition_contrastive as vpc
from ssl_nb.tokens import Columns, vertical_partitions
from ssl_nb.tokens.named_columns import NamedCells, NamedColumns, column_words, words_of
from ssl_nb.views.partitions import VerticalPartition


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def embeddings(parts=3, n=10, d=5, seed=0):
    return list(torch.randn(parts, n, d, generator=seeded(seed), dtype=torch.float64))


# ---- the objective


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("labels", [None, torch.tensor([0, 0, 1, 2, 2, 2, 1, 0, 5, 1])])
def test_the_loss_is_the_supervised_contrastive_loss_as_it_is_defined(parts, labels):
    z = embeddings(parts)
    u = torch.nn.functional.normalize(torch.stack(z, 1), dim=-1)  # (n, K, d)
    group = torch.arange(10) if labels is None else labels
    total = 0.0
    for i in range(10):
        for k in range(parts):
            score = {(j, m): float(u[i, k] @ u[j, m]) / 0.3 for j in range(10) for m in range(parts) if (j, m) != (i, k)}
            norm = math.log(sum(map(math.exp, score.values())))
            positive = [s for (j, _), s in score.items() if group[j] == group[i]]
            total += sum(norm - s for s in positive) / len(positive)
    assert float(vpc(z, labels, temperature=0.3)) == pytest.approx(total / (10 * parts), rel=1e-10)


def test_two_parts_without_labels_are_nt_xent_with_its_gradient():
    z = [part.requires_grad_() for part in embeddings(2)]
    ours = torch.autograd.grad(vpc(z, temperature=0.2), z)
    theirs = torch.autograd.grad(nt_xent(*z, temperature=0.2), z)
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


def test_a_row_of_unknown_class_is_compared_as_without_labels():
    z = embeddings()
    assert torch.equal(vpc(z, torch.full((10,), -1)), vpc(z)) and torch.allclose(vpc(z, torch.arange(10)), vpc(z))
    mixed = torch.tensor([0, 0, 0, 0, 0, -1, -1, -1, -1, -1])
    assert torch.allclose(vpc(z, mixed), vpc(z, torch.tensor([0, 0, 0, 0, 0, 1, 2, 3, 4, 5])))


def test_the_order_of_parts_and_of_rows_does_not_matter():
    z, labels, order = embeddings(), torch.arange(10) % 3, torch.randperm(10, generator=seeded())
    assert torch.allclose(vpc(z, labels), vpc(z[::-1], labels))
    assert torch.allclose(vpc(z, labels), vpc([part[order] for part in z], labels[order]))


@given(st.integers(2, 4), st.lists(st.integers(0, 2), min_size=2, max_size=8), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_no_loss_is_below_that_of_a_perfect_network(parts, labels, seed):
    labels = torch.tensor(labels)
    sizes = labels.bincount()[labels].double()
    least = (parts * sizes - 1).log().mean()
    assert vpc(embeddings(parts, len(labels), seed=seed), labels, temperature=0.1) >= least - 1e-9
    perfect = [torch.nn.functional.one_hot(labels, 3).double()] * parts
    assert torch.allclose(vpc(perfect, labels, temperature=0.02), least, atol=1e-9)


def test_equal_embeddings_cost_as_much_as_guessing_and_have_no_gradient():
    z = [torch.ones(6, 4, requires_grad=True) for _ in range(3)]
    loss = vpc(z, torch.tensor([0, 0, 1, 1, 2, 2]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(17)) and all(part.grad.abs().max() < 1e-6 for part in z)


@pytest.mark.parametrize("labels", [torch.ones(10), torch.zeros(9, dtype=torch.int64), torch.full((10,), -2)])
def test_labels_that_are_no_classes_are_refused(labels):
    with pytest.raises(ValueError, match=r"give int64 classes \(10,\)"):
        vpc(embeddings(), labels)


def test_one_view_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match="2 views or more"):
        vpc(embeddings()[:1])
    with pytest.raises(ValueError, match="temperature is 0"):
        vpc(embeddings(), temperature=0)
    with pytest.raises(ValueError, match="must come from example i"):
        vpc([torch.rand(4, 3), torch.rand(5, 3)])


# ---- the views


def wide(columns=9, n=6):
    x = torch.rand(n, columns, generator=seeded())
    return x, Columns.fit(x)


@pytest.mark.parametrize("parts, overlap", [(2, 0.0), (3, 0.5), (4, 1.0)])
def test_a_view_has_the_cells_of_its_columns(parts, overlap):
    x, columns = wide()
    views = VerticalPartition(columns, parts, overlap, shuffle=True).make(x, seeded(3))
    assert len(views) == parts
    for view, part in zip(views, vertical_partitions(9, parts, overlap), strict=True):
        index = view.facts["columns"]
        assert index.shape == (6, len(part)) and (index == index[0]).all()
        assert torch.equal(view.x.x, columns(x).x[:, index[0]]) and torch.equal(view.x.place[:, 0], index[0])


def test_without_shuffle_views_are_those_of_the_paper():
    x, columns = wide()
    views = VerticalPartition(columns, 3, 0.5).make(x)
    assert [view.facts["columns"][0].tolist() for view in views] == [p.tolist() for p in vertical_partitions(9, 3, 0.5)]


def test_all_randomness_comes_from_the_generator():
    x, columns = wide()
    maker = VerticalPartition(columns, shuffle=True)
    drawn = [[v.facts["columns"][0].tolist() for v in maker.make(x, g)] for g in (seeded(1), seeded(1), seeded(2))]
    assert drawn[0] == drawn[1] != drawn[2]
    generator, state = seeded(1), torch.get_rng_state()
    first, second = (maker.make(x, generator)[0].facts["columns"][0].tolist() for _ in range(2))
    assert first != second and torch.equal(state, torch.get_rng_state())


def test_with_shuffle_every_column_is_in_every_part_equally_often():
    x, columns = wide(6, 2)
    maker, generator, counts = VerticalPartition(columns, 3, 0.0, shuffle=True), seeded(), torch.zeros(3, 6)
    for _ in range(600):
        for i, view in enumerate(maker.make(x, generator)):
            counts[i, view.facts["columns"][0]] += 1
    assert (counts.sum(0) == 600).all() and (counts / 600 - 1 / 3).abs().max() < 0.1  # 5 standard deviations


@pytest.mark.parametrize("knobs", [{"parts": 1}, {"parts": 0}, {"overlap": 1.5}, {"overlap": -0.1}])
def test_impossible_partitions_are_refused_when_the_view_maker_is_made(knobs):
    with pytest.raises(ValueError, match="cannot be cut"):
        VerticalPartition(wide()[1], **knobs)


# ---- named columns

PEOPLE = Spec("people", columns=("age", "capital-gain", "education", "smoker"), modality="table",
              values={"education": ("Bachelors", "HS-grad"), "smoker": ("no", "yes")})
TABLE = (torch.tensor([[20.0, 0.0], [40.0, float("nan")], [30.0, 10.0]]), torch.tensor([[0, 1], [1, 0], [-1, 1]]))


def test_words_are_runs_of_letters_and_digits():
    assert words_of("Self-emp-not-inc (2nd)") == ["self", "emp", "not", "inc", "2nd"]
    assert words_of("Größe_m²") == ["größe", "m²"] and words_of("?") == []
    assert column_words(PEOPLE) == ["age", "bachelors", "capital", "education", "gain", "grad", "hs", "no", "smoker", "yes"]


def test_a_cell_has_the_words_of_its_column_and_category_and_its_value():
    tokenizer = NamedColumns.fit(TABLE, PEOPLE)
    tokens, plain = tokenizer(TABLE), Columns.fit(TABLE)(TABLE)
    assert torch.equal(tokens.x[..., 0], plain.x[..., 0]) and torch.equal(tokens.real, plain.real)

    def text(i, j):
        return [tokenizer.vocabulary[int(w) - 1] for w in tokens.x[i, j, 1:] if w]

    assert [text(1, j) for j in range(4)] == [["age"], ["capital", "gain"], ["education", "hs", "grad"], ["smoker", "no"]]


def test_a_binary_column_has_a_token_where_it_is_positive_only():
    tokens = NamedColumns.fit(TABLE, PEOPLE, binary=["smoker"])(TABLE)
    assert tokens.real[:, 3].tolist() == [True, False, True]
    assert (tokens.x[0, 3, 2:] == 0).all()  # one word: the name


def test_an_embedded_cell_is_value_times_the_normalized_mean_of_its_words():
    tokenizer, module = NamedColumns.fit(TABLE, PEOPLE), NamedCells(10, 8)
    torch.nn.init.normal_(module.bias)
    tokens = tokenizer(TABLE)
    for i in range(3):
        for j in range(4):
            value, *words = tokens.x[i, j].tolist()
            mean = torch.stack([module.table.weight[int(w)] for w in words if w]).mean(0)
            expected = value * torch.nn.functional.layer_norm(mean, (8,)) + module.bias
            assert torch.allclose(module(tokens.x)[i, j], expected, atol=1e-5)


def test_equal_names_give_equal_cells_in_any_table_and_padding_learns_nothing():
    clinic = Spec("clinic", columns=("age", "smoker"), values={"smoker": ("never", "no", "yes")}, modality="table")
    vocabulary = column_words(PEOPLE, clinic)
    visits = (torch.tensor([[1.0], [3.0]]), torch.tensor([[2], [1]]))
    module = NamedCells(len(vocabulary), 8)
    people, other = NamedColumns.fit(TABLE, PEOPLE, vocabulary)(TABLE), NamedColumns.fit(visits, clinic, vocabulary)(visits)
    assert torch.allclose(module(people.x)[0, 3], module(other.x)[0, 1], atol=1e-6)  # smoker yes
    module(people.x).square().sum().backward()
    assert module.table.weight.grad[0].abs().max() == 0


def test_the_order_of_the_columns_does_not_matter_to_an_encoder_without_positions():
    torch.manual_seed(0)
    tokenizer = NamedColumns.fit(TABLE, PEOPLE)
    encoder = Transformer(tokenizer, enter=NamedCells(10, 16), embed_dim=16, depth=2, num_heads=2, positions="none").eval()
    tokens = tokenizer(TABLE)
    assert torch.allclose(encoder(tokens), encoder(tokens.take(torch.tensor([2, 0, 3, 1]))), atol=1e-5)


def test_a_missing_cell_changes_nothing():
    torch.manual_seed(0)
    tokenizer = NamedColumns.fit(TABLE, PEOPLE)
    encoder = Transformer(tokenizer, enter=NamedCells(10, 16), embed_dim=16, depth=2, num_heads=2, positions="none").eval()
    tokens = tokenizer(TABLE)
    assert torch.allclose(encoder(tokens)[1], encoder(tokens.take(torch.tensor([0, 2, 3])))[1], atol=1e-5)


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'education' has 2 categories and 0 names"):
        NamedColumns(Columns.fit(TABLE, names=PEOPLE.columns), {}, ["age"])
    with pytest.raises(ValueError, match="'age' is to be binary"):
        NamedColumns.fit(TABLE, PEOPLE, binary=["age"])


# ---- tables with other columns


def table(rows=60, groups=None):
    generator = seeded()
    columns = {"numbers": torch.rand(rows, 5, generator=generator), "labels": torch.arange(rows) % 2,
               "categories": torch.randint(0, 2, (rows, 3), generator=generator), "record": torch.arange(rows) % (groups or rows)}
    values = {name: ("x", "y") for name in "uvw"}
    spec = Spec("made up", None, ("a", "b"), columns=tuple("pqrstuvw"), values=values, group="record", modality="table")
    whole = Split(columns, ("numbers", "categories"))
    return Data(spec, whole[:48], whole[48:])


def test_taken_columns_are_those_with_the_names_in_the_order_of_the_table():
    everything = table()
    few = take_columns(everything, ["w", "q", "p"])
    assert few.spec.columns == ("p", "q", "w") and dict(few.spec.values) == {"w": ("x", "y")}
    for part in ("train", "test"):
        old, new = getattr(everything, part), getattr(few, part)
        assert torch.equal(new["numbers"], old["numbers"][:, :2]) and torch.equal(new["categories"], old["categories"][:, 2:])
        assert torch.equal(new["labels"], old["labels"])


def test_a_table_of_categories_only_is_still_tokenized():
    few = take_columns(table(), ["u", "v"])
    tokens = NamedColumns.fit(few.train.x, few.spec)(few.test.x)
    assert tokens.x.shape[:2] == (12, 2) and few.train["numbers"].shape == (48, 0)


@given(st.integers(2, 20), st.integers(1, 4), st.floats(0, 0.95), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_column_sets_share_what_they_should_and_name_every_column(count, sets, overlap, seed):
    names = [f"c{i}" for i in range(count)]
    if count < sets:
        return
    found = column_sets(names, sets, overlap, seed)
    assert set().union(*found) == set(names) and all(len(set(one)) == len(one) > 0 for one in found)
    assert max(map(len, found)) - min(map(len, found)) <= 1
    if sets > 1:
        shared = set.intersection(*map(set, found))
        assert sum(len(set(one) - shared) for one in found) + len(shared) == count  # what is not in all is in one only
        size = count / (overlap + sets * (1 - overlap))
        assert abs(len(shared) - overlap * size) <= 0.5 + 1e-9 or len(shared) == count - sets


def test_stages_grow_have_rows_of_their_own_and_end_with_all_columns():
    everything = table(groups=30)
    stages = feature_incremental(everything, 3)
    names = [set(stage.spec.columns) for stage in stages]
    assert names[0] < names[1] < names[2] == set(everything.spec.columns)
    records = [set(stage.train["record"].tolist()) for stage in stages]
    assert not records[0] & records[1] and not records[0] & records[2] and not records[1] & records[2]
    assert sum(len(stage.train) for stage in stages) == 48 and all(len(stage.test) == 12 for stage in stages)


@pytest.mark.parametrize("overlap, both", [(0.0, 0), (0.5, 3)])
def test_source_and_target_share_no_rows_and_as_many_columns_as_asked(overlap, both):
    source, target = column_transfer(table(), overlap, seed=1)
    assert len(set(source.spec.columns) & set(target.spec.columns)) == both
    assert not set(source.train["record"].tolist()) & set(target.train["record"].tolist())
    assert len(source.train) == len(target.train) == 24 and source.train["labels"].float().mean() == 0.5
    assert torch.equal(source.test["record"], target.test["record"])


def test_seeds_draw_other_columns_and_rows():
    one, same, other = (column_transfer(table(), 0.5, seed=s)[0] for s in (0, 0, 1))
    assert one.spec == same.spec and torch.equal(one.train["record"], same.train["record"])
    assert one.spec.columns != other.spec.columns or not torch.equal(one.train["record"], other.train["record"])


def test_unknown_columns_and_impossible_sets_are_refused():
    with pytest.raises(ValueError, match="unknown column 'z'"):
        take_columns(table(), ["z"])
    with pytest.raises(ValueError, match="at least one name"):
        take_columns(table(), [])
    with pytest.raises(ValueError, match="overlap of 0 or more and less than 1"):
        column_transfer(table(), 1.0)
    with pytest.raises(ValueError, match="no named columns"):
        take_columns(data.load("digits"), ["a"])


@needs("tabular")
@pytest.mark.parametrize("name", ["adult", "sonar"])
def test_real_tables_are_cut_and_tokenized(name):
    source, target = column_transfer(data.load("tabular", table=name), 0.5)
    vocabulary = column_words(source.spec, target.spec)
    for part in (source, target):
        rows = part.train[:40]
        tokens = NamedColumns.fit(rows.x, part.spec, vocabulary)(rows.x)
        assert tokens.x.shape[:2] == (40, len(part.spec.columns)) and tokens.x[..., 1].min() > 0
