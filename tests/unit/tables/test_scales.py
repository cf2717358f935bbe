"""Invariants: scales are read as they were written, and stored once; damage is found."""

from pathlib import Path

import lance
import numpy as np
import pytest

from lorif_core.errors import DamagedIndexError
from lorif_core.gradients.side_scales import SideScales
from lorif_core.spec import LayerSpec, ProjectionSpec
from lorif_core.tables.store import Store

LAYERS = tuple(LayerSpec(f"block.{number}", 40, 33, 40, 33) for number in range(3))


def scales(seed: int = 0) -> SideScales:
    rng = np.random.default_rng(seed)
    return SideScales(
        {
            (number, side): rng.random(size).astype(np.float32)
            for number, layer in enumerate(LAYERS)
            for side, size in (("in", layer.in_features), ("out", layer.out_features))
        }  # type: ignore[misc]
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "index"))


def test_scales_are_read_as_they_were_written_and_stored_once(store: Store) -> None:
    assert store.scales.names() == set() and store.scales.read(ProjectionSpec("folded-whitened", 1)) is None
    names = {store.scales.add(scales(), LAYERS) for _ in range(2)}
    other = store.scales.add(scales(1), LAYERS)
    assert store.scales.names() == {*names, other} and len(names) == 1
    assert lance.dataset(f"{store.uri}/scale.lance").count_rows() == 12
    found = store.scales.read(ProjectionSpec("folded-adam", 1, scales=names.pop()))
    assert found is not None and found.values.keys() == scales().values.keys()
    assert all(np.array_equal(found.values[key], values) for key, values in scales().values.items())


def test_lost_changed_and_missing_scales_are_found(store: Store) -> None:
    name = store.scales.add(scales(), LAYERS)
    lance.dataset(f"{store.uri}/scale.lance").delete("layer_index = 2 AND side = 'out'")
    for missing in (name, "0" * 16):
        with pytest.raises(DamagedIndexError, match=f"the table scale lacks {missing}, or differs"):
            store.scales.named(missing)
    lance.dataset(f"{store.uri}/scale.lance").update({"side": "'in'"}, where="layer_index = 1")
    with pytest.raises(DamagedIndexError, match="rows of the table scale differ from their checksums"):
        store.scales.named(name)
