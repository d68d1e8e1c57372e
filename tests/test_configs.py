"""Every config that is shipped is one that training takes, and says how to run it."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from piano_jax import BadInput
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


def test_a_size_of_model_may_be_its_width_and_layers():
    def model(size: str):
        return phase_of(read_config(str(ROOT / "configs/pretrain.py"), [f"model.size={size}"])).model

    wide = model("192x6")
    assert (wide.d_model, wide.layers, wide.heads, wide.ff_width, wide.context) == (192, 6, 3, 768, 2048)
    shape = "d_model", "layers", "heads", "ff_width"
    assert all(getattr(model("1536x16"), part) == getattr(model("medium"), part) for part in shape)
    for size, said in (("large", "no such size of model"), ("100x4", "100x4: a width is a multiple of 64")):
        with pytest.raises(BadInput, match=said):
            model(size)
