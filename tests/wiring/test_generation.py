"""Whose prompts are sampled, by what model, and what a rollout leaves in a report."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dpo_jax import logps
from dpo_jax.configs import quickstart
from dpo_jax.data.sources import sentiment
from dpo_jax.data.tokenize import tokenize
from dpo_jax.errors import ConfigError, DataError, ModelError
from dpo_jax.evals.rollouts import Rollout
from dpo_jax.models import hf
from dpo_jax.models.decoder import init_params
from dpo_jax.models.scalar import scalar_spec
from dpo_jax.models.spec import preset
from dpo_jax.rewards.ask import Reward
from dpo_jax.sampling import batches, rollout
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.types import Samples
from dpo_jax.wiring import generation, sampled_results, weights
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring import sampled as sampled_lib
from dpo_jax.wiring.generation import SampleRequest
from dpo_jax.wiring.reading import request_of, sources_of

REQUEST = SampleRequest("", 0, 1, 8, 1.0, 0, 1.0, 0.0, (), 0, 8)
WORDS = ("film", "plot", "hero", "scene", "music")
PAIR = {"chosen": " fine", "rejected": " bad"}
SINGLE = {"completion": " fine", "label": True}
LIST = {"responses": [" fine", " bad", " so"], "ranking": [0, 2, 1]}
ROWS = {
    "preference": [PAIR],
    "sft": [PAIR, {"completion": " fine"}],
    "unpaired": [PAIR, SINGLE],
    "ranking": [PAIR, LIST],
    "reward": [PAIR],
}


def config(**keys):
    made = quickstart.get_config().unlock()
    with made.unlocked():
        for key, value in keys.items():
            section, _, name = key.rpartition("__")
            (made[section] if section else made)[name] = value
    return made


def held_out_of(asked):
    """Finds the sources of data.eval."""
    return [
        found.source for found in sources_of(request_of(asked), "eval", None).values()
    ]


@pytest.mark.parametrize("objective", ROWS)
def test_the_data_of_every_objective_give_prompts(objective, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"the film {i}", **row} for i, row in enumerate(ROWS[objective])]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = config(objective=objective, data__eval=str(file))
    asked.data.chat_template = "of the policy's tokenizer"  # which is not read for them
    held_out = held_out_of(asked)
    asked = generation.read_prompts(REQUEST, held_out)
    assert asked.prompts == [row["prompt"] for row in rows]
    for name in {name for row in rows for name in row} - {"prompt"}:
        assert asked.columns[name] == [row.get(name) for row in rows]
    first = generation.read_prompts(REQUEST._replace(limit=1), held_out)
    assert first.prompts == asked.prompts[:1]
    assert all(len(values) == 1 for values in first.columns.values())


def test_what_continues_no_text_is_refused_in_words():
    """A reward model; and a text longer than the learned positions."""
    spec = preset("tiny_gpt2", vocab=32, max_positions=16)
    generation.check_texts("runs/a", spec, 8, 8)
    with pytest.raises(ModelError, match="runs/a is a reward model: it scores texts"):
        generation.check_texts("runs/a", scalar_spec(spec), 8, 8)
    with pytest.raises(ConfigError, match="max_new_tokens=9 after a prompt of 8"):
        generation.check_texts("runs/a", spec, 8, 9)


TEMPLATE = (
    "{% if tools %}{{ tools[0].name }} {% endif %}"
    "{% for m in messages %}. {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}. {% endif %}"
)


def test_system_and_tools_reach_a_prompt_as_they_do_in_training(tmp_path):
    """The columns of --prompts and of data.eval, to the ids that training has."""
    told = {"system": "the film", "tools": [{"name": "music"}]}
    prompt = [{"role": "user", "content": "i loved this"}]
    answers = {"chosen": "good", "rejected": "bad"}
    chats = {n: [{"role": "assistant", "content": t}] for n, t in answers.items()}
    rows = [{"prompt": prompt, **told, **chats}, {"prompt": prompt, **chats}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = sentiment.tokenizer()
    tokenizer.chat_template = TEMPLATE
    of_file = generation.read_prompts(REQUEST._replace(prompts=str(file)), [])
    held_out = held_out_of(config(data__eval=str(file)))
    of_rows = generation.read_prompts(REQUEST, held_out)
    assert of_file == of_rows and of_file.columns["tools"][0] == told["tools"]
    first, second = generation.encode(
        tokenizer, of_file, join="separate", template=None
    )
    assert tokenizer.decode(first) == "music . the film . i loved this ."
    assert tokenizer.decode(second) == ". i loved this ."
    how = {"max_tokens": 64, "max_prompt_tokens": 32, "truncate_prompt": "keep_end"}
    raw = held_out[0].check(held_out[0].read())
    records, _ = tokenize(
        raw, tokenizer, join="separate", chat_template=None, on_bad_row="error", **how
    )
    assert [r.prompt.tolist() for r in records] == [first.tolist(), second.tolist()]
    leaving = TEMPLATE.replace("{{ tools[0].name }} ", "")
    with pytest.raises(DataError, match="prompt 0: .* leaves out the column 'tools'"):
        generation.encode(tokenizer, of_file, join="separate", template=leaving)
    file.write_text(json.dumps({"prompt": "the film", "system": "i"}))
    with pytest.raises(DataError, match="rows.jsonl:1: column 'system' has no place"):
        generation.read_prompts(REQUEST._replace(prompts=str(file)), [])


def test_a_reward_run_is_refused_before_anything_is_loaded(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "the film"}\n')
    policy = generation.Policy("runs/rm", config(objective="reward"), "runs/rm")
    asked = generation.read_prompts(REQUEST._replace(prompts=str(file)), [])
    with pytest.raises(ModelError, match="runs/rm is a reward model"):
        generation.sample(asked, REQUEST, [policy], mesh_lib.make_mesh(8, 1, 1))


@pytest.fixture(scope="module")
def stretched(tmp_path_factory):
    """A model whose angles follow the length of the text; trained on 8 positions."""
    folder = tmp_path_factory.mktemp("stretched")
    tokenizer = sentiment.tokenizer()
    tokenizer.save_pretrained(folder)
    spec = preset("tiny", vocab=len(tokenizer), max_positions=8)
    params = jax.tree.map(lambda x: 4 * x, init_params(spec, jax.random.key(0)))
    hf.save_params(params, spec, folder)
    saved = json.loads((folder / "config.json").read_text())
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    rope = saved.get("rope_parameters")
    saved |= {"rope_scaling": scaling} if rope is None else {}
    if rope is not None:
        saved["rope_parameters"] = rope | scaling
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


def score(model, params, rows):
    hidden, head, *_ = model.apply(params, rows)
    return logps.list_stats(hidden, head, rows, chunk=64).logps


def test_one_rope_length_a_run(stretched):
    """Log-probs drawn by `sample` are those of the run's own scoring."""
    asked = config(data__max_tokens=64, model__path=str(stretched), model__preset="")
    request = REQUEST._replace(limit=4, n=2)
    policy = generation.Policy(str(stretched), asked, None)
    mesh = mesh_lib.make_mesh(1, 8, 1)
    prompts = generation.read_prompts(request, held_out_of(asked))
    answers = generation.sample(prompts, request, [policy], mesh)
    completions = answers.completions[str(stretched)]
    tokenizer = sentiment.tokenizer()
    prompts = generation.encode(tokenizer, prompts, join=asked.data.join, template=None)
    with jax.set_mesh(mesh):
        spec = hf.spec_of(hf.read_config(stretched))
        model = model_wiring.make_model(asked.model, stretched, spec, 64)
        params = weights.load_params(model, mesh, seed=0)
        part = batches.Part(16, range(4), 8, 0, 2)
        tokens, drawn = np.zeros((2, 8, 2, 8))
        for i, j in np.ndindex(4, 2):
            found = completions[i][j]
            tokens[i, j, : len(found.tokens)] = found.tokens
            drawn[i, j, : len(found.tokens)] = found.logps
        samples = Samples(tokens.astype(int), drawn < 0, drawn, drawn.any(-1))
        rows = rollout.rows_of(batches.lay_out(prompts, part), samples)
        scored = jax.jit(score, static_argnums=0)(model, params, rows)
    np.testing.assert_allclose(scored, drawn.reshape(8, -1), atol=1e-4)
    assert (drawn < -1).any()


