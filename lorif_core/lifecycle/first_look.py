"""Looks at a folder for a checkpoint and training data, and writes a first CONFIG with the reasons as comments."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import yaml

from lorif_core.config import CorpusConfig, ModelConfig, StorageConfig
from lorif_core.corpus.columns import needed_columns, optional_columns
from lorif_core.corpus.files import find_corpus_files
from lorif_core.corpus.messages import TOOLS_NAME
from lorif_core.corpus.records import ENDINGS, column_kinds, read_records, reason_against_json
from lorif_core.corpus.token_files import TOKEN_ENDINGS
from lorif_core.errors import LorifError, UserError
from lorif_core.formatting import format_bytes, listed
from lorif_core.lifecycle.example_length import record_lengths
from lorif_core.model.loading import Skeleton, load_skeleton
from lorif_core.storage.filesystem import SourceFile

_SAMPLE = 200  # records
_LISTED = 8
_DEPTH = 3
_USUAL = 95  # percent of the sampled records
_READ = tuple(ending for ending in ENDINGS if ending not in TOKEN_ENDINGS)  # files of tokens need more keys
_PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"),
    ("question", "answer"), ("input", "output"), ("query", "response"),
)  # fmt: skip
_TOKENS = ("input_ids", "tokens", "token_ids")
_TEXTS = ("text", "content", "body", "document")
_IDS = ("id", "_id", "uuid", "doc_id", "example_id", "key")
_PLAIN = re.compile(r"[\w./~][\w./~-]*")


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What was found, and the settings that follow from it.

    Attributes:
        model: path or hub id of the checkpoint.
        model_facts: what it is, as a comment.
        corpus: path or URI of the data.
        corpus_facts: files and bytes, as a comment.
        columns: name and kind of each column of the first file.
        roles: keys of the section `corpus` that name columns.
        lengths: tokens of the records, as a comment.
        machine: cores and GPUs, as a comment.
    """

    model: str
    model_facts: str
    corpus: str
    corpus_facts: str
    columns: dict[str, str]
    roles: dict[str, str | list[str]]
    lengths: str
    machine: str

    def config_text(self) -> str:
        """A CONFIG in YAML, with comments."""
        columns = ", ".join(f"{name} ({kind})" for name, kind in self.columns.items())
        lines = [
            "# Written by lorif init. `lorif check -c` this file says what a build will take.",
            "index: ./lorif-index  # a new folder, or an s3:// URI",
            "model:",
            f"  path: {_yaml(self.model)}  # {self.model_facts}",
            "corpus:",
            f"  uri: {_yaml(self.corpus)}  # {self.corpus_facts}",
            f"  # columns: {columns}",
            *(f"  {key}: {_yaml(column)}" for key, column in self.roles.items()),
        ]
        lines += [
            f"  # max_length: auto  # {self.lengths}",
            "# preset: balanced  # or compact (smaller rows), fine, quality (more accurate scores)",
            f"# compute: {{workers: auto}}  # {self.machine}",
        ]
        return "\n".join(lines) + "\n"


