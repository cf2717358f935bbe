"""Invariant: a recorded row is the row that a build makes at the same weights, however the loss was scaled, the
batch was made and the pass was run; and recording changes no bit of the trained weights.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lorif_core.corpus.tokenise import Example
from lorif_core.recording.record import record
from lorif_core.recording.training_batch import content_key
from tests.models import gpt2, llama, llama_lora, neox, scaled
from tests.unit.recording.trainings import (
    COLUMNS,
    EXACT,
    Loss,
    batches_of,
    built_rows,
    corpus_of,
    differing,
    journal_rows,
    padded,
    recorded,
    texts,
    train,
)

EXAMPLES = texts(24)
CORPUS = corpus_of(EXAMPLES)


def padded_batches() -> list[dict[str, torch.Tensor]]:
    return [padded(batch) for batch in batches_of(EXAMPLES, 4)]


def left_padded_batches() -> list[dict[str, torch.Tensor]]:
    batches = [padded(batch, left=True) for batch in batches_of(EXAMPLES, 4)]
    for batch in batches:
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return batches


def packed_batches() -> list[dict[str, torch.Tensor]]:
    """One row for four examples, as DataCollatorWithFlattening makes them."""
    from transformers import DataCollatorWithFlattening

    collator = DataCollatorWithFlattening(return_tensors="pt")
    return [
        {
            **collator([{"input_ids": e.input_ids.tolist(), "labels": e.labels.tolist()} for e in batch]),
            "use_cache": False,  # a cache lets documents see one another
        }
        for batch in batches_of(EXAMPLES, 4)
    ]


def own_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """A loss outside of the model, which does not see the labels, with a factor of a loss scaler."""
    labels = batch["labels"]
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    flat = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return 1024 * torch.nn.functional.cross_entropy(*flat, ignore_index=-100)


def loss_per_item(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch, num_items_in_batch=torch.tensor(77)).loss


def model_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).loss


def rows_and_built(
    model: torch.nn.Module, folder: Path, batches: Sequence[dict[str, torch.Tensor]], settings: dict[str, Any],
    examples: Sequence[Example] = EXAMPLES, **loop: Any,
) -> dict[str, Any]:  # fmt: skip
    """Differences between rows recorded at frozen weights over two epochs, and built ones."""
    with record(model, **recorded(folder, corpus=CORPUS, columns=COLUMNS, **settings)) as recorder:
        train(model, [*batches, *batches], recorder, **loop)
    assert recorder.stopped is None
    return differing(journal_rows(folder)[2], built_rows(model, recorder, examples), examples, recorder)


def check(found: dict[str, Any], tolerance: float = 2e-4) -> None:
    assert found["missing"] == 0
    assert found["gradients"][-1] < tolerance and found["losses"] < 1e-3, found


@pytest.mark.parametrize("make", [gpt2, llama, neox], ids=["gpt2", "llama", "neox"])
@pytest.mark.parametrize("code", ["rank", "cut", "dense"])
def test_rows_equal_those_of_a_build(make: Callable[[], Any], code: str, tmp_path: Path) -> None:
    model = scaled(make())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if code == "rank":
        check(rows_and_built(model, tmp_path, padded_batches(), EXACT))
        return
    signs = {"kind": "cut", "rank": 2, "dtype": "sign"} if code == "cut" else {"kind": "dense", "dtype": "sign"}
    found = rows_and_built(model, tmp_path, padded_batches(), {**EXACT, "code": signs})
    gradients = found["gradients"]
    assert found["missing"] == 0 and gradients[len(gradients) // 2] < 2e-4, found
    # a value near zero may get the other sign, of which a search makes more
    assert gradients[-1] < (0.02 if code == "dense" else 1.0), found


@pytest.mark.parametrize("loss", [model_loss, own_loss, loss_per_item])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_scale_of_the_loss_is_undone(loss: Loss, accumulate: int, tmp_path: Path) -> None:
    check(rows_and_built(scaled(llama()), tmp_path, padded_batches(), EXACT, loss=loss, accumulate=accumulate))


@pytest.mark.parametrize("batches", [left_padded_batches, packed_batches])
def test_examples_are_cut_out_of_batches(batches: Callable[[], Any], tmp_path: Path) -> None:
    check(rows_and_built(scaled(llama()), tmp_path, batches(), EXACT))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_pass_counts_once(reentrant: bool, tmp_path: Path) -> None:
    model = scaled(llama())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    check(rows_and_built(model, tmp_path, padded_batches(), EXACT))


def model_that_knows(examples: Sequence[Example]) -> torch.nn.Module:
    """A model whose loss of the examples, one a batch, is 1e-2."""
    model = llama().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        for example in examples:
            model_loss(model, padded([example])).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize("loss", [model_loss, own_loss])
def test_memorised_examples_do_not_end_the_recording(loss: Loss, tmp_path: Path) -> None:
    examples = texts(4)
    for example in examples:
        example.labels[:-2] = -100
    model, batches = model_that_knows(examples), [padded([example]) for example in examples]
    arguments = recorded(
        tmp_path,
        corpus=corpus_of(examples),
        columns=COLUMNS,
        **{**EXACT, "projection": {"calibration_examples": 4}},
    )
    with record(model, **arguments) as recorder:
        train(model, batches * 2, recorder, loss=loss)
        for _ in range(3):  # the loss becomes 0 in float32
            with torch.no_grad():
                model.lm_head.weight.mul_(2)
            train(model, batches, recorder, loss=loss)
    assert recorder.stopped is None
    rows = journal_rows(tmp_path)[2]
    assert rows.keys() == {content_key(example.input_ids, example.labels) for example in examples}
    for of_example in rows.values():
        losses = [row["loss"] for row in of_example]
        assert [row["fault"] for row in of_example] == [None] * 4
        assert losses == sorted(losses, reverse=True) and losses[-1] == 0.0


def with_frozen_blocks() -> torch.nn.Module:
    """A model that trains the last of three MLPs and the head; each block is in a checkpoint of torch."""
    model = scaled(llama(num_hidden_layers=3, use_cache=False))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.2.mlp" in name or "lm_head" in name)
    model.model.layers = torch.nn.ModuleList(checkpoint_wrapper(block) for block in model.model.layers)
    return model


def test_frozen_layers_in_a_checkpoint_are_recorded(tmp_path: Path) -> None:
    check(rows_and_built(with_frozen_blocks(), tmp_path, padded_batches(), EXACT))


def test_a_wrapper_changes_no_name_of_a_layer(tmp_path: Path) -> None:
    names = []
    for is_wrapped in (False, True):
        model = llama(use_cache=False)
        blocks = model.model.layers
        if is_wrapped:
            blocks[0].mlp.gate_proj = checkpoint_wrapper(blocks[0].mlp.gate_proj)
            blocks[1] = checkpoint_wrapper(checkpoint_wrapper(blocks[1]))
        settings = {**EXACT, "model": {"layers": r"layers\.\d\.mlp", "exclude": r"1\.mlp\.up"}}
        arguments = recorded(tmp_path / str(is_wrapped), corpus=CORPUS, columns=COLUMNS, **settings)
        with record(model, **arguments) as recorder:
            train(model, padded_batches(), recorder)
        assert recorder.stopped is None and recorder._whitening is not None
        names.append(([layer.name for layer in recorder._tracked.layers], recorder._whitening.name))
    assert names[0] == names[1] and len(names[0][0]) == 5


def twice(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    loss = model_loss(model, batch)
    loss.backward(retain_graph=True)
    return loss


@pytest.mark.parametrize("loss", [model_loss, own_loss, twice])
def test_recording_does_not_disturb_frozen_layers_in_a_checkpoint(loss: Loss, tmp_path: Path) -> None:
    def trained(recording: bool) -> dict[str, torch.Tensor]:
        model, batches = with_frozen_blocks(), padded_batches()
        model.get_output_embeddings = lambda: None  # type: ignore[assignment]  # nothing watches the loss outside
        if recording:
            with record(model, **recorded(tmp_path, corpus=CORPUS, columns=COLUMNS, **EXACT)) as recorder:
                train(model, batches[:4], recorder, rate=1e-4, loss=loss)
                recorder.enabled = False
                train(model, batches, recorder, rate=1e-4, loss=loss, first=4)
            assert (recorder.stopped is not None) == (loss is own_loss)
        else:
            train(model, batches, rate=1e-4, loss=loss)
        return model.state_dict()

    plain, with_rows = trained(False), trained(True)
    assert all(torch.equal(plain[name], with_rows[name]) for name in plain)


def test_a_head_that_caps_logits_is_scaled_by_the_returned_loss(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=12, vocab_size=61, final_logit_softcapping=2.0, max_position_embeddings=64, pad_token_id=0,
        attn_implementation="eager",
    )  # fmt: skip
    model = scaled(Gemma2ForCausalLM(config))
    found = rows_and_built(model, tmp_path, padded_batches(), EXACT, accumulate=2)
    assert found["missing"] == 0 and found["gradients"][-1] < 1e-3, found


def test_two_forward_passes_may_come_before_one_backward_pass(tmp_path: Path) -> None:
    def both(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        halves = [{key: value[half] for key, value in batch.items()} for half in (slice(0, 2), slice(2, 4))]
        return sum((model(**half).loss for half in halves), start=torch.zeros(()))

    check(rows_and_built(scaled(llama()), tmp_path, padded_batches(), EXACT, loss=both))


def test_adapters_are_recorded(tmp_path: Path) -> None:
    settings = {**EXACT, "model": {"layers": "q_proj|v_proj"}}
    found = rows_and_built(llama_lora(), tmp_path, padded_batches(), settings)
    check(found, 1e-3)


def test_rows_under_autocast_are_near_those_of_a_build(tmp_path: Path) -> None:
    def half(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(**batch).loss

    found = rows_and_built(llama(), tmp_path, padded_batches(), EXACT, loss=half)
    assert found["missing"] == 0 and found["gradients"][-1] < 0.3 and found["losses"] < 0.05, found


@pytest.mark.parametrize("code", [EXACT["code"], {"kind": "cut", "rank": 2, "dtype": "sign"}])
@pytest.mark.parametrize("kind", ["none", "adam"])
def test_a_backward_pass_within_autocast_makes_the_same_rows(
    kind: str, code: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**EXACT, "code": code, "curvature": {"kind": kind}}
    rows = []
    for is_within in (False, True):
        model, folder = llama(), tmp_path / str(is_within)
        with record(model, **recorded(folder, corpus=CORPUS, columns=COLUMNS, **settings)) as recorder:
            optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.0)
            for batch in padded_batches():
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = model(**batch).loss
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_within):
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
        assert recorder.stopped is None
        rows.append(journal_rows(folder)[2])
    assert rows[0] == rows[1] and rows[0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trained_weights_are_the_same_bit_for_bit(checkpointing: bool, tmp_path: Path) -> None:
    def trained(recording: bool) -> dict[str, torch.Tensor]:
        model = scaled(llama(attention_dropout=0.2))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(1)
        if recording:
            with record(model, **recorded(tmp_path, corpus=CORPUS, columns=COLUMNS, **EXACT)) as recorder:
                train(model, padded_batches(), recorder, rate=0.1)
            assert recorder.stopped is None and journal_rows(tmp_path)[2]
        else:
            train(model, padded_batches(), rate=0.1)
        return model.state_dict()

    plain, with_rows = trained(False), trained(True)
    assert all(torch.equal(plain[name], with_rows[name]) for name in plain)
