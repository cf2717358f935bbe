"""The demo's steps as Prefect tasks: write the corpus, train the model, run the self-check."""

import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.report.page import SelfCheckRow
from lorif_core.search.index import Index
from lorif_core.search.queries import Query
from lorif_core.tables.store import Store
from tasks.artifacts import show_table
from tasks.demo.corpus import (
    QUESTIONS,
    Paragraph,
    language_reference,
    library_docstrings,
    split,
    write_jsonl,
)
from tasks.demo.model import POSITIONS, DemoModel, continue_demo_model, train_demo_model
from tasks.demo.object_store import MotoServer, upload_folder
from tasks.demo.self_check import bm25_hits, chance_same_topic_at_k, same_topic_at_k, self_retrieval
from tasks.environment import environment
from tasks.orchestration import run_log, task

_HELD_OUT_SHARE = 0.08
_DOCSTRINGS = 300
_SELF_CHECK_PASSAGES = 64
_TOP_TOPICS = 5
_SEED = 0
_BUCKET = "lorif-demo"


@dataclass(frozen=True, slots=True)
class DemoCorpus:
    """The demo's corpus in a folder: passages to train on and to index, and passages that the model never sees."""

    folder: Path
    train: tuple[Paragraph, ...]
    held_out: tuple[Paragraph, ...]


@task("write corpus")
def write_corpus(folder: Path) -> DemoCorpus:
    """Cut the language reference into passages, and write the training passages as JSON Lines."""
    train, held_out = split(language_reference(), _HELD_OUT_SHARE, _SEED)
    corpus = DemoCorpus(folder / "corpus", tuple(train), tuple(held_out))
    corpus.folder.mkdir(parents=True)
    write_jsonl(train, corpus.folder / "language-reference.jsonl")
    run_log().info("%d passages to train on, %d held out", len(train), len(held_out))
    return corpus


@task("add docstrings")
def add_docstrings(corpus: DemoCorpus) -> DemoCorpus:
    """Add a second file to the corpus: docstrings of the standard library, for training and indexing."""
    docstrings = library_docstrings(_DOCSTRINGS)
    write_jsonl(docstrings, corpus.folder / "library-docstrings.jsonl")
    run_log().info("%d docstrings added", len(docstrings))
    return replace(corpus, train=(*corpus.train, *docstrings))


@task("train model")
def train_model(corpus: DemoCorpus, folder: Path, seconds: float) -> DemoModel:
    """Train a tokenizer and a small GPT-2 on the passages."""
    texts = [paragraph.text for paragraph in corpus.train]
    return _logged(train_demo_model(texts, folder / "model", seconds, _SEED))


@task("continue training")
def continue_training(model: DemoModel, corpus: DemoCorpus, folder: Path, seconds: float) -> DemoModel:
    """Train the model further on the whole corpus."""
    texts = [paragraph.text for paragraph in corpus.train]
    return _logged(continue_demo_model(model.folder, texts, folder / "model-continued", seconds, _SEED))


def _logged(model: DemoModel) -> DemoModel:
    run_log().info(
        "%d parameters, %d steps in %.0f s, loss %.2f (unigram %.2f)",
        model.parameters, model.steps, model.seconds, model.final_loss, model.unigram_loss,
    )  # fmt: skip
    return model


@dataclass(frozen=True, slots=True)
class DemoStorage:
    """The storage of the demo's corpus, checkpoint and index: the output folder, or an object store."""

    index: str
    storage: dict[str, Any]
    server: MotoServer | None = None

    def upload(self, folder: Path) -> str:
        """Copy a folder to the storage unless it is there already; returns its URI."""
        return str(folder) if self.server is None else upload_folder(self.server, folder, _BUCKET, folder.name)


