"""What a query cannot do without: import torch and transformers, load a model, one forward and backward pass.

    python -m benchmarks.plain_pass MODEL TEXT

It prints the loss. `benchmarks.query_start` compares `lorif query` with it.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    folder, text = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(text, return_tensors="pt").input_ids
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    print(f"{loss.item():.4f}")


if __name__ == "__main__":
    main()
