"""The command: weights in, weights out, and back to the byte."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from piano_jax import BadInput
from piano_jax.convert import load_aria, main
from piano_jax.learning.checkpoints import Checkpoints, read_config, read_weights, start_from
from piano_jax.learning.phases import model_config
from piano_jax.learning.step import abstract_state, initializer
from piano_jax.model import Model, TransformerConfig
from piano_jax.model.aria import layout
from piano_jax.model.mesh import make_mesh

SHAPE = {"vocabulary_size": 2675, "d_model": 16, "layers": 2, "heads": 2, "ff_width": 32, "context": 64}
KINDS = {"language": 0, "embedding": 6, "classifier": 5, "conditioned": 6}


@pytest.fixture
def write(tmp_path):
    """Writes a file of random weights, some of them changed."""

    def write(kind="language", dtype=np.float32, changes=None, **shape) -> Path:
        config = TransformerConfig(**SHAPE | shape, head=kind, head_size=KINDS[kind])
        rng, sizes = np.random.default_rng(0), {name: size for names, size in layout(config).values() for name in names}
        tensors = {name: rng.normal(size=size, scale=0.3).astype(dtype) for name, size in sizes.items()}
        save_file(tensors | (changes or {}), tmp_path / "model.safetensors")
        (tmp_path / "model.json").write_text(json.dumps({"n_heads": 2, "max_seq_len": 64}))
        return tmp_path / "model.safetensors"

    return write


def restored(folder: Path) -> Model:
    """The model of a checkpoint, from nothing but its folder."""
    config = model_config(read_config(str(folder)))
    definition, like = nnx.split(nnx.eval_shape(lambda: Model(config, nnx.Rngs(0))))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like)
    return nnx.merge(definition, read_weights(str(folder), like))


def same_bytes(one: Path, other: Path) -> bool:
    with one.open("rb") as a, other.open("rb") as b:
        heads = [json.loads(file.read(int.from_bytes(file.read(8), "little"))) for file in (a, b)]
    first, second = load_file(one), load_file(other)
    types = [{name: said["dtype"] for name, said in head.items() if name != "__metadata__"} for head in heads]
    return types[0] == types[1] and all(
        (first[name].shape, first[name].tobytes()) == (second[name].shape, second[name].tobytes()) for name in types[0]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_import_and_export_give_the_same_bytes(write, tmp_path, kind, dtype):
    path, folder, out = write(kind, dtype), tmp_path / "weights", tmp_path / "out/model.safetensors"
    main(["import", str(path), str(folder)])
    main(["export", str(folder), str(out)])
    assert same_bytes(path, out)
    tokens = np.arange(12, dtype=np.int32)[None]
    np.testing.assert_array_equal(restored(folder)(tokens), load_aria(path)(tokens))
    assert restored(folder).config == load_aria(out).config


@pytest.mark.parametrize("name", ["lm", "embedding", "classifier", "conditioned_lm"])
def test_import_and_export_of_the_authors_weights(shared, tmp_path, name, capsys):
    path, folder, out = shared / f"fixtures/checkpoints/{name}.safetensors", tmp_path / "w", tmp_path / "m.safetensors"
    main(["import", str(path), str(folder)])
    model, said = restored(folder), np.load(path.with_suffix(".npz"))
    np.testing.assert_allclose(model.encode(said["tokens"]), said["hidden"], atol=1e-4)
    main(["export", str(folder), str(out)])
    assert same_bytes(path, out)
    authors = json.loads(path.with_suffix(".json").read_text())
    ours = json.loads((tmp_path / "config.json").read_text())
    assert {key: ours.get(key) for key in authors} == authors
    assert f"{sum(x.size for x in load_file(path).values()):,} parameters" in capsys.readouterr().out


def test_an_exported_folder_is_weights_alone_and_goes_where_a_checkpoint_does(write, tmp_path):
    main(["import", str(write()), str(tmp_path / "one")])
    (tmp_path / ".two.partial/item/half").mkdir(parents=True)  # as if killed
    main(["export", str(tmp_path / "one"), str(tmp_path / "two")])
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"weights", "run"}
    one, two = (nnx.split(restored(tmp_path / name))[1] for name in ("one", "two"))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert read_config(str(tmp_path / "two")) == read_config(str(tmp_path / "one"))


def test_vocabularies_and_heads_are_those_of_the_file(write, tmp_path):
    main(["import", str(write(vocabulary_size=17_727)), str(tmp_path / "aria")])
    assert read_config(str(tmp_path / "aria")).vocabulary == "aria"
    main(["import", str(write()), str(tmp_path / "piano"), "--heads", "4"])
    config = read_config(str(tmp_path / "piano"))
    assert config.vocabulary == "piano" and config.model.heads == 4 and model_config(config).context == 64


def test_from_phase_to_phase_and_out(write, tmp_path, capsys):
    """Weights of the authors' layout start an embedding model, that a classifier, and that goes out again."""
    path, checkpoint = write(), tmp_path / "language"
    main(["import", str(path), str(checkpoint)])
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        for head, size in (("embedding", 8), ("classifier", 16)):
            config = read_config(str(checkpoint))
            config.model.head, config.model.head_size = head, size
            init = initializer(model_config(config), optax.sgd(0.1))
            places = jax.tree.map(lambda x: x.sharding, abstract_state(init, mesh))
            state = jax.jit(init, out_shardings=places)(jax.random.key(size))
            state = state._replace(weights=start_from(str(checkpoint), state.weights, config))
            assert f"head_table (head {head}), which starts fresh" in capsys.readouterr().out
            checkpoint = tmp_path / head
            saved = Checkpoints(str(checkpoint), 1, 0)
            saved.save(1, state, config.to_dict())
            saved.close()
    main(["export", str(checkpoint), str(tmp_path / "out.safetensors")])
    before, after = load_file(path), load_file(tmp_path / "out.safetensors")
    assert before.keys() - after.keys() == {"lm_head.weight"} and after.keys() - before.keys() == {"class_head.weight"}
    for name in before.keys() & after.keys():
        np.testing.assert_array_equal(before[name], after[name])
    np.testing.assert_array_equal(after["class_head.weight"], state.weights["head_table"][...])


def test_bad_input_is_named_and_leaves_nothing(write, tmp_path):
    def refused(said: str, *words: object) -> None:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(BadInput, match=said) as caught:
            main([str(word) for word in words])
        assert "\n" not in str(caught.value) and sorted(tmp_path.iterdir()) == before

    bad = {"model.encode_layers.1.norm2.bias": np.full(16, np.nan, np.float32)}
    refused(r"model\.encode_layers\.1\.norm2\.bias", "import", write(changes=bad), tmp_path / "new")
    refused("has 29 rows", "import", write(vocabulary_size=29), tmp_path / "new")
    path = write()
    refused("3 heads", "import", path, tmp_path / "new", "--heads", 3)
    main(["import", str(path), str(tmp_path / "whole")])
    main(["export", str(tmp_path / "whole"), str(tmp_path / "whole.safetensors")])
    refused("exists", "import", path, tmp_path / "whole")
    refused("exists", "export", tmp_path / "whole", tmp_path / "whole")
    refused("exists already", "export", tmp_path / "whole", tmp_path / "whole.safetensors")
    refused("no checkpoint", "export", tmp_path / "nowhere", tmp_path / "new")
    refused("--help", "export", tmp_path / "whole")
    refused("--help", "exprot")
    refused("gs://bucket/new: convert works on local files", "import", path, "gs://bucket/new")
    path.write_bytes(path.read_bytes()[:-1])
    refused("not a whole safetensors file", "import", path, tmp_path / "new")
