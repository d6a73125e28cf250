"""Tables: numbers, categories and missing values from made-up files; the real ones where SSL_NB_DATA has them."""

import dataclasses

import numpy as np
import pytest
import torch
from real_data import needs

from ssl_nb import data
from ssl_nb.data import Spec, tables


@pytest.fixture
def given(made_up, monkeypatch):
    "A function that writes the files of a table, which then expects their checksums. Returns their folder."

    def put(table, contents):
        folder, files = made_up("tabular", contents)
        monkeypatch.setitem(tables._TABLES, table, dataclasses.replace(tables._TABLES[table], files=files))
        return folder

    return put


ADULT = ("39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, "
         "2174, 0, 40, United-States, <=50K")


def adult(*changes, end=""):
    "Rows of Adult; each change is {feature: value}."
    rows = []
    for change in changes:
        row = ADULT.split(", ")
        for name, value in change.items():
            row[[*tables._TABLES["adult"].features, "class"].index(name)] = value
        rows.append(", ".join(row) + end)
    return ("\n".join(rows) + "\n\n").encode()


def put_adult(given):
    return given("adult", {"adult-train.csv": adult({}, {"workclass": "?", "age": "?"}, {"sex": "Female", "class": ">50K"}),
                             "adult-test.csv": adult({"workclass": "Private"}, {}, end=".")})


def test_loaders_are_listed_without_an_import():
    assert data.names(modality="table") == ["tabular"] and isinstance(data.loaders.entry("tabular").target, str)


def test_numbers_categories_and_missing_values(given):
    put_adult(given)
    d = data.load("tabular")
    spec, train = d.spec, d.train
    assert train.inputs == ("numbers", "categories") and len(train.x) == 2 and spec.shape is None
    assert spec.columns[:6] == ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
    assert train["numbers"].shape == (3, 6) and train["categories"].shape == (3, 8) and len(spec.columns) == 14
    assert train["numbers"][0].tolist() == [39, 77516, 13, 2174, 0, 40]
    assert train["numbers"].isnan().nonzero().tolist() == [[1, 0]] and (train["categories"] == -1).nonzero().tolist() == [[1, 0]]
    assert tuple(spec.values) == spec.columns[6:] and spec.values["sex"] == ("Female", "Male")
    for row, split in ((0, train), (1, d.test)):
        named = [spec.values[name][code] for name, code in zip(spec.columns[6:], split["categories"][row].tolist(), strict=True)]
        assert named == [v for i, v in enumerate(ADULT.split(", ")[:-1]) if i not in (0, 2, 4, 10, 11, 12)]
    assert train["labels"].tolist() == [0, 0, 1] and d.test["labels"].tolist() == [0, 0]
    # one code has one meaning in both splits; equal rows share a number across them
    assert spec.values["workclass"][d.test["categories"][0, 0]] == "Private"
    assert d.test["record"].tolist() == [3, 0] and train["record"].tolist() == [0, 1, 2]


def wine(change=lambda i, j: 0):
    rows = [[i + 0.1 * j + change(i, j) for j in range(13)] + [1 + i % 3] for i in range(60)]
    rows += rows[:9]
    return "\n".join(",".join(map(str, row)) for row in rows).encode()


def test_the_split_is_stratified_and_divides_no_copies(given):
    given("wine", {"wine.csv": wine()})
    d = data.load("tabular", table="wine")
    assert d.spec.shape == (13,) and d.train.inputs == "numbers" and "categories" not in d.train and d.spec.values == {}
    assert not set(d.train["record"].tolist()) & set(d.test["record"].tolist())
    assert len(d.train) + len(d.test) == 69 and len(torch.cat([d.train["record"], d.test["record"]]).unique()) == 60
    counts = [len(d.test["record"][d.test["labels"] == label].unique()) for label in range(3)]
    assert counts == [5, 5, 5]
    again = data.load("tabular", table="wine")
    assert torch.equal(again.test["record"], d.test["record"])


def test_test_rows_do_not_change_the_train_rows(given):
    given("wine", {"wine.csv": wine()})
    before = data.load("tabular", table="wine")
    held = set(before.test["record"].tolist())
    given("wine", {"wine.csv": wine(lambda i, j: 1000 * (i in held))})
    after = data.load("tabular", table="wine")
    assert torch.equal(before.train["numbers"], after.train["numbers"]) and before.spec == after.spec
    assert not torch.equal(before.test["numbers"], after.test["numbers"])


