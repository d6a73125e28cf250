import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_nb.encoders import Conv1d, Transformer, attention_mask, sincos
from ssl_nb.tokens import grid_places
from ssl_nb.tokens.tokens import Tokens


def patches(x, side=3):
    grid = (x.shape[2] // side, x.shape[3] // side)
    return Tokens(F.unfold(x, side, stride=side).transpose(1, 2), grid_places(grid), grid=grid)


def small(**knobs):
    torch.manual_seed(0)
    return Transformer(**(dict(values=6, embed_dim=32, depth=3, num_heads=4) | knobs)).eval()


def pieces(n=3, t=7, real=None):
    return Tokens(torch.randn(n, t, 6, generator=torch.Generator().manual_seed(0)), grid_places((t,)), real=real)


def copied(vit, tokenizer, side, **knobs):
    "Our transformer with the weights of timm's."
    ours = Transformer(tokenizer, values=vit.patch_embed.proj.weight[0].numel(), embed_dim=vit.embed_dim, depth=len(vit.blocks),
                       num_heads=vit.blocks[0].attn.num_heads, positions="learned", grid=(side, side), **knobs).eval()
    prefix = vit.num_prefix_tokens
    with torch.no_grad():
        ours.enter[1].weight.copy_(vit.patch_embed.proj.weight.flatten(1))
        ours.enter[1].bias.copy_(vit.patch_embed.proj.bias)
        ours.positions.table.copy_(vit.pos_embed[0, prefix:])
        if prefix:
            ours.class_token.copy_(vit.cls_token + vit.pos_embed[:, :1])
    ours.blocks.load_state_dict(vit.blocks.state_dict())
    ours.norm.load_state_dict(vit.norm.state_dict())
    return ours


@pytest.mark.parametrize("class_token", [True, False])
def test_it_is_timms_vision_transformer_when_weights_are_copied(class_token):
    from timm.models.vision_transformer import VisionTransformer

    from ssl_nb.encoders import TimmEncoder

    torch.manual_seed(0)
    how = {} if class_token else dict(class_token=False, global_pool="avg", fc_norm=False)
    vit = VisionTransformer(24, 3, 2, num_classes=0, embed_dim=32, depth=3, num_heads=4, **how).eval()
    theirs = TimmEncoder(vit, mean=(0.0,), std=(1.0,), img_size=24)
    ours, x = copied(vit, patches, 8, class_token=class_token), torch.rand(2, 2, 24, 24)
    keep = torch.rand(2, 64).argsort(1)[:, :9]
    close = dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(x), theirs(x), **close)
    for options in ({}, dict(keep=keep), dict(layers=[1])):
        a, b = ours.tokens(x, **options), theirs.tokens(x, **options)
        a, b = (a[0], b[0]) if "layers" in options else (a, b)
        torch.testing.assert_close(a.x, b.x, **close)
        assert torch.equal(a.place.expand_as(b.place), b.place) and a.grid == b.grid
    torch.testing.assert_close(ours.attention(x), theirs.attention(x), **close)
    ours.add_mask_token()
    theirs.add_mask_token().mask_token.data.copy_(ours.mask_token)
    replace = torch.rand(2, 64) < 0.5
    torch.testing.assert_close(ours.tokens(x, replace=replace).x, theirs.tokens(x, replace=replace).x, **close)


def test_blocks_start_as_timms_do():
    from timm.models.vision_transformer import VisionTransformer

    ours = Transformer(values=3, embed_dim=64, depth=2)
    vit = VisionTransformer(24, 3, 1, num_classes=0, embed_dim=64, depth=2, num_heads=4)
    for (name, a), (_, b) in zip(ours.blocks.named_parameters(), vit.blocks.named_parameters(), strict=True):
        ours_std, theirs_std = (float(each.detach().std()) for each in (a, b))
        assert a.shape == b.shape and math.isclose(ours_std, theirs_std, rel_tol=0.1, abs_tol=1e-6), name
    assert math.isclose(float(ours.add_mask_token().mask_token.detach().std()), 0.02, rel_tol=0.4)


