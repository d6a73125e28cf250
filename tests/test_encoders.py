import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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
    with pytest.raises(KeyError), encoders.evaluating(encoder):
        assert not any(m.training for m in encoder.modules())
        raise KeyError
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


class Payload:
    "A pickle that writes a file when it is loaded."

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def weights_that_say(folder, made):
    file = folder / "weights.safetensors"
    encoder = encoders.create("convnet", in_chans=1, img_size=24)
    save_file(encoder.state_dict(), file, {"encoder": made if isinstance(made, str) else json.dumps(made), "prefix": ""})
    return file


HOSTILE = {"checkpoint_path": "FILE", "pretrained_cfg": {"file": "FILE"}, "pretrained_cfg_overlay": {"file": "FILE"},
           "cache_dir": "FILE", "pretrained_strict": False, "scriptable": True, "mean": "FILE", "act_layer": "FILE",
           "depth": {"a": 1}, "img_size": ["../x"]}


@pytest.mark.parametrize("knob", HOSTILE)
@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_a_file_of_weights_names_no_other_file(knob, name, tmp_path, monkeypatch):
    bomb, mark = tmp_path / "bomb.pth", tmp_path / "ran"
    bomb.write_bytes(pickle.dumps(Payload(mark)))
    said = json.loads(json.dumps(HOSTILE[knob]).replace("FILE", str(bomb)))
    file = weights_that_say(tmp_path, {"name": name, "in_chans": 1, "img_size": 24, knob: said})
    import timm

    for module, name_of_maker in ((timm, "create_model"), (encoders, "create")):  # nothing at all is built
        monkeypatch.setattr(module, name_of_maker, lambda *_, **__: pytest.fail("built from the file's words"))
    with pytest.raises(ValueError, match=f"asks for {knob}=.* not taken from a file"):
        encoders.load(file)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["hf-hub:someone/something", "hf_hub:someone/something", "local-dir:/tmp", "../bomb"])
def test_a_file_of_weights_names_no_place_to_load_from(name, tmp_path):
    with pytest.raises(ValueError, match="asks for name=|unknown encoder"):
        encoders.load(weights_that_say(tmp_path, {"name": name, "in_chans": 1}))


@pytest.mark.parametrize("made", ["3", "[1]", '"convnet"', "{", "null"])
def test_words_that_are_no_arguments_are_refused(made, tmp_path):
    with pytest.raises(ValueError, match="no arguments of encoders.create"):
        encoders.load(weights_that_say(tmp_path, made))


def test_weights_come_from_the_file_alone(tmp_path, monkeypatch):
    import timm

    asked, create_model = [], timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append(k) or create_model(*a, **k))
    encoder = encoders.create("test_vit", in_chans=1, img_size=32)
    encoder.made |= {"pretrained": True}
    encoders.save(encoder, tmp_path / "a.safetensors")
    again = encoders.load(tmp_path / "a.safetensors", pretrained=True)
    assert not any(k.get("pretrained") for k in asked)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), encoder.state_dict().values(), strict=True))


def test_what_you_say_yourself_is_not_restricted(tmp_path):
    file = weights_that_say(tmp_path, {"name": "convnet", "in_chans": 1, "img_size": 24, "aux": "a/b"})
    with pytest.raises(ValueError, match=r"load\(path, aux=...\)"):
        encoders.load(file)
    with pytest.raises(TypeError, match="aux"):  # it reaches the network, which does not know it
        encoders.load(file, aux=3)


def test_every_knob_of_the_presets_comes_back_from_a_file(tmp_path):
    knobs = dict(convnet=dict(channels=(8, 16, 24), zero_init_last=True),
                 vit=dict(patch_size=8, embed_dim=32, depth=1, num_heads=2, drop_path_rate=0.1, reg_tokens=2, global_pool="avg",
                          init_values=1e-4, act_layer="relu"))
    for name, knob in knobs.items():
        encoder = encoders.create(name, in_chans=1, img_size=24, mean=(0.2,), **knob).eval()
        encoders.save(encoder, tmp_path / f"{name}.safetensors")
        again = encoders.load(tmp_path / f"{name}.safetensors")
        assert torch.equal(again(images()), encoder(images())) and repr(again) == repr(encoder)


def test_an_encoder_with_a_knob_that_no_file_can_hold_is_not_described():
    encoder = encoders.create("vit", in_chans=1, img_size=24, depth=1, norm_layer=torch.nn.LayerNorm)
    assert encoders.description(encoder) == {}
    with pytest.raises(ValueError, match="numbers and words"):
        encoders.save(encoder, Path("nowhere.safetensors"))


@pytest.mark.parametrize("channels", [(8, 16), (8, 0, 16), ()])
def test_a_convnet_of_too_few_stages_is_refused(channels):
    with pytest.raises(ValueError, match=r"channels is \(.*two stages or more"):
        encoders.create("convnet", channels=channels)
