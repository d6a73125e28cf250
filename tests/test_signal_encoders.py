import pytest
import torch

from ssl_nb.data.split import Ragged
from ssl_nb.encoders import Conv1d, Recurrent, time_steps
from ssl_nb.tokens import grid_places
from ssl_nb.tokens.tokens import Tokens

LENGTHS = (61, 17, 40)


def waves():
    g = torch.Generator().manual_seed(0)
    return Ragged.of([torch.randn(length, 2, generator=g) for length in LENGTHS])


def made(kind, **knobs):
    torch.manual_seed(0)
    return kind(2, mean=(0.5, -1.0), std=(2.0, 0.5), **knobs)


CONVS = [dict(channels=(8, 16), strides=(2, 3)), dict(channels=(8,), strides=(5,)),
         dict(channels=(8, 8, 16), strides=(1, 1, 4), kernel=3)]
BOTH = [lambda k=k: made(Conv1d, **k) for k in CONVS] + [lambda: made(Recurrent, embed_dim=16, depth=2)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("encoder", BOTH)
def test_padding_changes_nothing_in_either_mode(encoder, training):
    encoder, batch = encoder().train(training), waves()
    tokens, features = encoder.tokens(batch), encoder(batch)
    for row in range(len(LENGTHS)):
        alone = batch[row].values.T[None]  # a tensor (1, c, t), which knows of no padding
        found = encoder.tokens(alone)
        assert found.real is None and int(tokens.real[row].sum()) == found.x.shape[1]
        torch.testing.assert_close(tokens.x[row, : found.x.shape[1]], found.x[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features[row], encoder(alone)[0], rtol=1e-4, atol=1e-5)
    assert (tokens.x[~tokens.real] == 0).all()
    values, _ = batch.padded(7.0)  # whatever the padding is
    noisy = encoder.tokens((values.transpose(1, 2), batch.lengths))
    assert torch.equal(noisy.x, tokens.x) and torch.equal(noisy.real, tokens.real)
    again = encoder.tokens(Tokens(values, grid_places(values.shape[1:2]), real=batch.padded()[1]))
    assert torch.equal(again.x, tokens.x)


@pytest.mark.parametrize("knobs", CONVS)
@pytest.mark.parametrize("length", [1, 2, 7, 30, 31])
def test_a_stride_divides_the_time_steps_rounded_up(knobs, length):
    tokens = made(Conv1d, **knobs).tokens(torch.randn(2, 2, length))
    steps = length
    for stride in knobs["strides"]:
        steps = -(-steps // stride)
    assert tokens.x.shape == (2, steps, knobs["channels"][-1]) and tokens.grid == (steps,)


def test_a_convolution_without_blocks_is_the_formula():
    encoder, x = made(Conv1d, channels=(8,), strides=(3,), kernel=5), torch.randn(1, 2, 20)
    normal = torch.nn.functional.pad((x - torch.tensor([[0.5], [-1.0]])) / torch.tensor([[2.0], [0.5]]), (2, 2))
    for step in range(7):
        window = normal[0, :, 3 * step : 3 * step + 5]
        value = (encoder.stem.weight * window).sum((1, 2)) + encoder.stem.bias
        value = torch.nn.functional.layer_norm(value, (8,)).relu()
        torch.testing.assert_close(encoder.tokens(x).x[0, step], value, rtol=1e-4, atol=1e-5)


def test_recurrence_is_that_of_torch_with_packed_rows():
    encoder, batch = made(Recurrent, embed_dim=16, depth=2), waves()
    theirs = torch.nn.GRU(2, 16, num_layers=2, batch_first=True)
    theirs.load_state_dict({name.replace("l0", f"l{layer}"): value for layer, unit in enumerate(encoder.layers)
                            for name, value in unit.state_dict().items()})
    normal = [(row - encoder.mean) / encoder.std for row in batch.rows()]
    _, last = theirs(torch.nn.utils.rnn.pack_sequence(normal, enforce_sorted=False))
    torch.testing.assert_close(encoder(batch), last[-1], rtol=1e-4, atol=1e-5)


def test_a_state_does_not_depend_on_later_steps():
    encoder, x = made(Recurrent, embed_dim=8), torch.randn(1, 2, 9)
    changed = x.clone()
    changed[..., 5:] = 0
    a, b = encoder.tokens(x).x, encoder.tokens(changed).x
    torch.testing.assert_close(a[:, :5], b[:, :5])
    assert not torch.allclose(a[:, 5], b[:, 5])


@pytest.mark.parametrize("encoder", [lambda: made(Conv1d, channels=(8, 16, 8)), lambda: made(Recurrent, depth=3)])
def test_layers_come_in_the_order_that_was_asked(encoder):
    encoder, batch = encoder(), waves()
    last, first = encoder.tokens(batch, layers=[-1, 0])
    assert torch.equal(last.x, encoder.tokens(batch).x)
    assert torch.equal(first.x, encoder.tokens(batch, layers=[0])[0].x) and first.x.shape[1] >= last.x.shape[1]
    with pytest.raises(ValueError, match="3 blocks"):
        encoder.tokens(batch, layers=[3])


def test_a_row_without_steps_gives_zero():
    batch = Ragged.of([torch.randn(4, 2), torch.zeros(0, 2)])
    for encoder in (made(Conv1d), made(Recurrent)):
        assert (encoder(batch)[1] == 0).all() and encoder(batch).isfinite().all()


def test_recordings_of_one_channel_need_no_axis_for_it():
    values, real = time_steps(Ragged.of([torch.randn(5), torch.randn(3)]))
    assert values.shape == (2, 5, 1) and real.sum(1).tolist() == [5, 3]


HOLE = Tokens(torch.zeros(1, 3, 2), grid_places((3,)), torch.tensor([[True, False, True]]))


@pytest.mark.parametrize("call, error, message", [
    (lambda: made(Conv1d)(torch.zeros(1, 2, 9, dtype=torch.int16)), ValueError, "torch.int16"),
    (lambda: made(Conv1d)(torch.zeros(2, 9)), ValueError, "2 axes"),
    (lambda: made(Recurrent)(HOLE), ValueError, "padding"),
    (lambda: made(Conv1d, kernel=4), ValueError, "odd kernel"), (lambda: made(Conv1d, strides=(2,)), ValueError, "one stride"),
    (lambda: made(Conv1d).tokens(waves(), replace=torch.zeros(3, 8).bool()), TypeError, "cannot hide"),
    (lambda: made(Recurrent).tokens(waves(), keep=torch.zeros(3, 1, dtype=torch.long)), TypeError, "cannot hide")])
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