@pytest.mark.parametrize("knobs", [{}, dict(causal=True), dict(class_token=True), dict(class_token=True, causal=True)])
def test_padding_does_not_change_real_tokens(knobs):
    encoder, lengths = small(**knobs), torch.tensor([7, 4, 0])
    real = torch.arange(7) < lengths[:, None]
    batch = pieces(real=real)
    noise = batch._replace(x=torch.where(real[..., None], batch.x, torch.full_like(batch.x, 1e3)))
    with torch.no_grad():
        tokens, other = encoder.tokens(batch), encoder.tokens(noise)
        assert torch.equal(tokens.x, other.x) and torch.equal(encoder(batch), encoder(noise))
        assert tokens.x.isfinite().all() and (tokens.x[~real] == 0).all() and encoder(batch).isfinite().all()
        for row in (0, 1):
            alone = Tokens(batch.x[row : row + 1, : lengths[row]], batch.place[: lengths[row]])
            torch.testing.assert_close(encoder.tokens(alone).x[0], tokens.x[row, : lengths[row]], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(encoder(alone)[0], encoder(batch)[row], rtol=1e-4, atol=1e-5)
        everywhere = encoder.tokens(pieces(real=torch.ones(3, 7, dtype=torch.bool)))
        torch.testing.assert_close(everywhere.x, encoder.tokens(pieces()).x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("knobs", [{}, dict(causal=True), dict(class_token=True), dict(positions="learned", grid=7)])
def test_keeping_everything_is_no_keep_and_order_does_not_matter(knobs):
    encoder, real = small(**knobs), torch.arange(7) < torch.tensor([7, 5, 3])[:, None]
    batch, shuffled = pieces(real=real), torch.stack([torch.randperm(7) for _ in range(3)])
    with torch.no_grad():
        whole = encoder.tokens(batch)
        kept = encoder.tokens(batch, keep=torch.arange(7).expand(3, -1))
        mixed = encoder.tokens(batch, keep=shuffled)
    torch.testing.assert_close(kept.x, whole.x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed.x, whole.x.gather(1, shuffled[..., None].expand_as(whole.x)), rtol=1e-4, atol=1e-5)
    assert torch.equal(mixed.place[..., 0], shuffled) and torch.equal(mixed.real, real.gather(1, shuffled))
    assert kept.raw.shape == (3, 7, 6)


def test_dropped_tokens_have_no_influence():
    encoder, batch, keep = small(), pieces(), torch.tensor([[0, 2, 6]]).expand(3, -1)
    changed = batch._replace(x=batch.x.index_fill(1, torch.tensor([1, 3, 4, 5]), 9.0))
    assert torch.equal(encoder.tokens(batch, keep).x, encoder.tokens(changed, keep).x)


@pytest.mark.parametrize("class_token", [False, True])
def test_a_causal_token_does_not_depend_on_later_ones(class_token):
    encoder = small(causal=True, class_token=class_token)
    x = pieces().x.requires_grad_()
    tokens = encoder.tokens(Tokens(x, grid_places((7,))))
    for i in range(7):
        (heat,) = torch.autograd.grad(tokens.x[:, i, 0].sum(), x, retain_graph=True)
        seen = heat.abs().sum((0, 2)) > 0
        assert seen.tolist() == [j <= i for j in range(7)]
    if class_token:
        (heat,) = torch.autograd.grad(tokens.prefix[..., 0].sum(), x)
        assert (heat.abs().sum((0, 2)) > 0).all()


def test_attention_is_a_distribution_over_what_may_be_seen():
    encoder, real = small(causal=True, class_token=True), torch.arange(7) < torch.tensor([7, 4, 2])[:, None]
    with torch.no_grad():
        maps = encoder.attention(pieces(real=real))
    assert maps.shape == (3, 3, 4, 8, 8)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 3, 4, 8))
    mask = attention_mask(torch.arange(7).expand(3, -1), real, causal=True, prefix=1)
    assert (maps[~mask[:, :, None].expand_as(maps)] == 0).all() and (maps[:, :, :, 1:, 1:].triu(1)[0] == 0).all()
    assert all(block.attn.fused_attn for block in encoder.blocks)


def naive_mask(real, causal, prefix):
    n, t = real.shape
    seen = torch.zeros(n, prefix + t, prefix + t, dtype=torch.bool)
    for row in range(n):
        for i in range(prefix + t):
            for j in range(prefix + t):
                exists = j < prefix or bool(real[row, j - prefix])
                seen[row, i, j] = exists and (not causal or i < prefix or prefix <= j <= i)
            if not seen[row, i].any():
                seen[row, i] = True
    return seen


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("causal", [True, False])
def test_the_mask_is_the_loop(causal, prefix):
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    mask = attention_mask(torch.arange(4).expand(4, -1), real, causal, prefix)[:, 0]
    assert torch.equal(mask.expand(-1, prefix + 4, -1), naive_mask(real, causal, prefix))