def look(folder: str, model: str | None, corpus: str | None) -> FirstLook:
    """Look at a folder; `model` and `corpus` name what is elsewhere, or which of several is meant.

    Raises:
        UserError: there is no checkpoint or no data, the model cannot be loaded, or no column can be an example.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"the folder {folder} does not exist")
    checkpoints = sorted(_checkpoints(root), key=_newest_first)
    if model is None:
        if not checkpoints:
            raise UserError(f"{folder} has no checkpoint, a folder with config.json; name one with --model")
        model = str(checkpoints[0])
    skeleton = load_skeleton(ModelConfig(path=model), StorageConfig())
    corpus = _largest_data(root, checkpoints) if corpus is None else corpus
    files, columns = _first_columns(corpus)
    roles = _roles(columns, corpus)
    others = [str(path) for path in checkpoints if str(path) != model]
    also = f"; also there: {listed(others, _LISTED)}" if others else ""
    size = format_bytes(sum(file.size for file in files))
    names = listed([file.name for file in files], 3)
    return FirstLook(
        model, f"{type(skeleton.model).__name__}, {skeleton.dtype}{also}", corpus, f"{size} in {names}", columns,
        roles, _length_facts(files[0], roles, corpus, skeleton), _machine(),
    )  # fmt: skip


def _checkpoints(root: Path) -> Iterator[Path]:
    """Folders with the config of a causal language model, or of an adapter."""
    for path, folders, names in os.walk(root):
        here = Path(path)
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        if len(here.relative_to(root).parts) >= _DEPTH:
            folders.clear()
        if "adapter_config.json" in names or ("config.json" in names and _has_model_type(here / "config.json")):
            folders.clear()
            yield here


def _has_model_type(path: Path) -> bool:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and "model_type" in settings


def _newest_first(checkpoint: Path) -> tuple[int, float]:
    return len(checkpoint.parts), -checkpoint.stat().st_mtime


def _largest_data(root: Path, checkpoints: Sequence[Path]) -> str:
    """The file, folder or glob below a folder with the most bytes of data, without those of checkpoints."""
    sizes: dict[str, int] = {}
    for path, folders, names in os.walk(root):
        here = Path(path)
        is_index = any(name.endswith(".lance") for name in folders)
        if is_index or here in checkpoints:
            folders.clear()
            if here != root:
                continue
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        data = [name for name in names if name.lower().endswith(_READ) and not name.startswith((".", "_"))]
        for name in data:
            below = here.relative_to(root).parts
            ending = next(ending for ending in _READ if name.lower().endswith(ending))
            if not below and ending.startswith(".json") and not ending.startswith(".jsonl"):
                continue  # beside a checkpoint most of these are settings
            place = str(root / below[0]) if below else str(root / f"*{ending}")
            sizes[place] = sizes.get(place, 0) + (here / name).stat().st_size
    if not sizes:
        raise UserError(f"{root} has no training data ({', '.join(_READ)}); name them with --corpus")
    return max(sizes, key=lambda place: sizes[place])


def _first_columns(corpus: str) -> tuple[list[SourceFile], dict[str, str]]:
    """The files of the corpus, from the first that has rows, and the columns of that one."""
    files = list(find_corpus_files(CorpusConfig(uri=corpus), StorageConfig()).readable)
    for number, file in enumerate(files):
        kinds = column_kinds(file) if reason_against_json(file, ()) is None else None
        if kinds:
            return files[number:], kinds
    raise UserError(f"{corpus} has no file with rows in a format that is read ({', '.join(_READ)})")


def _roles(columns: Mapping[str, str], corpus: str) -> dict[str, str | list[str]]:
    """The keys of the section `corpus` that name columns, by the usual names and by the kinds of the values."""
    lower = {name.lower(): name for name in columns}

    def of_kind(names: Sequence[str], *kinds: str) -> str | None:
        return next((lower[name] for name in names if name in lower and columns[lower[name]] in kinds), None)

    roles: dict[str, str | list[str]] = {}
    tokens = of_kind(_TOKENS, "integers")
    messages = next((name for name, kind in columns.items() if kind == "messages" and name != TOOLS_NAME), None)
    pair = next((pair for pair in _PAIRS if all(of_kind([name], "text") for name in pair)), None)
    text = of_kind(_TEXTS, "text") or next((name for name, kind in columns.items() if kind == "text"), None)
    if tokens is not None:
        others = {"labels": of_kind(["labels"], "integers"), "mask": of_kind(["attention_mask"], "integers")}
        roles = {"tokens": tokens, **{key: name for key, name in others.items() if name is not None}}
    elif messages is not None:
        roles = {"messages": messages}
    elif pair is not None:
        context = of_kind(["input"], "text") if pair[0] == "instruction" else None
        prompt: str | list[str] = lower[pair[0]] if context is None else [lower[pair[0]], context]
        roles = {"prompt": prompt, "completion": lower[pair[1]]}
    elif text is not None:
        roles = {"text": text}
    else:
        found = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
        raise UserError(f"no column of {corpus} has text, messages or token ids; its columns are {found}")
    identity = of_kind(_IDS, "text", "integer")
    return roles if identity is None else {**roles, "id": identity}


def _length_facts(file: SourceFile, roles: Mapping[str, str | list[str]], corpus: str, skeleton: Skeleton) -> str:
    """What a sample of the records says about their lengths, and the model about its own."""
    limit = "" if skeleton.max_positions is None else f"; the model has {skeleton.max_positions:,} positions"
    section = CorpusConfig.model_validate({"uri": corpus, **roles})
    records = read_records(file, needed_columns(section), optional=optional_columns(section))
    try:
        lengths = list(record_lengths(islice(records, _SAMPLE), file.name, section, skeleton.tokenizer))
    except LorifError:
        return f"no record could be tokenised, lorif check says why{limit}"
    usual = int(np.percentile(lengths, _USUAL))
    found = f"{_USUAL} % of the first {len(lengths)} records have at most {usual:,} tokens, all {max(lengths):,}"
    return f"{found}{limit}"


def _machine() -> str:
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"this machine has {os.cpu_count()} cores and {', '.join(gpus) or 'no GPU'}"


def _yaml(value: str | list[str]) -> str:
    """A text, or a list of texts, as YAML on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    is_plain = _PLAIN.fullmatch(value) and yaml.safe_load(value) == value
    return value if is_plain else json.dumps(value)
