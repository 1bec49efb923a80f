"""Input: from a data set's name to batches on the devices.

In the order the data flows: `datasets` (what is on disk) -> `records` (random access to its files) -> `stream` (which
record at which position) -> `train_distortions` / `evaluation_crops` (record to pixels) -> `pipeline` (batches on the
host) -> `device` (batches on the devices) -> `color_distortions` (of training images, on the devices) ->
`preprocessing` (pixels to network input, on the devices).

There is no hidden state: what a training step sees is a function of (data set, seed, step) alone. So a run resumes at
any step at no cost, and any number of hosts reads the same batches.
"""
