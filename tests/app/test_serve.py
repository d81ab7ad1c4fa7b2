"""The server: who may reach it, what it tells the browser, and that it calls nobody."""

import builtins
import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from email.message import Message
from http.client import HTTPConnection

import pytest

import fronts
from commands import program
from explorer import explored
from paretomerge.app.serve import free_socket
from paretomerge.errors import UserError


@pytest.fixture(scope="module")
def get(tmp_path_factory) -> Iterator[Callable[..., tuple[int, Message, str]]]:
    """``get(path, host=…)``: status, headers and text."""
    pytest.importorskip("gradio")
    with explored(fronts.front(tmp_path_factory.mktemp("front")).folder) as address:
        port = int(address.rstrip("/").rpartition(":")[2])

        def ask(path: str, host: str = "127.0.0.1") -> tuple[int, Message, str]:
            with closing(HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
                connection.request("GET", path, headers={"Host": host})
                answer = connection.getresponse()
                return answer.status, answer.headers, answer.read().decode(errors="replace")

        yield ask


def test_the_page_holds_nothing_from_elsewhere(get):  # and the program calls nobody: see ``explored``
    status, headers, html = get("/")
    assert status == 200
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=[\"']([^\"']+)", html)
    assert loaded and not [address for address in loaded if "//" in address]
    assert "fonts.googleapis" not in html and "fonts.gstatic" not in html
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy
    theme = get("/theme.css")[2]
    assert "@import" not in theme and not re.search(r"url\([\"']?(https?:)?//", theme)
    config = json.loads(get("/config")[2])
    assert config["analytics_enabled"] is False


def test_other_names_for_this_machine_are_refused(get):
    assert get("/", host="evil.example")[0] == 400
    assert get("/", host="localhost:7860")[0] == 200


def test_files_are_not_served(get, tmp_path):
    (tmp_path / "secret.txt").write_text("told")
    for path in (tmp_path / "secret.txt", "/etc/passwd", "pyproject.toml"):
        status, _, text = get(f"/gradio_api/file={path}")
        assert status in (403, 404) and "told" not in text and "root:" not in text


def test_without_gradio_one_line_says_what_to_install(tmp_path, monkeypatch):
    from paretomerge.app import serve

    front = fronts.front(tmp_path, measured=False)
    before = builtins.__import__

    def without(name, *rest):
        if name == "gradio":
            raise ImportError(name)
        return before(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'paretomerge\[app\]'"):
        serve.application(front)


def test_a_port_that_is_taken_is_named():
    with free_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: cannot listen there .*--port"):
            free_socket("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot listen"):
        free_socket("192.0.2.1", 0)


def test_no_front_is_one_line(tmp_path):
    pytest.importorskip("gradio")
    done = program("explore", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not a front" in done.stderr
