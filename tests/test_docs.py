"""Everything that the documentation tells to type, run on tiny models under the names that it uses."""

import re
from pathlib import Path

import numpy as np
import pytest

import fit_data
import task_data
import tiny
from test_readme import BLOCK, ROOT, run

PAGES = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
SCORE = """
import json, sys
from pathlib import Path
size = sum(file.stat().st_size for file in Path(sys.argv[1]).glob("*.safetensors"))
print(json.dumps({"math": 0.5, "code": 1 / (1 + size)}))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with the models and data that the pages name."""
    there = tmp_path_factory.mktemp("docs")
    base, experts = tiny.family("llama", there / "made")
    (there / "models").mkdir()
    for name, folder in {"base": base, "math": experts["a"], "code": experts["b"]}.items():
        folder.rename(there / "models" / name)
    task_data.companions(there / "models" / "base")
    (there / "data").mkdir()
    for name, sentence in {"math": "the cat sat on the mat .", "code": "a very good film ?"}.items():
        (there / "data" / f"{name}.txt").write_text(f"{sentence}\n" * 400)
    task_data.adapters(there / "models" / "base", there / "loras", "math", "code")
    fit_data.save("vit", there / "vision")
    task_data.companions(there / "vision" / "base")
    for seed, (old, new) in enumerate({"a": "flowers", "b": "birds"}.items()):
        (there / "vision" / old).rename(there / "vision" / new)
        draw = np.random.default_rng(seed)
        fit, test = (draw.integers(0, 256, (n, 20, 20, 3), dtype=np.uint8) for n in (24, 12))
        labels = draw.integers(0, fit_data.CLASSES[old], 12)
        np.savez(there / "data" / f"{new}.npz", fit_images=fit, test_images=test, test_labels=labels)
    (there / "score.py").write_text(SCORE)
    return there


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page, world, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = BLOCK.findall(text)
    assert text.count("```") == 2 * len(found), "a block that is not seen"
    for name in ("models", "loras", "vision", "data", "score.py"):
        (tmp_path / name).symlink_to(world / name)
    monkeypatch.chdir(tmp_path)
    from paretomerge.fitting import OBJECTIVES
    from paretomerge.merges import MERGES
    from paretomerge.sets import SETS

    for known in (MERGES, OBJECTIVES, SETS):  # what a page adds is gone after it
        for name, function in dict(known).items():
            monkeypatch.setitem(known, name, function)
        for added in ("median", "margin", "switch"):
            monkeypatch.setitem(known, added, None)
            del known[added]
    names: dict[str, object] = {}
    for language, block in found:
        if language == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                run(line, monkeypatch)
        elif language == "yaml":  # a file, whose name is in its first line
            Path(block.split("\n")[0].removeprefix("# ")).write_text(block)
        else:
            assert language == "python"
            exec(compile(block, page, "exec"), names)


def test_links_and_pictures_are_there():
    for page in PAGES:
        folder = (ROOT / "docs" / page).parent
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "docs" / page).read_text(encoding="utf-8")):
            assert (folder / target).exists(), f"{page}: {target}"


def test_every_method_has_its_options_on_a_page():
    from paretomerge.methods import describe_methods

    text = "\n".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in PAGES)
    assert not [row["name"] for row in describe_methods(None) if f"{{{{ options {row['name']} }}}}" not in text]
