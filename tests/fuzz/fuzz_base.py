"""Makes the unmutated inputs: rows, models of several families, a finished run."""

import json
from pathlib import Path

import jax
from fuzz_cases import Base, training
from models.family_cases import CONFIGS, LLAMA3, LONGROPE, YARN
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dpo_jax import cli
from dpo_jax.models import decoder, hf

TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "phi3", "qwen3")
FACTORS = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 3.0, 5.0, 7.0]}
ROPES = {"llama3": LLAMA3, "yarn": YARN, "longrope": LONGROPE | FACTORS}
SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
VOCABULARY = 300
TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = "the film was good bad dull fine and long but never quite so very much".split()


def make(folder: Path) -> Base:
    """Writes all inputs into an empty folder."""
    base = Base(folder)
    _rows(base)
    tokenizer = _tokenizer()
    for name in (*FAMILIES, *ROPES):
        _model(folder / "models" / name, name, tokenizer)
    _run(base)
    return base


def _sentence(n: int, words: int) -> str:
    return " ".join(WORDS[(n * 7 + i * (n + 3)) % len(WORDS)] for i in range(words))


def _rows(base: Base) -> None:
    pairs, chats, singles, rankings, messages = [], [], [], [], []
    for n in range(12):
        asked, good, bad = _sentence(n, 6), _sentence(n + 20, 5), _sentence(n + 40, 4)
        pairs.append({"prompt": asked, "chosen": f" {good}", "rejected": f" {bad}"})
        answers = [[{"role": "assistant", "content": text}] for text in (good, bad)]
        asking = [{"role": "user", "content": asked}]
        chats.append({"prompt": asking, "chosen": answers[0], "rejected": answers[1]})
        singles.append({"prompt": asked, "completion": f" {good}", "label": n % 2 == 0})
        listed = [f" {good}", f" {bad}", f" {good} {bad}"]
        ranked = {"prompt": asked, "responses": listed, "ranking": [n % 3, (n + 1) % 3]}
        ranked["ranking"].append(3 - sum(ranked["ranking"]))
        rankings.append(ranked | {"scores": [0.5, 1.5, n]})
        whole = {"messages": [*asking, *answers[0]], "tools": [TOOL]}
        messages.append(whole)
    chats[0] |= {"system": "be brief"}
    named = {"pairs": pairs, "chats": chats, "singles": singles, "rankings": rankings}
    for name, rows in (named | {"messages": messages}).items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (base.folder / f"{name}.jsonl").write_text(text)


def _tokenizer() -> PreTrainedTokenizerFast:
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own.train_from_iterator([_sentence(n, 30) for n in range(40)], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = TEMPLATE
    return made


def _model(folder: Path, name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    config = CONFIGS.get(name) or CONFIGS["llama"] | {"rope_scaling": ROPES[name]}
    config = config | {"vocab_size": VOCABULARY}
    spec = hf.spec_of(config)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = jax.device_put(decoder.init_params(spec, jax.random.key(0)), place)
    hf.save_params(params, spec, folder, max_shard_bytes=60_000)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer.save_pretrained(folder)


def _run(base: Base) -> None:
    changed = {
        "objective": "preference",
        "loss__name": "dpo",
        "ref__mode": "live",
        "train__steps": 4,
        "checkpoint__every_steps": 2,
        "data__eval": base.pairs,
    }
    argv = [a.format(case=base.folder) for a in training(base, **changed)]
    code = cli.main(["dpo_jax", *argv])
    assert code == 0, f"the unmutated run ends with {code}"
