"""The role of a listing: it reads files to count their rows and to hash their ids."""

from lorif_core.config import CorpusConfig, StorageConfig
from lorif_core.corpus.file_listing import FileListing, list_file
from lorif_core.spec import FileTag
from lorif_core.storage.filesystem import SourceFile, open_source


class ListingRole:
    """Reads one file at a time, on the one core that it has. It needs no model, and does not import torch."""

    def __init__(self, corpus: CorpusConfig, storage: StorageConfig, threads: int) -> None:
        self._corpus, self._storage = corpus, storage

    def list_file(self, uri: str, tag: FileTag) -> FileListing:
        """List the file at a URI; see `list_file`."""
        fs, path = open_source(uri, self._storage)
        return list_file(self._corpus, SourceFile(fs, path, uri, tag.name, tag.etag, tag.size))
