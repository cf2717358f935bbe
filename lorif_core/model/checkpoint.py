"""Checkpoints in a local folder, in an object store or on the hub: their files and their fingerprint.

This module runs and unpickles nothing from a checkpoint. It fetches a checkpoint from an object store once per
node, config and tokenizer files first.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from transformers import AutoConfig

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.errors import UserError
from lorif_core.storage.faults import one_line
from lorif_core.storage.filesystem import SourceFile, list_folder
from lorif_core.storage.local_digests import file_digests
from lorif_core.storage.node_cache import NodeFolder

_CONFIG_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_CODE_PATTERNS = ("*.py",)
_SAFETENSORS_PATTERNS = ("*.safetensors",)
_PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth")
_CONFIG_NAMES = ("config.json", "adapter_config.json")
_ADAPTER_CONFIG = "adapter_config.json"
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.safetensors")
"""Names of the optimiser's state beside the weights, in the order in which they are looked for."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files were checked, so that it may be loaded.

    Attributes:
        config: the `model` section as the user wrote it.
        storage: how to reach the checkpoint and, for an adapter, its base model.
        names: names of its files; empty for a hub id, which transformers resolves.
        remote: the same files in an object store, by name; empty for a local folder.
    """

    config: ModelConfig
    storage: StorageConfig
    names: frozenset[str] = frozenset()
    remote: dict[str, SourceFile] = field(default_factory=dict)

    @property
    def on_hub(self) -> bool:
        """Whether the path is a hub id."""
        return not self.names

    def path_without_weights(self) -> str:
        """The local folder or hub id from which transformers loads config and tokenizer.

        Raises:
            UserError: the files do not fit into the cache of this node.
            StoreUnavailableError: the store keeps failing.
        """
        patterns = (*_CONFIG_PATTERNS, *(_CODE_PATTERNS if self.config.trust_remote_code else ()))
        return self._fetch(_matching(self.names, patterns))

    def path_with_weights(self) -> str:
        """The same local folder or hub id, after the weights were fetched too."""
        self.path_without_weights()  # first, because another process may need only these files
        return self._fetch(self._weights())

    def base(self) -> "Checkpoint | None":
        """The base model of an adapter; None for a full model."""
        if _ADAPTER_CONFIG not in self.names:
            return None
        path = Path(self.path_without_weights()) / _ADAPTER_CONFIG
        try:
            base_path = json.loads(path.read_text())["base_model_name_or_path"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the {_ADAPTER_CONFIG} of the adapter {self.config.path} does not name a base model "
                f"({one_line(error)}); set base_model_name_or_path in it"
            ) from None
        return locate(self.config.model_copy(update={"path": str(base_path), "revision": None}), self.storage)

    def fingerprint(self) -> str:
        """Identity of the checkpoint.

        For files: a hash of config and weights, of an adapter's base too, independent of their location. For a
        hub id: the id and its commit.
        """
        config = self.config
        if self.on_hub:
            hub_config = AutoConfig.from_pretrained(config.path, revision=config.revision)
            return f"{config.path}@{getattr(hub_config, '_commit_hash', None) or config.revision or 'main'}"
        base = self.base()
        names = [name for name in _CONFIG_NAMES if name in self.names] + sorted(self._weights())
        if self.remote:
            self.path_with_weights()
            digests = self._node_folder().digests(names)
        else:
            digests = file_digests([Path(config.path).expanduser() / name for name in names])
        combined = hashlib.sha256((base.fingerprint() if base else "").encode())
        for name in names:
            combined.update(f"{name}:{digests[name]}\n".encode())
        return f"sha256:{combined.hexdigest()[:32]}"

    def optimizer_state(self) -> Path | None:
        """The local file of the optimiser's state beside the weights, fetched if remote; None without one."""
        name = next((name for name in OPTIMIZER_FILES if name in self.names), None)
        return None if name is None else Path(self._fetch([name])).expanduser() / name

    def _weights(self) -> set[str]:
        return _safetensors(self.names) or _matching(self.names, _PICKLE_PATTERNS)

    def _fetch(self, names: Collection[str]) -> str:
        """The path to load from, after the named files were fetched if they are remote."""
        if not self.remote:
            return self.config.path
        folder = self._node_folder()
        folder.fetch([self.remote[name] for name in sorted(names)])
        return str(folder.path)

    def _node_folder(self) -> NodeFolder:
        return NodeFolder(self.config.path, list(self.remote.values()), self.storage)


def locate(config: ModelConfig, storage: StorageConfig) -> Checkpoint:
    """Locate a checkpoint and reject one that cannot be loaded, before anything is imported, fetched or written.

    Raises:
        UserError: it does not exist, contains no model, or has only pickled weights without `allow_pickle`.
        StoreUnavailableError: the store keeps failing.
    """
    path = config.path
    if path.startswith("s3://"):
        files = {file.name: file for file in list_folder(path, storage)}
        if not files:
            raise UserError(f"the model folder {path} does not exist or is empty")
        checkpoint = Checkpoint(config, storage, frozenset(files), files)
    elif Path(path).expanduser().exists():
        names = frozenset(file.name for file in Path(path).expanduser().iterdir())
        checkpoint = Checkpoint(config, storage, names or frozenset([""]))  # no names would mean a hub id
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"the model folder {path} does not exist")
    else:
        return Checkpoint(config, storage)
    _check_contents(checkpoint)
    return checkpoint


def _check_contents(checkpoint: Checkpoint) -> None:
    path, names = checkpoint.config.path, checkpoint.names
    if not names.intersection(_CONFIG_NAMES):
        raise UserError(f"the model folder {path} has no config.json")
    pickled = _matching(names, _PICKLE_PATTERNS)
    if _safetensors(names) or (checkpoint.config.allow_pickle and pickled):
        return
    if pickled:
        raise UserError(
            f"the model folder {path} has only pickled weights, which can run code when they are loaded; convert "
            f"them to safetensors, or set model.allow_pickle=true if you trust their author"
        )
    raise UserError(f"the model folder {path} has no weights (*.safetensors)")


def _safetensors(names: Collection[str]) -> set[str]:
    """Files of weights."""
    return _matching(names, _SAFETENSORS_PATTERNS) - {*OPTIMIZER_FILES}


def _matching(names: Collection[str], patterns: Collection[str]) -> set[str]:
    return {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}
