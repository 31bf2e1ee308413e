"""One config-driven decoder and the HF families that it reads and writes.

`spec` says what a decoder is, `decoder` computes it, `attention` holds the mask of
token forests, `families` the HF dialects, `tensors` the way from theirs to ours,
`files` and `hf` the folders on disk. This room knows neither data, losses nor training;
it alone knows which Flax API is used.
"""
