"""LDS of the attempts that `benchmarks.quality.moonshots` and `benchmarks.quality.inverses` have stored.

    python -m benchmarks.quality.attempts TESTBED DUMP RESULT.json

A code's difference is to the plain code of the same layers and rank, an inverse's to `kfac`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.finished import finished_truth, result_parser
from benchmarks.quality.layers import rounded
from benchmarks.run_record import write_result
from lorif_core.evaluation.lds import Truth, bootstrap


def main() -> None:
    arguments = result_parser(__doc__).parse_args()
    truth = finished_truth(arguments.testbed)
    result = {
        "testbed": arguments.testbed.name,
        "subsets": len(truth.losses),
        "codes": codes(arguments.dump, truth),
        "inverses": inverses(arguments.dump, truth),
    }
    write_result(arguments.result, result)


def codes(dump: Path, truth: Truth) -> dict[str, Any]:
    """By `ATTEMPT-RANK-LAYERS`: bytes, LDS, difference to the plain code."""
    scores, sizes = {}, {}
    for path in sorted((dump / "moonshots").glob("*.npz")):
        with np.load(path) as content:
            scores[path.stem], sizes[path.stem] = content["scores"], float(content["bytes"])
    plain = {name: "-".join(["plain", *name.rsplit("-", 2)[1:]]) for name in scores}
    pairs = [(name, other) for name, other in plain.items() if name != other and other in scores]
    singles, paired = bootstrap(scores, truth, pairs)
    return {
        name: {
            "bytes": round(sizes[name]),
            "lds": rounded(singles[name]),
            "minus_plain": rounded(paired[name, plain[name]]) if (name, plain[name]) in paired else None,
        }
        for name in scores
    }


def inverses(dump: Path, truth: Truth) -> dict[str, Any]:
    """By set of layers and variant: LDS and difference to K-FAC's inverse."""
    found = {}
    for path in sorted((dump / "inverses").glob("*.npz")):
        with np.load(path) as content:
            scores = dict(content)
        pairs = [(name, "kfac") for name in scores if name != "kfac"]
        singles, paired = bootstrap(scores, truth, pairs)
        found[path.stem] = {
            name: {
                "lds": rounded(singles[name]),
                "minus_kfac": rounded(paired[name, "kfac"]) if name != "kfac" else None,
            }
            for name in scores
        }
    return found


if __name__ == "__main__":
    main()
