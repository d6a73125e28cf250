"""Text: bytes and strings, and loaders on made-up files; the real ones where SSL_NB_DATA has them."""

import io
import tarfile

import pytest
import torch
from hypothesis import given as examples
from hypothesis import strategies as st
from real_data import needs

from ssl_nb import data
from ssl_nb.data import Ragged, text


def disjoint(one, other):
    return not set(one.tolist()) & set(other.tolist())


def test_loaders_are_listed_without_an_import():
    assert data.names(modality="text") == ["legal_text", "review_polarity", "text_tinyshakespeare", "text_wikitext2"]
    assert all(isinstance(data.loaders.entry(name).target, str) for name in data.names(modality="text"))


# ---- bytes and strings


@examples(st.lists(st.text(), max_size=6), st.data())
def test_texts_is_the_inverse_of_text_column(strings, more):
    column = text.text_column(strings)
    assert column.values.dtype == torch.uint8 and len(column) == len(strings)
    assert column.lengths.tolist() == [len(s.encode()) for s in strings]
    assert text.texts(column) == strings
    if strings:
        rows = more.draw(st.lists(st.integers(0, len(strings) - 1), max_size=4))
        assert text.texts(column[torch.tensor(rows, dtype=torch.int64)]) == [strings[i] for i in rows]


def test_what_is_no_text_is_refused():
    with pytest.raises(ValueError, match="wants a Ragged column of uint8 bytes"):
        text.texts(Ragged(torch.zeros(3), torch.tensor([3])))
    with pytest.raises(ValueError, match="wants a Ragged column"):
        text.texts(torch.zeros(3, dtype=torch.uint8))
    halves = Ragged(text.text_column(["aé"]).values, torch.tensor([2, 1]))
    with pytest.raises(ValueError, match="row 0 of this column is no UTF-8"):
        text.texts(halves)


# ---- Shakespeare


def play(speeches=400):
    return "\n\n".join(f"{'ABC'[i % 3]} MAN:\nline {i} of the play\nand its end {i}" for i in range(speeches)).encode()


@pytest.mark.parametrize("length", [1, 20, 100, 1000])
def test_passages_are_the_whole_play_in_whole_lines(given, length):
    content = play()
    given(text, "text_tinyshakespeare", {"input.txt": content})
    d = data.load("text_tinyshakespeare", length=length)
    passages = text.texts(d.train["text"]) + text.texts(d.test["text"])
    assert "".join(passages).encode() == content
    assert all(len(p) >= length and p.endswith("\n") and "\n" not in p[length - 1:-1] for p in passages[:-1])
    lengths = torch.cat([d.train["text"].lengths, d.test["text"].lengths])
    assert torch.equal(torch.cat([d.train["start"], d.test["start"]]), lengths.cumsum(0) - lengths)
    assert d.train["start"].max() < 0.9 * len(content) <= d.test["start"].min()


def test_the_speaker_is_the_one_who_speaks_at_the_start(given):
    given(text, "text_tinyshakespeare", {"input.txt": play()})
    d = data.load("text_tinyshakespeare", length=1)
    names = d.spec.values["speaker"]
    assert names == ("A MAN", "B MAN", "C MAN")
    now = "A MAN"
    for split in (d.train, d.test):
        lines = text.texts(split["text"])
        following = [*lines[1:], ""]
        for line, after, code in zip(lines, following, split["speaker"].tolist(), strict=True):
            if line == "\n":  # the empty line belongs to the speech that it begins
                now = after.strip(":\n") or now
            elif line.endswith(":\n"):
                now = line[:-2]
            assert names[code] == now


def test_passages_that_leave_no_test_split_are_refused(given):
    given(text, "text_tinyshakespeare", {"input.txt": play(20)})
    with pytest.raises(ValueError, match="leave one side of the split empty; take a shorter length"):
        data.load("text_tinyshakespeare", length=100_000)
    with pytest.raises(ValueError, match="wants a length of 1 byte or more, got 0"):
        data.load("text_tinyshakespeare", length=0)


def test_a_file_with_another_checksum_or_no_file_is_refused(given):
    folder = given(text, "text_tinyshakespeare", {"input.txt": play()})
    (folder / "input.txt").write_bytes(play()[:-1])
    with pytest.raises(ValueError, match="input.txt .* its md5 is .* Delete it and load again"):
        data.load("text_tinyshakespeare")
    (folder / "input.txt").unlink()
    with pytest.raises(FileNotFoundError, match="set SSL_NB_DATA"):
        data.load("text_tinyshakespeare")


