"""``paretomerge methods``."""

import json

from paretomerge.fitting import FITS, FITS_ON_DATA
from paretomerge.merges import MERGES, MERGES_ON_DATA


def test_the_table_has_every_method(cli):
    out = cli("methods")
    rows = json.loads(cli("methods", "--json"))
    assert {(row["command"], row["name"]) for row in rows} >= {
        *(("merge", name) for name in MERGES), *(("merge --data", name) for name in MERGES_ON_DATA),
        *(("fit", name) for name in FITS), *(("fit --data", name) for name in FITS_ON_DATA),
    }  # fmt: skip
    lines = {tuple(line.split()[:2]) for line in out.splitlines()}
    assert all((row["name"], row["command"].split()[0]) in lines for row in rows)
    assert "Yadav et al. 2023, arXiv 2306.01708" in out and "regmean" in out


def test_one_method_with_its_options(cli):
    out = cli("methods", "ties")
    assert out.startswith("paretomerge merge --method ties\n") and "paper   Yadav et al. 2023" in out
    assert "Fraction of entries to keep of each task vector" in " ".join(out.split()) and "task_arithmetic" not in out
    both = cli("methods", "pareto-merging")
    assert "paretomerge fit --method pareto-merging\n" in both
    assert "paretomerge fit --method pareto-merging --data TASK=PATH …\n" in both
    (only,) = json.loads(cli("methods", "fisher", "--json"))
    assert only["needs"] == "inputs (labels if asked for)" and only["options"]["floor"]["default"] == 1e-6
    assert cli.refuses("methods", "tie").startswith("unknown method 'tie', did you mean 'ties'?")
