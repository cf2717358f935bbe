"""Invariant: a lack of memory is recognised, whoever reports it, and the message says which setting to lower."""

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pyarrow as pa
import pytest
import ray.exceptions
import torch

from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.corpus.records import damaged_file_errors
from lorif_core.errors import MemoryExhaustedError, UserError
from lorif_core.model.loading import _loading
from lorif_core.out_of_memory import MemorySetting, is_out_of_memory, memory_exhausted
from lorif_core.storage.filesystem import find_files, storage_errors
from lorif_core.tables.datasets import table_errors

CUDA = (
    "CUDA out of memory. Tried to allocate {} GiB. GPU 0 has a total capacity of 79.10 GiB of which {} GiB is "
    "free. Process 7 has 74 GiB memory in use."
)
LANCE = "LanceError(IO): External error: RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried"


def chained() -> Exception:
    error = OSError("Io error: writing failed")
    error.__cause__ = MemoryError()
    return error


def allocate_too_much(library: str) -> Exception:
    """The error that a library raises by itself."""
    with pytest.raises(Exception) as raised:
        if library == "numpy":
            np.empty(2**55, np.uint8)
        elif library == "arrow":
            pa.allocate_buffer(2**55)
        elif library == "torch":
            torch.empty(2**55, dtype=torch.uint8)
        else:
            b" " * 2**62
    return raised.value


REAL = ["numpy", "arrow", "torch", "python"]
TOLD: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError(CUDA.format(20, 5)),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "system": lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
    "C++": lambda: RuntimeError("std::bad_alloc"),
    "ray": lambda: ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."),
    "lance": lambda: OSError(LANCE),
    "cause": chained,
}
OTHERS = [
    ValueError("out of memory"), OSError(errno.ENOSPC, "No space left on device"), UserError("a wrong corpus"),
    RuntimeError("CUDA error: device-side assert triggered"), RuntimeError("shape mismatch"),
]  # fmt: skip


def error_of(case: str) -> Exception:
    return TOLD[case]() if case in TOLD else allocate_too_much(case)


@pytest.mark.parametrize("case", [*REAL, *TOLD])
def test_a_lack_of_memory_is_recognised(case: str) -> None:
    assert is_out_of_memory(error_of(case))


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


PLACES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "a store": lambda: storage_errors("s3://bucket/corpus"),
    "a table": lambda: table_errors("s3://bucket/index"),
    "a corpus file": lambda: damaged_file_errors(find_files(__file__, StorageConfig(), [".py"])[0]),
    "a model": lambda: _loading(ModelConfig(path="./model")),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", [*REAL, *TOLD])
def test_no_file_or_store_is_blamed_for_it(place: str, case: str) -> None:
    error = error_of(case)
    with pytest.raises(Exception) as raised, PLACES[place]():
        raise error
    assert is_out_of_memory(raised.value) and not isinstance(raised.value, UserError)


TOKENS = MemorySetting("compute.tokens_per_batch", 8192, 1024)
MEMORY = MemorySetting("compute.memory_gb", 4.0)


@pytest.mark.parametrize(
    ("cause", "settings", "expected"),
    [
        ("MemoryError", [TOKENS], "compute.tokens_per_batch from 8192 to 4096"),
        ("MemoryError", [TOKENS, MEMORY], "from 8192 to 4096, or compute.memory_gb from 4 to 2"),
        ("MemoryError", [MemorySetting("compute.tokens_per_batch", 1500, 1024)], "from 1500 to 1024"),
        (CUDA.format("20.00", "5.00"), [TOKENS], "from 8192 to 2048"),
        (CUDA.format("21.00", "5.00"), [TOKENS], "from 8192 to 1024"),
        (CUDA.format("1.00", "5.00"), [TOKENS], "from 8192 to 4096"),
        (CUDA.format("20.00", "0.00"), [TOKENS], "from 8192 to 1024"),
    ],
)  # fmt: skip
def test_the_message_says_what_would_fit(cause: str, settings: list[MemorySetting], expected: str) -> None:
    error = memory_exhausted("a worker", cause, settings)
    assert isinstance(error, MemoryExhaustedError) and error.exit_code == 1
    assert expected in str(error) and "corpus" not in str(error)


def test_a_setting_that_cannot_be_lower_is_not_named() -> None:
    message = str(memory_exhausted("a worker", "MemoryError", [MemorySetting("compute.tokens_per_batch", 64, 64)]))
    assert "tokens_per_batch" not in message and "give it more memory" in message
