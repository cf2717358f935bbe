"""Lists large files of a corpus on workers: each reads one file at a time, so that all cores of a cluster do."""

from collections.abc import Generator, Sequence
from dataclasses import replace

import ray

from lorif_core.config import Config
from lorif_core.corpus.file_listing import FileListing
from lorif_core.corpus.shards import ListFiles
from lorif_core.errors import LorifError
from lorif_core.spec import FileTag
from lorif_core.storage.filesystem import SourceFile
from tasks.cluster import cluster
from tasks.dispatch import Failed, Workers
from tasks.memory import scan_settings
from tasks.workers.listing import ListingRole
from tasks.workers.start import start


def list_on_workers(config: Config) -> ListFiles:
    """What lists files of the corpus of a config on a worker for each core of its cluster."""

    def list_files(files: Sequence[SourceFile]) -> Generator[tuple[SourceFile, FileListing]]:
        with cluster(config.compute) as resources:
            single = replace(resources, cpus_per_worker=1)
            count = min(len(files), int(ray.cluster_resources().get("CPU", 1)))
            with Workers(
                lambda: start(ListingRole, single, config.corpus, config.storage),
                count, scan_settings(config.compute),
            ) as workers:  # fmt: skip
                # one call a worker, so that few results wait
                for outcome in workers.run(
                    files,
                    lambda host, file: host.call("list_file", file.uri, FileTag(file.name, file.etag, file.size)),
                    in_flight=1,
                ):
                    if isinstance(outcome, Failed):
                        raise outcome.fault or LorifError(
                            f"listing {outcome.item.uri} on a worker failed: {outcome.cause}"
                        )
                    yield outcome.item, outcome.result

    return list_files
