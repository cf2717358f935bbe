"""The page of benchmarks, from `benchmarks/results/*.json`."""

from docs_generators.build_benchmarks import build_sections
from docs_generators.demo_benchmarks import demo_sections
from docs_generators.layers_benchmarks import layers_sections
from docs_generators.likelihood_benchmarks import likelihood_sections
from docs_generators.markdown import page
from docs_generators.method_benchmarks import method_sections
from docs_generators.plans_benchmarks import plans_sections
from docs_generators.pretrained_benchmarks import pretrained_sections
from docs_generators.quality_benchmarks import quality_sections
from docs_generators.recording_benchmarks import recording_sections
from docs_generators.search_benchmarks import search_sections

_INTRODUCTION = """\
# Benchmarks

Every table on this page is drawn from a file in `benchmarks/results/` when the site is built. Each section
says what was measured, what the numbers do not show, when and on which machine they were measured, and which
command measures them again. Quality was measured on small language models. Times are from one small machine,
which other work shared at times: a ratio of two times from the same run is steadier than either time.
"""


def benchmarks_page() -> str:
    """The page `benchmarks.md`."""
    return page(
        _INTRODUCTION,
        "## Quality of attribution {#quality}",
        *method_sections(),
        *quality_sections(),
        *layers_sections(),
        *likelihood_sections(),
        *demo_sections(),
        "## Speed and memory {#speed}",
        *build_sections(),
        *search_sections(),
        *pretrained_sections(),
        *plans_sections(),
        *recording_sections(),
    )
