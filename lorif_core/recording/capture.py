"""Capture in an ordinary training: hooks that read the inputs and output gradients of the tracked layers.

A forward pass of the model opens a `Pass`, and the end of its backward pass closes it. Several forward passes may
come before one backward pass. Hooks change no tensor, except that a tracked output at which no gradient would
arrive, such as that of a frozen layer under an adapter, begins the graph there.

Shapes: B rows, T tokens, S examples, L tokens of the longest one, d1 and d2 projected sizes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lorif_core.errors import UserError
from lorif_core.gradients.projection import ProjectionSet, Side
from lorif_core.model.token_rows import rows_per_example
from lorif_core.recording.loss_scale import HeadWatch, LogProbs, LossScale, ReturnedLoss, returned_loss
from lorif_core.recording.training_batch import TrainingBatch
from lorif_core.recording.training_pass import Pass
from lorif_core.spec import LayerSpec, exclusion

TakePair = Callable[[Pass, int, torch.Tensor, torch.Tensor], None]
Guard = Callable[[Callable[[], Any]], Any]
"""Calls a function without autocast; if it fails, recording stops, and training goes on."""


class TrainingCapture:
    """Registers the hooks, and calls back with pairs and finished passes.

    Args:
        model: the module that the training calls, without wrappers such as DDP.
        layers: the tracked layers.
        modules: per layer the modules that have its weight.
        projections: P_in and P_out per layer.
        open_pass: the batch of a forward pass to record, given its inputs; None if it is not recorded.
        take: receives the pair of each layer, A (S, n, d1) and E (S, n, d2), of the token-summed loss.
        close_pass: called at the end of a backward pass.
        guard: guards every hook.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        layers: Sequence[LayerSpec],
        modules: Sequence[Sequence[torch.nn.Module]],
        projections: ProjectionSet,
        open_pass: Callable[[Mapping[str, Any]], TrainingBatch | None],
        take: TakePair,
        close_pass: Callable[[Pass], None],
        guard: Guard,
    ) -> None:
        self._layers, self._projections = layers, projections.layers
        self._open_pass, self._take, self._close_pass, self._guard = open_pass, take, close_pass, guard
        self._pass: Pass | None = None
        self._running: Pass | None = None
        self._newest: Pass | None = None
        self._watches_head = True
        self._handles = [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True, prepend=True),
            model.register_forward_hook(self._after_model, with_kwargs=True, always_call=True),
        ]
        if hasattr(model, "get_output_embeddings") and (head := model.get_output_embeddings()) is not None:
            self._handles.append(head.register_forward_hook(self._after_head))
        for index, of_layer in enumerate(modules):
            for module in of_layer:
                self._handles.append(module.register_forward_hook(self._layer_hook(index)))

    def use(self, projections: ProjectionSet) -> None:
        """Project with others from the next pass on."""
        self._projections = projections.layers

    def remove(self) -> None:
        """Remove the hooks; those of tensors in a running backward pass do nothing any more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for current in (self._pass, self._running, self._newest):
            if current is not None:
                current.is_done = True
                current.pairs.clear()
        self._pass = self._running = self._newest = None

    def _before_model(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids = kwargs.pop(IDS_KEY, None)
        if _in_backward():
            return args, kwargs  # a checkpoint around the whole model computes it again
        inputs = {**kwargs, **({"input_ids": args[0]} if args else {}), IDS_KEY: ids}
        is_training = module.training and torch.is_grad_enabled()
        batch = self._guard(lambda: self._open_pass(inputs)) if is_training else None
        self._running = None  # it stays after a backward pass that failed, or a second one through the same graph
        self._pass = self._newest = None if batch is None else Pass(batch)
        return args, kwargs

    def _after_model(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        current, self._pass = self._pass, None
        if current is None:
            return
        if current.head is not None and current.batch.is_first:
            self._guard(lambda: self._compare_head(current, getattr(output, "logits", None)))
        if current.batch.labels is not None:
            self._guard(lambda: self._watch_output(current, output, kwargs.get("num_items_in_batch")))

    def _watch_output(self, current: Pass, output: Any, items: Any) -> None:
        """Watch what a model returns with labels: a loss, and under TRL's trainers log-probabilities."""
        labels, segments = current.batch.labels, current.batch.segments
        assert labels is not None
        loss, log_probs = (getattr(output, name, None) for name in ("loss", "log_probs"))
        if log_probs is not None and log_probs.requires_grad and log_probs.shape == labels[:, 1:].shape:
            current.head = LogProbs(log_probs.detach(), labels, segments)
            log_probs.register_hook(lambda grad: self._guard(lambda: self._at_head(current, grad)))
        elif loss is not None and loss.requires_grad:
            returned = returned_loss(loss, labels.copy(), items, segments)
            loss.register_hook(lambda upstream: self._guard(lambda: self._at_loss(current, returned, upstream)))

    def _compare_head(self, current: Pass, logits: Any) -> None:
        """Watch the head no longer if the logits are not its outputs, which may be capped or scaled behind it."""
        if not isinstance(logits, torch.Tensor) or logits.shape[:-1] != current.batch.segments.shape:
            return
        if isinstance(current.head, HeadWatch) and not current.head.has_seen(logits):
            self._watches_head, current.head = False, None

    def _at_loss(self, current: Pass, returned: ReturnedLoss, upstream: torch.Tensor) -> None:
        self._begin(current)
        if current.scale is None:
            current.scale = returned.measure(upstream)

    def _after_head(self, module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        current = self._pass
        if current is None or not self._watches_head or not torch.is_grad_enabled():
            return
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            return
        segments = current.batch.segments
        if output.numel() != segments.shape[0] * segments.shape[1] * output.shape[-1]:
            return

        def watch() -> None:
            batch = current.batch
            logits = output.detach().reshape(*segments.shape, -1)
            current.head = HeadWatch(logits, batch.labels, segments, batch.input_ids)
            output.register_hook(lambda grad: self._guard(lambda: self._at_head(current, grad)))

        self._guard(watch)

    def _at_head(self, current: Pass, grad: torch.Tensor) -> None:
        self._begin(current)
        head = current.head
        if isinstance(head, HeadWatch):
            current.scale = self._checked(current, head.measure(grad, current.scale))
        elif head is not None:
            current.scale = self._checked(current, head.measure(grad))

    def _checked(self, current: Pass, measured: LossScale) -> LossScale:
        """The scale at the head, or that of the returned loss if the head is not linear.

        Only the first passes wait for it; a loss scaler may make their gradients overflow.
        """
        if not current.batch.is_first:
            return measured
        residual = float(measured.residual)
        current.is_checked = math.isfinite(residual)
        if residual > current.batch.largest_residual:
            if current.scale is None:
                raise UserError(
                    "the gradient at the output head is not that of a next-token cross-entropy, so its scale is "
                    "unknown; pass labels to the model, and train without label smoothing"
                )
            self._watches_head = False
            return current.scale
        return measured

    def _begin(self, current: Pass) -> None:
        """The backward pass of a forward pass begins."""
        self._running = current
        if not current.is_running:
            current.is_running = True
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: self._guard(lambda: self._end(current)))

    def _end(self, current: Pass) -> None:
        """The backward pass has ended: pass on what is left, and close it."""
        if current.is_done:
            return
        for index in list(current.pairs):
            self._flush(current, index)
        current.is_done = True
        if self._running is current:
            self._running = None
        self._close_pass(current)

    def _layer_hook(self, index: int) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            rerun = _in_backward()
            # the backward pass of a loss that nothing watches begins unseen
            current = self._running or self._newest if rerun else self._pass
            if current is None or not torch.is_grad_enabled():
                return None
            if rerun and index in current.kept:
                # a checkpoint computes again what the first run has kept, and refuses another graph
                return None if output.requires_grad else _begin_graph(output)
            if current.is_done or current.batch.is_early:
                return None
            return self._guard(lambda: self._watch(current, index, inputs, output, rerun))

        return hook

    def _watch(self, current: Pass, index: int, inputs: tuple[Any, ...], output: Any, rerun: bool) -> Any:
        if not isinstance(output, torch.Tensor) or len(inputs) != 1:
            raise self._refusal(index, f"returns {type(output).__name__} for {len(inputs)} inputs")
        changed = None
        if not output.requires_grad:
            output = changed = _begin_graph(output)
        if not rerun:
            current.kept.add(index)
        pairs = current.pairs[index]
        call, pairs.calls = pairs.calls, pairs.calls + 1
        pairs.inputs[call] = inputs[0].detach()
        output.register_hook(lambda grad: self._guard(lambda: self._at_layer(current, index, call, grad)))
        return changed

    def _at_layer(self, current: Pass, index: int, call: int, grad: torch.Tensor) -> None:
        if current.is_done:
            return
        self._begin(current)
        if current.scale is None:
            raise UserError(
                "the scale of the loss is unknown, because neither the logits of the whole batch nor a loss came "
                "from the model; pass labels to the model"
            )
        pairs = current.pairs[index]
        outer = self._project(index, self._projections[index].outer, grad, current)
        pairs.E[call] = outer * current.scale.inverse.to(outer.device)
        if len(pairs.E) == pairs.calls and index in current.kept:
            self._flush(current, index)

    def _flush(self, current: Pass, index: int) -> None:
        """Pass on the calls of a layer as one pair, along the tokens, and free them."""
        pairs = current.pairs.pop(index)
        if not pairs.E:
            return
        inner = self._projections[index].inner
        A = [self._project(index, inner, pairs.inputs[call], current) for call in pairs.E]
        E = list(pairs.E.values())
        joined = (A[0], E[0]) if len(E) == 1 else (torch.cat(A, dim=1), torch.cat(E, dim=1))
        self._take(current, index, *joined)

    def _project(self, index: int, side: Side, x: torch.Tensor, current: Pass) -> torch.Tensor:
        """(S, n, d): the rows of each example, projected."""
        segments = current.batch.segments
        rows = rows_per_example(x.shape, *segments.shape)
        if rows is None or (rows != segments.shape[1] and not segments.are_rows):
            raise self._refusal(index, f"has tensors of shape {tuple(x.shape)} for {segments.shape} tokens")
        matrix = getattr(side, "matrix", None)
        x = x.detach() if matrix is None else x.detach().to(matrix.dtype)
        with torch.no_grad():
            projected = side(x.reshape(segments.shape[0], rows, x.shape[-1]))
            return segments.split(projected)

    def _refusal(self, index: int, fault: str) -> UserError:
        name = self._layers[index].name
        return UserError(
            f"the layer {name} {fault}, so its gradient cannot be recorded; leave it out with model.exclude: "
            f"{exclusion([name])}"
        )


IDS_KEY = "lorif_ids"
"""Key of the ids in a batch; the model does not see it."""


def _begin_graph(output: torch.Tensor) -> torch.Tensor:
    """The output with a gradient; it is a clone, so that the model may change it in place."""
    return output.detach().requires_grad_(True).clone()


def _in_backward() -> bool:
    """Whether autograd runs a backward pass in this thread."""
    return torch._C._current_graph_task_id() != -1
