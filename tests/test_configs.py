"""Every config that is shipped is one that training takes, and says how to run it."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from piano_jax.config import flat, read_config
from piano_jax.learning import optimizer
from piano_jax.learning.phases import phase_of

ROOT = Path(__file__).parents[1]
SIZES = "laptop", "gpu", "small", "medium", "medium_tpu"
SPECS = ["smoke.py", *(f"{name}.py:{size}" for name in ("pretrain", "finetune", "contrastive") for size in SIZES)]
SPECS += ["finetune.py:smoke", "classify.py:laptop,pianist", "classify.py:gpu,form", "classify.py:small,emotion"]
SPECS += ["classify.py:medium", "classify.py:medium_tpu"]

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