@needs("text_tinyshakespeare")
def test_real_shakespeare():
    d = data.load("text_tinyshakespeare")
    assert len(d.train["text"].values) + len(d.test["text"].values) == 1_115_394
    assert text.texts(d.train["text"][:1])[0].startswith("First Citizen:\nBefore we proceed any further")
    assert d.spec.values["speaker"][d.train["speaker"][0]] == "First Citizen" and "ROMEO" in d.spec.values["speaker"]
    assert (d.train["speaker"] >= 0).all()


# ---- WikiText


def wiki(titles):
    lines = [" "]
    for title in titles:
        lines += [f" = {title} = ", " ", f" {title} one . ", " = 1 <unk> k = ", " "]
        lines += [" = = Part = = ", " ", f" {title} two . ", " "]
    return "\n".join(lines).encode()


def test_articles_have_paragraphs_and_titles(given):
    given(text, "text_wikitext2", {"valid.txt": wiki(["Moon", "The = sign"]), "test.txt": wiki(["Sun"])})
    d = data.load("text_wikitext2")
    assert text.texts(d.train["text"])[:3] == ["Moon one .", "= 1 <unk> k =", "Moon two ."]
    assert d.spec.values["article"] == ("Moon", "The = sign", "Sun") and d.spec.group == "article"
    assert d.train["article"].tolist() == [0, 0, 0, 1, 1, 1] and d.test["article"].tolist() == [2, 2, 2]
    whole = data.load("text_wikitext2", unit="article")
    assert text.texts(whole.test["text"]) == ["Sun one .\n\n= 1 <unk> k =\n\nSun two ."]
    assert whole.train["article"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "content, word", [(b" no title \n", "before the first title"), (b"", "has no title"), (b"\xff", "no UTF-8")]
)
def test_a_broken_wiki_file_is_refused(given, content, word):
    given(text, "text_wikitext2", {"valid.txt": content, "test.txt": wiki(["Sun"])})
    with pytest.raises(ValueError, match=word):
        data.load("text_wikitext2")


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="unknown unit of text_wikitext2 'articles'; did you mean 'article'"):
        data.load("text_wikitext2", unit="articles")


@needs("text_wikitext2")
def test_real_wikitext():
    d = data.load("text_wikitext2")
    assert len(d.train["article"].unique()) == len(d.test["article"].unique()) == 60
    assert disjoint(d.train["article"], d.test["article"]) and d.spec.values["article"][0] == "Homarus gammarus"
    assert (len(d.train), len(d.test)) == (1841, 2187)
    assert len(data.load("text_wikitext2", unit="article").test) == 60


# ---- legal texts


def tsv(rows, columns=("index", "text", "answer")):
    return "".join("\t".join(f'"{value}"' for value in row) + "\n" for row in [columns, *rows]).encode()


def legal_files():
    crime = tsv([(i, f"text {i}\nwith two lines and\ta tab", "Yes" if i % 2 else "No") for i in range(9)])
    courts = tsv([(i, f"text {i + 3}\nwith two lines and\ta tab", "Maybe" if i == 0 else "No") for i in range(9)])
    return {"learned_hands_crime/train.tsv": crime, "learned_hands_courts/train.tsv": courts,
            "corporate_lobbying/train.tsv": tsv([(i, "bill", f"about {i}", "Yes") for i in range(6)],
                                                ("index", "title", "about", "answer")),
            "ssla_individual_defendants/train.tsv": tsv([(0, "plaintiff", "A, B")]),
            "ssla_individual_defendants/test_old.tsv": tsv([(0, "other", "C"), (1, "third", "D")])}


def test_a_document_of_several_tasks_is_on_one_side(given):
    given(text, "legal_text", legal_files())
    d = data.load("legal_text")
    assert len(d.train) + len(d.test) == 18 and d.spec.group == "document" and d.spec.classes == ("no", "yes")
    assert disjoint(d.train["document"], d.test["document"])
    assert not set(text.texts(d.train["text"])) & set(text.texts(d.test["text"]))
    assert len(torch.cat([d.train["document"], d.test["document"]]).unique()) == 12
    assert d.spec.values["task"] == ("learned_hands_crime", "learned_hands_courts")
    for split in (d.train, d.test):
        for row, label, task in zip(text.texts(split["text"]), split["labels"].tolist(), split["task"].tolist(), strict=True):
            number = int(row.split()[1])
            assert row == f"text {number}\nwith two lines and\ta tab"
            assert label == (number % 2 if task == 0 else -1 if number == 3 else 0)


