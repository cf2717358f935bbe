"""The hook that MkDocs calls: adds generated pages and pictures, and refuses a site that loads from elsewhere."""

from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from docs_generators.benchmark_results import REPOSITORY, RESULTS
from docs_generators.benchmarks_page import benchmarks_page
from docs_generators.commands_reference import commands_page
from docs_generators.config_reference import config_page, evaluation_page
from docs_generators.data_flow_diagram import data_flow_svg
from docs_generators.http_reference import http_page
from docs_generators.models_reference import models_page
from docs_generators.offline_check import loads_from_elsewhere
from docs_generators.tables_reference import tables_page
from docs_generators.wings_diagram import wings_svg

GENERATED: dict[str, Callable[[], str]] = {
    "reference/config.md": config_page,
    "reference/models.md": models_page,
    "reference/evaluation.md": evaluation_page,
    "reference/commands.md": commands_page,
    "reference/tables.md": tables_page,
    "reference/http.md": http_page,
    "benchmarks.md": benchmarks_page,
    "assets/wings.svg": lambda: wings_svg(REPOSITORY),
    "assets/data-flow.svg": data_flow_svg,
}
COPIED = {"assets/lds.svg": RESULTS / "quality-large" / "lds.svg"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made from the code and from the results of the benchmarks."""
    for name, make in GENERATED.items():
        files.append(File.generated(config, name, content=make()))
    for name, source in COPIED.items():
        files.append(File.generated(config, name, abs_src_path=str(REPOSITORY / source)))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Fail if a page would load anything from another host."""
    addresses = list(loads_from_elsewhere(Path(config.site_dir)))
    if addresses:
        raise PluginError(f"these pages load from elsewhere: {'; '.join(addresses)}")
