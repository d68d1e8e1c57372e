"""`python -m piano_jax.convert`: weights from the authors' files, and to them; `load_aria` reads one in Python."""

import argparse
import functools
from collections.abc import Sequence

from piano_jax import BadInput
from piano_jax.command import Parser, run
from piano_jax.model import aria
from piano_jax.model.aria import load_aria
from piano_jax.model.transformer import TransformerConfig
from piano_jax.music import Vocabulary

__all__ = ["load_aria"]

# The phase that makes a model of each kind.
PHASES = {"language": "pretrain", "embedding": "contrastive", "classifier": "classify", "conditioned": "continue"}

EPILOG = """\
examples:
  python -m piano_jax.convert import model.safetensors weights/aria
  python -m piano_jax.convert export runs/mine mine/model.safetensors
  python -m piano_jax.convert export runs/mine weights/mine

A folder of weights goes wherever a checkpoint does: --checkpoint weights/aria, --config.init_from=weights/aria.
"""

IMPORT = """\
Reads what the authors released, or files in the same layout: language model, embedding, classifier or conditioned, in
float32, bfloat16 or float16. Kind and sizes are read from the tensors. How many heads attention has is in none of
them: it stands as "n_heads" in a JSON file beside the weights, of the same stem or called config.json, or is given;
else heads are of 64.
"""
EXPORT = """\
To MODEL.safetensors: under the authors' names, with the sizes that their code wants in config.json beside it. To any
other name: a folder that goes wherever a checkpoint does.
"""


def import_file(path: str, folder: str, heads: int | None) -> TransformerConfig:
    """Writes a file in the authors' layout as a folder of weights, in the file's precision. Raises BadInput."""
    from piano_jax.learning.checkpoints import write_leaves

    model = aria.read_sizes(path, heads)
    vocabularies = {Vocabulary(name).size: name for name in ("aria", "piano")}
    if model.vocabulary_size not in vocabularies:
        known = ", ".join(f"{size:,} ({name})" for size, name in vocabularies.items())
        raise BadInput(f"{path}: model.tok_embeddings.weight has {model.vocabulary_size:,} rows; vocabularies: {known}")
    shape = ("d_model", "layers", "heads", "ff_width", "context", "head", "head_size", "dtype")
    config = {
        "phase": PHASES[model.head],
        "vocabulary": vocabularies[model.vocabulary_size],
        "model": {"size": "medium"} | {name: getattr(model, name) for name in shape},
    }
    read = functools.partial(aria.read_leaf, path, model)
    write_leaves(folder, aria.layout(model), read, {"step": 0, "config": config})
    return model


def export(checkpoint: str, out: str) -> TransformerConfig:
    """Writes the weights of a checkpoint: a safetensors file in the authors' layout, or a folder. Raises BadInput."""
    from piano_jax.learning import checkpoints
    from piano_jax.learning.phases import model_config

    model = model_config(checkpoints.read_config(checkpoint))
    read = functools.partial(checkpoints.read_leaf, checkpoint)
    if out.endswith(".safetensors"):
        aria.write_file(out, model, read)
    else:
        checkpoints.write_leaves(out, aria.parameters(model), read, checkpoints.read_run(checkpoint))
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="piano_jax.convert",
        description="Weights from the authors' safetensors files, and to them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="import|export")
    parts = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    reader = commands.add_parser("import", description=IMPORT, help="safetensors to a folder of weights", **parts)
    reader.add_argument("file", metavar="MODEL.safetensors")
    reader.add_argument("folder", metavar="DIR", help="must not exist; goes wherever a checkpoint does")
    reader.add_argument("--heads", type=int, help="of attention, where no JSON beside the file says (default: of 64)")
    writer = commands.add_parser("export", description=EXPORT, help="a checkpoint to weights alone", **parts)
    writer.add_argument("checkpoint", metavar="DIR", help="a work directory (its newest step) or one checkpoint")
    writer.add_argument("out", metavar="MODEL.safetensors|FOLDER", help="must not exist; the ending decides")
    options = parser.parse_args(arguments)
    for path in [options.file, options.folder] if options.command == "import" else [options.out]:
        if path.startswith("gs://"):
            raise BadInput(f"{path}: convert works on local files; only the checkpoint to export may be on gs://")

    if options.command == "import":
        model, out = import_file(options.file, options.folder, options.heads), options.folder
    else:
        model, out = export(options.checkpoint, options.out), options.out
    count = sum(leaf.size for leaf in aria.parameters(model).values())
    print(f"{out}: {model.head}, {count:,} parameters, {model.layers} layers of {model.heads} heads")


if __name__ == "__main__":
    run(main)
