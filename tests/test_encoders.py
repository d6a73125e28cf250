import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssl_nb import encoders
from ssl_nb.data.split import Ragged, Split
from ssl_nb.encoders import files


def images(n=3, c=1, size=24):
    return torch.randint(0, 256, (n, c, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("name, in_chans, size", [("convnet", 1, 24), ("convnet", 3, 32), ("vit", 1, 24), ("vit", 5, 32),
                                                  ("resnet18", 3, 32), ("test_vit", 3, 32), ("test_convnext", 3, 64)])
def test_every_encoder_is_reached_in_the_same_way(name, in_chans, size):
    encoder = encoders.create(name, in_chans=in_chans, img_size=size).eval()
    x = images(2, in_chans, size)
    with torch.no_grad():
        representation, tokens = encoder(x), encoder.tokens(x)
    assert representation.shape == (2, encoder.num_features)
    assert tokens.x.shape[0] == 2 and tokens.x.shape[2] == encoder.num_features
    assert tokens.place.tolist() == [[row, column] for row in range(tokens.grid[0]) for column in range(tokens.grid[1])]
    assert torch.equal(representation, encoder.pool(tokens))


SWIN = dict(embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4)
NETWORKS = {"convnet": ("convnet", {}), "vit": ("vit", {}), "registers, mean": ("vit", dict(reg_tokens=2, global_pool="avg")),
            "no prefix": ("vit", dict(class_token=False, global_pool="avg")), "any size": ("vit", dict(dynamic_img_size=True)),
            "pre-norm": ("vit", dict(pre_norm=True)), "resnet18": ("resnet18", {}), "test_vit": ("test_vit", {}),
            "test_convnext": ("test_convnext", {}), "channels last": ("swin_tiny_patch4_window7_224", SWIN),
            "mixer": ("mixer_s32_224", {}), "vgg": ("vgg11", {}),
            "mobilenet": ("mobilenetv3_small_050", {})}


def network(key, size=32):
    torch.manual_seed(0)
    name, knobs = NETWORKS[key]
    return encoders.create(name, in_chans=1, img_size=size, **knobs).eval()


def gradients(encoder, made, x):
    torch.manual_seed(1)
    return torch.autograd.grad((made * torch.randn(made.shape)).sum(), [x, *encoder.backbone.parameters()], allow_unused=True)


def equal(a, b):
    return a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("key", NETWORKS)
def test_pooled_tokens_are_what_timm_gives_bit_by_bit(key):
    encoder, x = network(key), (images(2, size=32) / 255).requires_grad_()
    backbone, normal = encoder.backbone, encoder.normalize(x)
    theirs = backbone.forward_head(backbone.forward_features(normal), pre_logits=True)
    ours = encoder(x)
    assert torch.equal(ours, theirs) and ours.shape[1] == encoder.num_features
    assert all(map(equal, gradients(encoder, ours, x), gradients(encoder, theirs, x)))


@pytest.mark.parametrize("key", ["vit", "registers, mean", "no prefix", "pre-norm", "any size", "test_vit"])
def test_kept_tokens_are_encoded_as_written_out_bit_by_bit(key):
    encoder, x = network(key).train(), (images(2, size=32) / 255).requires_grad_()
    vit = encoder.backbone
    count = encoder.tokens(x).x.shape[1]
    keep = torch.rand(2, count).argsort(1)[:, : max(count // 4, 1)]

    tokens = vit._pos_embed(vit.patch_embed(encoder.normalize(x)))
    prefix, patches = tokens.split([vit.num_prefix_tokens, tokens.shape[1] - vit.num_prefix_tokens], dim=1)
    visible = patches.gather(1, keep[..., None].expand(-1, -1, patches.shape[-1]))
    theirs = vit.norm(vit.blocks(vit.norm_pre(torch.cat([prefix, visible], dim=1))))

    kept = encoder.tokens(x, keep=keep)
    ours = kept.x if kept.prefix is None else torch.cat([kept.prefix, kept.x], dim=1)
    assert torch.equal(ours, theirs) and kept.grid is None
    side = encoder.tokens(x).grid[1]
    assert torch.equal(kept.place, torch.stack([keep // side, keep % side], dim=-1))
    assert all(map(equal, gradients(encoder, ours, x), gradients(encoder, theirs, x)))


def test_dropping_by_the_network_itself_is_off_where_tokens_are_kept():
    encoder = encoders.create("vit", in_chans=1, img_size=24, patch_drop_rate=0.5).train()
    assert encoder.tokens(images(), keep=torch.arange(64).expand(3, -1)).x.shape[1] == 64
    dropped = encoder.tokens(images())
    assert dropped.x.shape[1] == 32 and dropped.grid is None


def test_a_convnets_representation_is_the_mean_of_its_tokens():
    encoder = encoders.create("convnet", in_chans=1, img_size=24).eval()
    torch.testing.assert_close(encoder.tokens(images()).x.mean(1), encoder(images()))


def test_a_patch_token_sees_its_own_place_first():
    # the gradient of one token with respect to the picture is largest inside its patch, in an untrained transformer
    encoder = encoders.create("vit", in_chans=1, img_size=24).eval()
    x = (images(1) / 255).requires_grad_()
    token = encoder.tokens(x).x[0, 9]  # row 1, column 1 of an 8 x 8 grid of 3-pixel patches
    (token * torch.linspace(-1, 1, 128)).sum().backward()
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


def test_bytes_and_floats_are_the_same_picture_and_a_checkpoint_carries_the_normalization():
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
        assert torch.equal(encoder.tokens(x, keep).x, encoder.tokens(changed, keep).x)
        changed[:, :, :3, :3] = 255 - changed[:, :, :3, :3]  # patch 0, kept
        assert not torch.allclose(encoder.tokens(x, keep).x, encoder.tokens(changed, keep).x)


@pytest.mark.parametrize("knobs", [{}, dict(dynamic_img_size=True)])
def test_a_replaced_token_is_the_mask_token_at_its_place(knobs):
    encoder = encoders.create("vit", in_chans=1, img_size=24, mask_token=True, **knobs).eval()
    x, replace = images(), torch.zeros(3, 64, dtype=torch.bool)
    replace[:, 1] = True
    changed = x.clone()
    changed[:, :, :3, 3:6] = 255 - changed[:, :, :3, 3:6]  # patch 1, replaced
    with torch.no_grad():
        made = encoder.tokens(x, replace=replace)
        assert torch.equal(made.x, encoder.tokens(changed, replace=replace).x) and made.grid == (8, 8)
        vit, tokens = encoder.backbone, encoder.backbone.patch_embed(encoder.normalize(x)).reshape(3, 64, -1)
        tokens[:, 1] = encoder.mask_token
        if knobs:
            tokens = tokens.view(3, 8, 8, -1)
        by_hand = vit.norm(vit.blocks(vit._pos_embed(tokens)))
        assert torch.equal(made.x, by_hand[:, 1:])
        both = encoder.tokens(x, keep=torch.tensor([[1, 5]]).expand(3, -1), replace=replace)
        assert torch.equal(both.x, encoder.tokens(changed, keep=torch.tensor([[1, 5]]).expand(3, -1), replace=replace).x)
    encoder.tokens(x, replace=replace).x[:, 1, 0].sum().backward()
    assert encoder.mask_token.grad.abs().sum() > 0
    assert not vit.patch_embed._forward_hooks and not vit.patch_drop._forward_hooks


def test_a_mask_token_is_a_parameter_only_where_it_was_asked_for(tmp_path):
    torch.manual_seed(0)
    plain = encoders.create("vit", in_chans=1, img_size=24)
    torch.manual_seed(0)
    encoder = encoders.create("vit", in_chans=1, img_size=24, mask_token=True)
    assert set(encoder.state_dict()) - set(plain.state_dict()) == {"mask_token"} and "mask_token" not in plain.made
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in plain.state_dict().items())
    token = encoder.mask_token
    assert encoder.add_mask_token().mask_token is token  # a second method does not replace it
    encoders.save(encoder, tmp_path / "a.safetensors")
    assert torch.equal(encoders.load(tmp_path).mask_token, token)


@pytest.mark.parametrize("key", ["vit", "registers, mean", "no prefix", "convnet", "resnet18", "test_convnext", "channels last"])
def test_inner_layers_come_in_the_order_that_was_asked(key):
    encoder, x = network(key), images(2, size=32)
    count, outputs = len(encoder.backbone.feature_info), []
    with torch.no_grad():
        every = encoder.tokens(x, layers=list(range(count)))
        last, first, again = encoder.tokens(x, layers=[-1, 0, count - 1])
        whole = encoder.tokens(x)
        inner = encoder.tokens(x, layers=[0])[0]
    assert len(every) == count and torch.equal(last.x, whole.x) and torch.equal(again.x, whole.x)
    assert torch.equal(first.x, every[0].x) and torch.equal(inner.x, first.x)
    assert torch.equal(encoder.pool(last), encoder(x))
    assert all(each.x.shape[1] == each.grid[0] * each.grid[1] for each in every)
    if hasattr(encoder.backbone, "blocks"):  # without the final norm, which the last one has
        hook = encoder.backbone.blocks[0].register_forward_hook(lambda _m, _in, out: outputs.append(out))
        encoder.tokens(x)
        hook.remove()
        p = encoder.backbone.num_prefix_tokens
        assert torch.equal(first.x, outputs[0][:, p:]) and (p == 0 or torch.equal(first.prefix, outputs[0][:, :p]))


KEEP, REPLACE = torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 64, dtype=torch.bool)


@pytest.mark.parametrize("name, options, error, message", [
    ("convnet", dict(keep=KEEP), TypeError, "ByobNet cannot hide tokens by keep="),
    ("convnet", dict(replace=REPLACE), TypeError, "ByobNet cannot hide tokens by replace="),
    ("vit", dict(replace=REPLACE), ValueError, r"add_mask_token\(\) before the optimizer"),
    ("vit", dict(keep=KEEP.float()), ValueError, "keep is torch.float32"),
    ("vit", dict(keep=KEEP[0]), ValueError, r"shape \(1,\)"),
    ("vit", dict(replace=REPLACE.long()), ValueError, "replace is torch.int64"),
    ("vit", dict(layers=[4]), ValueError, "4 blocks: give -4 to 3"),
    ("convnet", dict(layers=[-9]), ValueError, "layers has -9")])
def test_what_an_encoder_cannot_hide_or_read_is_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        encoders.create(name, in_chans=1, img_size=24).tokens(images(), **options)


def test_a_mask_of_the_wrong_size_and_a_mask_token_of_a_convnet_are_refused():
    with pytest.raises(ValueError, match=r"64 tokens: give \(3, 64\)"):
        encoders.create("vit", in_chans=1, img_size=24, mask_token=True).tokens(images(), replace=REPLACE[:, :9])
    with pytest.raises(TypeError, match="cannot hide"):
        encoders.create("convnet", mask_token=True)


def test_features_that_are_no_tensor_are_refused():
    with pytest.raises(TypeError, match="gives list of features"):
        encoders.create("crossvit_9_240", img_size=240)(images(1, 3, 240))


def test_embed_takes_a_split_and_lets_a_method_decide():
    class Method(torch.nn.Module):
        def embed(self, batch):
            assert not self.training and not torch.is_grad_enabled()
            return batch["labels"][:, None].double().repeat(1, 2)

    encoder = encoders.create("vit", in_chans=1, img_size=24)
    split = Split({"labels": torch.arange(5), "images": images(5)}, inputs="images")
    assert torch.equal(encoders.embed(encoder, split, 2), encoders.embed(encoder, images(5), 2))
    labels = encoders.embed(Method().train(), split, batch_size=2)
    assert labels.dtype == torch.float32 and labels[:, 0].tolist() == [0, 1, 2, 3, 4]
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3))
    layer.embed = torch.nn.Identity()  # a layer of this name is no method
    assert encoders.embed(layer, Split({"x": torch.rand(5, 4)})).shape == (5, 3)
    with pytest.raises(ValueError, match="divide them by 255"):
        encoders.embed(encoder, split.assign(images=images(5).float()))
    ragged = Split({"wave": Ragged.of([torch.randn(length, 2) for length in (9, 4, 7)])})
    conv = encoders.create("conv1d", 2)
    torch.testing.assert_close(encoders.embed(conv, ragged, 1), encoders.embed(conv, ragged, 3), rtol=1e-4, atol=1e-5)
    assert encoders.embed(encoder, images(5)[:0]).shape == (0, 128)


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


@pytest.mark.parametrize("call", [lambda e, x: e(x), lambda e, x: e.tokens(x), lambda e, x: e.attention(x)])
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
    assert encoders.names(modality="graph") == ["gin"] and "resnet18" in encoders.names(modality="image")


def test_presets_say_what_they_are_for_and_import_nothing_heavy():
    import subprocess
    import sys

    code = ("import sys; from ssl_nb import encoders; p = encoders.presets; "
            "print({n: (p.entry(n).facts['modality'], p.entry(n).needs) for n in p}); "
            "assert not {'timm', 'torch_geometric', 'safetensors'} & set(sys.modules)")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'gin': ('graph', 'graphs')" in said and "'conv1d': ('signal', '')" in said


@pytest.mark.parametrize("name, knobs", [
    ("transformer", dict(vocabulary=7, embed_dim=16, depth=1, positions="learned", grid=[5])),
    ("gin", dict(node_types=3, embed_dim=8, depth=1, pooling="sum")),
    ("conv1d", dict(in_chans=2, channels=[4, 8], strides=[1, 2], mean=[0.1])),
    ("recurrent", dict(in_chans=2, embed_dim=8))])
def test_presets_for_other_modalities_come_back_from_a_file(name, knobs, tmp_path):
    encoder = encoders.create(name, **knobs)
    assert encoder.made == dict(name=name, **knobs)
    encoders.save(encoder, tmp_path / "a.safetensors")
    again = encoders.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), encoder.state_dict().values(), strict=True))
    assert repr(again) == repr(encoder.eval())


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

    for module, name_of_maker in ((timm, "create_model"), (files, "create")):  # nothing at all is built
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


