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


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_gives_each_submodule_its_own_mode_back(training):
    encoder = encoders.create("convnet", in_chans=1, img_size=24).train(training)
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms[::2]:
        norm.train(not training)
    modes = [m.training for m in encoder.modules()]
    assert len(set(modes)) == 2
    encoders.embed(encoder, images())
    assert [m.training for m in encoder.modules()] == modes
    with pytest.raises(ZeroDivisionError), encoders.evaluating(encoder):
        assert not any(m.training for m in encoder.modules())
        1 / 0
    assert [m.training for m in encoder.modules()] == modes


def test_a_module_that_freezes_itself_in_train_keeps_its_mode():
    class Frozen(torch.nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(False)

    network = torch.nn.Sequential(Frozen(1), torch.nn.Flatten()).train()
    encoders.embed(network, images() / 255)
    assert [m.training for m in network.modules()] == [True, False, True]


def anything():
    "A network that has no opinion about its input."
    return torch.nn.Sequential(torch.nn.Flatten())


@pytest.mark.parametrize("wrong, message", [
    (images().float(), r"floats from 0 to 255; .* divide them by 255"),
    (images() > 127, r"torch.bool; .* x.float\(\)"),
    (images().long(), r"torch.int64; .* x.to\(torch.uint8\)"),
    (images() / 127.5 - 1, r"floats from -1 to 1; .* undo it \(x \* std \+ mean\)"),
    ((images() / 255 - 0.13) / 0.31, "normalizes images itself"),
    (images() / 255 - 0.01, "x.clamp"),
    (images() / 0.0, "NaN|clamp"),
    (images()[0], r"\(1, 24, 24\)")])
def test_what_is_not_an_image_is_refused_everywhere(wrong, message):
    encoder = encoders.create("convnet", in_chans=1, img_size=24).eval()
    with pytest.raises(ValueError, match=message):
        encoders.check_images(wrong)
    if wrong.ndim == 4:
        with pytest.raises(ValueError, match=message):
            encoders.embed(anything(), wrong)
        with pytest.raises(ValueError, match=message):
            encoders.embed(encoder, wrong)


@pytest.mark.parametrize("call", [lambda e, x: e(x), lambda e, x: e.patch_tokens(x), lambda e, x: e.attention(x)])
@pytest.mark.parametrize("wrong", [images().float(), images() > 127, images().short(), (images() / 255 - 0.13) / 0.31])
def test_an_encoder_refuses_what_is_not_an_image_on_every_way_in(call, wrong):
    encoder = encoders.create("vit", in_chans=1, img_size=24)
    with pytest.raises(ValueError, match="an encoder takes uint8"):
        call(encoder, wrong)


def test_images_of_every_kind_pass():
    encoder = encoders.create("convnet", in_chans=1, img_size=24).eval()
    x = images()
    for right in (x, x / 255, (x / 255).half(), (x / 255).double(), torch.zeros_like(x), x[:0] / 255):
        encoders.check_images(right)
    torch.testing.assert_close(encoders.embed(encoder, x / 255), encoders.embed(encoder, x))
    encoder((x / 255 + 0.05 * torch.randn(x.shape)).requires_grad_())  # views with noise
    assert encoders.embed(torch.nn.Linear(4, 2), torch.randn(3, 4)).shape == (3, 2)  # features, for a projector


def test_gradients_of_single_images_still_work():
    encoder = encoders.create("vit", in_chans=1, img_size=8, patch_size=4, depth=1).eval()
    x = images(size=8) / 255
    each = torch.func.vmap(torch.func.grad(lambda image: encoder(image[None]).sum()))(x)
    one = torch.func.grad(lambda image: encoder(image[None]).sum())(x[1])
    torch.testing.assert_close(each[1], one, rtol=1e-3, atol=1e-4)


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
