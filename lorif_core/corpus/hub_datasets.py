"""The files of a dataset of the hub: those of one split, as its card or the names of its files define it.

`hf://datasets/OWNER/NAME[@REVISION]` may be followed by a split, by a configuration and a split, or by a file, a
folder or a glob. Hugging Face datasets says which files a split has; they are read by the readers of this wing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from tempfile import TemporaryDirectory
from typing import Any

from lorif_core.config import StorageConfig
from lorif_core.corpus.records import ENDINGS
from lorif_core.errors import UserError
from lorif_core.storage.faults import one_line
from lorif_core.storage.filesystem import GLOB_CHARACTERS, HUB_SCHEME, SourceFile, Walk, source_file, walk_files
from lorif_core.storage.hub import HubDataset, hub_errors, hub_files, parse_hub_uri, pinned

_NAMED = 6


@dataclass(frozen=True, slots=True)
class Configurations:
    """The configurations of a dataset: their names, and the one that is meant if none is named, or None."""

    names: tuple[str, ...]
    default: str | None


def walk_dataset(uri: str, storage: StorageConfig) -> Walk:
    """The files at a URI of the hub, at the commit that its revision leads to now.

    Raises:
        UserError: dataset, revision, split or path do not exist, or the URI does not say which split is meant.
    """
    place = pinned(parse_hub_uri(uri))
    is_path = any(character in place.path for character in GLOB_CHARACTERS) or place.path.lower().endswith(ENDINGS)
    if is_path or place.path.count("/") > 1:
        return walk_files(place.uri, storage)
    files = _choose(uri, place, place.revision or "")
    if files is None:
        return walk_files(place.uri, storage)
    root = HubDataset(place.repository, place.revision, "")
    listed = [_source_file(file, root, storage) for file in files]
    path = root.uri.removeprefix(HUB_SCHEME)
    return Walk(hub_files(), path, False, False, tuple(sorted(listed, key=lambda file: file.name)), ())


def _source_file(uri: str, root: HubDataset, storage: StorageConfig) -> SourceFile:
    place = parse_hub_uri(uri)
    at_commit = HubDataset(place.repository, place.revision or root.revision, place.path)
    try:
        return source_file(at_commit.uri, place.path, storage)
    except FileNotFoundError:
        raise UserError(
            f"{at_commit.uri} does not exist, although its dataset names it; name files or folders"
        ) from None


def _choose(uri: str, place: HubDataset, commit: str) -> Sequence[str] | None:
    """The files of the split that a path names; None if it is a path, or if the dataset has no splits."""
    known = configurations(place.repository, commit, uri)
    if not known.names:
        return None
    first, _, second = place.path.partition("/")
    base = HubDataset(place.repository, parse_hub_uri(uri).revision, "").uri
    default = {} if known.default is None else files_by_split(place.repository, commit, known.default, uri)
    if first in default and not second:
        return default[first]
    if first and first not in known.names:
        _require_path(uri, place, _listed(base, default) if default else _listed(base, known.names, "/SPLIT"))
        return None
    config = first or known.default
    if config is None:
        raise UserError(f"{uri} has several configurations; name one: {_listed(base, known.names, '/SPLIT')}")
    files = files_by_split(place.repository, commit, config, uri)
    splits = _listed(base if config == known.default else f"{base}/{config}", files)
    if second and second not in files:
        _require_path(uri, place, splits)
        return None
    if second:
        return files[second]
    if len(files) > 1:
        raise UserError(f"{uri} has several splits; name the one that the model was trained on: {splits}")
    return next(iter(files.values()))


def _require_path(uri: str, place: HubDataset, names: str) -> None:
    """Raise UserError if a path that is no split does not exist either."""
    try:
        hub_files().info(place.uri.removeprefix(HUB_SCHEME))
    except FileNotFoundError:
        raise UserError(f"{uri} is neither a split nor a path of its dataset, which has {names}") from None


def _listed(base: str, names: Iterable[str], end: str = "") -> str:
    listed = [f"{base}/{name}{end}" for name in names]
    return ", ".join([*listed[:_NAMED], *(["..."] if len(listed) > _NAMED else [])])


@lru_cache(maxsize=8)
def configurations(repository: str, commit: str, uri: str) -> Configurations:
    """The configurations of a dataset at a commit; none if it has no files that Hugging Face datasets knows.

    Raises:
        UserError: the package is not installed, or the card of the dataset contradicts its files.
    """
    datasets = _library(repository, uri)
    with hub_errors(uri), _card_errors(uri, datasets):
        try:
            names = datasets.get_dataset_config_names(repository, revision=commit)
            return Configurations(
                tuple(names), datasets.get_dataset_default_config_name(repository, revision=commit)
            )
        except FileNotFoundError:
            return Configurations((), None)


@lru_cache(maxsize=8)
def files_by_split(repository: str, commit: str, config: str, uri: str) -> Mapping[str, tuple[str, ...]]:
    """URIs of the files of each split of a configuration. Raises UserError as `configurations`."""
    datasets = _library(repository, uri)
    with hub_errors(uri), _card_errors(uri, datasets), TemporaryDirectory() as folder:
        builder = datasets.load_dataset_builder(repository, config, revision=commit, cache_dir=folder)
        files = builder.config.data_files or {}
    return {str(split): tuple(map(str, listed)) for split, listed in files.items()}


def _library(repository: str, uri: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise UserError(
            f"{uri} needs Hugging Face datasets to find its splits; run pip install 'lorif-pipeline[hf]', or name "
            f"files, such as hf://datasets/{repository}/data/*.parquet"
        ) from None
    return datasets


@contextmanager
def _card_errors(uri: str, datasets: Any) -> Iterator[None]:
    try:
        yield
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"the splits of {uri} cannot be found ({one_line(error)}); name files instead") from None
