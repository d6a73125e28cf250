"""Molecules: tables and SDF files in the same format, a known molecule, scaffolds; the real sets where SSL_NB_DATA has them."""

import gzip
import sys

import pytest
import torch
from real_data import needs

from ssl_nb.data import Split, holdout, load
from ssl_nb.data import molecules as module
from ssl_nb.data.molecules import BOND_TYPES, molecule_graph, molecules, scaffold_split
from ssl_nb.data.text import texts

Chem = pytest.importorskip("rdkit.Chem")

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
RINGS = ["c1ccccc1", "c1ccncc1", "C1CCCCC1", "c1ccsc1", "C1CC1"]
TABLE = [("aspirin", ASPIRIN, "-1.75")] + [(f"chain {i}", "C" * (i + 1), f"{-i}.5") for i in range(8)]
TABLE += [(f"ring {i}, methyl", f"C{ring}", "-2") for i, ring in enumerate(RINGS)]
TABLE += [("no carbon has five bonds", "C(C)(C)(C)(C)C", "0"), ("no molecule", "what?", "0")]


def esol_text(rows=TABLE):
    "A table as that of Delaney: some columns that are not read, names that hold commas, a space after the SMILES."
    header = "Compound ID,Molecular Weight,measured log solubility in mols per litre,smiles\n"
    return header + "".join(f'"{name}",1.0,{value},{smiles} \n' for name, smiles, value in rows)


@pytest.fixture
def put(made_up, monkeypatch):
    "Writes a made-up file for a subset, with its checksum."

    def write(subset, content):
        folder, [file] = made_up("molecules", {module._FILES[subset].name: content})
        monkeypatch.setitem(module._FILES, subset, file)
        return folder / file.name

    return write


def whole(found, name):
    "A column of both splits, as a list of rows."
    return [row for s in (found.train, found.test) for row in (s[name].rows() if name != "target" else s[name].tolist())]


# ---- tables


def test_a_table_of_smiles_is_read_without_a_word_in_the_log(put, capfd):
    path = put("esol", esol_text().encode())
    found = load("molecules", subset="esol")
    assert capfd.readouterr() == ("", "")
    assert (found.spec.name, found.spec.group, found.spec.modality) == ("esol", "scaffold", "molecule")
    assert "dropped because RDKit cannot read them: 2 of 16 rows" in found.spec.notes
    names = [text for split in (found.train, found.test) for text in texts(split["names"])]
    smiles = [text for split in (found.train, found.test) for text in texts(split["smiles"])]
    assert sorted(zip(names, smiles, whole(found, "target"), strict=True)) == sorted(
        (name, text, float(value)) for name, text, value in TABLE[:-2])  # fmt: skip
    assert found.train["target"].dtype == torch.float32 and "target" not in found.spec.notes.split(";")[0]
    path.unlink()  # from the cache
    again = molecules("esol")
    assert all(torch.equal(a, b) for a, b in zip(whole(found, "atoms"), whole(again, "atoms"), strict=True))
    assert again.spec == found.spec


def test_a_known_molecule(put):
    put("esol", esol_text().encode())
    found = molecules("esol")
    [row] = [split[i] for split in (found.train, found.test) for i in range(len(split)) if texts(split["names"])[i] == "aspirin"]
    atoms, bonds, types = (row[name].values for name in ("atoms", "bonds", "bond_types"))
    assert sorted(atoms.tolist()) == [6] * 9 + [8] * 4 and len(bonds) == 13  # C9 H8 O4
    assert torch.bincount(types, minlength=4).tolist() == [6, 5, 2, 0]
    rings = bonds[types == BOND_TYPES.index("aromatic")]
    assert torch.bincount(rings.flatten()).unique().tolist() == [0, 2] and (atoms[rings] == 6).all()
    double = bonds[types == BOND_TYPES.index("double")]
    assert sorted(sorted(atoms[b].tolist()) for b in double) == [[6, 8], [6, 8]]


