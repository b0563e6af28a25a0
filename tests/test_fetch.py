"""`sdfp.data.fetch` against a server on this machine that fails in the ways that servers do."""

import errno
import hashlib
import http.server
import io
import itertools
import os
import shutil
import socket
import stat
import tarfile
import threading
import zipfile

import pytest

from sdfp.data import fetch as module
from sdfp.data import unpack
from sdfp.data.fetch import fetch, main
from sdfp.data.interface import Download, Entry
from sdfp.types import UserError

BLOB = os.urandom(300_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; `server.faults` (path -> kind) are used up one per request."""

    def do_GET(self):
        server, path = self.server, self.path
        asked = self.headers.get("Range")
        server.asked.append((path, asked))
        fault = server.faults[path].pop(0) if server.faults.get(path) else None
        if path.startswith("/to/"):
            self.answer(302, {"Location": path[4:]})
            return
        if path not in server.files or fault == 503:
            self.answer(fault or 404, {"Content-Length": "0"})
            return
        body, start = server.files[path], 0
        if asked and fault != "no range":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body) or fault == 416:
                self.answer(416, {"Content-Length": "0"})
                return
        headers = {"Content-Length": str(len(body) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if fault in ("no length", "no length, drop"):
            del headers["Content-Length"]
        end = start + (len(body) - start) // 2 if fault in ("drop", "no length, drop") else None
        self.answer(206 if start else 200, headers, body[start:end])

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.asked = {}, {}, []

    def handle_error(self, *_):
        pass  # a client that hangs up is part of the tests

    def add(self, name, body, digest="sha256", into="", **changes):
        """Serves a file, and returns its line of the registry."""
        self.files[f"/{name}"] = body
        told = f"{digest}:{hashlib.new(digest, body).hexdigest()}" if digest else ""
        url = f"http://127.0.0.1:{self.server_port}/{name}"
        return Download(url, len(body), told, name, into)._replace(**changes)

    def ranges(self):
        asked = [asked for _, asked in self.asked]
        self.asked.clear()
        return asked


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "PAUSE", 0.0)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def tar(members, mode="w:gz"):
    """An archive of {name: content, or (type, target of the link)}."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content
                archive.addfile(member)
    return file.getvalue()


def zipped(members, links=()):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = ((stat.S_IFLNK if name in links else stat.S_IFREG) | 0o644) << 16
            archive.writestr(member, content)
    return file.getvalue()


def tree(folder):
    """{relative path: content}, without the private folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {name: content for name, content in found.items() if not name.startswith(".fetch")}


def private(folder):
    found = (folder / ".fetch").rglob("*")
    return sorted(path.name for path in found if path.is_file() and path.name != "lock")


def failure(downloads, folder):
    with pytest.raises(UserError) as caught:
        fetch(downloads, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fresh_then_nothing_to_do(server, tmp_path, capsys):
    rubbish = {"__MACOSX/a": b"x", "set/.DS_Store": b"x", "set/._a": b"x"}
    downloads = [
        server.add("a.tar.gz", tar({"./set/a": BLOB, "top.txt": b"t", **rubbish})),
        server.add("plain.tar.gz", tar({"plain/a": b"a"}, "w"), "md5"),  # like DTD's
        server.add("b.zip", zipped({"zip/x/b": b"b", "zip/empty/": b"", **rubbish}), "", "deep/er"),
        server.add("labels.mat", b"labels", "md5", "deep"),
    ]
    fetch(downloads, tmp_path / "new")
    expected = {"set/a": BLOB, "top.txt": b"t", "plain/a": b"a"}
    expected |= {"deep/er/zip/x/b": b"b", "deep/labels.mat": b"labels"}
    assert tree(tmp_path / "new") == expected
    done = ["a.tar.gz.done", "b.zip.done", "labels.mat.done", "plain.tar.gz.done"]
    assert private(tmp_path / "new") == done
    assert server.ranges() == [None] * 4

    capsys.readouterr()
    fetch(downloads, tmp_path / "new")
    assert server.ranges() == []
    assert capsys.readouterr().out.count("already there") == 4

    # What the user removes is fetched again; another file under the same name is not taken for it.
    (tmp_path / "new/deep/labels.mat").unlink()
    shutil.rmtree(tmp_path / "new/plain")
    fetch(downloads, tmp_path / "new")
    assert tree(tmp_path / "new") == expected
    changed = server.add("plain.tar.gz", tar({"other/a": b"a"}))
    fetch([changed], tmp_path / "new")
    assert tree(tmp_path / "new") == {**expected, "other/a": b"a"}


@pytest.mark.parametrize("fault", ["drop", "no length, drop"])
def test_killed_midway_then_only_the_rest(server, tmp_path, monkeypatch, fault):
    file = server.add("f.bin", BLOB)
    monkeypatch.setattr(module, "TRIES", 1)
    server.faults["/f.bin"] = [fault]
    message = failure([file], tmp_path)
    assert f"ended after {len(BLOB) // 2} of {len(BLOB)} bytes. Run this again" in message
    assert private(tmp_path) == ["f.bin.part"]
    server.ranges()
    fetch([file], tmp_path)
    assert server.ranges() == [f"bytes={len(BLOB) // 2}-"]
    assert tree(tmp_path) == {"f.bin": BLOB}


def test_drops_are_taken_up_again(server, tmp_path):
    file = server.add("f.bin", BLOB)
    server.faults["/f.bin"] = ["drop", 503, "no length, drop", "drop", "no length"]
    fetch([file], tmp_path)
    half = [150_000, 150_000, 225_000, 262_500]
    assert server.ranges() == [None, *(f"bytes={start}-" for start in half)]
    assert tree(tmp_path) == {"f.bin": BLOB}


@pytest.mark.parametrize("fault", ["no range", 416])
def test_servers_that_cannot_continue(server, tmp_path, fault):
    file = server.add("f.bin", BLOB)
    (tmp_path / ".fetch").mkdir()
    (tmp_path / ".fetch/f.bin.part").write_bytes(b"of an old version")
    server.faults["/f.bin"] = [fault]
    fetch([file], tmp_path)
    assert tree(tmp_path) == {"f.bin": BLOB}
    assert server.ranges() == ["bytes=17-", None][: 1 if fault == "no range" else 2]


@pytest.mark.parametrize("extra", [0, 1])
def test_whole_and_too_long_parts(server, tmp_path, extra):
    file = server.add("f.bin", BLOB)
    (tmp_path / ".fetch").mkdir()
    (tmp_path / ".fetch/f.bin.part").write_bytes(BLOB + bytes(extra))
    fetch([file], tmp_path)
    assert tree(tmp_path) == {"f.bin": BLOB}
    assert server.ranges() == [None] * extra


@pytest.mark.parametrize("fault", [None, "no length"])
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_size(server, tmp_path, change, fault, monkeypatch):
    monkeypatch.setattr(module, "TRIES", 2)
    file = server.add("f.bin", BLOB, size=len(BLOB) + change)
    server.faults["/f.bin"] = [fault]
    message = failure([file], tmp_path)
    if (fault, change) == ("no length", 1):
        assert f"the server has only {len(BLOB)} of {file.size} bytes" in message
    else:
        assert f"{file.url}: expected {file.size} bytes, got " in message
    assert tree(tmp_path) == {}
    assert failure([file], tmp_path)  # not taken for whole by the next run
    (tmp_path / ".fetch/f.bin.part").write_bytes(BLOB[:1000])
    server.files["/f.bin"] = b"<html>login</html>"
    server.faults["/f.bin"] = ["no range"]
    assert "got 18: damaged, or not the known file" in failure([file], tmp_path)
    server.ranges()
    fetch([server.add("f.bin", BLOB)], tmp_path)
    assert server.ranges() == ["bytes=1000-"]  # that page has not cost us the part
    assert tree(tmp_path) == {"f.bin": BLOB}


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_wrong_digest(server, tmp_path, kind):
    file = server.add("f.bin", BLOB, kind)
    server.files["/f.bin"] = bytes(len(BLOB))
    got = hashlib.new(kind, bytes(len(BLOB))).hexdigest()
    told = f"{file.url}: expected {file.digest.replace(':', ' ')}, got {got}"
    assert told in failure([file], tmp_path)
    assert private(tmp_path) == []
    server.files["/f.bin"] = BLOB
    fetch([file], tmp_path)
    assert tree(tmp_path) == {"f.bin": BLOB}


@pytest.mark.parametrize(
    "body",
    [
        tar({"ok": b"", "../out": b"x"}),
        tar({"ok": b"", "/tmp/out": b"x"}),
        tar({"ok": b"", "in": (tarfile.SYMTYPE, "../.."), "in/out": b"x"}),
        tar({"ok": b"", "in": (tarfile.SYMTYPE, "/tmp"), "in/out": b"x"}),
        tar({"ok": b"", "in": (tarfile.LNKTYPE, "../out")}),
        tar({"ok": b"", "in": (tarfile.CHRTYPE, "")}),
        tar({"ok": b"", "in": (tarfile.FIFOTYPE, "")}),
        zipped({"ok": b"", "../out": b"x"}),
        zipped({"ok": b"", "a/../../out": b"x"}),
        zipped({"ok": b"", "/tmp/out": b"x"}),
        zipped({"ok": b"", "..\\out": b"x"}),
        zipped({"ok": b"", "in": b"../.."}, links=["in"]),
    ],
    ids=itertools.count(),
)
def test_members_that_lead_out(server, tmp_path, body):
    name = "a.zip" if body.startswith(b"PK") else "a.tgz"
    message = failure([server.add(name, body)], tmp_path / "a/b")
    assert "leads out of the folder" in message
    assert private(tmp_path / "a/b") == [f"{name}.part"]
    assert not list(tmp_path.rglob("out")) + list(tmp_path.rglob("ok"))


def test_links_that_stay_inside(server, tmp_path):
    body = tar({"set/a": b"a", "set/b": (tarfile.SYMTYPE, "a")}, "w")
    fetch([server.add("a.tar", body)], tmp_path)
    assert tree(tmp_path) == {"set/a": b"a", "set/b": b"a"}


def test_bombs(server, tmp_path, monkeypatch):
    for name, body in (("a.tgz", tar({"a": bytes(10**6)})), ("a.zip", zipped({"a": bytes(10**6)}))):
        assert "more than 20 times its size" in failure([server.add(name, body)], tmp_path)
    monkeypatch.setattr(unpack, "MAX_MEMBERS", 3)
    many = tar({str(i): b"" for i in range(4)})
    assert "more than 3 members" in failure([server.add("m.tgz", many)], tmp_path)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("cut", [tar({"a": BLOB}), zipped({"a": BLOB}), b"<html>login</html>"])
def test_damaged_archive(server, tmp_path, cut):
    name = "a.zip" if cut.startswith(b"PK") else "a.tar.gz"
    damaged = cut[: len(cut) // 2] + bytes(100) + cut[len(cut) // 2 + 100 :]
    assert "cannot be extracted" in failure([server.add(name, damaged, "")], tmp_path)
    assert tree(tmp_path) == {}
    assert private(tmp_path) == []


def test_a_file_that_the_user_put_there(server, tmp_path):
    archive, plain = server.add("a.zip", zipped({"set/a": b"a"}), into="in"), server.add("b", b"b")
    (tmp_path / "in").mkdir()
    manual = {tmp_path / "in/a.zip": server.files["/a.zip"], tmp_path / "b": b"b"}
    for path, content in manual.items():
        path.write_bytes(b"wrong")
        message = failure([archive, plain], tmp_path)
        assert message.startswith(f"{path}: expected ")
        assert path.read_bytes() == b"wrong"
        path.write_bytes(content[:-1] + b"!")
        assert "expected sha256" in failure([archive, plain], tmp_path)
        path.write_bytes(content)
        server.ranges()
        if path.name == "a.zip":
            fetch([archive], tmp_path)
    fetch([archive, plain], tmp_path)
    assert server.ranges() == []
    kept = server.files["/a.zip"]
    assert tree(tmp_path) == {"in/set/a": b"a", "in/a.zip": kept, "b": b"b"}


def test_what_is_in_the_way_is_left_alone(server, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/mine").write_bytes(b"mine")
    archive = server.add("a.tgz", tar({"new": b"new", "set/a": b"a"}))
    assert f"{tmp_path}: set in the way" in failure([archive], tmp_path)
    (tmp_path / "set").rename(tmp_path / "other")
    server.ranges()
    fetch([archive], tmp_path)
    assert server.ranges() == []  # the download was kept
    assert tree(tmp_path) == {"other/mine": b"mine", "new": b"new", "set/a": b"a"}
    assert private(tmp_path) == ["a.tgz.done"]


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_killed_while_moving(server, tmp_path, monkeypatch, moves):
    """After the extraction and `moves` of two moves: finished by the next run, without network."""
    archive = server.add("a.tgz", tar({"a/a": b"a", "b/b": b"b"}))
    left, rename = [moves], module.Path.rename

    def killed(self, target):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(module.Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch([archive], tmp_path)
    assert len(tree(tmp_path)) == moves
    assert "a.tgz.done" not in private(tmp_path)
    server.ranges()
    fetch([archive], tmp_path)
    assert (server.ranges(), private(tmp_path)) == ([], ["a.tgz.done"])
    assert tree(tmp_path) == {"a/a": b"a", "b/b": b"b"}


def test_killed_or_out_of_room_while_extracting(server, tmp_path, monkeypatch):
    archive = server.add("a.tgz", tar({"a/a": b"a", "b/b": b"b"}))
    write = tarfile.TarFile.makefile

    def full(self, member, path):
        write(self, member, path)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "makefile", full)
        assert "No space left on device. Make room" in failure([archive], tmp_path)
    assert tree(tmp_path) == {}
    assert private(tmp_path) == ["a.tgz.part"]
    (tmp_path / ".fetch/a.tgz.tmp/a").mkdir(parents=True)
    (tmp_path / ".fetch/a.tgz.tmp/a/half").write_bytes(b"half")  # as a kill leaves it
    (tmp_path / ".fetch/a.tgz.moving").write_bytes(b'{"download": [')
    server.ranges()
    fetch([archive], tmp_path)
    assert server.ranges() == []
    assert tree(tmp_path) == {"a/a": b"a", "b/b": b"b"}


def test_disk_troubles_are_one_line(server, tmp_path, monkeypatch):
    file = server.add("f.bin", BLOB)
    (tmp_path / "file").write_bytes(b"")
    assert str(tmp_path / "file") in failure([file], tmp_path / "file/below")
    vast = server.add("g.tar", BLOB, size=10**18)
    assert "needs about 2000000000.0 GB, free are" in failure([vast], tmp_path / "new")
    monkeypatch.setattr(module.tqdm, "update", lambda *_: os.stat(tmp_path / "gone"))
    assert "gone: No such file" in failure([file], tmp_path)  # not taken for the network's
    assert len(server.ranges()) == 1


def test_one_run_at_a_time(server, tmp_path):
    file = server.add("f.bin", BLOB)
    (tmp_path / ".fetch").mkdir()
    with (tmp_path / ".fetch/lock").open("w") as lock:
        module._take(lock, tmp_path)
        assert "another run" in failure([file], tmp_path)
    fetch([file], tmp_path)


def test_redirects(server, tmp_path):
    file = server.add("f.bin", BLOB)
    fetch([file._replace(url=file.url.replace("/f.bin", "/to//f.bin"))], tmp_path / "a")
    assert tree(tmp_path / "a") == {"f.bin": BLOB}
    away = file._replace(url=file.url.replace("/f.bin", "/to/ftp://x/f.bin"))
    assert "302" in failure([away], tmp_path / "b")
    assert "only http and https" in failure([file._replace(url="file:///f.bin")], tmp_path / "b")
    down = module.urllib.request.Request("https://x/f.bin")
    with pytest.raises(module.urllib.error.HTTPError, match="refused: to http://x/f") as caught:
        module._Redirects().redirect_request(down, io.BytesIO(), 302, "", {}, "http://x/f")
    caught.value.close()


def test_no_network_and_http_errors(server, tmp_path, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/f.tar"
    entry = Entry(lambda: None, (Download(closed, 10, "", "f.tar", "in"),))
    missing = Entry(lambda: None, (server.add("gone", b"")._replace(size=1),))
    server.files.clear()
    monkeypatch.setattr(module, "DATASETS", {"birds": entry, "cats": missing})
    assert main(["birds", "--dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sdfp: {closed}: [Errno ")
    assert "Connection refused. Run this again on a machine with network" in error
    assert str(tmp_path / "in/f.tar") in error
    assert error.count("\n") == 1
    assert main(["cats", "--dir", str(tmp_path)]) == 2
    assert "HTTP Error 404: Not Found. Run" in capsys.readouterr().err
    assert len(server.ranges()) == 1


def test_main(server, tmp_path, monkeypatch, capsys):
    birds = Entry(lambda: None, (server.add("f", b"f"),))
    monkeypatch.setattr(module, "DATASETS", {"birds": birds, "digits": Entry(lambda: None)})
    for name in ("digits", "nonsense"):
        assert main([name, "--dir", str(tmp_path)]) == 2
        assert capsys.readouterr().err.endswith("can be fetched: birds\n")
    assert main(["birds", "--dir", str(tmp_path / "a b")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    config = f"--config configs/vit_birds.py --config.data.dir='{tmp_path / 'a b'}'"
    assert last == f"Next: python -m sdfp.main {config}"

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fetch", interrupted)
    assert main(["birds", "--dir", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
