"""How exactly matrix products are computed, whoever calls.

TPUs and GPUs round the operands of float32 products unless a program asks them not to.
So each traced function says what it needs, and no global flag decides.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_products_of(dtype: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function to be traced so that its matrix products keep their dtype.

    Args:
      dtype: of the computation. Of float32, operands are not rounded to less; products
        of a shorter dtype run as the device has them.
      function: pure; its gradient is taken within it, if at all.
    """
    level = "highest" if jnp.dtype(dtype) == jnp.float32 else "default"

    def traced(*arguments: Any) -> Any:
        with jax.default_matmul_precision(level):
            return function(*arguments)

    bare = function.func if isinstance(function, functools.partial) else function
    traced.__name__ = bare.__name__  # profiles and logs name programs by it
    return traced