def parts_of(asked, rewards=()):
    """What rollouts need of a run of a tiny model; its policy and reference alike."""
    tokenizer, mesh = sentiment.tokenizer(), mesh_lib.make_mesh(4, 2, 1)
    spec = preset("tiny", vocab=len(tokenizer), max_positions=32)
    with jax.set_mesh(mesh):
        policy = model_wiring.make_model(asked.model, None, spec, 32)
        ref = model_wiring.reference_model(policy, asked.ref, mesh)
    return SimpleNamespace(
        config=asked,
        model=policy,
        reference=ref,
        mesh=mesh,
        data=SimpleNamespace(tokenizer=tokenizer),
        rewards=rewards,
        scorer=None,
        ref=asked.ref,
    )


def rollouts_of(parts, ref):
    """Rollouts beside a reference that stays."""
    stage = sampled_lib.make_stage(parts, {})
    return sampled_lib.make_rollouts(parts, stage, ref)


def test_prompts_of_ones_own_are_judged_by_a_reward_of_ones_own(tmp_path):
    """Three samples each; the reward sees the columns and is nearer to `answer`."""
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"the {w}", "answer": i, **PAIR} for i, w in enumerate(WORDS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def near(completion_ids, answer, **columns):
        pairs = zip(completion_ids, answer, strict=True)
        return [None if a == 1 else -abs(len(ids) - a) for ids, a in pairs]

    asked = config(eval__rollouts=4, eval__best_of=3, data__eval=str(file))
    parts = parts_of(asked, (Reward("near", near),))
    with jax.set_mesh(parts.mesh):
        params = weights.load_params(parts.reference, parts.mesh, seed=0)
        roll = rollouts_of(parts, params)
        sampled = roll(SimpleNamespace(params=params, ref=None))
    assert sampled.prompts == [row["prompt"] for row in rows[:4]]
    metrics = sampled_results.rollout_metrics(sampled)
    assert metrics["rollouts/absent_rewards"] == 3
    mean = metrics["rollouts/reward"]
    assert metrics["rollouts/rewards/near/mean"] == mean < 0
    assert mean < metrics["rollouts/best_of_2"] < metrics["rollouts/best_of_3"]
    results = sampled_results.before_and_after(sampled)
    assert results["title"] == "Reward of 4 sampled continuations"
    last = results["rows"][-1]
    assert last["name"] == "best of 3 of the reference"
    bound = last["values"]["KL to reference at most (nats)"]
    assert bound == pytest.approx(np.log(3) - 2 / 3)
    json.dumps([metrics, results, sampled_results.side_by_side(sampled, 4)])
    asked.data.max_prompt_tokens = 2
    with pytest.raises(DataError, match="4 of 4 prompts of eval.rollouts have more th"):
        rollouts_of(parts, params)


@pytest.mark.parametrize("ref_dtype", ["", "bfloat16"])
def test_one_sampler_serves_a_policy_and_a_reference_like_it(ref_dtype, monkeypatch):
    """A reference that computes in another dtype has one of its own."""
    made = []
    make_sampler = batches.make_sampler
    monkeypatch.setattr(
        batches,
        "make_sampler",
        lambda *args, **keys: made.append(make_sampler(*args, **keys)) or made[-1],
    )
    parts = parts_of(config(eval__rollouts=9, ref__dtype=ref_dtype))
    with jax.set_mesh(parts.mesh):
        params, other = (
            jax.tree.map(
                lambda x: 4 * x, weights.load_params(model, parts.mesh, seed=i)
            )
            for i, model in enumerate([parts.reference, parts.model])
        )
        roll = rollouts_of(parts, params)
        state = lambda policy: SimpleNamespace(params=policy, ref=None)  # noqa: E731
        sampled = roll(state(other))
        assert len(made) == 1 + bool(ref_dtype)
        if not ref_dtype:
            same = roll(state(params))
            assert same.policy.texts == same.reference.texts
            assert not same.policy.kls.any() and not same.reference.kls.any()
    assert len(sampled.policy.texts) == len(sampled.reference.texts) == 9
    assert (sampled.policy.kls > 0.1).all() and not sampled.reference.kls.any()
    assert sampled.policy.texts != sampled.reference.texts


def test_a_single_rollout_is_valid_json():
    """One value has no standard error: it is left out, not NaN."""
    one = Rollout(["good"], *np.ones((4, 1)), {}, {}, 0)
    sampled = sampled_results.Sampled(["the film"], one, one)
    metrics = sampled_results.rollout_metrics(sampled)
    assert sorted(metrics) == ["rollouts/kl", "rollouts/length", "rollouts/reward"]
    results = sampled_results.before_and_after(sampled)
    json.dumps([metrics, results], allow_nan=False)
    assert results["rows"][0]["values"]["true reward"] == 1.0
    many = Rollout(["good"] * 2, *np.arange(8.0).reshape(4, 2) - 2, {}, {}, 0)
    results = sampled_results.before_and_after(
        sampled_results.Sampled(["a"] * 2, many, many)
    )
    assert results["rows"][0]["values"]["true reward"] == (0.5, 0.5)


@pytest.mark.parametrize(
    "text, said",
    [
        ("[]", "must hold a JSON object"),
        ('{"eos_token_id": ["x"]}', "must be a token id"),
        ("{", "cannot be read"),
    ],
)
def test_a_generation_config_that_declares_no_ids_is_refused(tmp_path, text, said):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=f"generation_config.json.*{said}"):
        generation.stop_ids(sentiment.tokenizer(), tmp_path, [])
