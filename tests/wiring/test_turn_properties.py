"""What must hold of every turn, looked at while whole small runs are under way."""

import gc
import json
import zlib
from typing import NamedTuple

import jax
import numpy as np
import pytest

from dpo_jax import build
from dpo_jax.data.sources import sentiment
from dpo_jax.objectives.on_policy import SampleScorer
from dpo_jax.sharding.mesh import make_mesh
from tests.wiring.test_turns import configured

pytestmark = pytest.mark.losses
NEW, SAMPLES = 8, 2
COMPILED = "/jax/core/compile/backend_compile_duration"


class Seen(NamedTuple):
    """One turn, on the host.

    Attributes:
      params: of the policy that the turn stood before, the critic's left out.
      ref: of the frozen reference.
      keys: (prompt, sample) -> key data of its noise.
      samples: as they were drawn.
      rollout: rows.
      places: of the prompts among the records.
      live: bytes of all arrays of jax.
      compiled: programs so far.
    """

    params: dict
    ref: dict
    keys: dict
    samples: object
    rollout: object
    places: list
    live: int
    compiled: int


compiled = []


@pytest.fixture(scope="module", autouse=True)
def listener():
    """Counts the programs that are compiled."""
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **more: compiled.append(event == COMPILED)
    )


@pytest.fixture
def watched(monkeypatch):
    """Makes a run tell each of its turns: (config, folder) -> (turns, parts)."""
    make = build.make_parts

    def run(config, folder, devices=8, **given):
        told, found = [], []
        mesh_of = lambda **shape: make_mesh(**shape, devices=jax.devices()[:devices])  # noqa: E731
        monkeypatch.setattr(build, "make_mesh", mesh_of)

        def make_parts(*args, **keys):
            found.append(make(*args, **keys))
            watch(found[0].turns, told)
            return found[0]

        monkeypatch.setattr(build, "make_parts", make_parts)
        build.run(config, folder, **given)
        return told, found[0]

    return run


def watch(turns, told):
    keys, samples, start = {}, [], turns.sampler.start
    drawn, next_batch = turns._drawn, turns.next_batch

    def start_and_tell(params, prompts, key, first, n):
        state = start(params, prompts, key, first, n)
        data = np.asarray(jax.random.key_data(state.keys)).reshape(-1, n, 2)
        for prompt, row in zip(np.asarray(prompts.ids), data, strict=True):
            for sample, each in enumerate(row, int(first)):
                if prompt >= 0 and sample < turns.sizes.samples:
                    assert (int(prompt), sample) not in keys
                    keys[int(prompt), sample] = tuple(each.tolist())
        return state

    def draw_and_tell(*args):
        samples.append(drawn(*args))
        return samples[-1]

    def make_and_tell(state, frozen, now):
        gc.collect()
        live = sum(array.nbytes for array in jax.live_arrays())
        params = {k: v for k, v in state.params.items() if k != "value"}
        params, ref = jax.device_get((params, frozen.get("ref", {})))
        turn = next_batch(state, frozen, now)
        rollout, number = jax.device_get(turn.rollout), len(told)
        places, count = turns._order[number], sum(compiled)
        given = dict(keys), samples[-1], rollout, places, live, count
        told.append(Seen(params, ref, *given))
        keys.clear()
        return turn

    turns.sampler = turns.sampler._replace(start=start_and_tell)
    turns._drawn, turns.next_batch = draw_and_tell, make_and_tell


STILL = {  # every turn has the same prompts, and the same policy
    **{"optimizer.lr": 0.0, "data.limit": 16, "data.shuffle": False},
    **{"train.steps": 6, "checkpoint.every_steps": 0},
}


def test_noise_never_repeats_and_depends_on_neither_chunks_nor_devices(
    watched, tmp_path
):
    """All keys of three turns, tokens' keys among them, by counting them."""
    whole, _ = watched(configured("rloo", **STILL), tmp_path / "whole")
    apart, _ = watched(
        configured("rloo", **STILL, **{"rollout.batch": 6}), tmp_path / "apart", 1
    )
    keys = [key for turn in whole for key in turn.keys.values()]
    assert len(set(keys)) == len(keys) == 3 * 16 * SAMPLES
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    of_tokens = fold(jax.random.wrap_key_data(np.uint32(keys)), np.arange(NEW))
    data = np.asarray(jax.random.key_data(of_tokens)).reshape(-1, 2)
    assert len(np.unique(data, axis=0)) == len(data) == len(keys) * NEW
    for one, other in zip(whole, apart, strict=True):
        assert one.keys == other.keys
        np.testing.assert_array_equal(one.samples.tokens, other.samples.tokens)
    first, *later = (turn.samples.tokens for turn in whole)
    for turn in later:  # the same prompts, the same policy, and other texts
        assert not (turn == first).all(-1).any()