def test_zeros_that_cannot_be_are_missing(given):
    rows = [f"0,{90 + i},0,20,0,0.0,0.5,{30 + i},{i % 2}" for i in range(20)]
    given("pima", {"pima-indians-diabetes.csv": "\n".join(rows).encode()})
    d = data.load("tabular", table="pima")
    missing = d.train["numbers"].isnan()
    assert missing.all(0).tolist() == missing.any(0).tolist() == [False, False, True, False, True, True, False, False]
    assert (d.train["numbers"][:, 0] == 0).all()


@pytest.mark.parametrize(
    "content, word",
    [
        (wine()[:-4], "row 69 has 1[23] fields, not 14|class"),
        (b"", "has no rows"),
        (b"\xff", "no CSV file in UTF-8"),
        (wine().replace(b"59.1,", b"old,"), "a field is no number .*'old'"),
        (wine().replace(b",3\n", b",4\n"), "has the class '4'; known: 1, 2, 3"),
    ],
)
def test_a_broken_table_is_refused(given, content, word):
    given("wine", {"wine.csv": content})
    with pytest.raises(ValueError, match=word) as error:
        data.load("tabular", table="wine")
    assert "wine.csv" in str(error.value) and "Delete it and load again" in str(error.value)


def test_a_file_with_another_checksum_or_no_file_is_refused(given):
    folder = put_adult(given)
    (folder / "adult-test.csv").write_bytes(b"")
    with pytest.raises(ValueError, match="adult-test.csv .* its md5 is"):
        data.load("tabular")
    (folder / "adult-test.csv").unlink()
    with pytest.raises(FileNotFoundError, match="adult-test.csv of 'tabular'"):
        data.load("tabular")


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="unknown table 'banknotes'; did you mean 'banknote'"):
        data.load("tabular", table="banknotes")


def test_a_spec_with_names_of_values_can_be_hashed():
    assert hash(Spec("a", values={"sex": ("f", "m")})) == hash(Spec("a", values={"sex": ("f", "m")}))
    assert Spec("a", values={"sex": ("f",)}) != Spec("a") and Spec("a").values == {}


@needs("tabular")
@pytest.mark.parametrize(
    "table, rows, numbers, categories, counts",
    [
        ("adult", 48842, 6, 8, (37155, 11687)),
        ("german", 1000, 7, 13, (700, 300)),
        ("sonar", 208, 60, 0, (97, 111)),
        ("ionosphere", 351, 34, 0, (126, 225)),
        ("phoneme", 5404, 5, 0, (3818, 1586)),
        ("banknote", 1372, 4, 0, (762, 610)),
        ("pima", 768, 8, 0, (500, 268)),
        ("wine", 178, 13, 0, (59, 71, 48)),
    ],
)
def test_real_tables(table, rows, numbers, categories, counts):
    d = data.load("tabular", table=table)
    labels = torch.cat([d.train["labels"], d.test["labels"]])
    assert len(labels) == rows and tuple(torch.bincount(labels).tolist()) == counts
    assert d.train["numbers"].shape[1] == numbers and len(d.spec.columns) == numbers + categories == numbers + len(d.spec.values)
    if table == "adult":
        assert (len(d.train), len(d.test)) == (32561, 16281)
        both = torch.cat([d.train["categories"], d.test["categories"]])
        assert (both == -1).sum(0).tolist() == [2799, 0, 0, 2809, 0, 0, 0, 857] and len(d.spec.values["native-country"]) == 41
    else:
        assert not set(d.train["record"].tolist()) & set(d.test["record"].tolist())
        assert abs(len(d.test) - 0.25 * rows) <= 0.02 * rows


@needs("tabular")
def test_real_wine_is_that_of_scikit_learn():
    from sklearn.datasets import load_wine

    d = data.load("tabular", table="wine")
    order = torch.cat([d.train["record"], d.test["record"]]).argsort()
    numbers = torch.cat([d.train["numbers"], d.test["numbers"]])[order].numpy()
    np.testing.assert_array_equal(numbers, load_wine().data.astype(np.float32))
    np.testing.assert_array_equal(torch.cat([d.train["labels"], d.test["labels"]])[order].numpy(), load_wine().target)
