"""Recording: rows of an index from the backward passes of a training that runs anyway.

In: a model in training, and the corpus that it is trained on. Out: a generation whose rows were "recorded during
training, steps a to b". Open `recorder.py` first.

Design:

- **Capture.** Every forward pass that needs gradients opens a `Pass`. Hooks on the tracked layers keep their
  inputs and project the gradients that the ordinary backward pass sends to their outputs (`capture.py`). They
  change no tensor of the training. A layer that runs again within a backward pass (gradient checkpointing)
  counts only where the first run had no gradient. Rows are cut out of packed sequences (`segments.py`).
- **Scale.** At the output head the gradient of a token-summed cross-entropy is softmax - onehot. The one that
  arrives is a multiple of it: the product of whatever the loss was divided and multiplied by. This factor is
  measured at a few tokens of every pass and undone (`loss_scale.py`), so no setting of the training must be known.
- **Whitening.** Covariances of the first steps after the warm-up become the whitening of all rows; all processes
  use the same roots. They go on accumulating, and the last ones are the metric of the queries (`metric.py`).
- **Journal.** Rows leave the training in the order in which they arise, by a thread behind it, in pieces of a few
  MiB in `_lorif/recording/` of the index (`journal.py`, `writer.py`). A row has the step of its pass, a piece the
  attempt that wrote it. A restore begins a new attempt at a step; rows of earlier attempts above it are void. So
  nothing is doubled, and a training that is killed ends with the rows of an undisturbed one.
- **Identity.** Rows are joined to the examples of the corpus by their tokens and labels, which a build must have
  alike anyway, so neither a sampler nor a collator has to be trusted. Without a corpus, ids come in a column of
  the batch, and what the training saw becomes the corpus (`training_batch.py`, `recorded_examples.py`).
- **Publishing.** At the end the corpus is read once, each example takes its last row (or the mean of its rows),
  and shards are written, receipted and committed in waves as in a build (`publishing.py`). The rows are a part of
  their own that follows the final checkpoint, as after continued pretraining: queries are asked there, in the
  newest metric, and `lorif update` measures the drift of the rows and computes them anew beyond `max_drift`.
- **Never in training's way.** Whatever fails in a hook, a thread or the store stops the recording with one logged
  sentence. What is in the journal stays; the next restore goes on with it.
"""
