"""`lorif check`: everything a build needs, tried before anything is spent, and what the build will cost."""

import time
from typing import Any

from botocore.exceptions import BotoCoreError

from lorif_core.batches import token_budget_batches
from lorif_core.config import Config
from lorif_core.errors import UserError
from lorif_core.faults import one_line
from lorif_core.filesystem import open_filesystem
from lorif_core.plan import BuildPlan, make_plan
from lorif_core.shard import ShardIndexer
from tasks.cluster import cluster

_TIMED_BATCHES = 20


def check(config: Config) -> dict[str, Any]:
    """Try corpus, tokeniser, model, layers, index location and Ray; the plan as plain values.

    Raises:
        UserError: the first thing that is wrong, with its fix.
        LorifError: Ray does not answer or has not the GPUs asked for.
    """
    plan = make_plan(config)
    _probe_writable(config)
    with cluster(config.compute) as resources:
        workers, gpus = resources.workers, resources.workers * resources.gpus_per_worker
    sample = _time_sample(config, plan)
    tokens = round(sample["tokens_per_record"] * plan.rows)
    examples = round(sample["examples_per_record"] * plan.rows)
    layout = plan.layout
    return {
        "records": plan.rows,
        "shards": len(plan.shards),
        "examples": examples,
        "tokens": tokens,
        "layers": len(plan.spec.layers),
        "coverage": plan.coverage.sentence(),
        "spec": plan.spec.hash,
        "bytes_per_example": layout.bytes_per_example,
        "dense_bytes_per_example": layout.dense_bytes_per_example(),
        "index_bytes": layout.bytes_per_example * examples,
        "workers": workers,
        "gpus": gpus,
        "tokens_per_second": sample["tokens_per_second"],
        "estimated_hours": tokens / sample["tokens_per_second"] / (workers if gpus else 1) / 3600,
    }


def _probe_writable(config: Config) -> None:
    """Write and remove one small object beside the tables."""
    fs, path = open_filesystem(config.index, config.storage)
    probe = f"{path}/.lorif-probe"
    makes_folder = "file" in fs.protocol and not fs.exists(path)  # on S3 it would make a missing bucket
    try:
        if makes_folder:
            fs.makedirs(path)
        fs.pipe_file(probe, b"lorif check")
        fs.rm_file(probe)
        if makes_folder:
            fs.rmdir(path)
    except (OSError, BotoCoreError) as error:
        raise UserError(
            f"the index location {config.index} cannot be written: {one_line(error)}; give this user "
            f"permission to write there, or name another index"
        ) from None


def _time_sample(config: Config, plan: BuildPlan) -> dict[str, float]:
    """Tokenise the first shard and run up to 20 batches of it; rates and sizes per record."""
    indexer = ShardIndexer(config, plan.spec)
    shard = plan.shards[0]
    examples = list(indexer.read(shard))
    scored = [example for example in examples if example.scored]
    if not scored:
        raise UserError(f"no token of the first shard {shard.key} would be scored; check the corpus columns")
    tokens = sum(len(example.input_ids) for example in examples)
    lengths = [len(example.input_ids) for example in scored]
    batches = token_budget_batches(lengths, config.compute.tokens_per_batch)[:_TIMED_BATCHES]
    timed = [scored[i] for batch in batches for i in batch]
    indexer.encode([scored[i] for i in batches[-1]])  # the first batch pays for allocations
    started = time.perf_counter()
    indexer.encode(timed)
    seconds = time.perf_counter() - started
    return {
        "tokens_per_record": tokens / shard.rows,
        "examples_per_record": len(examples) / shard.rows,
        "tokens_per_second": sum(len(example.input_ids) for example in timed) / seconds,
    }
