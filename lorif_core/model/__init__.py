"""The model: a checkpoint, loaded; the layers that are tracked in it; and its token-summed loss.

In: `ModelConfig`. Out: a `LoadedModel` that knows its fingerprint, and `LayerSpec`s. Open `loading.py`
first.
"""
