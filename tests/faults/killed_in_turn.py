"""The command line, killed within a turn: `killed_in_turn.py WHERE TURN VERB …`.

TURN counts the turns of this launch, from 1.
"""

import itertools
import os
import signal
import sys
from unittest import mock

from dpo_jax import cli
from dpo_jax.rewards import REWARDS
from dpo_jax.sampling import batches
from dpo_jax.train import loop


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at(turn, function, act):
    """Makes a function act instead, the time it is called for this turn."""
    calls = itertools.count(1)

    def call(*args, **keys):
        return act(*args) if next(calls) == turn else function(*args, **keys)

    return call


def in_the_rollout(parts, *_):
    next(iter(parts))
    die()


def main(where, turn, *arguments):
    turn = int(turn)
    if where == "rollout":
        patch = mock.patch.object(batches, "gather", at(turn, gather, in_the_rollout))
    elif where == "reward":
        judge = at(turn, REWARDS["sentiment"], lambda *_: die())
        patch = mock.patch.dict(REWARDS, {"sentiment": judge})
    else:  # its updates are under way, and nothing of them has been read
        push = at(turn, loop.Meter.push, lambda *_: die())
        patch = mock.patch.object(loop.Meter, "push", push)
    patch.start()
    return cli.main(["dpo_jax", *arguments])


gather = batches.gather

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
