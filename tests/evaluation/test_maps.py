import re

import numpy as np

from piano_jax.evaluation.maps import draw, project


def test_like_lies_near_like():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(3), 12)
    vectors = (3 * np.eye(3, 8)[group] + 0.1 * rng.normal(size=(36, 8))).astype(np.float32)
    points = project(vectors)
    assert np.array_equal(points, project(vectors))
    apart = np.linalg.norm(points[:, None] - points, axis=-1) + 1e9 * np.eye(36)
    assert (group[apart.argmin(1)] == group).all()


def test_the_page_names_every_point_and_needs_no_other_file(tmp_path):
    points = np.random.default_rng(0).normal(size=(30, 2))
    names = [f"a & b/<{number}>.mid" for number in range(30)]
    labels = [f"label {number % 14}" if number % 5 else "" for number in range(30)]
    picture, page = draw(points, names, labels, "a map", tmp_path / "some.npz")
    assert picture.read_bytes().startswith(b"\x89PNG") and page.name == "some.html"
    text = page.read_text()
    assert text.count("<circle") == 30 and "a &amp; b/&lt;7&gt;.mid" in text
    assert not re.search(r"src=|href=|url\(|<script", text)
    at = np.array(re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', text), float)
    assert at.min() >= 0 and at.max() <= 900
    assert np.corrcoef(at[:, 0], points[:, 0])[0, 1] > 0.999
