"""Every config that is shipped is one that training takes, and says how to run it."""

from pathlib import Path

import pytest

from piano_jax.config import read_config
from piano_jax.learning import optimizer
from piano_jax.learning.phases import model_config

ROOT = Path(__file__).parents[1]
SPECS = ["smoke.py", "laptop.py", "pretrain.py:small", "pretrain.py:medium", "pretrain.py:medium_tpu"]
SPECS += ["contrastive.py:small", "contrastive.py:medium", "contrastive.py:medium_tpu", "contrastive.py:laptop"]
SPECS += [f"finetune.py:{size}" for size in ("smoke", "laptop", "small", "medium", "medium_tpu")]


def keys(tree: dict, prefix: str = "") -> set[str]:
    parts = (keys(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k} for k, v in tree.items())
    return set().union(*parts)


def test_all_are_tested():
    assert {spec.split(":")[0] for spec in SPECS} == {path.name for path in (ROOT / "configs").glob("*.py")}


@pytest.mark.parametrize("spec", SPECS)
def test_a_config_is_whole(spec):
    config = read_config(str(ROOT / "configs" / spec), [])
    model = model_config(config)
    assert model.context >= config.length and config.batch % config.accumulate == 0
    optimizer.schedule(steps=config.steps, **config.schedule)
    shape = {"model.d_model", "model.layers", "model.ff_width", "model.context"}
    if config.phase == "contrastive":
        expected = keys(read_config(str(ROOT / "configs/contrastive.py"), []).to_dict()) - shape
    else:
        expected = keys(read_config(str(ROOT / "configs/pretrain.py"), []).to_dict()) - shape
    if config.phase == "continue":
        expected -= {"data.isolate"}
        expected |= {"data.embeddings", "model.head", "model.head_size", "lora.rank"}
    assert keys(config.to_dict()) - shape == expected
    docstring = (ROOT / "configs" / spec.split(":")[0]).read_text().split('"""')[1]
    assert "piano_jax.train --config" in docstring or "launch/smoke.sh" in docstring