@pytest.mark.parametrize("smiles", [ASPIRIN, "CCO", "C#N", "[Na+].[Cl-]", "O", "Cn1cnc2c1c(=O)n(C)c(=O)n2C"])
def test_a_graph_has_the_bonds_of_the_adjacency_matrix(smiles):
    molecule = Chem.MolFromSmiles(smiles)
    atoms, bonds, types = molecule_graph(molecule)
    matrix = torch.zeros(len(atoms), len(atoms))
    order = torch.tensor([1.5, 1, 2, 3])[types]
    matrix[bonds[:, 0], bonds[:, 1]] = matrix[bonds[:, 1], bonds[:, 0]] = order
    assert torch.equal(matrix, torch.tensor(Chem.GetAdjacencyMatrix(molecule, useBO=True)).float())
    assert (bonds[:, 0] < bonds[:, 1]).all() and len(bonds) == molecule.GetNumBonds()


def test_missing_labels_are_nan(put):
    header = ",".join([*module._TOX21, "mol_id", "smiles"])
    lines = [header, "0,0,1,,,0,0,1,0,0,0,0,TOX1,CCO", ",,,,,,,,,,,1,TOX2,c1ccccc1", "1" + 11 * "," + ",TOX3,C1CC1"]
    put("tox21", gzip.compress("\n".join(lines).encode()))
    found = molecules("tox21", test_fraction=0.4)
    assert found.spec.columns == tuple(module._TOX21)
    rows = dict(zip((t for s in (found.train, found.test) for t in texts(s["names"])),
                    torch.cat([found.train["targets"], found.test["targets"]]), strict=True))  # fmt: skip
    assert rows["TOX1"].nan_to_num(-1).tolist() == [0, 0, 1, -1, -1, 0, 0, 1, 0, 0, 0, 0]
    assert rows["TOX2"].isnan().sum() == 11 and rows["TOX2"][-1] == 1 and rows["TOX3"][0] == 1


def test_files_that_are_not_those_of_the_set(put):
    path = put("tox21", gzip.compress(b"some text that is long enough to be cut"))
    with pytest.raises(ValueError, match="tox21.csv.gz .*it has no column NR-AR, .*smiles"):
        molecules("tox21")
    path = put("tox21", path.read_bytes()[:-12])
    with pytest.raises(ValueError, match="tox21.csv.gz .*does not unpack"):
        molecules("tox21")
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match="its md5 is .*Delete it"):
        molecules("tox21")
    with pytest.raises(FileNotFoundError, match="mini_muv.csv.gz of 'molecules' is neither in"):
        molecules("muv")
    put("gdb1k", b"\n\n")
    with pytest.raises(ValueError, match="no molecule in it"):
        molecules("gdb1k")


def test_wrong_options():
    with pytest.raises(ValueError, match="did you mean 'esol'"):
        load("molecules", subset="ESOL")
    for wrong in (0, 1, -0.5):
        with pytest.raises(ValueError, match="test_fraction between 0 and 1"):
            molecules(test_fraction=wrong)


def test_without_rdkit_the_extra_is_named(put, monkeypatch):
    put("esol", esol_text().encode())
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ModuleNotFoundError, match=r"ssl_nb\[molecules\]"):
        load("molecules")


def test_coordinates_and_hydrogens_of_an_sdf_file(put):
    blocks, places = [], []
    for i, smiles in enumerate(["C", "CCO", "c1ccccc1", "C1CC1", "C#N"]):
        molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
        at = torch.randn(molecule.GetNumAtoms(), 3, generator=torch.Generator().manual_seed(i))
        conformer = Chem.Conformer(molecule.GetNumAtoms())
        for j, point in enumerate(at.tolist()):
            conformer.SetAtomPosition(j, point)
        molecule.AddConformer(conformer)
        blocks.append(Chem.MolToMolBlock(molecule) + "$$$$\n")
        places.append(at)
    put("gdb1k", "".join(blocks).encode())
    found = molecules("gdb1k", test_fraction=0.4)
    assert "names" not in found.train and found.train["atoms"].values.min() == 1
    rows = {text: i for i, text in enumerate(["C", "CCO", "c1ccccc1", "C1CC1", "C#N"])}
    for split in (found.train, found.test):
        for text, xyz, atoms in zip(texts(split["smiles"]), split["xyz"].rows(), split["atoms"].rows(), strict=True):
            torch.testing.assert_close(xyz, places[rows[text]], atol=1e-4, rtol=0)
            assert len(atoms) == len(xyz)


