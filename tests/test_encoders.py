import pytest
import torch

from ssl_nb import encoders


def images(n=3, c=1, size=24):
    return torch.randint(0, 256, (n, c, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("name, in_chans, size", [("convnet", 1, 24), ("convnet", 3, 32), ("vit", 1, 24), ("vit", 5, 32),
                                                  ("resnet18", 3, 32), ("test_vit", 3, 32), ("test_convnext", 3, 64)])
def test_every_encoder_is_reached_in_the_same_way(name, in_chans, size):
    encoder = encoders.create(name, in_chans=in_chans, img_size=size).eval()
    x = images(2, in_chans, size)
    with torch.no_grad():
        representation, tokens = encoder(x), encoder.patch_tokens(x)
    assert representation.shape == (2, encoder.num_features)
    assert tokens.shape[0] == 2 and tokens.shape[2] == encoder.num_features
    assert torch.equal(representation, encoder.representation(x).detach())


def test_a_convnets_representation_is_the_mean_of_its_patch_tokens():
    encoder = encoders.create("convnet", in_chans=1, img_size=24).eval()
    torch.testing.assert_close(encoder.patch_tokens(images()).mean(1), encoder(images()))


def test_a_patch_token_sees_its_own_place_first():
    # the gradient of one token with respect to the picture is largest inside its patch, in an untrained transformer
    encoder = encoders.create("vit", in_chans=1, img_size=24).eval()
    x = (images(1) / 255).requires_grad_()
    encoder.patch_tokens(x)[0, 9].square().sum().backward()  # row 1, column 1 of an 8 x 8 grid of 3-pixel patches
    heat = x.grad[0, 0].square().unfold(0, 3, 3).unfold(1, 3, 3).sum((-1, -2))
    assert heat.flatten().argmax() == 9


def test_attention_rows_sum_to_one_and_reading_changes_nothing():
    encoder = encoders.create("vit", in_chans=1, img_size=24).eval()
    with torch.no_grad():
        before = encoder(images())
        maps = encoder.attention(images())
        assert torch.equal(encoder(images()), before)
    assert maps.shape == (3, 4, 4, 65, 65)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 4, 4, 65))
    assert all(block.attn.fused_attn for block in encoder.backbone.blocks)


def test_fused_attention_is_restored_when_reading_fails():
    encoder = encoders.create("vit", in_chans=1, img_size=24)
    with pytest.raises(AssertionError):
        encoder.attention(images(size=32))  # timm refuses another size
    assert all(block.attn.fused_attn for block in encoder.backbone.blocks)
    assert not encoder.backbone.blocks[0].attn.attn_drop._forward_hooks


def test_bytes_and_floats_are_the_same_picture_and_a_checkpoint_carries_the_normalisation():
    encoder = encoders.create("vit", in_chans=1, img_size=24, mean=(0.2,), std=(0.5,)).eval()
    torch.testing.assert_close(encoder(images()), encoder(images() / 255))
    other = encoders.create("vit", in_chans=1, img_size=24).eval()
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(images()), encoder(images()))


def test_masked_encoding_does_not_see_what_is_dropped():
    encoder = encoders.create("vit", in_chans=1, img_size=24).eval()
    keep = torch.tensor([[0, 5, 63]]).expand(3, -1)
    x = images()
    changed = x.clone()
    changed[:, :, :3, 3:6] = 0  # patch 1, dropped
    with torch.no_grad():
        assert torch.equal(encoder.features(x, keep), encoder.features(changed, keep))
        changed[:, :, :3, :3] = 255 - changed[:, :, :3, :3]  # patch 0, kept
        assert not torch.allclose(encoder.features(x, keep), encoder.features(changed, keep))


def test_embed_does_not_depend_on_the_batch_and_restores_the_mode():
    encoder = encoders.create("convnet", in_chans=1, img_size=24).train()
    whole, parts = encoders.embed(encoder, images(5)), encoders.embed(encoder, images(5), batch_size=2)
    torch.testing.assert_close(whole, parts)
    assert encoder.training and not whole.requires_grad


@pytest.mark.parametrize("call, error, message", [
    (lambda: encoders.create("resnet81"), ValueError, "resnet18"),
    (lambda: encoders.create("vit", img_size=30, patch_size=7), ValueError, "30 is no multiple of patch_size 7"),
    (lambda: encoders.create("convnet", in_chans=1)(images()[0]), ValueError, r"\(1, 24, 24\)"),
    (lambda: encoders.create("convnet", in_chans=1).attention(images()), TypeError, "no attention layers")])
def test_bad_input_names_value_reason_and_mend(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_names_match_a_pattern():
    assert encoders.names("vit")[0] == "vit" and "resnet18" in encoders.names("resnet*")