def test_one_task_is_not_its_family(given):
    given(text, "legal_text", legal_files())
    d = data.load("legal_text", task="learned_hands_courts")
    assert d.spec.values["task"] == ("learned_hands_courts",) and len(d.train) + len(d.test) == 9
    bills = data.load("legal_text", task="corporate_lobbying")
    assert all(t.startswith("bill\n\nabout ") for t in text.texts(bills.train["text"]))


def test_the_task_without_classes_has_answers_and_its_own_split(given):
    given(text, "legal_text", legal_files())
    d = data.load("legal_text", task="ssla_individual_defendants")
    assert text.texts(d.train["answer"]) == ["A, B"] and text.texts(d.test["text"]) == ["other", "third"] and d.spec.classes == ()


@pytest.mark.parametrize(
    "content, word",
    [
        (tsv([(0, "a", "Yes")])[:-2], "no TSV file"),
        (tsv([(0, "a", "Yes"), (1, "b")]), "different numbers of columns"),
        (tsv([(0, "Yes")], ("index", "answer")), "columns index, answer and a text"),
        (tsv([]), "has no rows"),
        (b"\xff", "no TSV file in UTF-8"),
    ],
)
def test_a_broken_tsv_file_is_refused(given, content, word):
    given(text, "legal_text", {"learned_hands_crime/train.tsv": content})
    with pytest.raises(ValueError, match=word):
        data.load("legal_text")


def test_an_unknown_task_is_refused():
    for wrong in ("learned_hand", "", "learned_hands_"):
        with pytest.raises(ValueError, match="unknown task of legal_text"):
            data.load("legal_text", task=wrong)


@needs("legal_text")
def test_real_legal_texts():
    tasks = {"learned_hands": 96, "supply_chain_disclosure": 80, "corporate_lobbying": 10, "learned_hands_crime": 6}
    for task, rows in tasks.items():
        d = data.load("legal_text", task=task)
        labels = torch.cat([d.train["labels"], d.test["labels"]])
        assert len(labels) == rows and (labels >= 0).all() and disjoint(d.train["document"], d.test["document"])
        assert task == "corporate_lobbying" or labels.sum() == rows // 2
    d = data.load("legal_text", task="ssla_individual_defendants")
    assert (len(d.train), len(d.test)) == (3, 1012) and "Pradeep Sindhu" in text.texts(d.train["answer"])[0]
    assert len(text._FILES["legal_text"]) == 29


# ---- film reviews


def reviews(n=40, **more):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as out:
        members = {f"txt_sentoken/{kind}/cv{i * 25:03d}_{99 - i}.txt": f"{kind} {i * 25} .\n".encode()
                   for kind in ("pos", "neg") for i in range(n)}
        for name, content in {"poldata.README.2.0": b"about\n", **members, **more}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return file.getvalue()


def test_reviews_are_split_by_fold(given):
    given(text, "review_polarity", {"review_polarity.tar.gz": reviews()}, "tabular")
    d = data.load("review_polarity")
    assert (len(d.train), len(d.test)) == (72, 8) and d.test["fold"].tolist() == [9] * 8
    for split in (d.train, d.test):
        for row, label, fold in zip(text.texts(split["text"]), split["labels"].tolist(), split["fold"].tolist(), strict=True):
            kind, number = row.split()[:2]
            assert kind == ("neg", "pos")[label] and int(number) // 100 == fold


@pytest.mark.parametrize(
    "content, word",
    [
        (reviews()[:-40], "does not unpack"),
        (reviews(0), "has no member"),
        (reviews(1, **{"neg/cv999_1.txt": b"\xff"}), "does not unpack to texts"),
    ],
)
def test_a_broken_archive_of_reviews_is_refused(given, content, word):
    given(text, "review_polarity", {"review_polarity.tar.gz": content}, "tabular")
    with pytest.raises(ValueError, match=word):
        data.load("review_polarity")


@needs("tabular")
def test_real_reviews():
    d = data.load("review_polarity")
    assert (len(d.train), len(d.test)) == (1800, 200)
    assert torch.bincount(d.train["labels"]).tolist() == [900, 900] and torch.bincount(d.test["fold"])[9] == 200
    assert len(set(text.texts(d.train["text"]) + text.texts(d.test["text"]))) == 2000
