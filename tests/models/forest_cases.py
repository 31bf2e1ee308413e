"""Rows of token forests, said in lengths."""

import jax.numpy as jnp
import numpy as np

from dpo_jax.models import forest


def cells(tokens, rows):
    """Lays out rows of documents (prompt, *responses), padded to `tokens`."""
    found = []
    for documents in rows:
        row = []
        for doc, (prompt, *responses) in enumerate(documents, start=1):
            row += [(doc, 0, p) for p in range(prompt)]
            for branch, length in enumerate(responses, start=1):
                row += [(doc, branch, prompt + p) for p in range(length)]
        found.append(row + [(0, 0, 0)] * (tokens - len(row)))
    return forest.cells_of(*jnp.asarray(np.array(found, np.int32).transpose(2, 0, 1)))