@pytest.mark.parametrize("count", [257, 300])
def test_calibration_is_that_of_torch_and_leaves_the_network_alone(count):
    "257 rows in batches of 256 would leave a batch of one, which batch normalization refuses."
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network = encoders.create("convnet", in_chans=3, img_size=16, channels=(4, 8, 8)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ours, theirs = encoders.calibrated(network, images), copy.deepcopy(network)
    torch.optim.swa_utils.update_bn([images[::2], images[1::2]], theirs)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    assert not ours.training and all(part.training for part in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert str(ours) == str(network)  # momentum as well


def test_calibration_hardly_depends_on_the_order_of_the_rows():
    x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    norm = torch.nn.Sequential(torch.nn.BatchNorm1d(4))
    variances = encoders.calibrated(norm, x[x[:, 0].argsort()], batch_size=100)[0].running_var
    torch.testing.assert_close(variances, x.var(0), rtol=0.02, atol=0)  # consecutive batches: less than a tenth for column 0


def test_a_network_without_batch_normalization_is_copied():
    network, x = encoders.create("vit", in_chans=1, img_size=16), torch.rand(4, 1, 16, 16)
    torch.testing.assert_close(encoders.embed(encoders.calibrated(network, x), x), encoders.embed(network, x), rtol=0, atol=0)
