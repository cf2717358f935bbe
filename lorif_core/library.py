"""The public Python API: open an index, ask it, or build one in this process."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorif_core.answer import Answer
from lorif_core.config import StorageConfig
from lorif_core.config_file import parse_config
from lorif_core.errors import UserError
from lorif_core.report.answer import answer_section
from lorif_core.search import index as search_index
from lorif_core.search.explanation import explain as explain_query
from lorif_core.search.likelihood import spoken_answers
from lorif_core.search.options import Normalisation
from lorif_core.search.queries import QueryInput, parse_queries
from lorif_core.search.query_encoder import ModelInput
from lorif_core.search.top_k import check_k

if TYPE_CHECKING:
    from lorif_core.corpus.in_memory import Records

_PUBLIC = (
    "generation", "generations", "layer_scores", "pair_shares", "query", "scores", "select", "self_influence",
    "token_scores", "top_k", "totals", "training_shares",
)  # fmt: skip


class Index(search_index.Index):
    """An index opened for reading; every call reads the same complete generation.

    A score is a change of loss per step. In a generation with parts at several checkpoints it is divided by the
    query's influence on itself at the checkpoint of the row.
    """

    def query(
        self,
        query: QueryInput,
        k: int = 10,
        model: ModelInput = None,
        *,
        where: str | None = None,
        normalise: Normalisation = "none",
        explain: bool = False,
    ) -> Answer:
        """Ask one question; the answer has the texts of the k strongest proponents and opponents.

        Args:
            query: a text, a dict with the fields of a queries file, or a `Query`.
            k: examples of each side.
            model: as in `scores`.
            where: as in `scores`.
            normalise: as in `scores`.
            explain: also compute what each token of the query adds to the scores, which the page then shades.

        Raises:
            UserError: as in `scores`.
        """
        if explain and normalise != "none":
            raise UserError("explain shows the parts of plain scores; leave out normalise")
        check_k(k)
        (parsed,) = parse_queries([query])
        options = self.options(where, normalise)
        gradients = self.encode([parsed], model)
        (top,) = self.top_k_folded(self.fold(gradients, options), k, options)
        ids = [hit.example_id for hit in (*top.proponents, *top.opponents)]
        details = self.store.rows.details(self.generation.factors_version, ids)
        explanation = explain_query(self, parsed, top, model) if explain else None
        (spoken,) = spoken_answers(self.encoder(model), [parsed], gradients[-1].by_token)
        loss = float(gradients[-1].losses[0])
        section = answer_section(parsed, loss, top, details, explanation, spoken=spoken)
        return Answer(section, self.generation.generation, len(self.own_checkpoint_parts) > 1)

    def __dir__(self) -> list[str]:
        """The public names, for completion in notebooks."""
        return list(_PUBLIC)


def open_index(uri: str | Path, storage: StorageConfig | Mapping[str, Any] | None = None) -> Index:
    """Open the newest generation of an index at a local folder or an object-store URI.

    Args:
        uri: the folder or URI.
        storage: the section `storage` of the config, as an object or as a dict of its keys.

    Raises:
        UserError: there is no index at the URI, or it has no published generation.
    """
    found = search_index.open_index(str(uri), storage)
    return Index(found.store, found.generation)


def build(
    *,
    model: str | Path | Mapping[str, Any],
    corpus: "str | Path | Records",
    index: str | Path,
    columns: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Index:
    """Build an index in this process and open it: the rows that `lorif build` makes, without Ray and Prefect.

    It is for data that fit one machine. Run again after a failure, it resumes.

    Args:
        model: path, `s3://` URI or hub id of the checkpoint, or a dict with the keys of the section `model`.
        corpus: a path or URI as in CONFIG, or the data: a Dataset of Hugging Face, a pandas DataFrame, an Arrow
            table, or a list of dicts or texts. Data are written into the folder of the index.
        index: folder or URI of the index.
        columns: further keys of the section `corpus`, such as `{"text": "body", "max_length": 256}`.
        keys: further keys and sections of CONFIG, such as `preset="fine"` or `compute={"memory_gb": 8}`.

    Raises:
        UserError: a key is not valid, the model or the data cannot be used, or no example has a scored token.
        LorifError: the build failed.
    """
    from lorif_core.corpus.in_memory import store_records  # a build imports more than an answer needs
    from lorif_core.lifecycle.local_build import build_here

    is_place = isinstance(corpus, str | Path)
    sections = {
        "model": dict(model) if isinstance(model, Mapping) else {"path": str(model)},
        "corpus": {**(columns or {}), "uri": str(corpus) if is_place else "data"},
    }
    config = parse_config({**keys, **sections, "index": str(index)}, "lorif_core.build")
    if not is_place:
        uri = store_records(corpus, config.index, config.storage)
        config = config.model_copy(update={"corpus": config.corpus.model_copy(update={"uri": uri})})
    build_here(config)
    return open_index(config.index, config.storage)
