"""Invariants: roots and covariances are read as they were written, without an eigendecomposition; damage is found;
an index of an older lorif, which stores no roots, whitens as before.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch

from lorif_core.errors import DamagedIndexError
from lorif_core.gradients.roots import WhitenedSide, exact_roots, stored_roots
from lorif_core.gradients.symmetric import PackedMatrix
from lorif_core.gradients.whitening import SIDES, Covariances
from lorif_core.spec import LayerSpec
from lorif_core.tables.checksums import CHECKSUM, with_checksum
from lorif_core.tables.datasets import Tables
from lorif_core.tables.schema import WHITENING_SCHEMA
from lorif_core.tables.store import Store
from lorif_core.tables.whitenings import WhiteningHeader

LAYERS = tuple(LayerSpec(f"block.{number}", 40, 33, 40, 33) for number in range(3))
LIKE = torch.empty(0, dtype=torch.float64)
OLDER = WHITENING_SCHEMA.names[: WHITENING_SCHEMA.names.index("sums") + 1]


def measured(seed: int = 0) -> Covariances:
    """Covariances of three layers."""
    rng = np.random.default_rng(seed)
    sums = {}
    for number, layer in enumerate(LAYERS):
        for side, size in zip(SIDES, (layer.d1, layer.d2), strict=True):
            x = torch.from_numpy(rng.standard_normal((90, size)))
            sums[number, side] = x.T @ x
    return Covariances(sums, tokens=90, examples=4)


def sharing() -> tuple[WhiteningHeader, list[WhitenedSide]]:
    """A whitening whose last layer has the matrices of the first one on its input side."""
    covariances = measured()
    covariances.sums[2, "in"] = covariances.sums[0, "in"]
    name, sides = stored_roots(covariances)
    shared = [
        replace(side, summary=replace(side.summary, source=0))
        if (side.summary.layer, side.summary.side) == (2, "in")
        else side
        for side in sides
    ]
    return WhiteningHeader(name, None, 90, 4), shared


def stored(store: Store, header: WhiteningHeader, sides: list[WhitenedSide]) -> str:
    store.whitenings.create()
    # two fragments, as two workers write them
    halves = [store.whitenings.write(header, half, LAYERS) for half in (sides[:3], sides[3:])]
    store.whitenings.commit(header.name, [fragment for half in halves for fragment in half])
    return header.name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "index"))


@pytest.fixture(autouse=True)
def eigendecompositions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of matrices in each call of `torch.linalg.eigh`."""
    calls, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrices: calls.append(len(matrices)) or eigh(matrices))
    return calls


def test_roots_and_covariances_are_read_as_they_were_written(store: Store, eigendecompositions: list[int]) -> None:
    header, sides = sharing()
    assert sum(eigendecompositions) == 6
    name = stored(store, header, sides)
    eigendecompositions.clear()
    roots, covariances = store.whitenings.roots(name), store.whitenings.covariances(name)
    assert roots is not None and covariances is not None
    for side in sides:
        layer, of, packed = side.summary.layer, side.summary.side, side.matrix
        assert np.array_equal(roots.packed(layer, of).levels, packed.levels)
        assert torch.equal(roots.matrix(layer, of)[1], packed.dense(LIKE))
        assert torch.equal(covariances.mean(layer, of), side.covariance.dense(LIKE))
    assert roots.packed(2, "in") is roots.packed(0, "in") is not roots.packed(1, "in")
    assert (covariances.tokens, covariances.examples) == (90, 4) and store.whitenings.examples(name) == 4
    some = store.whitenings.roots(name, range(2, 3))
    assert some is not None and torch.equal(some.matrix(2, "in")[1], roots.matrix(0, "in")[1])
    store.whitenings.check(name)
    assert not eigendecompositions, "only the calibration computes roots"


def test_a_whitening_takes_a_quarter_of_float64_sums_and_shared_sides_nothing(store: Store) -> None:
    header, sides = sharing()
    name = stored(store, header, sides)
    rows = Tables(store.uri, store.storage).read("whitening", filter=f"whitening = '{name}'").to_pylist()
    for row in rows:
        numbers = len(row["matrix"]) + len(row["covariance"])
        is_shared = (row["layer_index"], row["side"]) == (2, "in")
        assert 2 * numbers <= (0 if is_shared else 8 * (row["size"] + 32) ** 2 / 4) and not row["sums"]


