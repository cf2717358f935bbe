"""Small Llamas in which one layer is used in a way that a plain forward hook does not expect."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from tests.models import llama, scaled

LAYER = "model.layers.0.mlp.up_proj"


class _Odd(torch.nn.Module):
    """A gated MLP whose `up_proj` is used by `use`."""

    def __init__(self, mlp: torch.nn.Module, use: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = (
            mlp.gate_proj,
            mlp.up_proj,
            mlp.down_proj,
            mlp.act_fn,
        )
        self._use = use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self._use(self.up_proj, x))


class _Tuple(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        out = super().forward(x)
        return out.sigmoid(), out


def _without_gradient(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return layer(x)


def _sorted_rows(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    order = x.sum(dim=2).flatten().argsort()
    return layer(x.flatten(0, 1)[order])[order.argsort()].view(*x.shape[:2], -1)


USES: dict[str, Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]] = {
    "weight without a call": lambda layer, x: F.linear(x, layer.weight),
    "weight beside a call": lambda layer, x: layer(x) + F.linear(x.flip(2), layer.weight),
    "without gradient": _without_gradient,
    "once with, once without gradient": lambda layer, x: layer(x) * _without_gradient(layer, x),
    "one row too many": lambda layer, x: layer(F.pad(x, (0, 0, 1, 0)))[:, 1:],
    "tokens before examples": lambda layer, x: layer(x.transpose(0, 1)).transpose(0, 1),
    "sorted rows": _sorted_rows,
    "extra dimension": lambda layer, x: layer(x[:, None]).squeeze(1),
    "flat": lambda layer, x: layer(x.flatten(0, 1)).view(*x.shape[:2], -1),
    "cancelling": lambda layer, x: layer(x) / layer(x),
    "twice": lambda layer, x: layer(layer(x) @ layer.weight.detach() * 0.1 + x),
}


def with_use(name: str) -> torch.nn.Module:
    """A Llama whose first `up_proj` is used in that way."""
    model = scaled(llama())
    model.model.layers[0].mlp = _Odd(model.model.layers[0].mlp, USES[name])
    return model


def with_tuple_output() -> torch.nn.Module:
    """A Llama whose first `up_proj` returns two tensors."""
    model = with_use("flat")
    mlp = model.model.layers[0].mlp
    layer = _Tuple(mlp.up_proj.in_features, mlp.up_proj.out_features, bias=False)
    layer.load_state_dict(mlp.up_proj.state_dict())
    mlp.up_proj, mlp._use = layer, lambda layer, x: sum(layer(x))
    return model


def with_shared_weight() -> torch.nn.Module:
    """A Llama whose two blocks have the same `up_proj` weight."""
    model = scaled(llama())
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    return model
