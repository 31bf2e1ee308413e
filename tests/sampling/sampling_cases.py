"""A small decoder whose choices are clear, samplers of it, and prompts."""

import functools

import jax
import numpy as np

from dpo_jax.models.decoder import Decoder, init_params
from dpo_jax.models.spec import preset
from dpo_jax.sampling import batches, pick
from dpo_jax.sharding import arrays, mesh
from dpo_jax.wiring.generation import make_decoding

SPEC = preset("tiny", vocab=32, max_positions=64)
NEW, SEED, EOS = 20, 5, 2
PROMPTS = [np.arange(3, 3 + size) for size in (3, 17, 1, 20, 9)]
WARM = pick.sampler(temperature=1.5)
DECODER = Decoder(SPEC, constrain=arrays.constrain_rows)
WORDS = "abcdefghijklmnopqrstuvwxyz0123456789"


def decode(ids):
    return "".join(WORDS[i] for i in ids if i > 2)


@functools.cache
def params():
    """Larger weights than those of a fresh model."""
    with jax.set_mesh(one_device()):  # whoever asks first
        drawn = jax.jit(init_params, static_argnums=0)(SPEC, jax.random.key(1))
        return jax.tree.map(lambda leaf: 4 * leaf, drawn)


def one_device():
    return mesh.make_mesh(1, 1, 1, devices=jax.devices()[:1])


@functools.cache
def sampler(how, ends=(EOS,), new=NEW, on=None):
    return batches.make_sampler(
        make_decoding(DECODER),
        pick=how,
        stops=ends,
        max_new_tokens=new,
        mesh=on or one_device(),
    )


def run(
    how=WARM,
    n=2,
    batch=8,
    prompts=PROMPTS,
    ends=(EOS,),
    seed=SEED,
    new=NEW,
    watch=None,
    params=params,
    on=None,
):
    """Samples [prompts, n, G] of the host."""
    built = sampler(how, ends, new, on=on)
    with jax.set_mesh(built.mesh):
        parts = batches.rollouts(
            params(),
            prompts,
            jax.random.key(seed),
            sampler=built,
            n=n,
            batch=batch,
            watch=watch,
        )
        on_host = ((part, built.read(samples)) for part, _, samples in parts)
        return batches.gather(on_host, len(prompts), n)


def kept(samples, prompt, number=0):
    at = prompt, number
    return samples.tokens[at][samples.mask[at]].tolist()