@pytest.mark.parametrize("name", ["ppo", "online"])
def test_samples_are_those_of_the_parameters_that_their_turn_starts_with(
    name, watched, tmp_path
):
    """Updates so large that the turn before would say other log-probs.

    And what the sampler says of a token, tempered, over its cache, prompts of several
    widths, is what the training rows say.
    """
    given = {"optimizer.lr": 0.02, "rollout.temperature": 0.7, "rollout.batch": 2}
    turns, parts = watched(configured(name, **given), tmp_path / "run")
    scorer = SampleScorer(parts.model.apply, 64, temperature=0.7)

    @jax.jit
    def score(params, rows):
        said = jax.lax.map(lambda part: scorer.tokens(params, part)[0], rows)
        return said["logps"]

    def apart(params, turn):
        with jax.set_mesh(parts.mesh):
            said = np.asarray(score(params, turn.rollout))
        mask = turn.samples.mask
        return np.abs(said.reshape(mask.shape) - turn.samples.logps)[mask].max()

    assert len(turns) == 3
    for before, turn in zip([None, *turns], turns, strict=False):
        assert apart(turn.params, turn) < 1e-4
        assert before is None or apart(before.params, turn) > 0.1


def test_rewards_stay_with_their_samples(watched, tmp_path):
    """A hash of prompt, row and tokens, looked up again on the rows that are trained.

    Prompts of three widths, two of the same text, in parts of one prompt; a fifth of
    the samples has no verdict.
    """
    words = ["the", "movie", "was"] * 8
    rows = [
        {"prompt": " ".join(words[: 1 + 5 * (n % 5)]), "answer": str(n)}
        for n in range(16)
    ]
    assert rows[1]["prompt"] == rows[6]["prompt"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sentiment.tokenizer().save_pretrained(tmp_path / "tokenizer")

    def worth(row, ids):
        code = zlib.crc32(json.dumps([row, [*map(int, ids)]]).encode())
        return None if code % 5 == 0 else code / 2**32

    def judge(prompts, completion_ids, answer):
        given = zip(prompts, answer, completion_ids, strict=True)
        return [worth({"prompt": p, "answer": a}, ids) for p, a, ids in given]

    given = {"data.train": str(file), "data.limit": 0, "reward.name": "judge"}
    given |= {"tokenizer.path": str(tmp_path / "tokenizer"), "rollout.batch": 1}
    given |= {"data.max_tokens": 40, "data.max_prompt_tokens": 32, "train.steps": 2}
    turns, parts = watched(
        configured("rloo", **given), tmp_path / "run", 1, rewards={"judge": judge}
    )
    absent = 0
    for turn in turns:
        rollout = jax.tree.map(
            lambda leaf: leaf.reshape(16, *leaf.shape[2:]), turn.rollout
        )
        for place, index in enumerate(turn.places):
            prompt = parts.data.train[index].prompt
            assert rollout.tokens[place, : len(prompt)].tolist() == prompt.tolist()
            slots, targets = rollout.slots[place], rollout.targets[place]
            for sample in range(SAMPLES):
                due = worth(rows[index], targets[slots == sample])
                present = rollout.response["present"][place, sample]
                assert present == (due is not None)
                scored = rollout.response["scores"][place, sample]
                assert scored == np.float32(due or 0.0)
                absent += due is None
    assert 0 < absent < 2 * 16 * SAMPLES


def test_memory_and_programs_stop_growing_and_the_reference_stays(watched, tmp_path):
    """After two donating updates of each turn, of five turns."""
    config = configured("ppo", **{"train.steps": 20, "checkpoint.every_steps": 0})
    turns, _ = watched(config, tmp_path / "run")
    assert len(turns) == 5
    assert turns[2].live == turns[4].live
    assert turns[2].compiled == turns[4].compiled > 0
    first, *_, last = turns
    jax.tree.map(np.testing.assert_array_equal, first.ref, last.ref)
    jax.tree.map(np.testing.assert_array_equal, first.ref, first.params)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first.params, last.params)
    assert min(jax.tree.leaves(moved)) > 0
