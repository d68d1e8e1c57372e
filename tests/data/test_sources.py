import csv
import gzip
import json
import tarfile
from pathlib import Path

import pytest

from piano_jax import BadInput
from piano_jax.data.sources import LARGEST, open_source

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
METADATA = {"7": {"metadata": {"composer": "bach", "music_period": "baroque"}, "audio_scores": {"0": 0.5, "1": 1.0}}}


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "pieces"
    for name in ("data/00/000007_1.mid", "data/00/000007_0.MID", "data/01/000010_0.midi", "data/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "metadata.json").write_text(json.dumps(METADATA))
    return root


def pack(archive: Path, *members: tuple[Path, str]) -> Path:
    with tarfile.open(archive, "w:gz" if archive.suffix != ".tar" else "w") as tar:
        for path, name in members:
            tar.add(path, name)
    return archive


def test_folder_is_searched_recursively_in_order(folder):
    source = open_source(str(folder))
    expected = ["data/00/000007_0.MID", "data/00/000007_1.mid", "data/01/000010_0.midi"]
    assert [path for path, _ in source.read()] == expected
    assert dict(source.read()) == {path: path.encode() for path in expected}
    assert source.total == 3


def test_single_file(folder):
    assert list(open_source(str(folder / "data/00/000007_0.MID")).read()) == [("000007_0.MID", b"data/00/000007_0.MID")]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
@pytest.mark.parametrize("top", ["", ".", "pieces", "./deep"])
def test_archive_gives_what_the_folder_gives(folder, tmp_path, name, top):
    if top in ("", "."):
        archive = pack(tmp_path / name, *((path, f"{top}/{path.name}".lstrip("/")) for path in folder.iterdir()))
    else:
        archive = pack(tmp_path / name, (folder, top))
    source = open_source(str(archive))
    pieces = list(source.read())
    assert {source.relative(name): data for name, data in pieces} == dict(open_source(str(folder)).read())


def test_metadata_gives_labels_by_id(folder, tmp_path):
    archive = open_source(str(pack(tmp_path / "a.tar.gz", (folder, "pieces"))))
    assert list(archive.read())
    for source in (archive, open_source(str(folder))):
        assert source.metadata("data/00/000007_1.mid") == ("7", "bach", "", "", "baroque", "", "1.0")
        assert source.metadata("data/01/000010_0.midi") is None


def test_metadata_longer_than_a_block(folder):
    many = {str(number): METADATA["7"] | {"more": "é" * (number % 300)} for number in range(2000)}
    for text in (json.dumps(many, ensure_ascii=False), json.dumps(many, indent=3), json.dumps({})):
        (folder / "metadata.json").write_text(text)
        metadata, known = open_source(str(folder)).metadata, json.loads(text)
        assert [metadata(f"{number}_1.mid") is not None for number in range(3000)] == [
            str(number) in known for number in range(3000)
        ]


def test_going_on_leaves_out_what_was_read(folder, tmp_path):
    archive = pack(tmp_path / "a.tar.gz", (folder, "pieces"))
    for path in (folder, archive):
        assert list(open_source(str(path)).read(2)) == list(open_source(str(path)).read())[2:]
    source = open_source(str(archive))
    assert not list(source.read(3)) and source.relative("pieces/data/x.mid") == "data/x.mid"


def test_a_file_too_large_is_not_read(folder, tmp_path):
    (folder / "data" / "01" / "large.mid").write_bytes(bytes(LARGEST + 1))
    for path in (folder, pack(tmp_path / "a.tar.gz", (folder, "pieces"))):
        contents = {name.rpartition("/")[2]: content for name, content in open_source(str(path)).read()}
        assert contents["large.mid"] == "larger than 16 MiB" and isinstance(contents["000010_0.midi"], bytes)


@pytest.mark.parametrize("text", ["{", "[1]", '{"7": 1}', '{"7": {}}', "[" * 100_000, "", "{} {}", '{"7"', "{,}"])
def test_bad_metadata(folder, text):
    (folder / "metadata.json").write_text(text)
    with pytest.raises(BadInput, match=r"metadata\.json: not the metadata"):
        open_source(str(folder))


def test_bad_paths(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("la la")
    for name, complaint in [("none", "no such"), ("empty", r"no \.mid"), ("text.txt", "not a MIDI file")]:
        with pytest.raises(BadInput, match=f"{name}: {complaint}"):
            open_source(str(tmp_path / name))
    without = pack(tmp_path / "a.tar.gz", (tmp_path / "text.txt", "text.txt"))
    with pytest.raises(BadInput, match=r"a\.tar\.gz: no \.mid"):
        list(open_source(str(without)).read())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("harm", ["empty", "other", "short", "last", "flipped"])
def test_damaged_archive(tmp_path, zipped, harm):
    members = []
    for number in range(40):
        members.append((tmp_path / f"{number}.mid", f"top/{number}.mid"))
        members[-1][0].write_bytes(bytes(range(256)) * 100)
    whole = pack(tmp_path / "whole.tar", *members).read_bytes()
    flipped = whole.replace(b"top/20.mid", b"top/20.miD") if not zipped else None  # breaks that header's checksum
    whole = gzip.compress(whole) if zipped else whole
    if zipped:
        flipped = whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]
    harmed = {
        "empty": b"",
        "other": b"what is this" * 1000,
        "short": whole[: len(whole) // 2],
        "last": whole[: -4 if zipped else -20_000],
        "flipped": flipped,
    }
    archive = tmp_path / ("a.tar.gz" if zipped else "a.tar")
    archive.write_bytes(harmed[harm])
    with pytest.raises(BadInput, match="a damaged archive"):
        list(open_source(str(archive)).read())


def test_paths_are_those_of_the_corpus_manifest():
    if not CORPUS.exists():
        pytest.skip("the shared corpus is not here")
    source = open_source(str(CORPUS / "pieces.tar.gz"))
    names = [name for name, _ in source.read()]
    with (CORPUS / "manifest.csv").open(newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {source.relative(name) for name in names}
