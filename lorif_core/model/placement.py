"""On which devices the weights of a model are loaded: directly, so that no copy is in the memory of the host."""

from typing import Any

import torch

from lorif_core.config import ModelConfig

_GPU_SHARE = 0.8  # of the free memory of a GPU for weights; batches, whitening and codes need the rest


def placement(config: ModelConfig, device: str | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` that place a model.

    `model.device_map` decides if it is set. Else the model goes to `device`, to the first GPU, or without GPUs to
    the CPU. What does not fit on the first GPU goes to the next ones that this process sees. On the CPU weights
    that keep their dtype stay in the file, which all processes of a node share.
    """
    if config.device_map is not None:
        return {"device_map": config.device_map}
    if device is not None or not torch.cuda.is_available():
        return {"device_map": {"": device or "cpu"}}
    if torch.cuda.device_count() == 1:
        return {"device_map": {"": "cuda:0"}}
    free = {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())}
    return {
        "device_map": "sequential",
        "max_memory": {gpu: int(_GPU_SHARE * available) for gpu, available in free.items()},
    }