# ---- scaffolds


def naive_split(scaffold, fraction):
    "The splitter of DeepChem, with validation and test parts together."
    members = {}
    for row, s in enumerate(scaffold):
        members.setdefault(s, []).append(row)
    train, test = [], []
    for rows in sorted(members.values(), key=lambda rows: (len(rows), rows[0]), reverse=True):
        if len(train) + len(rows) > (1 - fraction) * len(scaffold):
            test += rows
        else:
            train += rows
    return sorted(test)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_the_split_is_that_of_moleculenet(seed, fraction):
    scaffold = torch.randint(0, 30, (100,), generator=torch.Generator().manual_seed(seed)) ** 2 // 30
    test = scaffold_split(scaffold, fraction)
    assert test.nonzero()[:, 0].tolist() == naive_split(scaffold.tolist(), fraction)
    assert not set(scaffold[test].tolist()) & set(scaffold[~test].tolist()) and test.float().mean() >= fraction - 1e-6


def test_no_scaffold_is_on_both_sides_also_of_a_holdout(put):
    put("esol", esol_text().encode())
    found = molecules("esol")
    assert not set(found.train["scaffold"].tolist()) & set(found.test["scaffold"].tolist())
    train, valid = holdout(Split({"scaffold": found.train["scaffold"]}), 0.5, by="scaffold")
    assert not set(train["scaffold"].tolist()) & set(valid["scaffold"].tolist())
    assert all("chain" in name for name in texts(found.train["names"])[1:9])  # no rings: the most frequent scaffold


# ---- the real ones


@needs("molecules")
@pytest.mark.parametrize("subset, rows, dropped, targets", [("esol", 1128, 0, 1), ("tox21", 8014, 8, 12), ("muv", 1000, 0, 17),
                                                            ("gdb1k", 1000, 9, 0)])  # fmt: skip
def test_real_sets(subset, rows, dropped, targets):
    found = load("molecules", subset=subset)
    assert len(found.train) + len(found.test) == rows - dropped and f"{dropped} of {rows} rows" in found.spec.notes
    assert len(found.spec.columns) == targets
    assert not set(found.train["scaffold"].tolist()) & set(found.test["scaffold"].tolist())
    assert 0.2 <= len(found.test) / (rows - dropped) < 0.21
    for split in (found.train, found.test):
        assert (split["bonds"].values[:, 1] < split["atoms"].lengths.repeat_interleave(split["bonds"].lengths)).all()


@needs("molecules")
def test_real_values():
    esol, tox21, gdb1k = (molecules(subset) for subset in ("esol", "tox21", "gdb1k"))
    names, targets = (texts(esol.test["names"]), esol.test["target"].tolist())
    assert dict(zip(names, targets, strict=True))["Picene"] == pytest.approx(-7.87)
    values = torch.cat([tox21.train["targets"], tox21.test["targets"]])
    assert set(values[~values.isnan()].tolist()) == {0.0, 1.0} and values.isnan().float().mean() > 0.1
    bonds, xyz = gdb1k.train[0]["bonds"].values, gdb1k.train[0]["xyz"].values
    length = (xyz[bonds[:, 0]] - xyz[bonds[:, 1]]).norm(dim=1)
    assert ((length > 0.8) & (length < 2.2)).all()  # angstrom
