"""`python -m dpo_jax VERB …`, also installed as `dpo-jax VERB …`."""

import sys

from dpo_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
