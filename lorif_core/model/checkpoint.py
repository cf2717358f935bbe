"""Where a checkpoint is: a folder of this machine, an object store, or the hub; what is in it; its fingerprint.

Nothing of it is run or unpickled here. From an object store it is fetched once per node, small files first.
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
from lorif_core.storage.node_cache import NodeFolder, file_digests

_SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_CODE = ("*.py",)
_SAFE = ("*.safetensors",)
_PICKLED = ("*.bin", "*.pt", "*.pth")
_CONFIGS = ("config.json", "adapter_config.json")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was looked at and may be loaded.

    Attributes:
        config: the model section, with what the user wrote.
        storage: how to reach it, and the base of an adapter.
        names: its files; empty for a hub id, which transformers itself resolves.
        remote: those files in an object store, by name.
    """

    config: ModelConfig
    storage: StorageConfig
    names: frozenset[str] = frozenset()
    remote: dict[str, SourceFile] = field(default_factory=dict)

    @property
    def on_hub(self) -> bool:
        """Whether the path is a hub id."""
        return not self.names

    def settings(self) -> str:
        """What transformers opens for the config and the tokenizer: a folder of this machine, or a hub id.

        Raises:
            UserError: the cache of this node cannot hold it.
            StoreUnavailableError: the store keeps failing.
        """
        patterns = (*_SETTINGS, *(_CODE if self.config.trust_remote_code else ()))
        return self._here(_matching(self.names, patterns))

    def whole(self) -> str:
        """As `settings`, with the weights."""
        self.settings()  # first, for whoever waits for no more than these
        return self._here(self._weights())

    def base(self) -> "Checkpoint | None":
        """The model that an adapter adapts; None for a whole model."""
        if "adapter_config.json" not in self.names:
            return None
        path = Path(self.settings()) / "adapter_config.json"
        try:
            named = json.loads(path.read_text())["base_model_name_or_path"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the adapter {self.config.path} names no base model in its adapter_config.json "
                f"({one_line(error)})"
            ) from None
        return locate(self.config.model_copy(update={"path": str(named), "revision": None}), self.storage)

    def fingerprint(self) -> str:
        """Identity: a hash of config and weights (an adapter's base too), wherever they lie; the hub's commit."""
        config = self.config
        if self.on_hub:
            settings = AutoConfig.from_pretrained(config.path, revision=config.revision)
            return f"{config.path}@{getattr(settings, '_commit_hash', None) or config.revision or 'main'}"
        base = self.base()
        names = [name for name in _CONFIGS if name in self.names] + sorted(self._weights())
        if self.remote:
            self.whole()
            digests = self._node().digests(names)
        else:
            digests = file_digests([Path(config.path).expanduser() / name for name in names])
        whole = hashlib.sha256((base.fingerprint() if base else "").encode())
        for name in names:
            whole.update(f"{name}:{digests[name]}\n".encode())
        return f"sha256:{whole.hexdigest()[:32]}"

    def _weights(self) -> set[str]:
        return _matching(self.names, _SAFE) or _matching(self.names, _PICKLED)

    def _here(self, names: Collection[str]) -> str:
        if not self.remote:
            return self.config.path
        node = self._node()
        node.fetch([self.remote[name] for name in sorted(names)])
        return str(node.path)

    def _node(self) -> NodeFolder:
        return NodeFolder(self.config.path, list(self.remote.values()), self.storage)


def locate(config: ModelConfig, storage: StorageConfig) -> Checkpoint:
    """Find a checkpoint and refuse one that cannot be loaded, before anything is imported, fetched or written.

    Raises:
        UserError: it is missing, holds no model, or its weights would have to be unpickled.
        StoreUnavailableError: the store keeps failing.
    """
    path = config.path
    if path.startswith("s3://"):
        files = {file.name: file for file in list_folder(path, storage)}
        if not files:
            raise UserError(f"the model folder {path} does not exist, or holds no files")
        found = Checkpoint(config, storage, frozenset(files), files)
    elif Path(path).expanduser().exists():
        names = frozenset(file.name for file in Path(path).expanduser().iterdir())
        found = Checkpoint(config, storage, names or frozenset([""]))
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"the model folder {path} does not exist")
    else:
        return Checkpoint(config, storage)
    _check_contents(found)
    return found


def _check_contents(checkpoint: Checkpoint) -> None:
    path, names = checkpoint.config.path, checkpoint.names
    if not names.intersection(_CONFIGS):
        raise UserError(f"the model folder {path} has no config.json")
    pickled = _matching(names, _PICKLED)
    if _matching(names, _SAFE) or (checkpoint.config.allow_pickle and pickled):
        return
    if pickled:
        raise UserError(
            f"the model folder {path} has only pickled weights, which can run code when loaded; convert them to "
            f"safetensors, or set model.allow_pickle=true if you trust whoever made them"
        )
    raise UserError(f"the model folder {path} has no weights (*.safetensors)")


def _matching(names: Collection[str], patterns: Collection[str]) -> set[str]:
    return {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}
