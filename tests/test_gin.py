from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ssl_nb.encoders import GIN, node_rows


class GraphBatch(NamedTuple):
    x: Tensor
    edges: Tensor
    edge_types: Tensor | None
    graph: Tensor
    count: int


def graphs(sizes=(4, 1, 6), seed=0):
    "Random graphs with edges in both directions."
    g = torch.Generator().manual_seed(seed)
    edges, start = [], 0
    for size in sizes:
        pairs = torch.combinations(torch.arange(size)).view(-1, 2)
        pairs = pairs[torch.rand(len(pairs), generator=g) < 0.5] + start
        edges += [pairs, pairs.flip(1)]
        start += size
    edges = torch.cat(edges).T
    types = torch.randint(0, 3, (start * start,), generator=g)
    edge_types = types[edges.amin(0) * start + edges.amax(0)]  # the same in both directions
    graph = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return GraphBatch(torch.randint(0, 5, (start,), generator=g), edges, edge_types, graph, len(sizes))


def gin(**knobs):
    torch.manual_seed(0)
    network = GIN(**(dict(node_types=5, embed_dim=8, depth=3) | knobs)).eval()
    with torch.no_grad():
        for conv, norm in zip(network.convs, network.norms, strict=True):
            conv.eps.fill_(0.3)
            norm.running_mean.uniform_(-1, 1)
    return network


def naive(network, batch):
    "Node by node and edge by edge."
    h = network.enter.weight[batch.x]
    for layer, (conv, norm) in enumerate(zip(network.convs, network.norms, strict=True)):
        summed = [(1 + conv.eps) * row for row in h]
        for edge, (u, v) in enumerate(batch.edges.T.tolist()):
            message = h[u]
            if network.edge_tables:
                message = (message + network.edge_tables[layer].weight[batch.edge_types[edge]]).relu()
            summed[v] = summed[v] + message
        h = norm(conv.nn(torch.stack(summed)))
        h = h.relu() if layer < 2 else h
    return h


@pytest.mark.parametrize("edge_types", [0, 3])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_it_is_the_loop_over_nodes_and_edges(edge_types, pooling):
    network, batch = gin(edge_types=edge_types, pooling=pooling), graphs()
    nodes = naive(network, batch)
    tokens = network.tokens(batch)
    torch.testing.assert_close(tokens.x[tokens.real], nodes, rtol=1e-4, atol=1e-5)
    assert tokens.real.sum(1).tolist() == [4, 1, 6] and (tokens.x[~tokens.real] == 0).all()
    assert torch.equal(tokens.raw[tokens.real], batch.x) and tokens.place[:, 0].tolist() == list(range(6))
    pooled = torch.stack([getattr(nodes[batch.graph == i], pooling)(0) for i in range(3)])
    torch.testing.assert_close(network(batch), pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("edge_types", [0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_another_numbering_of_the_nodes_changes_nothing(edge_types, seed):
    "Also one that mixes the nodes of different graphs."
    network, batch = gin(edge_types=edge_types), graphs(seed=seed)
    old = torch.randperm(len(batch.x), generator=torch.Generator().manual_seed(seed))  # the node that was there
    new, edge_order = old.argsort(), torch.randperm(batch.edges.shape[1])
    other = GraphBatch(batch.x[old], new[batch.edges][:, edge_order], batch.edge_types[edge_order], batch.graph[old], batch.count)
    torch.testing.assert_close(network(other), network(batch), rtol=1e-4, atol=1e-5)


def test_graphs_do_not_see_each_other():
    network, batch = gin(), graphs()
    inside = batch.edges[0] < 4
    alone = GraphBatch(batch.x[:4], batch.edges[:, inside], None, batch.graph[:4], 1)
    torch.testing.assert_close(network(batch)[0], network(alone)[0], rtol=1e-4, atol=1e-5)


def test_a_sum_counts_and_a_mean_does_not():
    one = graphs((5,))
    twice = GraphBatch(one.x.repeat(2), torch.cat([one.edges, one.edges + 5], 1), None, torch.zeros(10, dtype=torch.long), 1)
    total, mean = gin(pooling="sum"), gin(pooling="mean")
    torch.testing.assert_close(total(twice), 2 * total(one), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean(twice), mean(one), rtol=1e-4, atol=1e-4)


def test_a_replaced_node_has_no_type():
    network, batch = gin().add_mask_token(), graphs()
    replace = torch.zeros(3, 6, dtype=torch.bool)
    replace[0, 2] = replace[2, 5] = True
    changed = batch._replace(x=batch.x.clone())
    changed.x[[2, 10]] = (changed.x[[2, 10]] + 1) % 5
    made = network.tokens(batch, replace=replace)
    assert torch.equal(made.x, network.tokens(changed, replace=replace).x)
    assert not torch.allclose(made.x, network.tokens(batch).x)
    made.x.square().sum().backward()
    assert network.mask_token.grad.abs().sum() > 0
    old = torch.randperm(len(batch.x))  # nodes of several graphs, mixed
    other = GraphBatch(batch.x[old], old.argsort()[batch.edges], None, batch.graph[old], 3)
    at = torch.zeros(len(old), dtype=torch.bool)
    at[[2, 10]] = True
    rows, real = node_rows(at[old], other.graph, 3).padded()
    torch.testing.assert_close(network.pool(network.tokens(other, replace=rows & real)), network.pool(made), rtol=1e-4, atol=1e-5)


def test_layers_and_graphs_without_nodes_or_edges():
    network, batch = gin(), graphs((3, 0, 2))
    first, last = network.tokens(batch, layers=[0, -1])
    assert torch.equal(last.x, network.tokens(batch).x) and not torch.equal(first.x, last.x)
    assert (network(batch)[1] == 0).all()
    lonely = GraphBatch(torch.tensor([1, 1]), torch.zeros(2, 0, dtype=torch.long), None, torch.tensor([0, 1]), 2)
    torch.testing.assert_close(network(lonely)[0], network(lonely)[1])


@pytest.mark.parametrize("call, error, message", [
    (lambda: gin().tokens(graphs(), keep=torch.zeros(3, 1, dtype=torch.long)), TypeError, "only by replace="),
    (lambda: gin().tokens(graphs(), replace=torch.zeros(3, 6).bool()), ValueError, "add_mask_token"),
    (lambda: gin().add_mask_token().tokens(graphs(), replace=torch.zeros(3, 5).bool()), ValueError, r"shape \(3, 6\)"),
    (lambda: gin(edge_types=3)(graphs()._replace(edge_types=None)), ValueError, "the batch has none"),
    (lambda: gin().attention(graphs()), TypeError, "no attention layers"),
    (lambda: gin(pooling="max"), ValueError, "pooling is 'max'")])
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
