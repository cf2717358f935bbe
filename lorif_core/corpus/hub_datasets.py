"""The files of a dataset of the hub: those of one split, as its card or the names of its files define it.

`hf://datasets/OWNER/NAME[@REVISION]` may be followed by a split, by a configuration and a split, or by a file, a
folder or a glob. Hugging Face datasets says which files a split has; they are read by the readers of this wing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from tempfile import TemporaryDirectory

from lorif_core.config import StorageConfig
from lorif_core.corpus.records import ENDINGS
from lorif_core.errors import UserError
from lorif_core.storage.faults import one_line
from lorif_core.storage.filesystem import GLOB_CHARACTERS, HUB_SCHEME, SourceFile, Walk, source_file, walk_files
from lorif_core.storage.hub import HubDataset, hub_errors, hub_files, parse_hub_uri, pinned

_NAMED = 6


@dataclass(frozen=True, slots=True)
class Splits:
    """The splits of a dataset.

    Attributes:
        default: the configuration that is meant if none is named; None if one must be named.
        files: URIs of the files of each split, by configuration and split.
    """

    default: str | None
    files: Mapping[str, Mapping[str, tuple[str, ...]]]

    def names(self, base: str) -> str:
        """The URIs of the first splits, for messages; `base` is that of the dataset."""
        names = [
            f"{base}/{split}" if config == self.default else f"{base}/{config}/{split}"
            for config, splits in self.files.items()
            for split in splits
        ]
        return ", ".join([*names[:_NAMED], *(["..."] if len(names) > _NAMED else [])])


def walk_dataset(uri: str, storage: StorageConfig) -> Walk:
    """The files at a URI of the hub, at the commit that its revision leads to now.

    Raises:
        UserError: dataset, revision, split or path do not exist, or the URI does not say which split is meant.
    """
    place = pinned(parse_hub_uri(uri))
    is_path = any(character in place.path for character in GLOB_CHARACTERS) or place.path.lower().endswith(ENDINGS)
    if is_path or place.path.count("/") > 1:
        return walk_files(place.uri, storage)
    splits = splits_of(place.repository, place.revision or "", uri)
    files = _choose(uri, place, splits)
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


def _choose(uri: str, place: HubDataset, splits: Splits) -> Sequence[str] | None:
    """The files of the split that a path names; None if it is a path, or if the dataset has no splits."""
    if not splits.files:
        return None
    first, _, second = place.path.partition("/")
    base = HubDataset(place.repository, parse_hub_uri(uri).revision, "").uri
    default = splits.files.get(splits.default or "", {})
    if second or (first and first not in default and first not in splits.files):
        chosen = splits.files.get(first, {}).get(second)
        return _unless_absent(uri, place, splits.names(base)) if chosen is None else chosen
    if first in default:
        return default[first]
    config = first or splits.default
    if config is None:
        raise UserError(f"{uri} has several configurations; name one and a split: {splits.names(base)}")
    if len(splits.files[config]) > 1:
        raise UserError(f"{uri} has several splits; name the one to attribute to: {splits.names(base)}")
    return next(iter(splits.files[config].values()))


def _unless_absent(uri: str, place: HubDataset, names: str) -> None:
    """Raise UserError if a path that is no split does not exist either."""
    try:
        hub_files().info(place.uri.removeprefix(HUB_SCHEME))
    except FileNotFoundError:
        raise UserError(f"{uri} is neither a split nor a path of its dataset, which has {names}") from None


@lru_cache(maxsize=8)
def splits_of(repository: str, commit: str, uri: str) -> Splits:
    """The splits of a dataset at a commit; none if it has no files that Hugging Face datasets knows.

    Raises:
        UserError: the package is not installed, or the card of the dataset contradicts its files.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise UserError(
            f"{uri} needs Hugging Face datasets to find its splits; run pip install 'lorif-pipeline[hf]', or name "
            f"files, such as hf://datasets/{repository}/data/*.parquet"
        ) from None
    files: dict[str, dict[str, tuple[str, ...]]] = {}
    with hub_errors(uri), TemporaryDirectory() as folder:
        try:
            default = datasets.get_dataset_default_config_name(repository, revision=commit)
            for name in datasets.get_dataset_config_names(repository, revision=commit):
                builder = datasets.load_dataset_builder(repository, name, revision=commit, cache_dir=folder)
                listed = builder.config.data_files or {}
                files[name] = {str(split): tuple(map(str, uris)) for split, uris in listed.items()}
        except FileNotFoundError:  # it knows none of the formats there
            return Splits(None, {})
        except (ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"the splits of {uri} cannot be found ({one_line(error)}); name files instead"
            ) from None
    return Splits(default, files)
