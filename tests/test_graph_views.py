import networkx
import pytest
import torch

from ssl_nb.data.split import Ragged, Split
from ssl_nb.tokens.nodes import graph_batch
from ssl_nb.views.graph_views import DropNodes, GraphViews, MaskNodes, PerturbEdges, drop_nodes, join_graphs, perturb_edges


def made_up(sizes=(5, 1, 8, 3, 12), seed=0, types=True):
    "Random graphs with types of nodes and of edges."
    generator = torch.Generator().manual_seed(seed)
    atoms, bonds, kinds = [], [], []
    for size in sizes:
        pairs = torch.combinations(torch.arange(size)).view(-1, 2)
        pairs = pairs[torch.rand(len(pairs), generator=generator) < 0.4]
        atoms.append(torch.randint(0, 4, (size,), generator=generator))
        bonds.append(pairs)
        kinds.append(torch.randint(0, 3, (len(pairs),), generator=generator))
    columns = {"atoms": Ragged.of(atoms), "bonds": Ragged.of(bonds)}
    return Split(columns | ({"bond_types": Ragged.of(kinds)} if types else {}), ("atoms", "bonds"))


def edge_sets(graphs):
    pairs = graphs.edges.T.tolist()
    return [{(u, v) for u, v in pairs if u < v and graphs.graph[u] == i} for i in range(graphs.n)]


@pytest.mark.parametrize("seed", range(4))
def test_the_edit_distance_is_the_number_of_edges_that_differ(seed):
    graphs = graph_batch(made_up(seed=seed))
    moved, distance = perturb_edges(graphs, torch.tensor([1, 3, 0, 100, 6]), torch.Generator().manual_seed(seed))
    before, after = edge_sets(graphs), edge_sets(moved)
    assert [len(a ^ b) for a, b in zip(before, after, strict=True)] == distance.tolist()
    assert [len(a) for a in before] == [len(a) for a in after]  # as many were added as were removed
    free = [size * (size - 1) // 2 - len(a) for size, a in zip(graphs.sizes.tolist(), before, strict=True)]
    wanted = [2 * min(c, len(a), f) for c, a, f in zip([1, 3, 0, 100, 6], before, free, strict=True)]
    assert distance.tolist() == wanted


@pytest.mark.parametrize("types", [True, False])
def test_a_perturbed_batch_is_a_batch(types):
    "Nodes are the same; each edge is there once in each direction, sorted, between different nodes of one graph."
    graphs = graph_batch(made_up(types=types))
    moved, _ = perturb_edges(graphs, torch.full((5,), 2), torch.Generator().manual_seed(0))
    assert torch.equal(moved.x, graphs.x) and torch.equal(moved.graph, graphs.graph) and moved.n == graphs.n
    keys = moved.edges[0] * len(moved.x) + moved.edges[1]
    assert (keys.diff() > 0).all() and (moved.edges[0] != moved.edges[1]).all()
    assert torch.equal(keys, (moved.edges[1] * len(moved.x) + moved.edges[0]).sort().values)
    assert torch.equal(moved.graph[moved.edges[0]], moved.graph[moved.edges[1]])
    assert (moved.edge_types is not None) == types


def test_types_of_edges_stay_with_kept_edges_and_move_with_moved_ones():
    graphs = graph_batch(made_up())
    moved, _ = perturb_edges(graphs, torch.full((5,), 2), torch.Generator().manual_seed(0))
    one, other = ({tuple(e): t for e, t in zip(g.edges.T.tolist(), g.edge_types.tolist(), strict=True)} for g in (graphs, moved))
    assert all(one[edge] == other[edge] for edge in one.keys() & other.keys())
    assert all(other[u, v] == other[v, u] for u, v in other)
    assert torch.equal(graphs.edge_types.sort().values, moved.edge_types.sort().values)


def test_every_edge_and_every_free_pair_has_the_same_chance():
    graphs = graph_batch(made_up((6,), seed=3))
    ours, generator, draws = edge_sets(graphs)[0], torch.Generator().manual_seed(0), 3000
    count = dict.fromkeys([(u, v) for u in range(6) for v in range(u + 1, 6)], 0)
    for _ in range(draws):
        for pair in edge_sets(perturb_edges(graphs, torch.tensor([2]), generator)[0])[0]:
            count[pair] += 1
    for pair, found in count.items():
        chance = 1 - 2 / len(ours) if pair in ours else 2 / (15 - len(ours))
        assert abs(found / draws - chance) < 5 * (chance * (1 - chance) / draws) ** 0.5


def test_what_remains_after_nodes_are_dropped_is_the_induced_subgraph():
    batch = made_up().assign(number=torch.arange(5))
    numbered = graph_batch(batch)._replace(x=torch.arange(29))  # so that it is seen which nodes stay
    fewer = drop_nodes(numbered, torch.tensor([2, 1, 3, 0, 20]), torch.Generator().manual_seed(0))
    assert fewer.sizes.tolist() == [3, 0, 5, 3, 0] and fewer.n == 5
    whole = networkx.Graph(numbered.edges.T.tolist())
    whole.add_nodes_from(range(29))
    expected = {frozenset(edge) for edge in whole.subgraph(fewer.x.tolist()).edges}
    assert {frozenset(fewer.x[edge].tolist()) for edge in fewer.edges.T} == expected
    assert torch.equal(fewer.graph, numbered.graph[fewer.x])


def test_joined_graphs_are_those_of_all_batches():
    one, other = graph_batch(made_up()), graph_batch(made_up((4, 2), seed=5))
    both = join_graphs([one, other])
    first, second = made_up(), made_up((4, 2), seed=5)
    whole = graph_batch(Split({name: Ragged.of(first[name].rows() + second[name].rows()) for name in first}))
    assert all(torch.equal(a, b) for a, b in zip(both[:4], whole[:4], strict=True)) and both.n == whole.n == 7


def test_views_follow_from_the_generator_and_do_not_change_the_batch():
    batch, maker = made_up(), GraphViews([], [PerturbEdges(0.3), MaskNodes(0.5)], [DropNodes(0.5)])
    kept = batch["bonds"].values.clone()
    runs = [maker(batch, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    for a, b in zip(runs[0], runs[1], strict=True):
        assert torch.equal(a.x.edges, b.x.edges) and torch.equal(a.x.x, b.x.x)
    assert not torch.equal(runs[0][1].x.edges, runs[2][1].x.edges)
    assert torch.equal(batch["bonds"].values, kept) and torch.equal(runs[0][0].x.edges, graph_batch(batch).edges)
    assert runs[0][0].facts == {} and runs[0][0].mask is None
    sizes, mask = graph_batch(batch).sizes, runs[0][1].mask
    assert mask.shape == (5, 12) and (mask.sum(1) == torch.minimum(sizes - (sizes // 2), (sizes - 1).clamp(min=0))).all()
    assert runs[0][2].x.sizes.tolist() == (sizes - sizes // 2).tolist()


@pytest.mark.parametrize("call, message", [
    (lambda: PerturbEdges(0.0), "share of 0.0"),
    (lambda: DropNodes(1.0), "share of 1.0"),
    (lambda: GraphViews(PerturbEdges(0.2)), "no list of parts"),
    (lambda: perturb_edges(graph_batch(made_up()), torch.ones(5)), "give int64"),
    (lambda: drop_nodes(graph_batch(made_up()), torch.ones(4, dtype=torch.long)), r"int64 \(5,\)"),
    (lambda: drop_nodes(graph_batch(made_up()), -torch.ones(5, dtype=torch.long)), "0 or more")])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
