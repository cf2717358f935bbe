"""State of a resumable batch attribution: its queries and generation, and the answered blocks of queries.

The state is in the folder `_lorif` of the output until the three output files are complete. Each answered block is
a parquet file that is written atomically. Its name is a digest of everything that its answers depend on, so a
block of other queries, of another generation or of another division into blocks is never used. The first run
chooses the generation; a resumed run uses the same one.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from lorif_core.config import Config
from lorif_core.errors import LorifError, UserError
from lorif_core.report.batch_outputs import QUERIES_IN_REPORT, SUMMARY, check_out_folder
from lorif_core.report.block_answers import Attribution, from_parquet, to_parquet
from lorif_core.search.explanation import QUERIES_EXPLAINED
from lorif_core.search.options import DEFAULT_OPTIONS, SearchOptions, make_options
from lorif_core.search.queries import Query
from lorif_core.search.query_blocks import queries_per_block
from lorif_core.storage.filesystem import open_filesystem, storage_errors
from lorif_core.storage.lease import Lease, hold_lease
from lorif_core.storage.objects import Objects
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store

_FORMAT = 3
_RECORD = "attribution.json"
_BLOCKS = "answered"


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """Queries that are answered in one pass over the index.

    Attributes:
        queries: the queries of the block.
        object_name: name of the object that stores their answers.
        explained: how many of its first queries are also explained.
        shown: how many of its first queries a report shows, with their tokens' losses and with sums by file.
    """

    queries: Sequence[Query]
    object_name: str
    explained: int
    shown: int


class BatchRun:
    """A batch attribution: its blocks of queries, and the stored answers of those that are done.

    Args:
        config: location of the index and memory limit; other keys do not change the answers.
        queries: all queries.
        k: number of examples of each end of the ranking.
        out: folder or URI of the output.
        generation: the generation to search.
        options: which rows are searched, and the normalisation of scores.
        explained: how many of the first queries are also explained.
    """

    def __init__(
        self,
        config: Config,
        queries: Sequence[Query],
        k: int,
        out: str,
        generation: Generation,
        options: SearchOptions = DEFAULT_OPTIONS,
        explained: int = QUERIES_EXPLAINED,
    ) -> None:
        self.queries, self.k, self.out, self.generation, self.options = queries, k, out, generation, options
        self._explained = explained
        self._index, self._storage = config.index, config.storage
        self._objects = Objects(out, config.storage)
        self._memory_gb = config.compute.memory_gb

    @cached_property
    def blocks(self) -> list[QueryBlock]:
        """All blocks, in the order of the queries."""
        size = queries_per_block(self.generation, self.k, self._memory_gb)
        identity = generation_digest(self.generation)
        blocks = []
        for first in range(0, len(self.queries), size):
            queries = self.queries[first : first + size]
            explained = max(0, min(len(queries), self._explained - first))
            shown = max(0, min(len(queries), QUERIES_IN_REPORT - first))
            name = _digest(identity, self.k, asdict(self.options), _as_dicts(queries), explained, shown)
            blocks.append(QueryBlock(queries, f"{_BLOCKS}/{name}.parquet", explained, shown))
        return blocks

    def begin(self) -> None:
        """Claim the output folder for this attribution by writing its record, unless the record exists.

        Raises:
            UserError: another attribution has claimed the folder in the meantime.
        """
        stored, own = self._objects.get(_RECORD), self._record()
        if stored is None:
            is_own = self._objects.create(_RECORD, own)
        else:
            is_own = all(stored.get(key) == own[key] for key in ("format", "question", "identity"))
        if not is_own:
            raise UserError(f"another attribution has just started in --out {self.out}; name another folder")

    def _record(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "question": question_digest(self.queries, self.k, self.options.where, self.options.normalise),
            "index": self._index,
            "generation": self.generation.generation,
            "identity": generation_digest(self.generation),
            "begun_by": uuid.uuid4().hex,
        }

    def unanswered_blocks(self) -> list[QueryBlock]:
        """The blocks without stored answers; none if the summary exists, because it is written last."""
        if self.summary() is not None:
            return []
        stored = {entry.name for entry in self._objects.names(_BLOCKS)}
        return [block for block in self.blocks if block.object_name not in stored]

    def save_answers(self, block: QueryBlock, answers: Sequence[Attribution]) -> None:
        """Store the answers of a block, in the order of its queries."""
        self._objects.put_bytes(block.object_name, to_parquet(answers))

    def answers(self) -> Iterator[Attribution]:
        """Read the answers of all queries in order, one block at a time.

        Raises:
            LorifError: the answers of a block are missing or damaged.
        """
        for block in self.blocks:
            answers = from_parquet(self._objects.get_bytes(block.object_name), block.queries, self.k)
            if answers is None:
                self._objects.remove([block.object_name])
                raise LorifError(
                    f"{block.object_name} in {self.out}/_lorif is missing or damaged; run the command again to "
                    f"recompute it"
                )
            yield from answers

    def summary(self) -> dict[str, Any] | None:
        """The summary if the output is complete, so that only `clean_up` remains; else None."""
        fs, path = open_filesystem(self.out, self._storage)
        with storage_errors(self.out):
            try:
                return json.loads(fs.cat_file(f"{path.rstrip('/')}/{SUMMARY}"))
            except FileNotFoundError:
                return None

    def release_if_unanswered(self) -> None:
        """Free the folder if no block is answered, so that a corrected command can use it."""
        if len(self.unanswered_blocks()) == len(self.blocks):
            self.clean_up()

    def lease(self) -> AbstractContextManager[Lease]:
        """Lock out other runs of the same attribution. Hold it for all work between `begin` and `clean_up`."""
        return hold_lease(self.out, self._storage, "attribution")

    def clean_up(self) -> None:
        """Remove the stored state, the record last. The lease must not be held."""
        self._objects.remove_all(last=_RECORD)


def open_batch_run(
    config: Config,
    queries: Sequence[Query],
    k: int,
    out: str,
    record: dict[str, Any] | None,
    latest: Generation,
    where: str | None = None,
    normalise: str = "none",
) -> BatchRun:
    """Resume the attribution of an output folder, or create a new one.

    Args:
        config: CONFIG of the index.
        queries: all queries.
        k: number of examples of each end of the ranking.
        out: folder or URI of the output.
        record: result of `read_batch_record`.
        latest: the generation that a new attribution searches.
        where: as in `SearchOptions`.
        normalise: as in `SearchOptions`.

    Raises:
        UserError: the folder belongs to an attribution with other arguments, its generation no longer exists, or
            as `make_options`.
    """
    store = Store(config.index, config.storage)
    generation = latest
    if record is not None:
        generation = _recorded_generation(store, record, question_digest(queries, k, where, normalise), out)
    options = make_options(store, generation.factors_version, where, normalise)
    explained = (
        QUERIES_EXPLAINED if options.normalise == "none" else 0
    )  # contributions add up to plain scores only
    return BatchRun(config, queries, k, out, generation, options, explained)


def _recorded_generation(store: Store, record: dict[str, Any], question: str, out: str) -> Generation:
    if (record.get("format"), record.get("question")) != (_FORMAT, question):
        raise UserError(
            f"--out {out} is not empty: it has an unfinished attribution of other queries, or with another "
            f"--top-k, --where or --normalise; repeat that command to finish it, or name a new or empty folder"
        )
    for generation in store.generations():
        if generation_digest(generation) == record["identity"]:
            return generation
    raise UserError(
        f"the attribution in --out {out} uses generation {record['generation']} of {record['index']}, which "
        f"is not in {store.uri} (any longer); answers of two generations are never mixed, so name another folder "
        f"to search the newest generation"
    )


def read_batch_record(out: str, config: Config) -> dict[str, Any] | None:
    """Read the record of the unfinished attribution in a folder; None if the folder is empty or does not exist.

    Raises:
        UserError: `out` is a file, or the folder contains other files.
    """
    record = Objects(out, config.storage).get(_RECORD)
    if record is None:
        check_out_folder(out, config.storage)
    return record


def question_digest(queries: Sequence[Query], k: int, where: str | None, normalise: str) -> str:
    """32 hex digits that identify the queries and search options."""
    return _digest(_as_dicts(queries), k, where, normalise)


def generation_digest(generation: Generation) -> str:
    """32 hex digits that identify a generation by its content; its number alone repeats in a recreated index."""
    return _digest({name: str(value) for name, value in asdict(generation).items()})


def _as_dicts(queries: Sequence[Query]) -> list[Any]:
    return [asdict(query) for query in queries]


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, *values], sort_keys=True, default=str).encode()).hexdigest()[:32]
