"""Invariant: every process of a build has an estimate, whatever the size of the model, without weights."""

import pytest
import torch

from lorif_core.gradients.byte_budget import code_spec
from lorif_core.gradients.footprint import BatchShape
from lorif_core.lifecycle.memory_plan import MemoryPlan, plan_memory, projection_bytes, weight_bytes
from lorif_core.lifecycle.plan import projection_spec
from lorif_core.lifecycle.tracking import layers_of_model
from lorif_core.model.layers import layer_specs, select_layers
from lorif_core.spec import CodeSpec, IndexSpec, ProjectionSpec
from tests.models import llama
from tests.real_shapes import llama_skeleton
from tests.unit.lifecycle.test_tracking import config_of

GIB = 2**30


def plan_of(size: str, tokens: int = 512, **keys: object) -> MemoryPlan:
    model, config = llama_skeleton(size).model, config_of(**keys)
    layers = layers_of_model(config, model, {}).specs
    spec = IndexSpec("", "bfloat16", layers, projection_spec(config), code_spec(config.code, layers), None)  # type: ignore[arg-type]
    return plan_memory(model, spec, BatchShape(2, tokens), config.compute.memory_gb)


@pytest.mark.parametrize(("size", "weights"), [("1B", 2.8), ("8B", 15), ("70B", 131)])
def test_large_models_have_plans(size: str, weights: float) -> None:
    plan = plan_of(size)
    assert plan.weights == pytest.approx(weights * GIB, rel=0.05)
    peaks = (plan.calibration, plan.indexing, plan.query)
    assert all(peak is not None and plan.weights < peak < 2 * plan.weights + 4 * GIB for peak in peaks)
    assert plan.driver < 2 * GIB


def test_longer_batches_need_more_memory() -> None:
    short, long = plan_of("1B", 128), plan_of("1B", 512)
    assert (short.indexing or 0) < (long.indexing or 0) and (short.query or 0) < (long.query or 0)


def test_nothing_to_calibrate_needs_no_memory_for_it() -> None:
    assert plan_of("1B", preset="paper").calibration is None


def test_weights_count_once_and_in_the_dtype_of_the_model() -> None:
    model = llama()
    model.lm_head.weight = model.get_input_embeddings().weight
    parameters = sum(weight.numel() for weight in model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert weight_bytes(model, "float32") == 4 * parameters + buffers
    assert weight_bytes(model, "bfloat16") == 2 * parameters + buffers


def test_matrices_of_random_projections_are_those_that_are_made() -> None:
    from lorif_core.gradients.projection import DenseSide, ProjectionSet

    model, projection = llama(), ProjectionSpec("random", 4)
    layers = layer_specs(select_layers(model), 4)
    made = ProjectionSet(layers, projection, [(torch.device("cpu"), torch.float32)] * len(layers))
    sides = {id(side): side for layer in made.layers for side in (layer.inner, layer.outer)}
    matrices = [side.matrix for side in sides.values() if isinstance(side, DenseSide) and side.matrix is not None]
    spec = IndexSpec("", "float32", layers, projection, CodeSpec(), None)  # type: ignore[arg-type]
    # o_proj and q_proj read different tensors, but have one parent and one shape, so that they share a matrix
    assert projection_bytes(spec) == sum(matrix.nbytes for matrix in matrices)
