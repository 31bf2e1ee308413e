"""One config-driven decoder and the HF families that it reads and writes.

`spec` says what a decoder is, `decoder` scans the layer of `blocks`, `forest` says who
sees whom, `attention` picks what computes it (`blockwise`, or `splash` on TPUs), `rope`
holds the angles, `scalar` the head of reward models; `families` are the HF dialects,
`tensors` the way from theirs to ours, `files` and `hf` the folders on disk. This room
knows neither data, losses nor training; it alone knows which Flax API is used.
"""
