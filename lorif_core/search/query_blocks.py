"""How many queries are asked in one pass over the index, so that a worker stays within its memory.

What a pass needs beyond the stored codes of a few blocks of rows does not depend on the number of rows:

    folded queries   4 B x sum of d1 d2 over layers and parts, and      a quarter of the memory
                     what a quick look keeps of them
    scores           16 B x rows of a scanned block                     an eighth
    top k            400 B x 2 k, as kept and as it is merged           an eighth

each times the queries of the block; the codes take another eighth (`blocks.scan_rows`), and while queries are
encoded their gradients take as much as they do folded.
"""

from lorif_core.gradients.codes import CodeLayout
from lorif_core.search.prefilter import quick_bytes
from lorif_core.tables.blocks import scan_rows
from lorif_core.tables.generation import Generation

_BYTES_PER_SCORE = 16  # the score, two temporaries of a contraction, what the heaps compare
_BYTES_PER_HIT = 400  # a score and an id as Python objects, of what is kept and of what is merged into it


def queries_per_block(generation: Generation, k: int, memory_gb: float) -> int:
    """Queries of a block: at least one, however little memory there is."""
    memory = memory_gb * 2**30
    specs = [part.index_spec for part in generation.parts]
    layouts = [CodeLayout(spec.layers, spec.code) for spec in specs]
    rows = max(scan_rows(layout, memory_gb) for layout in layouts)
    return max(
        1,
        min(
            int(memory / 4 / sum(map(_bytes_of_query, layouts))),
            int(memory / 8 / (_BYTES_PER_SCORE * rows)),
            int(memory / 8 / (_BYTES_PER_HIT * 2 * k)),
        ),
    )


def _bytes_of_query(layout: CodeLayout) -> int:
    return 4 * sum(slot.layer.dim for slot in layout.slots) + quick_bytes(layout)
