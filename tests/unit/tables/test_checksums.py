"""Invariants: a changed bit of a stored row is an error wherever it is read; rows of older indexes are read."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lance.file import LanceFileReader

from lorif_core.curvature.woodbury import LayerCurvature
from lorif_core.errors import DamagedIndexError, LorifError
from lorif_core.lifecycle.removal import read_removals
from lorif_core.lifecycle.verify import verify
from lorif_core.tables.checksums import CHECKSUM, CHECKSUMS, damaged_rows
from lorif_core.tables.example_details import Details
from lorif_core.tables.file_digests import sealed, unsealed
from lorif_core.tables.filters import check_where
from lorif_core.tables.receipts import Receipt
from lorif_core.tables.schema import factors_schema, to_table
from lorif_core.tables.store import Store
from tests.unit.tables.small_store import SPEC, commit, finished, generation, rows, shard


def fit(store: Store) -> None:
    store.curvatures.write("c", {
        index: (layer.name, LayerCurvature(
            torch.tensor([3.0, 1.0], dtype=torch.float64), torch.randn(layer.dim, 2), 5.0, 4, 0.5, 0.75))
        for index, layer in enumerate(SPEC.layers)
    })  # fmt: skip


def flip(store: Store, table: str, content: bytes) -> None:
    """Flip a bit of the first place in the data files of a table that has this content."""
    for path in sorted(Path(store.uri, f"{table}.lance", "data").iterdir()):
        data = bytearray(path.read_bytes())
        if (place := data.find(content)) >= 0:
            data[place] ^= 1
            path.write_bytes(data)
            return
    raise AssertionError(f"no file of {table} contains {content!r}")


def read_codes(store: Store) -> object:
    return [
        (block.example_ids, block.codes.numpy().tobytes(), block.scales.numpy().tobytes())
        for block in store.rows.scan(store.rows.version(), 100)
    ]


def read_details(store: Store) -> object:
    return store.rows.details(store.rows.version(), [f"it's 0/{row}" for row in range(4)])


def read_details_by_position(store: Store) -> object:
    ids = [f"it's 0/{row}" for row in range(4)]
    return Details(store, store.rows.version(), ids).lookup(ids)


def read_condition(store: Store) -> object:
    check_where(store, store.rows.version(), "tokens > 0")
    return [batch.to_pylist() for batch in store.rows.metadata(store.rows.version(), ["shard", "tokens"])]


def read_text_condition(store: Store) -> object:
    check_where(store, store.rows.version(), "text like '%' or tokens > 0")
    return [batch.to_pylist() for batch in store.rows.metadata(store.rows.version(), ["text"])]


CODES = rows(0).codes.tobytes()
PLACES = 12


def places_of(path: Path, column: str) -> list[int]:
    """Positions in a data file, spread over the buffers of a column."""
    metadata = LanceFileReader(str(path)).metadata()
    pages = metadata.columns[metadata.schema.names.index(column)].pages
    bytes_of = [range(part.position, part.position + part.size) for page in pages for part in page.buffers]
    places = [place for span in bytes_of for place in span]
    return places[:: -(-len(places) // PLACES)]


@pytest.mark.parametrize(
    ("column", "read"),
    [
        ("codes", read_codes),
        ("scales", read_codes),
        ("example_id", read_codes),
        ("content_hash", read_details),
        ("uri", read_details),
        ("content_hash", read_details_by_position),
        ("shard", read_condition),
        ("tokens", read_condition),
        ("text", read_text_condition),
        ("text", read_details),
    ],
)
def test_a_flipped_bit_is_an_error_where_it_is_read(
    store: Store, column: str, read: Callable[[Store], object]
) -> None:
    """A bit that changes no value, as in the padding of a column, need not be one; `lorif verify` names it."""
    examples = [replace(example, text="some words") for example in rows(0).examples]
    fragments = store.rows.write(iter([replace(rows(0), examples=examples)]), shard(0), SPEC)
    store.rows.commit_wave([Receipt(shard(0).key, tuple(fragments), 4, 12, 12, (), 0.0)], store.rows.version())
    (path,) = Path(store.uri, "factors.lance", "data").iterdir()
    content, expected, errors = path.read_bytes(), read(store), 0
    for place in places_of(path, column):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            assert read(Store(store.uri)) == expected
        except LorifError as error:  # Lance reports some damage as input that is not valid
            errors += isinstance(error, DamagedIndexError) and "lorif verify" in str(error)
    assert errors >= PLACES // 4
    assert [item.shards for item in verify_published(store)] == [(shard(0).key,)]


def verify_published(store: Store) -> list:
    """The damage of `factors` once a generation is published that reads its newest version."""
    store.publish(generation(store, 1))
    return [item for item in verify(store).damage if item.table == "factors"]


@given(byte=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_every_bit_of_a_code_counts(byte: int, bit: int) -> None:
    (batch,) = to_table(rows(0), shard(0), SPEC, factors_schema(SPEC)).to_batches()
    codes = np.frombuffer(bytearray(CODES), np.uint8)
    codes[byte % len(codes)] ^= 1 << bit
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(codes.view(np.float16)), batch.column("codes").type.list_size
    )
    changed = batch.set_column(batch.schema.get_field_index("codes"), batch.schema.field("codes"), column)
    row = byte % len(codes) // (len(codes) // batch.num_rows)
    assert damaged_rows(batch, (0, 1, 2)) == [] and damaged_rows(changed, (0, 1, 2)) == [row]


def test_a_curvature_without_some_components_is_damaged(store: Store) -> None:
    commit(store, 0)
    fit(store)
    whole = generation(store, 1)
    assert len(list(store.curvatures.layers(whole, whole.newest))) == 2
    for condition in ("component = 1 AND layer_index = 0", "layer_index = 1"):
        store._tables.require("curvature").delete(condition)
        shortened = generation(store, 2)
        with pytest.raises(DamagedIndexError, match="lacks components"):
            store.curvatures.layer(shortened, shortened.newest, 0 if "component" in condition else 1)


def test_a_changed_curvature_is_damaged(store: Store) -> None:
    commit(store, 0)
    fit(store)
    published = generation(store, 1)
    flip(store, "curvature", np.float64(0.75).tobytes())
    with pytest.raises(DamagedIndexError, match="differ from their checksums"):
        list(store.curvatures.layers(published, published.newest))


def test_a_generation_states_the_rows_of_its_version(store: Store) -> None:
    commit(store, 0, 1)
    published = generation(store, 1)
    store.check_rows(published)
    store._tables.require("factors").delete("example_id = 'it''s 0/0'")
    fewer = generation(store, 2)
    store.check_rows(fewer)
    with pytest.raises(DamagedIndexError, match=r"generation 1 states 8 rows .* has 7 "):
        store.check_rows(replace(published, factors_version=fewer.factors_version))


def test_a_lost_generation_is_missed(store: Store) -> None:
    for number in (1, 2):
        commit(store, number)
        store.publish(generation(store, number))
    assert store.latest().generation == 2
    store._tables.require("generations").delete("generation = 2")
    with pytest.raises(DamagedIndexError, match="generation 2 was published"):
        store.latest()


def test_a_changed_generation_is_refused(store: Store) -> None:
    commit(store, 0)
    store.publish(generation(store, 1))
    flip(store, "generations", b"sha256:0")
    with pytest.raises(DamagedIndexError, match="generations differ"):
        store.latest()


def test_a_lost_removal_is_missed(store: Store) -> None:
    commit(store, 0)
    for name in "ab":
        store.rows.note_removed(pa.table({"example_id": [name], "content_hash": ["0"]}))
    store.publish(replace(generation(store, 1), removals=2))
    assert read_removals(store, SPEC).count == 2
    store._tables.require("removed").delete("example_id = 'b'")
    with pytest.raises(DamagedIndexError, match="has 1 rows, but 2"):
        read_removals(store, SPEC)


def test_an_index_of_an_older_lorif_is_read_and_grows(store: Store) -> None:
    """Its rows have no checksums; those of an update have."""
    commit(store, 0)
    fit(store)
    for table in store.tables():
        store._tables.require(table).drop_columns([CHECKSUMS if table == "factors" else CHECKSUM])
    shutil.rmtree(Path(store.uri, "_lorif"))
    store.publish(generation(store, 1))
    store.rows.reconcile({(SPEC.hash, shard(0).key)})
    older = Store(store.uri)
    read_codes(older)
    read_details(older)
    older.create(SPEC)
    older.rows.commit_wave([finished(older, 1, (("s", "why"),))], older.rows.version())
    second = older.publish(generation(older, 2))
    assert [block.example_ids for block in older.rows.scan(second.factors_version, 99)] == [
        [f"it's {number}/{row}" for number in (0, 1) for row in range(4)]
    ]
    assert len(list(older.curvatures.layers(second, second.newest))) == 2
    found = verify(older)
    assert not found.damage and found.unchecked_rows == 4
    flip(older, "factors", rows(1).codes.tobytes())
    with pytest.raises(DamagedIndexError, match="it's 1/0"):
        read_codes(Store(store.uri))


def test_a_small_object_differs_from_its_checksum() -> None:
    value = sealed({"generation": 3})
    assert unsealed(value) == {"generation": 3} == unsealed({"generation": 3})
    assert unsealed({**value, "generation": 2}) is None and unsealed(None) is None
