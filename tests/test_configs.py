"""Every config that is shipped is one that training takes, and says how to run it."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from piano_jax.config import flat, read_config
from piano_jax.learning import optimizer
from piano_jax.learning.phases import phase_of

ROOT = Path(__file__).parents[1]
SPECS = ["smoke.py", "laptop.py", "pretrain.py:small", "pretrain.py:medium", "pretrain.py:medium_tpu"]
SPECS += ["contrastive.py:small", "contrastive.py:medium", "contrastive.py:medium_tpu", "contrastive.py:laptop"]
SPECS += [f"finetune.py:{size}" for size in ("smoke", "laptop", "small", "medium", "medium_tpu")]
SPECS += [f"classify.py:{size}" for size in ("small,emotion", "medium", "medium_tpu", "laptop,pianist")]

OF_A_PHASE = "data.", "loss."  # what phases need not share


def keys(config: ConfigDict) -> set[str]:
    return set(flat(config.to_dict()))


def test_all_are_tested():
    assert {spec.split(":")[0] for spec in SPECS} == {path.name for path in (ROOT / "configs").glob("*.py")}


@pytest.mark.parametrize("spec", SPECS)
def test_a_config_is_whole(spec):
    config = read_config(str(ROOT / "configs" / spec), [])
    model = phase_of(config).model
    assert model.context >= config.length and config.batch % config.accumulate == 0
    optimizer.schedule(steps=config.steps, **config.schedule)
    common = {key for key in keys(read_config(str(ROOT / "configs/pretrain.py"), [])) if not key.startswith(OF_A_PHASE)}
    assert common <= keys(config)
    docstring = (ROOT / "configs" / spec.split(":")[0]).read_text().split('"""')[1]
    assert "piano_jax.train --config" in docstring or "launch/smoke.sh" in docstring