def test_sine_cosine_positions_on_one_axis_are_those_of_the_transformer():
    "Vaswani et al. 2017, section 3.5; sines and cosines are not interleaved here."
    table = np.array([[(math.sin, math.cos)[i % 2](s / 10000 ** (i // 2 * 2 / 12)) for i in range(12)] for s in range(40)])
    ours = sincos(grid_places((40,)), 12).numpy()
    np.testing.assert_allclose(ours, np.concatenate([table[:, 0::2], table[:, 1::2]], axis=1), atol=1e-6)


def test_sine_cosine_positions_on_two_axes_are_those_of_mae():
    "The formula of util/pos_embed.py of He et al. 2022: columns first."
    def one_axis(dim, place):
        omega = 1.0 / 10000 ** (np.arange(dim // 2, dtype=float) / (dim / 2.0))
        out = np.einsum("m,d->md", place.reshape(-1), omega)
        return np.concatenate([np.sin(out), np.cos(out)], axis=1)

    columns, rows = np.meshgrid(np.arange(7, dtype=np.float32), np.arange(5, dtype=np.float32))
    theirs = np.concatenate([one_axis(8, columns), one_axis(8, rows)], axis=1)
    np.testing.assert_allclose(sincos(grid_places((5, 7)), 16).numpy(), theirs, atol=1e-6)


def test_sine_cosine_positions_of_any_coordinates():
    place = torch.rand(2, 5, 3) * 10
    found = sincos(place, 20)  # three pairs for each axis, and two zeros
    assert found.shape == (2, 5, 20) and (found[..., 18:] == 0).all()
    shifted = sincos(place + 3.7, 20)  # the product of two positions depends on their difference only
    torch.testing.assert_close(found @ found.mT, shifted @ shifted.mT, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="at least 6"):
        sincos(place, 5)


def test_ids_replaced_by_the_mask_token_have_no_influence():
    torch.manual_seed(0)
    words = Transformer(vocabulary=9, embed_dim=16, depth=1).add_mask_token().eval()
    ids, replace = torch.randint(0, 9, (2, 6)), torch.arange(6) % 3 == 0
    replace = replace.expand(2, -1)
    changed = torch.where(replace, (ids + 1) % 9, ids)
    a, b = (words.tokens(Tokens(x, grid_places((6,))), replace=replace) for x in (ids, changed))
    assert torch.equal(a.x, b.x) and torch.equal(a.raw, ids)
    a.x[..., 0].sum().backward()  # the sum of squares behind the last norm is constant
    assert words.mask_token.grad.abs().sum() > 0


def test_without_positions_the_order_of_tokens_does_not_matter():
    encoder, batch = small(positions="none"), pieces()
    order = torch.randperm(7)
    torch.testing.assert_close(encoder(batch), encoder(batch._replace(x=batch.x[:, order])), rtol=1e-4, atol=1e-5)


def test_an_encoder_can_be_the_tokenizer():
    torch.manual_seed(0)
    waves = torch.randn(2, 1, 64)
    front = Conv1d(1, channels=(8, 16), strides=(4, 2))
    both = Transformer(front, values=16, embed_dim=32, depth=1)
    assert both.tokens(waves).x.shape == (2, 8, 32) and "tokenizer.stem.weight" in dict(both.named_parameters())
    assert torch.equal(both(waves), both(front.tokens(waves)))


def test_layers_are_the_outputs_of_blocks_and_the_last_is_normed():
    encoder, seen = small(class_token=True), []
    hooks = [block.register_forward_hook(lambda _m, _in, out: seen.append(out)) for block in encoder.blocks]
    last, first = encoder.tokens(pieces(), layers=[-1, 0])
    for hook in hooks:
        hook.remove()
    assert torch.equal(first.x, seen[0][:, 1:]) and torch.equal(first.prefix, seen[0][:, :1])
    assert torch.equal(last.x, encoder.norm(seen[2])[:, 1:]) and torch.equal(last.x, encoder.tokens(pieces()).x)
    assert torch.equal(encoder.tokens(pieces(), layers=[0])[0].x, first.x)


@pytest.mark.parametrize("knobs, message", [
    (dict(values=3, vocabulary=4), "give one of values=p"), (dict(), "give one of values=p"),
    (dict(values=3, positions="rotary"), "positions is 'rotary'"), (dict(values=3, positions="learned"), "wants grid")])
def test_what_cannot_be_built_is_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        Transformer(**knobs)


@pytest.mark.parametrize("call, error, message", [
    (lambda: small()(torch.rand(2, 3)), TypeError, "no tokenizer and got Tensor"),
    (lambda: small(positions="learned", grid=5)(pieces()), ValueError, r"below grid=\(5,\)"),
    (lambda: small(positions="learned", grid=(7, 1))(pieces()), ValueError, r"below grid=\(7, 1\)"),
    (lambda: small().tokens(pieces(), replace=torch.zeros(3, 7).bool()), ValueError, "add_mask_token"),
    (lambda: small().add_mask_token().tokens(pieces(), replace=torch.zeros(3, 6).bool()), ValueError, r"shape \(3, 7\)"),
    (lambda: small().tokens(pieces(), layers=[3]), ValueError, "3 blocks: give -3 to 2")])
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
