"""The heat maps of routers: legible whatever the names and numbers of tasks and modules (a warning of collapsed axes fails)."""

import struct

import pytest
import torch

from paretomerge.errors import UserError
from paretomerge.report import Routing, routing_figure


@pytest.mark.parametrize("name", ["m{}", "model.language_model.layers.{}.self_attention.q_proj_and_more"])
@pytest.mark.parametrize("k, modules", [(1, 2), (2, 1), (2, 3), (5, 80), (7, 1), (9, 40)])
@pytest.mark.parametrize("task", ["t{}", "a-very-long-task-name-that-someone-chose-{}"])
def test_it_fits_a_page(tmp_path, k, modules, name, task):
    tasks, names = (tuple(text.format(i) for i in range(n)) for text, n in ((task, k), (name, modules)))
    weights = torch.randn(k, modules, k, generator=torch.Generator().manual_seed(0))
    routing_figure(tmp_path / "routing.png", Routing(tasks, names, weights))
    width, height = struct.unpack(">II", (tmp_path / "routing.png").read_bytes()[16:24])
    assert 300 < width < 4000 and 150 < height < 3500


def test_a_format_that_cannot_be_drawn(tmp_path):
    with pytest.raises(UserError, match=r"name a \.png"):
        routing_figure(tmp_path / "routing.txt", Routing(("a",), ("m",), torch.zeros(1, 1, 1)))
    assert not list(tmp_path.iterdir())
