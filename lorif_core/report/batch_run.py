"""A batch attribution on its way: what was asked of which generation, and the blocks of queries that are answered.

Both lie in the folder `_lorif` of the output until its three files are whole. Each finished block is a parquet
file, written whole and named by all that its answers follow from, so that one of another question, generation or
division into blocks is never taken for it. The generation is chosen once, by the run that begins.
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
from lorif_core.report.batch_outputs import SUMMARY, check_out_folder
from lorif_core.report.block_answers import Attribution, from_parquet, to_parquet
from lorif_core.search.explanation import QUERIES_EXPLAINED
from lorif_core.search.options import PLAIN, Terms, make_terms
from lorif_core.search.queries import Query
from lorif_core.search.query_blocks import queries_per_block
from lorif_core.storage.filesystem import contact, open_filesystem
from lorif_core.storage.lease import Lease, hold
from lorif_core.storage.objects import Objects
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store

_FORMAT = 2
_RECORD = "attribution.json"
_PARTS = "answered"


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """Queries that are asked in one pass over the index, and the name of the object with their answers.

    The first `explained` of them are also explained.
    """

    queries: Sequence[Query]
    part: str
    explained: int


class Unfinished:
    """One attribution: the blocks of its queries, and what of them is answered.

    Args:
        config: where the index is and how much memory there is; no other key changes an answer.
        queries: all of them.
        k: of each end of the ranking.
        out: folder or URI of the output.
        generation: the one that is asked.
        terms: which rows, and their normalisation.
        explained: how many of the first queries are also explained.
    """

    def __init__(
        self,
        config: Config,
        queries: Sequence[Query],
        k: int,
        out: str,
        generation: Generation,
        terms: Terms = PLAIN,
        explained: int = QUERIES_EXPLAINED,
    ) -> None:
        self.queries, self.k, self.out, self.generation, self.terms = queries, k, out, generation, terms
        self._explained = explained
        self._index, self._storage = config.index, config.storage
        self._objects = Objects(out, config.storage)
        self._memory_gb = config.compute.memory_gb

    @cached_property
    def blocks(self) -> list[QueryBlock]:
        """All blocks, in the order of the queries."""
        size = queries_per_block(self.generation, self.k, self._memory_gb)
        identity = identity_of(self.generation)
        blocks = []
        for first in range(0, len(self.queries), size):
            some = self.queries[first : first + size]
            explained = max(0, min(len(some), self._explained - first))
            name = _digest(identity, self.k, asdict(self.terms), _plain(some), explained)
            blocks.append(QueryBlock(some, f"{_PARTS}/{name}.parquet", explained))
        return blocks

    def begin(self) -> None:
        """Record what is asked, unless it is recorded: from now on the output is this attribution's.

        Raises:
            UserError: another one has begun there meanwhile.
        """
        found, own = self._objects.get(_RECORD), self._record()
        if found is None:
            is_own = self._objects.create(_RECORD, own)
        else:
            is_own = all(found.get(key) == own[key] for key in ("format", "question", "identity"))
        if not is_own:
            raise UserError(f"another attribution has just begun in --out {self.out}; name another folder")

    def _record(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "question": question_of(self.queries, self.k, self.terms.where, self.terms.normalise),
            "index": self._index,
            "generation": self.generation.generation,
            "identity": identity_of(self.generation),
            "begun_by": uuid.uuid4().hex,
        }

    def missing(self) -> list[QueryBlock]:
        """The blocks that are not answered yet; none once the summary is there, which is written last."""
        if self.summary() is not None:
            return []
        there = {entry.name for entry in self._objects.names(_PARTS)}
        return [block for block in self.blocks if block.part not in there]

    def keep(self, block: QueryBlock, answers: Sequence[Attribution]) -> None:
        """Keep the answers of a block, which are in the order of its queries."""
        self._objects.put_bytes(block.part, to_parquet(answers))

    def answers(self) -> Iterator[Attribution]:
        """Answers of all queries in order, one block in memory at a time.

        Raises:
            LorifError: a block is not there, or damaged.
        """
        for block in self.blocks:
            answers = from_parquet(self._objects.get_bytes(block.part), block.queries, self.k)
            if answers is None:
                self._objects.remove([block.part])
                raise LorifError(
                    f"{block.part} in {self.out}/_lorif is gone or damaged; run again, to answer it anew"
                )
            yield from answers

    def summary(self) -> dict[str, Any] | None:
        """The summary, if all of the output is written: then only `finish` is left to do."""
        fs, path = open_filesystem(self.out, self._storage)
        with contact(self.out):
            try:
                return json.loads(fs.cat_file(f"{path.rstrip('/')}/{SUMMARY}"))
            except FileNotFoundError:
                return None

    def leave(self) -> None:
        """Free the folder again unless something is answered: the question was wrong, and will be another."""
        if len(self.missing()) == len(self.blocks):
            self.finish()

    def held(self) -> AbstractContextManager[Lease]:
        """Keep out another run of the same attribution: around all that is between `begin` and `finish`."""
        return hold(self.out, self._storage, "attribution")

    def finish(self) -> None:
        """Remove what was kept for going on, the record last; not while it is held."""
        self._objects.remove_all(last=_RECORD)


def open_unfinished(
    config: Config,
    queries: Sequence[Query],
    k: int,
    out: str,
    begun: dict[str, Any] | None,
    latest: Generation,
    where: str | None = None,
    normalise: str = "none",
) -> Unfinished:
    """The attribution that an output folder is for: one that was begun with the same question, or a new one.

    Args:
        config: of the index.
        queries: what is asked.
        k: of each end of the ranking.
        out: folder or URI of the output.
        begun: what `begun_in` has found there.
        latest: the generation that a new one asks.
        where: as in `Terms`.
        normalise: as in `Terms`.

    Raises:
        UserError: another question was begun there, the generation that it asks is gone, or as `make_terms`.
    """
    store = Store(config.index, config.storage)
    generation = latest if begun is None else _pinned(store, begun, question_of(queries, k, where, normalise), out)
    terms = make_terms(store, generation.factors_version, where, normalise)
    explained = QUERIES_EXPLAINED if terms.normalise == "none" else 0  # contributions are parts of plain scores
    return Unfinished(config, queries, k, out, generation, terms, explained)


def _pinned(store: Store, begun: dict[str, Any], question: str, out: str) -> Generation:
    if (begun.get("format"), begun.get("question")) != (_FORMAT, question):
        raise UserError(
            f"--out {out} is not empty: an attribution of other queries, or with another --top-k, --where or "
            f"--normalise, was begun there; go on with that one, or name a folder that is empty or not there yet"
        )
    for generation in store.generations():
        if identity_of(generation) == begun["identity"]:
            return generation
    raise UserError(
        f"the attribution in --out {out} was begun on generation {begun['generation']} of {begun['index']}, which "
        f"{store.uri} does not have (any more): answers of two generations are never mixed; name another folder "
        f"to ask the newest one"
    )


def begun_in(out: str, config: Config) -> dict[str, Any] | None:
    """The record of the attribution that was begun in a folder; None if the folder is free.

    Raises:
        UserError: it is a file, or holds anything else.
    """
    record = Objects(out, config.storage).get(_RECORD)
    if record is None:
        check_out_folder(out, config.storage)
    return record


def question_of(queries: Sequence[Query], k: int, where: str | None, normalise: str) -> str:
    """32 hex digits that name what is asked."""
    return _digest(_plain(queries), k, where, normalise)


def identity_of(generation: Generation) -> str:
    """32 hex digits that name a generation by its content: numbers begin again in an index that was made anew."""
    return _digest({name: str(value) for name, value in asdict(generation).items()})


def _plain(queries: Sequence[Query]) -> list[Any]:
    return [asdict(query) for query in queries]


def _digest(*what: Any) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, *what], sort_keys=True).encode()).hexdigest()[:32]
