"""Downloads against a server of this process that breaks off, lies and forgets; archives that are broken or hostile."""

import gzip
import hashlib
import io
import os
import tarfile
import threading
import time
import zipfile
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from emanet.data.prepare import archives as download
from emanet.data.prepare.archives import Archive, fetch, obtain, present, unpack
from emanet.errors import InputError

CONTENT = bytes(range(256)) * 5000  # 1.28 MB: more than one block
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Server:
    """Serves its content; the other attributes are how it misbehaves, `asked` the Range of every request."""

    def __init__(self):
        self.content = CONTENT
        self.asked: list[str | None] = []
        self.ranges = True
        self.break_after: list[int] = []  # bytes of the body, per request; afterwards whole
        self.codes: list[int] = []  # answered first
        self.kind = "application/octet-stream"
        self.shift = 0  # what a wrong Content-Range is off by
        self.extent = ""  # in place of the Content-Range
        self.length = ""  # in place of the Content-Length
        self.drip = 0.0  # seconds after every byte
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/file.bin"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        if self.codes:
            request.send_error(self.codes.pop(0))
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(self.content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            true = f"bytes {start + self.shift}-{len(self.content) - 1}/{len(self.content)}"
            request.send_header("Content-Range", self.extent or true)
        body = self.content[start:]
        request.send_header("Content-Type", self.kind)
        request.send_header("Content-Length", self.length or str(len(body)))
        request.end_headers()
        with suppress(ConnectionError):  # the client has given up
            while self.drip and body:
                request.wfile.write(body[:1])
                body = body[1:]
                time.sleep(self.drip)
        request.wfile.write(body[: self.break_after.pop(0)] if self.break_after else body)


@contextmanager
def serving(monkeypatch):
    """A running server, and a client that does not wait between tries."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as server:
        yield server


def archive(*urls, digests=(MD5,), **more):
    return Archive(name="file.bin", takes={"": ""}, gives=("x",), urls=urls, digests=digests, **more)


def test_a_download_is_verified_and_then_named(server, tmp_path):
    path = obtain(archive(server.url), tmp_path / "new")
    assert path.read_bytes() == CONTENT and server.asked == [None]
    assert [file.name for file in path.parent.iterdir()] == ["file.bin"]
    assert obtain(archive(server.url), tmp_path / "new") == path and len(server.asked) == 1, "it is not fetched twice"


def test_what_broke_off_goes_on_where_it_ended(server, tmp_path):
    server.break_after = [300_000, 500_000]
    assert obtain(archive(server.url), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=800000-"]


def test_an_earlier_run_is_continued(server, tmp_path):
    (tmp_path / "file.bin.partial").write_bytes(CONTENT[:1000])
    assert obtain(archive(server.url), tmp_path).read_bytes() == CONTENT and server.asked == ["bytes=1000-"]


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    server.ranges, server.break_after = False, [300_000]
    assert obtain(archive(server.url), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]


def test_a_partial_file_that_is_whole_needs_only_its_name(server, tmp_path):
    (tmp_path / "file.bin.partial").write_bytes(CONTENT)
    assert obtain(archive(server.url), tmp_path).read_bytes() == CONTENT


def test_a_partial_file_that_is_too_long_is_dropped(server, tmp_path):
    (tmp_path / "file.bin.partial").write_bytes(CONTENT + b"more")
    assert obtain(archive(server.url), tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 4}-", None]


def test_another_part_than_asked_for_is_not_appended(server, tmp_path):
    (tmp_path / "file.bin.partial").write_bytes(CONTENT[:1000])
    server.shift = 7
    assert obtain(archive(server.url), tmp_path).read_bytes() == CONTENT and server.asked == ["bytes=1000-", None]


@pytest.mark.parametrize("extent", ["1000-500/1280000", "1000-1279999/1000", "1000-1999/2000", "1000-1279999/*"])
def test_a_content_range_that_lies_is_not_believed(server, tmp_path, extent):
    (tmp_path / "file.bin.partial").write_bytes(CONTENT[:1000])
    server.extent = f"bytes {extent}"
    assert obtain(archive(server.url), tmp_path).read_bytes() == CONTENT and server.asked == ["bytes=1000-", None]


@pytest.mark.parametrize("length", ["abc", "-5", "9" * 5000])
def test_a_content_length_that_is_none_is_left_aside(server, tmp_path, length):
    server.length = length
    assert obtain(archive(server.url), tmp_path).read_bytes() == CONTENT


def test_passing_errors_are_tried_again(server, tmp_path):
    server.codes = [503, 429]
    assert obtain(archive(server.url), tmp_path).read_bytes() == CONTENT and len(server.asked) == 3


def test_a_download_that_never_ends_whole_is_given_up(server, tmp_path):
    server.break_after = [1000] + [1] * 50
    with pytest.raises(InputError, match=r"cannot download file.bin from .*it ended after 1004 of 1280000 bytes"):
        fetch((server.url,), tmp_path / "file.bin")
    assert len(server.asked) == download.TRIES
    assert (tmp_path / "file.bin.partial").stat().st_size == 1004, "what came stays, to go on with"


def test_starting_over_and_over_is_no_progress(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "BLOCK", 1000)
    server.ranges, server.break_after = False, [10_000, 20_000] * 20
    with pytest.raises(InputError, match=r"cannot download file.bin from .*it ended after"):
        fetch((server.url,), tmp_path / "file.bin")
    assert len(server.asked) == 2 + download.TRIES


def test_there_is_an_end_to_progress_too(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "BLOCK", 1000)
    monkeypatch.setattr(download, "ATTEMPTS", 12)
    server.break_after = [2000] * 50
    with pytest.raises(InputError, match=r"cannot download file.bin from .*it ended after 24000 of"):
        fetch((server.url,), tmp_path / "file.bin")
    assert len(server.asked) == 12


def test_a_byte_at_a_time_is_too_slow(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    server.drip, server.content = 0.02, b"x" * 200
    with pytest.raises(InputError, match=r"cannot download file.bin from .*less than 1000 bytes a second arrived"):
        fetch((server.url,), tmp_path / "file.bin")
    assert len(server.asked) == download.TRIES


@pytest.mark.parametrize(("fault", "message"), [(404, "404 Not Found"), (403, "403 Forbidden"), ("html", "a web page")])
def test_what_is_not_there_is_tried_once_then_elsewhere(server, tmp_path, fault, message):
    if fault == "html":
        server.kind = "text/html"
    else:
        server.codes = [fault]
    with pytest.raises(InputError, match=f"{message}.*; fetch it by hand into {tmp_path} and run the command again"):
        fetch((server.url,), tmp_path / "file.bin")
    assert len(server.asked) == 1
    server.codes, server.kind = [404], "application/zip"
    assert fetch((server.url, server.url), tmp_path / "file.bin").read_bytes() == CONTENT


def test_nobody_answers(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(InputError, match=r"cannot download file.bin from http://127.*Connection refused"):
        fetch((server.url,), tmp_path / "file.bin")


def test_a_wrong_checksum_removes_the_download_but_not_a_users_file(server, tmp_path):
    wrong = archive(server.url, digests=("sha1:00", "md5:11"))
    with pytest.raises(InputError, match=r"was damaged and removed: checksum mismatch: md5:\w+, sha1:\w+, not"):
        obtain(wrong, tmp_path)
    assert not any(tmp_path.iterdir())
    (tmp_path / "file.bin").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"file.bin is damaged or the wrong file: .* remove or replace it"):
        obtain(wrong, tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == b"mine" and len(server.asked) == 1
    assert obtain(archive(digests=()), tmp_path).read_bytes() == b"mine", "nothing to compare with"


def test_a_full_disk_is_known_beforehand(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"no room for .*: 0.0 GB are needed, but 0.0 GB are free"):
        fetch((server.url,), tmp_path / "file.bin")


def packed(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(name, content)
    else:
        packing = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
        with tarfile.open(path, packing) as file:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


KINDS = pytest.mark.parametrize("kind", ["a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2", "a.zip"])
TAKEN = Archive(name="a", takes={"top/in/": "out/", "list.txt": "lists/l.txt"}, gives=("out",))


@KINDS
def test_only_what_is_taken_arrives_and_under_its_new_name(tmp_path, kind):
    path = packed(tmp_path / kind, {"./top/in/deep/a": b"a" * 70000, "top/other": b"b", "list.txt": b"c"})
    root = tmp_path / "root"
    assert not present(TAKEN, root)
    assert unpack(TAKEN, path, root) == 2
    files = {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert files == {"out/deep/a": b"a" * 70000, "lists/l.txt": b"c"} and present(TAKEN, root)


@KINDS
@pytest.mark.parametrize("name", ["top/in/../../evil", "top/in/x/../../../../evil", "top/in/..\\..\\evil"])
def test_nothing_is_written_outside(tmp_path, kind, name):
    path = packed(tmp_path / kind, {"top/in/a": b"x", name: b"x"})
    with pytest.raises(InputError, match="wants to write outside its folder"):
        unpack(TAKEN, path, tmp_path / "root")
    assert not list(tmp_path.rglob("evil")) and not list(tmp_path.rglob("a")), "nothing is written at all"


@KINDS
def test_absolute_names_have_no_effect(tmp_path, kind):
    names = "/top/in/evil", f"{tmp_path}/evil", "C:\\evil", "C:/top/in/evil", "//server/top/in/evil"
    path = packed(tmp_path / kind, {"top/in/a": b"x"} | {name: b"x" for name in names})
    assert unpack(TAKEN, path, tmp_path / "root") == 1
    everything = Archive(name="a", takes={"": "out/"}, gives=("out",))
    unpack(everything, path, tmp_path / "all")
    assert not [path for path in tmp_path.rglob("evil") if not path.is_relative_to(tmp_path / "all" / "out")]


@KINDS
def test_links_that_the_user_made_are_followed(tmp_path, kind):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path / "large disk", target_is_directory=True)
    unpack(TAKEN, packed(tmp_path / kind, {"top/in/a": b"x"}), tmp_path / "root")
    assert (tmp_path / "large disk" / "a").read_bytes() == b"x"


def test_links_in_a_tar_have_no_effect(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        link = tarfile.TarInfo("top/in/link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        file.addfile(link)
        info = tarfile.TarInfo("top/in/link/evil")
        info.size = 1
        file.addfile(info, io.BytesIO(b"x"))
    unpack(TAKEN, tmp_path / "a.tar", tmp_path / "root")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "root" / "out" / "link").is_symlink()


@KINDS
def test_a_broken_archive_is_named_and_unpacked_again_later(tmp_path, kind):
    members = {f"top/in/{i}": os.urandom(40_000) for i in range(4)}
    whole = packed(tmp_path / kind, members).read_bytes()
    root, broken = tmp_path / "root", tmp_path / f"broken-{kind}"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"broken-a.* is damaged or incomplete .*; remove it"):
        unpack(TAKEN, broken, root)
    assert not present(TAKEN, root), "even if its folder is there already"
    before = {path.name: path.stat().st_mtime_ns for path in root.glob("out/*")}
    unpack(TAKEN, tmp_path / kind, root)
    assert {name: (root / "out" / name).read_bytes() for name in "0123"} == {n[-1]: c for n, c in members.items()}
    after = {path.name: path.stat().st_mtime_ns for path in root.glob("out/*")}
    assert before.items() <= after.items() and present(TAKEN, root), "whole files are left alone"


@pytest.mark.parametrize("kind", ["a.tar.gz", "a.tgz", "a.tar.xz", "a.tar.bz2"])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_compressed_tar_is_compared_with_its_checksum_before_anything_is_written(tmp_path, kind, damage):
    path = packed(tmp_path / kind, {"top/in/a": os.urandom(200_000)})
    content = bytearray(path.read_bytes())
    content[100_000] ^= 255
    path.write_bytes(content if damage == "flip" else path.read_bytes()[:-4])
    with pytest.raises(
        InputError, match=rf"{kind} is damaged or incomplete \(.*\); remove it and run the command again"
    ):
        unpack(TAKEN, path, tmp_path / "root")
    assert not (tmp_path / "root" / "out").exists() and not present(TAKEN, tmp_path / "root")


def header(name: str, length: int, kind: bytes = tarfile.REGTYPE, **pax: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.pax_headers = length, kind, pax
    return info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


HOSTILE = {
    "damaged header": header("top/in/a", 0) + header("top/in/b", 0).replace(b"/b", b"/x"),
    "sparse": header("top/in/a", 0, tarfile.GNUTYPE_SPARSE),
    "sparse as pax": header("top/in/a", 1, **{"GNU.sparse.map": "9,1", "GNU.sparse.size": "10"}) + bytes(512),
    "negative": header("top/in/a", 0, size="-512"),
    "endless name": header("././@LongLink", 32 << 20, tarfile.GNUTYPE_LONGNAME) + bytes(32 << 20) + header("x", 0),
    "no number": header("top/in/a", 1, **{"GNU.sparse.map": "x,y", "GNU.sparse.size": "10"}) + bytes(512),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_tar_that_is_more_than_it_seems_is_refused(tmp_path, what):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(HOSTILE[what] + bytes(1024)))
    with pytest.raises(InputError, match=r"a.tar.gz is damaged or incomplete \("):
        unpack(TAKEN, tmp_path / "a.tar.gz", tmp_path / "root")
    assert not list(tmp_path.glob("root/out/*"))


@KINDS
def test_an_archive_that_will_not_fit_is_not_begun(tmp_path, kind, monkeypatch):
    path = packed(tmp_path / kind, {"top/in/a": bytes(600_000), "top/in/b": bytes(600_000), "top/else": bytes(900_000)})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    root = tmp_path / "root"
    with pytest.raises(InputError, match=rf"no room to unpack .*{kind} in .*: it holds more than the 0.0 GB free"):
        unpack(TAKEN, path, root)
    assert not (root / "out").exists()
    (root / "out").mkdir()
    (root / "out" / "a").write_bytes(bytes(600_000))
    assert unpack(TAKEN, path, root) == 2, "what is there already needs no room"


def test_a_member_that_gives_more_than_it_states_is_stopped(tmp_path):
    source = io.BytesIO(bytes(8 << 20))
    with pytest.raises(EOFError, match="a has more than the stated 10 bytes"):
        download._write(lambda: source, 10, tmp_path / "a")
    assert not list(tmp_path.iterdir()) and source.closed


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("encrypted", r"a.zip cannot be unpacked \(.*encrypted"),
        ("method", r"a.zip cannot be unpacked \(.*compression method is not supported"),
        ("stored", r"a.zip is damaged or incomplete \(Bad CRC-32"),
        ("deflate", r"a.zip is damaged or incomplete \("),
        ("bz2", r"a.zip is damaged or incomplete \(Invalid data stream"),
        ("lzma", r"a.zip is damaged or incomplete \("),
        ("name", r"cannot unpack .*a.zip into .*root: File name too long"),
        ("folder", r"cannot unpack .*a.zip into .*root: \w+"),
    ],
)
def test_a_zip_that_cannot_be_read_ends_in_one_sentence(tmp_path, fault, message):
    packings = dict(
        stored=zipfile.ZIP_STORED, deflate=zipfile.ZIP_DEFLATED, bz2=zipfile.ZIP_BZIP2, lzma=zipfile.ZIP_LZMA
    )
    names = {"name": ["top/in/" + "x" * 300], "folder": ["top/in/a", "top/in/a/b"]}.get(fault, ["top/in/a"])
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", packings.get(fault, zipfile.ZIP_STORED)) as file:
        for name in names:
            file.writestr(name, os.urandom(5000))
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\1\2")
    if fault == "encrypted":
        content[6] = content[central + 8] = 1
    elif fault == "method":
        content[8] = content[central + 10] = 97
    elif fault in packings:
        content[50:2000] = b"\xff" * 1950
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        unpack(TAKEN, path, tmp_path / "root")
    assert "\n" not in str(caught.value) and not present(TAKEN, tmp_path / "root")
    assert [file.name for file in tmp_path.glob("root/out/*")] == (["a"] if fault == "folder" else [])


def test_another_archive_is_refused(tmp_path):
    path = packed(tmp_path / "a.zip", {"something/else": b"x"})
    with pytest.raises(InputError, match="is not the right archive: it holds nothing for out"):
        unpack(TAKEN, path, tmp_path / "root")


def test_without_a_network_it_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: pytest.fail("it waits for a network to appear"))
    with pytest.raises(InputError, match=r"cannot download a.tar from http://nowhere.invalid/a.tar \(.+\); fetch it"):
        download.fetch(("http://nowhere.invalid/a.tar",), tmp_path / "a.tar")
