"""The server: who may reach it, what it tells the browser, and that it calls nobody."""

import builtins
import contextlib
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
from paretomerge.app import free_socket
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


def multipart(content: bytes) -> tuple[bytes, str]:
    """A file as a form sends it: its body and content type."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n'
    return head + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


def test_who_may_ask(tmp_path):
    """Each request is sent to the program as a browser would send it for the page, or for another one that is open in it."""
    pytest.importorskip("gradio")
    uploads = tmp_path / "uploads"
    uploads.mkdir()

    def kept() -> list[str]:
        return [path.name for path in uploads.rglob("*") if path.is_file()]

    with explored(fronts.front(tmp_path, measured=False).folder, GRADIO_TEMP_DIR=str(uploads)) as address:
        here = address.removeprefix("http://").rstrip("/")
        body, kind = multipart(b"x" * 1000)

        def ask(method: str, path: str, body: bytes | Iterator[bytes] | None = None, host: str = here, **headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            with closing(HTTPConnection(here, timeout=120)) as connection:
                with contextlib.suppress(ConnectionError):  # it is answered before all is sent
                    connection.request(method, path, body, {"Host": host, **named})
                return connection.getresponse().status

        def upload(**headers: str) -> int:
            return ask("POST", "/gradio_api/upload", body, Content_Type=kind, **headers)

        port = here.rpartition(":")[2]
        strange = [f"http://evil.example:{port}", "http://127.0.0.1:1", f"http://localhost:{port}", "null", "", "file://", here]
        for origin in strange:
            assert upload(Origin=origin) == 403, origin
        for site in ("cross-site", "same-site"):
            assert upload(Sec_Fetch_Site=site) == 403
            assert ask("GET", "/config", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors") == 403
            assert ask("GET", "/", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate") == 200  # a link to the page
            assert ask("POST", "/", b"", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate") == 403
        for path in ("/", "/config", "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/queue/data", "/no-such-page"):
            for method in ("GET", "POST", "OPTIONS", "PUT"):
                assert ask(method, path, b"", Origin="http://evil.example") == 403
                for host in ("evil.example", f"evil.example:{port}", "", "127.0.0.1.evil.example", "8.8.8.8", "[::2]"):
                    assert ask(method, path, b"", host=host, Origin=f"http://{host}") == 400
        assert kept() == []
        assert upload(Origin=f"http://{here}") == 200 == upload() == upload(Origin="null", Sec_Fetch_Site="same-origin")
        assert upload(Origin=f"http://localhost:{port}", host=f"localhost:{port}") == 200
        assert set(kept()) == {"x.png"}
        before = len(kept())
        body, kind = multipart(bytes(25 * 2**20))
        assert upload(Origin=f"http://{here}") == 413
        chunks = (body[i : i + 2**20] for i in range(0, len(body), 2**20))  # its length is not said before
        assert ask("POST", "/gradio_api/upload", chunks, Content_Type=kind) == 413
        assert sum(path.stat().st_size for path in uploads.rglob("*") if path.is_file()) < 2**20 and len(kept()) == before
    assert list(uploads.iterdir()) == []  # at its end


def test_files_are_not_served(get, tmp_path):
    (tmp_path / "secret.txt").write_text("told")
    for path in (tmp_path / "secret.txt", "/etc/passwd", "pyproject.toml"):
        status, _, text = get(f"/gradio_api/file={path}")
        assert status in (403, 404) and "told" not in text and "root:" not in text


def test_without_gradio_one_line_says_what_to_install(tmp_path, monkeypatch):
    from paretomerge.app import application

    front = fronts.front(tmp_path, measured=False)
    before = builtins.__import__

    def without(name, *rest):
        if name == "gradio":
            raise ImportError(name)
        return before(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'paretomerge\[app\]'"):
        application(front)


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