@contextmanager
def demo_storage(store: str, folder: Path) -> Iterator[DemoStorage]:
    """The storage of the demo's data; an object store runs until the end of the block."""
    if store == "local":
        yield DemoStorage(str(folder / "index"), {})
        return
    with (
        MotoServer() as server,
        TemporaryDirectory() as cache,
        environment({**server.environment(), "LORIF_CACHE": cache}),
    ):
        server.make_bucket(_BUCKET)
        run_log().info("corpus, checkpoint and index are in s3://%s at %s", _BUCKET, server.url)
        yield DemoStorage(f"s3://{_BUCKET}/index", server.storage(), server)


def demo_config(storage: DemoStorage, corpus: DemoCorpus, model: DemoModel, folder: Path) -> Config:
    """The demo's CONFIG, also written to `folder` so that a user can run `lorif build -c` on it."""
    raw = {
        "index": storage.index,
        "model": {"path": storage.upload(model.folder)},
        "corpus": {"uri": storage.upload(corpus.folder), "id": "id", "max_length": POSITIONS},
        "compute": {"ray": "local", "workers": min(2, os.cpu_count() or 1)},
        "storage": storage.storage,
    }
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    return parse_config(raw)


def demo_queries() -> list[Query]:
    """The demo's questions as queries."""
    return [
        Query(question.question_id, None, question.prompt, question.completion, None, None)
        for question in QUESTIONS
    ]


@task("self-check")
def run_self_check(config: Config, corpus: DemoCorpus) -> list[SelfCheckRow]:
    """Query the index with its own passages and with held-out passages, and compare it with BM25 and chance."""
    started = time.perf_counter()
    index = Index(Store(config.index, config.storage))
    rows = [_check_self_retrieval(index, corpus), _check_topics(index, corpus)]
    show_table(key="self-check", table=[asdict(row) for row in rows], description="Self-check")
    run_log().info("self-check took %.1f s", time.perf_counter() - started)
    return rows


def _check_self_retrieval(index: Index, corpus: DemoCorpus) -> SelfCheckRow:
    chosen = random.Random(_SEED).sample(corpus.train, _SELF_CHECK_PASSAGES)
    own = [paragraph.paragraph_id for paragraph in chosen]
    texts = [paragraph.text for paragraph in chosen]
    return SelfCheckRow(
        question=f"Training passage as query: is it its own top proponent? ({len(chosen)} passages)",
        ours=self_retrieval(_proponents(index, chosen, 1), own),
        bm25=self_retrieval(_bm25(corpus, texts, 1), own),
        chance=1 / len(corpus.train),
        note="BM25 compares the exact words, so it is near perfect here by construction",
    )


def _check_topics(index: Index, corpus: DemoCorpus) -> SelfCheckRow:
    topics_of = {paragraph.paragraph_id: set(paragraph.topics) for paragraph in corpus.train}
    known = set().union(*topics_of.values())
    chosen = [paragraph for paragraph in corpus.held_out if known & set(paragraph.topics)]
    topics = [set(paragraph.topics) for paragraph in chosen]
    texts = [paragraph.text for paragraph in chosen]
    return SelfCheckRow(
        question=f"Held-out passage: a top-{_TOP_TOPICS} proponent from the same topic? ({len(chosen)} passages)",
        ours=same_topic_at_k(_proponents(index, chosen, _TOP_TOPICS), topics, topics_of, _TOP_TOPICS),
        bm25=same_topic_at_k(_bm25(corpus, texts, _TOP_TOPICS), topics, topics_of, _TOP_TOPICS),
        chance=chance_same_topic_at_k(topics, topics_of, _TOP_TOPICS),
        note="the model never saw these passages",
    )


def _proponents(index: Index, paragraphs: Sequence[Paragraph], k: int) -> list[list[str]]:
    tops = index.top_k([paragraph.text for paragraph in paragraphs], k)
    return [[hit.example_id for hit in top.proponents] for top in tops]


def _bm25(corpus: DemoCorpus, queries: Sequence[str], k: int) -> list[list[str]]:
    texts = [paragraph.text for paragraph in corpus.train]
    return bm25_hits(texts, [paragraph.paragraph_id for paragraph in corpus.train], queries, k)