def test_a_whitening_is_stored_once(store: Store) -> None:
    names = {store.whitenings.add(measured(), LAYERS) for _ in range(2)}
    other = store.whitenings.add(measured(1), LAYERS)
    assert store.whitenings.specs() == {**dict.fromkeys(names), other: None} and len(names) == 1
    assert Tables(store.uri, store.storage).require("whitening").count_rows() == 12


def changed(packed: PackedMatrix) -> PackedMatrix:
    levels = packed.levels.copy()
    levels[5] += 0.25
    return PackedMatrix(packed.scales, levels)


@pytest.mark.parametrize("column", ["matrix", "covariance"])
def test_a_damaged_matrix_is_found_by_all_who_read_it(store: Store, column: str) -> None:
    header, sides = sharing()
    sides[1] = replace(sides[1], **{column: changed(getattr(sides[1], column))})
    name = stored(store, header, sides)
    readers: dict[str, Callable[[str], object]] = {
        "matrix": store.whitenings.roots, "covariance": store.whitenings.covariances,
    }  # fmt: skip
    for kind, read in readers.items():
        if kind == column:
            with pytest.raises(DamagedIndexError, match=f"a {column} in the table whitening differs"):
                read(name)
        else:
            read(name)
    with pytest.raises(DamagedIndexError, match="differs"):
        store.whitenings.check(name)


def test_a_lost_row_is_found(store: Store) -> None:
    header, sides = sharing()
    name = stored(store, header, sides[:-1])
    with pytest.raises(DamagedIndexError, match="lacks"):
        store.whitenings.roots(name)
    with pytest.raises(DamagedIndexError, match="lacks"):
        store.whitenings.check("0" * 16)


def older_index(store: Store, covariances: Covariances, *, checksums: bool) -> str:
    """The table as an older lorif has written it."""
    name = covariances.digest()
    schema = pa.schema([WHITENING_SCHEMA.field(column) for column in OLDER])
    rows = [
        {
            "whitening": name, "spec": None, "layer": LAYERS[layer].name, "layer_index": layer, "side": side,
            "size": len(sums), "tokens": covariances.tokens, "examples": covariances.examples,
            "sums": sums.numpy().reshape(-1),
        }
        for (layer, side), sums in sorted(covariances.sums.items())
    ]  # fmt: skip
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    table = pa.Table.from_batches([with_checksum(batch) if checksums else batch])
    lance.write_dataset(table, f"{store.uri}/whitening.lance", data_storage_version="2.0")
    return name


@pytest.mark.parametrize("checksums", [True, False])
def test_an_older_index_whitens_as_before_and_takes_newer_rows(store: Store, checksums: bool) -> None:
    covariances = measured()
    name, exact = older_index(store, covariances, checksums=checksums), exact_roots(covariances)
    newer = None
    for _ in range(2):
        roots, sums = store.whitenings.roots(name), store.whitenings.covariances(name)
        assert roots is not None and sums is not None
        for layer, side in covariances.sums:
            assert torch.equal(roots.matrix(layer, side)[1], exact.matrix(layer, side)[1])
            assert torch.equal(sums.sums[layer, side], covariances.sums[layer, side])
        store.whitenings.check(name)
        newer = store.whitenings.add(measured(1), LAYERS)
    assert newer is not None
    store.whitenings.check(newer)
    assert store.whitenings.specs() == {name: None, newer: None} and store.whitenings.examples(name) == 4
    rows = Tables(store.uri, store.storage).read("whitening", filter=f"whitening = '{newer}'")
    assert rows.num_rows == 6 and CHECKSUM in rows.column_names


def test_a_damaged_sum_of_an_older_index_is_found(store: Store) -> None:
    covariances = measured()
    name = older_index(store, covariances, checksums=False)
    (dataset,) = [lance.dataset(f"{store.uri}/whitening.lance")]
    dataset.delete("layer_index = 2 AND side = 'out'")
    for read in (store.whitenings.roots, store.whitenings.check):
        with pytest.raises(DamagedIndexError, match="lacks"):
            read(name)
