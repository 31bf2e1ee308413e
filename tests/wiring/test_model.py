"""The four roles of a run, loaded by one function."""

import importlib

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dpo_jax.models import hf, scalar
from dpo_jax.models.decoder import init_params
from dpo_jax.models.spec import preset
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.sharding import rules
from dpo_jax.train.leaves import flat as flatten
from dpo_jax.wiring import model as wiring
from dpo_jax.wiring import weights

SPEC = preset("tiny", vocab=64, max_positions=32)
EVERYWHERE = ((r"", P()),)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model, and the classifier of one label on its trunk."""
    draw = jax.jit(init_params, static_argnums=0)
    params = draw(SPEC, jax.random.key(0))
    folder = tmp_path_factory.mktemp("models")
    hf.save_params(params, SPEC, folder / "language")
    judge = scalar.from_policy(params, SPEC, jax.random.key(5))
    spec = scalar.scalar_spec(SPEC)
    hf.save_params(judge, spec, folder / "judge", source_dir=folder / "language")
    return folder, flatten(jax.device_get(params)), np.asarray(judge["score"]["kernel"])


ROLES = {  # role -> (folder, whether scalar, dtype, rules)
    "policy": ("language", False, "float32", rules.PARAM_RULES),
    "ref": ("language", False, "bfloat16", rules.PARAM_RULES),
    "reward": ("judge", True, "bfloat16", EVERYWHERE),
    "value": ("language", True, "float32", EVERYWHERE),
}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_has_its_head_its_dtype_and_its_rules(role, folders):
    """A reward model brings its head; a value model on the policy's trunk draws one."""
    folder, language, kernel = folders
    name, is_scalar, dtype, table = ROLES[role]
    config = importlib.import_module("configs.quickstart").get_config()
    mesh = mesh_lib.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        found, spec = wiring.find_folder(str(folder / name), "", is_scalar=is_scalar)
        model = wiring.make_model(config.model, found, spec, config.data.max_tokens)
        model = model._replace(held=dtype)
        params = weights.load_params(model, mesh, seed=3, table=table)
    flat = flatten(params)
    assert spec.scalar == is_scalar and ("score/kernel" in flat) == is_scalar
    assert {str(leaf.dtype) for leaf in flat.values()} == {dtype}
    whole = {leaf.sharding.is_fully_replicated for leaf in flat.values()}
    assert whole == ({True} if table is EVERYWHERE else {True, False})
    trunk = [path for path in language if path in flat]
    for path in trunk:
        want = language[path].astype(flat[path].dtype)
        np.testing.assert_array_equal(np.asarray(flat[path]), want)
    assert len(trunk) >= len(language) - 1
    if is_scalar:
        same = np.array_equal(flat["score/kernel"], kernel.astype(dtype))
        assert same == (role == "reward")


@pytest.mark.parametrize("name", ["", "language", "judge"])
def test_a_new_scalar_head_may_start_at_zero(name, folders):
    """From scratch or on a policy's trunk; a reward model keeps the head it has."""
    folder, _, kernel = folders
    config = importlib.import_module("configs.quickstart").get_config()
    config.model.score_start = "zero"
    mesh = mesh_lib.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        found, spec = None, scalar.scalar_spec(SPEC)
        if name:
            path = str(folder / name)
            found, spec = wiring.find_folder(path, "", is_scalar=True)
        model = wiring.make_model(config.model, found, spec, config.data.max_tokens)
        flat = flatten(weights.load_params(model, mesh, seed=3))
    want = kernel if name == "judge" else 0 * kernel
    np.testing.assert_array_equal(np.asarray(flat["score/kernel"]), want)
    assert np.asarray(flat["layers/attn/q/kernel"]).any()
