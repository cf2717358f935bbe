"""The number of queries that one pass over the index scores, so that a worker stays within its memory.

Beyond the codes of a few blocks of rows, the memory of a pass does not depend on the number of rows. Per query:

    folded query   4 B x sum of d1 d2 over layers and parts,     a quarter of the memory
                   plus its copy for the prefilter
    scores         16 B x rows of a scanned block                an eighth
    top k          400 B x 2 k, stored and during a merge        an eighth
                   and 4 KiB for the counts of all scores

The codes take another eighth (`blocks.scan_rows`). While queries are encoded, their gradients take as much memory
as the folded queries do later.
"""

from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.prefilter import prefilter_bytes
from lorif_core.tables.blocks import scan_rows
from lorif_core.tables.generation import Generation

_BYTES_PER_SCORE = 16  # the score, two temporaries of a contraction, the comparison in the heaps
_BYTES_OF_COUNTS = 4096
_BYTES_PER_HIT = 400  # a score and an id as Python objects, in the top k and in the one that is merged into it


def queries_per_block(generation: Generation, k: int, memory_gb: float) -> int:
    """Queries of a block; at least one, even if that exceeds the memory."""
    memory = memory_gb * 2**30
    specs = [part.index_spec for part in generation.parts]
    layouts = [CodeLayout(spec.layers, spec.code) for spec in specs]
    rows = max(scan_rows(layout, memory_gb) for layout in layouts)
    return max(
        1,
        min(
            int(memory / 4 / sum(map(_bytes_of_query, layouts))),
            int(memory / 8 / (_BYTES_PER_SCORE * rows)),
            int(memory / 8 / (_BYTES_PER_HIT * 2 * k + _BYTES_OF_COUNTS)),
        ),
    )


def _bytes_of_query(layout: CodeLayout) -> int:
    return 4 * sum(slot.layer.dim for slot in layout.slots) + prefilter_bytes(layout)
