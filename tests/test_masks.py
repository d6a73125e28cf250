"""Masks: exact counts in every row, the shape that each promises, and parity with MAE's own masking."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ssl_nb import tokens as tk
from ssl_nb.data import Ragged, Split
from ssl_nb.tokens.masks import _span_lengths

ONE_LINE = (tk.random_mask, tk.block_mask, tk.span_mask, tk.connected_mask)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def padded(lengths, t, width=3):
    real = torch.arange(t) < torch.tensor(lengths)[:, None]
    return tk.Tokens(torch.rand(len(lengths), t, width), tk.grid_places((t,)), real, grid=(t,))


def masking_of_mae(n, t, ratio, generator=None):
    "As in the authors' code: which are kept, which are hidden, and the way back."
    keep = int(t * (1 - ratio))
    order = torch.rand(n, t, generator=generator).argsort(1)
    return order[:, :keep], order.argsort(1) >= keep, order.argsort(1)


# ---- counts


@pytest.mark.parametrize("mask", ONE_LINE)
@given(n=st.integers(1, 4), t=st.integers(2, 40), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 9))
@settings(max_examples=30)
def test_every_row_hides_exactly_as_many(mask, n, t, ratio, seed):
    visible = int(t * (1 - ratio))
    if not 0 < visible < t:
        with pytest.raises(ValueError, match="does not leave"):
            mask((n, t), seeded(seed), ratio=ratio)
        return
    hidden = mask((n, t), seeded(seed), ratio=ratio)
    assert hidden.dtype == torch.bool and hidden.shape == (n, t) and hidden.sum(1).tolist() == [t - visible] * n
    assert torch.equal(hidden, mask((n, t), seeded(seed), ratio=ratio))


@pytest.mark.parametrize("mask", ONE_LINE)
@given(lengths=st.lists(st.integers(0, 15), min_size=1, max_size=5), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 9))
@settings(max_examples=30)
def test_padding_is_neither_counted_nor_hidden(mask, lengths, ratio, seed):
    tokens = padded(lengths, 15)
    hidden = mask(tokens, seeded(seed), ratio=ratio)
    assert not (hidden & ~tokens.real).any()
    expected = [min(max(r - int(r * (1 - ratio)), 1), r - 1) if r > 1 else 0 for r in lengths]
    assert hidden.sum(1).tolist() == expected


@pytest.mark.parametrize("mask", [tk.random_mask, tk.block_mask, tk.connected_mask])
def test_tokens_that_are_all_real_are_as_those_without_padding(mask):
    tokens = tk.Tokens(torch.rand(3, 36, 1), tk.grid_places((6, 6)), grid=(6, 6))
    full = tokens._replace(real=torch.ones(3, 36, dtype=torch.bool))
    expected = mask((3, 6, 6), seeded(), ratio=0.4)
    assert torch.equal(mask(tokens, seeded(), ratio=0.4), expected) and torch.equal(mask(full, seeded(), ratio=0.4), expected)


@pytest.mark.parametrize("mask", [*ONE_LINE, tk.tube_mask, tk.multiblock_masks, tk.random_order])
def test_only_the_given_generator_is_used(mask):
    shape = (2, 40) if mask is tk.span_mask else (2, 3, 8, 8)
    before = torch.get_rng_state()
    one, two = (torch.cat([m.flatten() for m in made]) if isinstance(made, tuple) else made
                for made in (mask(shape, seeded()), mask(shape, seeded(1))))
    assert torch.equal(torch.get_rng_state(), before) and not torch.equal(one, two)


# ---- random


@given(n=st.integers(1, 5), t=st.integers(2, 60), ratio=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_random_mask_is_the_masking_of_mae(n, t, ratio, seed):
    assume(0 < int(t * (1 - ratio)) < t)
    keep, mask, back = masking_of_mae(n, t, ratio, seeded(seed))
    order = tk.random_order((n, t), seeded(seed))
    assert torch.equal(tk.random_mask((n, t), seeded(seed), ratio=ratio), mask)
    assert torch.equal(order.argsort(1), back) and torch.equal(tk.keep_indices(mask, order=order), keep)


def test_without_a_generator_the_global_one_is_used_as_in_mae():
    torch.manual_seed(3)
    mask = masking_of_mae(2, 196, 0.75)[1]
    torch.manual_seed(3)
    assert torch.equal(tk.random_mask((2, 14, 14)), mask)


def test_restore_is_the_way_back_of_mae():
    keep, mask, back = masking_of_mae(3, 20, 0.6, seeded())
    visible, mask_token = torch.rand(3, 8, 5), torch.rand(5)
    theirs = torch.cat([visible, mask_token.expand(3, 12, 5)], 1).gather(1, back[..., None].expand(-1, -1, 5))
    assert torch.equal(tk.restore(visible, keep, 20, mask_token), theirs)


def test_restore_passes_gradients_to_both():
    visible, mask_token = torch.rand(1, 2, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    tk.restore(visible, torch.tensor([[4, 1]]), 5, mask_token).sum().backward()
    assert (visible.grad == 1).all() and mask_token.grad.tolist() == [3, 3, 3]


def test_random_mask_hides_each_token_equally_often():
    chance = tk.random_mask((8000, 12), seeded(), ratio=0.5).double().mean(0)
    assert (chance - 0.5).abs().max() < 0.03  # more than 5 standard deviations of 0.0056


# ---- keep_indices


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), ratio=st.floats(0.1, 0.9))
def test_visible_tokens_come_first_and_padding_fills_up(lengths, ratio):
    tokens = padded(lengths, 12)
    mask = tk.random_mask(tokens, seeded(), ratio=ratio)
    seen = tokens.take(tk.keep_indices(mask, tokens.real))
    visible = tokens.real & ~mask
    assert torch.equal(seen.real.sum(1), visible.sum(1)) and seen.x.shape[1] == visible.sum(1).max()
    for i in range(len(lengths)):
        assert torch.equal(seen.x[i][seen.real[i]], tokens.x[i][visible[i]])


def test_rows_with_different_counts_are_refused():
    mask = torch.tensor([[True, False, False], [True, True, False]])
    with pytest.raises(ValueError, match="rows see 1 to 2 tokens"):
        tk.keep_indices(mask)
    with pytest.raises(ValueError, match="no token visible"):
        tk.keep_indices(mask | True)


# ---- blocks


def edges(mask, h, w):
    m = mask.view(-1, h, w)
    return ((m[:, 1:] != m[:, :-1]).double().mean() + (m[:, :, 1:] != m[:, :, :-1]).double().mean()).item()


def test_blocks_have_few_edges():
    shape = (100, 14, 14)
    blocks, random = (edges(mask(shape, seeded(), ratio=0.4), 14, 14) for mask in (tk.block_mask, tk.random_mask))
    assert blocks < 0.4 * random


def test_one_block_that_fits_is_a_rectangle():
    masks = tk.block_mask((50, 12, 12), seeded(), ratio=0.25, area=(0.25, 0.25), aspect=(1, 1)).view(-1, 12, 12)
    for mask in masks:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert rows == columns == 6 and mask.sum() == 36


def test_blocks_of_a_line_are_intervals():
    mask = tk.block_mask((50, 40), seeded(), ratio=0.25, area=(0.25, 0.25))
    starts = (mask[:, 1:] & ~mask[:, :-1]).sum(1) + mask[:, 0]
    assert (starts == 1).all()


def test_blocks_reach_every_patch():
    chance = tk.block_mask((4000, 8, 8), seeded(), ratio=0.4).double().mean(0).view(8, 8)
    assert chance.min() > 0.1
    assert (chance - chance.flip(0)).abs().max() < 0.06 and (chance - chance.flip(1)).abs().max() < 0.06  # no side is preferred


def test_blocks_of_a_clip_last_for_all_frames():
    mask = tk.block_mask((3, 5, 8, 8), seeded()).view(3, 5, 64)
    assert (mask == mask[:, :1]).all()


def test_targets_are_rectangles_of_equal_size_that_the_context_does_not_see():
    for seed in range(5):
        context, targets = tk.multiblock_masks((16, 14, 14), seeded(seed))
        assert context.shape == (16, 196) and targets.shape == (16, 4, 196)
        assert (~context).sum(1).unique().numel() == 1 and (~context).sum() >= 160
        assert not (~context[:, None] & targets).any()
        for block in targets.flatten(0, 1).view(-1, 14, 14):
            rows, columns = int(block.any(1).sum()), int(block.any(0).sum())
            assert rows * columns == block.sum() == targets[0, 0].sum()
            assert 0.13 * 196 < block.sum() < 0.23 * 196 and 0.6 < rows / columns < 1.8


def test_context_keeps_enough_on_a_small_grid():
    for seed in range(20):
        context, _ = tk.multiblock_masks((8, 6, 6), seeded(seed), min_keep=10)
        assert (~context).sum(1).min() >= 10


def test_targets_and_context_of_a_clip():
    context, targets = tk.multiblock_masks((2, 3, 8, 8), seeded(), targets=2)
    assert context.shape == (2, 192) and targets.shape == (2, 2, 192)
    assert (context.view(2, 3, 64) == context.view(2, 3, 64)[:, :1]).all()
    assert (targets.view(2, 2, 3, 64) == targets.view(2, 2, 3, 64)[:, :, :1]).all()


# ---- tubes


def test_tubes_hide_the_same_of_every_frame():
    mask = tk.tube_mask((4, 8, 7, 7), seeded(), ratio=0.9).view(4, 8, 49)
    assert (mask == mask[:, :1]).all() and (mask.sum(2) == 49 - int(49 * (1 - 0.9))).all()
    assert torch.equal(mask[:, 0], tk.random_mask((4, 7, 7), seeded(), ratio=0.9))


def test_tubes_of_clips_of_different_lengths():
    clips = Ragged.of([torch.rand(2, 1, 4, 4), torch.rand(6, 1, 4, 4)])
    tokens = tk.Patches((2, 1, 1), channels=2)(clips)
    mask = tk.tube_mask(tokens, seeded(), ratio=0.5)
    assert mask.sum(1).tolist() == [8, 24] and not (mask & ~tokens.real).any()


# ---- spans


def runs(row):
    edge = np.diff(np.concatenate([[0], row.int().numpy(), [0]]))
    return (np.flatnonzero(edge == -1) - np.flatnonzero(edge == 1)).tolist()


def test_spans_have_their_length_but_for_ends_and_the_last():
    for row in tk.span_mask((100, 200), seeded(), ratio=0.1, length=5):
        short = [length for length in runs(row[5:-5]) if length < 5]
        assert len(short) <= 3  # the last span, and one at each end of the part that is looked at


def test_spans_of_one_token_are_a_random_mask():
    mask = tk.span_mask((4000, 20), seeded(), ratio=0.5, length=1)
    together = (mask[:, 1:] & mask[:, :-1]).double().mean()
    assert abs(together - 0.5 * 9 / 19) < 0.01


def test_spans_hide_ends_as_often_as_the_middle():
    chance = tk.span_mask((8000, 40), seeded(), ratio=0.3, length=6).double().mean(0)
    assert chance.max() - chance.min() < 0.08


def test_lengths_of_spans_are_those_of_spanbert():
    # geometric with p = 0.2, at most 10, mean 3.8
    lengths = _span_lengths((100_000,), 10, 0.2, seeded(), "cpu")
    share = 0.8 ** np.arange(10)
    assert (lengths.bincount(minlength=11)[1:] / 100_000 - torch.tensor(share / share.sum())).abs().max() < 0.01
    assert abs(lengths.double().mean() - 3.8) < 0.05


# ---- connected groups


def test_a_group_of_patches_is_connected():
    for mask in tk.connected_mask((40, 9, 7), seeded(), ratio=0.4).view(-1, 9, 7):
        assert label(mask.numpy())[1] == 1


def test_several_groups():
    most = [label(mask.numpy())[1] for mask in tk.connected_mask((60, 12, 12), seeded(), ratio=0.15, groups=4).view(-1, 12, 12)]
    assert max(most) == 4 and min(most) >= 1


def graphs(sizes, chance=0.3):
    bonds = []
    for i, size in enumerate(sizes):
        g = seeded(i)
        tree = [[int(torch.randint(v, (), generator=g)), v] for v in range(1, size)]
        more = [[u, v] for u in range(size) for v in range(u) if torch.rand((), generator=g) < chance / size]
        bonds.append(torch.tensor(tree + more, dtype=torch.int64).view(-1, 2))
    atoms = Ragged.of([torch.ones(size, dtype=torch.int64) for size in sizes])
    return tk.graph_batch(Split({"atoms": atoms, "bonds": Ragged.of(bonds)}))


def components(mask, batch, i):
    nodes = (batch.graph == i).nonzero().flatten()
    hidden = set(nodes[mask[i, :len(nodes)]].tolist())
    pairs = [(u, v) for u, v in batch.edges.T.tolist() if u in hidden and v in hidden]
    place = {node: k for k, node in enumerate(sorted(hidden))}
    rows, columns = ([place[p[k]] for p in pairs] for k in (0, 1))
    return connected_components(coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(place),) * 2))[0]


def test_a_group_of_nodes_is_connected():
    sizes = [12, 5, 30, 2, 1]
    batch = graphs(sizes)
    tokens, at = tk.to_tokens(batch), tk.token_edges(batch)
    for seed in range(10):
        mask = tk.connected_mask(tokens, seeded(seed), ratio=0.5, edges=at)
        assert mask.sum(1).tolist() == [6, 3, 15, 1, 0]
        assert [components(mask, batch, i) for i in range(4)] == [1] * 4


def test_edges_in_one_direction_are_enough():
    batch = graphs([10, 8])
    at = tk.token_edges(batch)
    args = tk.to_tokens(batch), seeded(2)
    one = tk.connected_mask(*args, edges=at[:, at[0] < at[1]])
    assert torch.equal(one, tk.connected_mask(args[0], seeded(2), edges=at))


def test_a_group_goes_on_in_another_component():
    edges = torch.tensor([[0, 1, 3, 4], [1, 2, 4, 5]])  # two paths of three nodes
    for seed in range(20):
        mask = tk.connected_mask((1, 6), seeded(seed), ratio=0.66, edges=edges)[0].view(2, 3)
        assert sorted(mask.sum(1).tolist()) == [1, 3]


def test_each_node_that_touches_the_group_is_equally_likely_to_be_next():
    # a star with center 0: from a leaf the center is next, from the center each leaf is
    star = torch.stack([torch.zeros(6000, 5, dtype=torch.int64), torch.arange(1, 6).expand(6000, -1)])
    edges = (star + 6 * torch.arange(6000)[:, None]).flatten(1)
    chance = tk.connected_mask((6000, 6), seeded(), ratio=0.5, edges=edges).double().mean(0)
    assert chance[0] == 1 and (chance[1:] - 2 / 5).abs().max() < 0.035  # 5 standard deviations of 0.0063


# ---- causal


def test_the_causal_mask_is_that_of_torch():
    theirs = torch.nn.Transformer.generate_square_subsequent_mask(6)
    assert torch.equal(tk.causal_mask(6), theirs.isinf())


# ---- faults


@pytest.mark.parametrize("call, words", [
    (lambda: tk.random_mask((2, 16), ratio=0.0), "does not leave"),
    (lambda: tk.random_mask((2, 16), ratio=float("nan")), "does not leave"),
    (lambda: tk.random_mask(16), "shape"),
    (lambda: tk.tube_mask((2, 16)), "grid of frames"),
    (lambda: tk.span_mask((2, 4, 4)), "on a line"),
    (lambda: tk.span_mask((2, 16), length=0), "length is 0"),
    (lambda: tk.block_mask((2, 8, 8), area=(0.5, 0.2)), "smallest, largest"),
    (lambda: tk.block_mask(tk.Tokens(torch.rand(2, 9, 3), torch.rand(2, 9, 3))), "grid=None"),
    (lambda: tk.connected_mask((2, 8, 8), groups=0), "groups is 0"),
    (lambda: tk.connected_mask(tk.Tokens(torch.rand(2, 9, 3), torch.rand(2, 9, 3))), "grid=None"),
    (lambda: tk.multiblock_masks(padded([3, 9], 9)), "without padding"),
    (lambda: tk.multiblock_masks((2, 4, 4), min_keep=15), "in 20 draws"),
])
def test_faults_of_masks(call, words):
    with pytest.raises(ValueError, match=words):
        call()
