"""Plans: compiled by the TPU's own compiler, without arrays that grow with T × T or B × T × V, and true to the run."""

import json
import re

import jax
import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.config import read_config
from piano_jax.learning import ahead, loop
from piano_jax.learning.phases import model_config
from piano_jax.learning.step import abstract_state
from piano_jax.model import mesh as meshes
from piano_jax.plan import main

pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
T, V, CHUNK = 384, 2675, 128  # no other size of the model is T
SMALL = [
    "model.dtype=bfloat16",
    "model.size=256x2",
    "model.unroll=1",
    f"length={T}",
    f"loss.chunk={CHUNK}",
    "batch=8",
    "accumulate=1",
]


@pytest.fixture(scope="module")
def planned():
    """A small config on four chips of v5e, two of them tensor parallel, and its plan."""
    pytest.importorskip("libtpu")
    config = read_config("configs/pretrain.py:laptop", SMALL)
    return config, ahead.plan(config, meshes.make_mesh(1, 2, 2, devices=ahead.topology("v5e:2x2", 1)))


def test_no_array_of_all_scores_or_of_all_logits(planned):
    _, plan = planned
    text = plan.compiled.as_text()
    found = {tuple(map(int, sizes.split(","))) for sizes in re.findall(r"(?:f32|bf16)\[([\d,]+)\]", text)}
    kernels, chunks = text.count("tpu_custom_call"), (CHUNK, V) in found
    squares = [shape for shape in found if shape.count(T) > 1]
    logits = [shape for shape in found if V in shape and np.prod(shape) > 256 * V]  # d_model is 256
    assert kernels and chunks and not squares and not logits


def test_what_a_plan_says_is_what_a_run_holds(planned):
    config, plan = planned
    assert plan.fits and 0 < plan.temporaries < plan.total < plan.memory
    cpus = meshes.make_mesh(1, 2, 2, devices=jax.devices()[:4])
    with jax.set_mesh(cpus):
        _, init, _ = loop.assemble(config)
        like = abstract_state(init, cpus)
        state = jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, like))(jax.random.key(0))
    here = jax.devices()[0]

    def on_a_device(tree) -> int:
        return sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == here)

    assert (plan.weights, plan.optimizer) == (on_a_device(state.weights), on_a_device(state.optimizer))
    assert plan.collectives["all-gather"][0] >= 2 * model_config(config).layers  # each layer's weights, there and back
    assert plan.floor == pytest.approx(plan.flops / 197e12)


def test_collectives_count_as_often_as_loops_run():
    text = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%fused (p: bf16[4,2]) -> bf16[4,8] {
  ROOT %g = bf16[4,8]{1,0:T(8,128)} all-gather(%p), channel_id=7, dimensions={1}
}

%condition (c: (s32[], f32[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(16)
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%body (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %one = bf16[4,8] fusion(%x), kind=kCustom, calls=%fused
  %two = bf16[4,8] all-gather(%x), channel_id=7, dimensions={1}
  ROOT %r = (f32[8]{0}, f32[2,2]{1,0}) all-reduce(%y, %z), channel_id=8, to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  %start = (f32[2], f32[4]) reduce-scatter-start(%q), channel_id=9, to_apply=%add
  ROOT %d = f32[4] reduce-scatter-done(%start)
}
"""
    assert ahead.collectives(text) == {
        "all-gather": (16, 16 * 4 * 8 * 2),
        "all-reduce": (16, 16 * (8 + 4) * 4),
        "reduce-scatter": (1, (2 + 4) * 4),
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--topology=v9z:2x2"], "v9z:2x2: no such topology"),
        (["--topology=v5e:3x7"], "v5e:3x7: no such topology"),
        (["--topology=v5e:2x2", "--config.batch=6"], "batch 6 does not divide by 4"),
        (["--topology=v5e:2x2", "--slices=2"], "replica must be a multiple of 2, the number of slices"),
        (["--topology=v5e:2x2", "--slices=0"], "--slices is at least 1"),
        (["--topology=v5e:2x2", "--config.mesh.tensor=3"], "does not match the device count, 4"),
        (["--topology=v5e:2x2", "--config.mesh.tensor=4"], "a heads axis of 6 does not divide over 4"),
        (["--topology=v5e:2x2", "--config.length=200", "--config.model.attention=splash"], "multiples of 128, not 200"),
        (["--topology=v5e:2x2", "--out=/nowhere/plan.json"], "/nowhere: no such folder"),
        (["--topology=v5e:2x2", "--nonsense"], "unknown argument --nonsense"),
    ],
)
def test_bad_input_is_named_before_anything_is_compiled(words, said):
    pytest.importorskip("libtpu")
    with pytest.raises(BadInput) as caught:
        main(["--config=configs/pretrain.py:small", *words])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_plan_that_does_not_fit_ends_with_code_2(tmp_path, capsys, monkeypatch):
    pytest.importorskip("libtpu")
    scant = meshes.CHIPS["TPU v5 lite"]._replace(memory=2.0**20)
    monkeypatch.setitem(meshes.CHIPS, "TPU v5 lite", scant)
    words = [f"--config.{word}" for word in SMALL]
    code = main(["--config=configs/pretrain.py:laptop", "--topology=v5e:2x2", f"--out={tmp_path}/plan.json", *words])
    assert code == 2 and capsys.readouterr().out.splitlines()[-1] == "does not fit"
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert saved["fits"] is False and saved["temporaries"] > 0 and saved["topology"] == "v5e:2x2"
