"""The recipe of TransTab: what it compares, that it trains, what its card says, and what it refuses."""

import pytest
import torch

import ssl_nb.atlas.transtab  # noqa: F401  registers the recipe
from ssl_nb import encoders, methods, training
from ssl_nb.data import Spec, Split
from ssl_nb.objectives.vertical_partition import vertical_partition_contrastive
from ssl_nb.tokens.named_columns import NamedCells, NamedColumns
from ssl_nb.views.view import as_views

SPEC = Spec("made up", columns=("a one", "a two", "b one", "b two", "kind"), values={"kind": ("x", "y")}, modality="table")


def rows(n=96, seed=0):
    "Every column but noise tells the same hidden number; its sign is the class."
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 1, generator=generator)
    numbers = hidden + 0.1 * torch.randn(n, 4, generator=generator)
    labels = (hidden[:, 0] > 0).long()
    return Split({"numbers": numbers, "categories": labels[:, None], "labels": labels}, ("numbers", "categories"))


def encoder(split, seed=0):
    torch.manual_seed(seed)
    tokenizer = NamedColumns.fit(split.x, SPEC)
    enter = NamedCells(len(tokenizer.vocabulary), 16)
    return encoders.Transformer(tokenizer, enter=enter, embed_dim=16, depth=1, num_heads=2, positions="none")


def make(split, **knobs):
    return methods.create("transtab", encoder(split), projector=(8,), **knobs)


def test_the_card_names_row_and_modality_and_the_knobs_of_the_paper():
    card = methods.card("transtab")
    assert (card.row, card.modality, card.family) == ("transtab", "table", "joint embedding")
    assert set(card.paper_knobs) == {"overlap", "temperature", "projector"} and "Wang and Sun 2022" in card.paper


@pytest.mark.parametrize("supervised", [False, True])
def test_the_loss_is_the_objective_of_the_parts(supervised):
    split = rows(12)
    method = make(split, supervised=supervised, parts=2, overlap=0.5, temperature=0.3)
    views = as_views(method.views(split, None))
    assert [view.facts["columns"][0].tolist() for view in views] == [[0, 1, 2, 3, 4], [3, 4, 1, 2]]
    z = [method.projector(method.encoder(view.x)) for view in views]
    expected = vertical_partition_contrastive(z, split["labels"] if supervised else None, temperature=0.3)
    assert torch.allclose(method.loss(views, split).loss, expected)


@pytest.mark.parametrize("supervised", [False, True])
def test_the_loss_falls(supervised):
    split = rows()
    method = make(split, supervised=supervised, temperature=0.5)
    history = training.fit(method, split, epochs=12, batch_size=32, lr=1e-2, device="cpu", report=lambda line: None)
    losses = [row["loss"] for row in history.rows]
    assert sum(losses[-6:]) / 6 < sum(losses[:6]) / 6 - 0.1


@pytest.mark.parametrize("supervised", [False, True])
def test_labels_matter_to_the_supervised_form_only(supervised):
    split = rows(24)
    weights = []
    for labels in (split["labels"], torch.arange(24) % 3):
        method = make(split, supervised=supervised)
        training.fit(method, split.assign(labels=labels), epochs=1, batch_size=12, device="cpu", report=lambda line: None)
        weights.append(torch.cat([p.detach().flatten() for p in method.parameters()]))
    assert torch.equal(*weights) != supervised


def test_what_was_trained_reads_another_table():
    split = rows()
    method = make(split)
    spec = Spec("other", columns=("b two", "new", "kind"), values={"kind": ("y", "z", "x")}, modality="table")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 2, generator=generator), torch.randint(0, 3, (6, 1), generator=generator)
    method.encoder.tokenizer = NamedColumns.fit(x, spec, method.encoder.tokenizer.vocabulary)
    other = Split({"numbers": x[0], "categories": x[1]}, ("numbers", "categories"))
    assert encoders.embed(method.encoder, other).shape == (6, 16)


def test_an_encoder_without_a_tokenizer_is_refused():
    plain = encoders.Transformer(None, values=3, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="from the encoder's tokenizer, and Transformer has none"):
        methods.create("transtab", plain)
    with pytest.raises(ValueError, match="cannot be cut into 1 parts"):
        make(rows(), parts=1)
