"""Checkpoints: how they are located and loaded, which layers are tracked, and the token-summed loss.

Input: `ModelConfig`. Output: a `LoadedModel`, its fingerprint, and `LayerSpec`s. Open `loading.py` first.
"""
