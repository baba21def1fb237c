"""The benchmarks over HTTPS: a loopback server with a certificate of its own, and every fault a server can have."""

import hashlib
import http.server
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

from ncvc import benchmark_files
from ncvc.benchmark_download import DownloadSettings, download_benchmarks, verify_benchmarks
from ncvc.benchmark_files import check, datasets, files_of, rebuilt_jcsts, unpublished
from ncvc.evaluation.tasks import load_tasks
from ncvc.https_files import Fetcher, Missing, TransferSettings, Unreachable

SHARED = REPOSITORY.parent / "shared" / "data"
CONTENT = b"tag,question\n" + bytes(range(256)) * 1200  # 300 kB


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` by path; ``fault`` may answer a request instead (it returns True when it did)."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.files: dict[str, bytes] = {}
        self.fault = lambda handler: False
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        if self.server.fault(self):
            return
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if first >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_whole(data[first:])

    def send_whole(self, data: bytes, *, announced: int | None = None) -> None:
        self.send_header("Content-Length", str(announced or len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A self-signed certificate of localhost and its key, in one PEM file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "certificate.pem"


@pytest.fixture
def server(certificate, monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    running = Server(context)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def fetcher(certificate) -> Fetcher:
    return Fetcher(TransferSettings(certificates=certificate, timeout_seconds=3.0, attempts=3, pause_seconds=0.01))


def fetch(
    fetcher: Fetcher, server: Server, path: Path, *, content: bytes = CONTENT, served: bytes | None = None
) -> int:
    """Fetch ``content``'s hash from where ``served`` lies; returns the bytes that were told."""
    server.files["/a/file.csv"] = content if served is None else served
    told: list[int] = []
    digest = hashlib.sha256(content).hexdigest()
    fetcher.fetch(server.url + "/a/file.csv", path, num_bytes=len(content), sha256=digest, on_bytes=told.append)
    return sum(told)


def once(fault):
    """The fault for the first request only."""
    calls = []

    def first_time(handler) -> bool:
        calls.append(1)
        return len(calls) == 1 and fault(handler)

    return first_time


def cut_after(count: int, *, announced: int = len(CONTENT), first: int = 0):
    """A server that sends ``count`` bytes and hangs up."""

    def fault(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_whole(CONTENT[first : first + count], announced=announced)
        handler.close_connection = True
        return True

    return fault


def status(code: int, **headers: str):
    def fault(handler: Handler) -> bool:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_whole(b"no", announced=2)
        return True

    return fault


# --- one file
def test_a_file_comes_whole_and_nothing_else_is_left(server, fetcher, tmp_path):
    assert fetch(fetcher, server, tmp_path / "deep" / "file.csv") == len(CONTENT)
    assert (tmp_path / "deep" / "file.csv").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.csv"]


def test_a_cut_transfer_goes_on_where_it_was_cut(server, fetcher, tmp_path):
    server.fault = once(cut_after(100_000))
    assert fetch(fetcher, server, tmp_path / "file.csv") == len(CONTENT)
    assert (tmp_path / "file.csv").read_bytes() == CONTENT
    assert server.requests == [("/a/file.csv", None), ("/a/file.csv", "bytes=100000-")]


def test_what_an_earlier_process_left_is_not_fetched_again(server, fetcher, tmp_path):
    (tmp_path / ".file.csv.download").write_bytes(CONTENT[:200_000])
    assert fetch(fetcher, server, tmp_path / "file.csv") == len(CONTENT)
    assert server.requests == [("/a/file.csv", "bytes=200000-")]
    assert (tmp_path / "file.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"x" * 1000, CONTENT + b"more", b"y" * len(CONTENT)])
def test_a_wrong_beginning_from_before_is_thrown_away(server, fetcher, tmp_path, left):
    (tmp_path / ".file.csv.download").write_bytes(left)
    assert fetch(fetcher, server, tmp_path / "file.csv") == len(CONTENT)
    assert (tmp_path / "file.csv").read_bytes() == CONTENT


def test_a_server_that_cannot_resume_sends_it_all_again(server, fetcher, tmp_path):
    (tmp_path / ".file.csv.download").write_bytes(CONTENT[:1000])

    def whole(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_whole(CONTENT)
        return True

    server.fault = whole
    assert fetch(fetcher, server, tmp_path / "file.csv") == len(CONTENT)
    assert (tmp_path / "file.csv").read_bytes() == CONTENT


def test_a_server_that_sends_another_part_is_asked_for_the_whole(server, fetcher, tmp_path):
    (tmp_path / ".file.csv.download").write_bytes(CONTENT[:1000])

    def other_part(handler: Handler) -> bool:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.send_whole(CONTENT[5:])
        return True

    server.fault = once(other_part)
    assert fetch(fetcher, server, tmp_path / "file.csv") == len(CONTENT)
    assert (tmp_path / "file.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, fetcher, tmp_path, code):
    server.fault = once(status(code, Retry_After="0"))
    fetch(fetcher, server, tmp_path / "file.csv")
    assert len(server.requests) == 2


def test_a_server_that_stays_busy_is_given_up_after_the_attempts(server, fetcher, tmp_path):
    server.fault = status(503)
    with pytest.raises(OSError, match=r"cannot be had: the server answers 503 .*attempts: 3"):
        fetch(fetcher, server, tmp_path / "file.csv")
    assert len(server.requests) == 3


def test_other_content_is_refused_and_nothing_is_written(server, fetcher, tmp_path):
    with pytest.raises(ValueError, match=r"is not the file that is pinned: sha256"):
        fetch(fetcher, server, tmp_path / "file.csv", served=CONTENT[:-1] + b"!")
    assert list(tmp_path.iterdir()) == []


def test_a_login_page_is_named_as_one(server, fetcher, tmp_path):
    page = b"<!DOCTYPE html><p>please log in</p>"
    with pytest.raises(ValueError, match="web page, as a login portal sends"):
        fetch(fetcher, server, tmp_path / "file.csv", content=b"a" * len(page), served=page)


def test_a_longer_file_is_refused_before_it_fills_the_disk(server, fetcher, tmp_path):
    with pytest.raises(ValueError, match="longer than the file that is pinned"):
        fetch(fetcher, server, tmp_path / "file.csv", content=CONTENT[:70_000], served=CONTENT)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_there_survives_a_refusal(server, fetcher, tmp_path):
    (tmp_path / "file.csv").write_bytes(b"old")
    with pytest.raises(ValueError, match="pinned"):
        fetch(fetcher, server, tmp_path / "file.csv", served=b"!" * len(CONTENT))
    assert (tmp_path / "file.csv").read_bytes() == b"old"


def test_a_redirect_out_of_https_is_refused(server, fetcher, tmp_path):
    server.fault = status(302, Location="http://127.0.0.1:9/file.csv")
    with pytest.raises(ValueError, match="not HTTPS; refused"):
        fetch(fetcher, server, tmp_path / "file.csv")


def test_a_redirect_within_https_is_followed(server, fetcher, tmp_path):
    server.fault = once(status(302, Location="/a/file.csv"))
    fetch(fetcher, server, tmp_path / "file.csv")
    assert (tmp_path / "file.csv").read_bytes() == CONTENT


def test_a_missing_file_is_named(server, fetcher, tmp_path):
    with pytest.raises(Missing, match="/nothing is not there"):
        fetcher.fetch(server.url + "/nothing", tmp_path / "file.csv", num_bytes=1, sha256="0")


def test_a_certificate_that_nobody_vouches_for_is_refused(server, tmp_path):
    with pytest.raises(Unreachable, match=r"certificate of localhost is not trusted .*certificates=FILE"):
        fetch(Fetcher(TransferSettings(attempts=1)), server, tmp_path / "file.csv")
    assert server.requests == []


def test_a_certificate_of_another_host_is_refused(server, fetcher, tmp_path):
    url = server.url.replace("localhost", "127.0.0.1")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1 is not trusted"):
        fetcher.fetch(url + "/a/file.csv", tmp_path / "file.csv", num_bytes=1, sha256="0")


def test_certificate_files_that_are_none_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        Fetcher(TransferSettings(certificates=tmp_path / "none.pem"))
    (tmp_path / "text.pem").write_text("no certificate")
    with pytest.raises(ValueError, match="no certificate in PEM form"):
        Fetcher(TransferSettings(certificates=tmp_path / "text.pem"))


def test_no_server_is_unreachable_and_says_so_after_the_attempts(fetcher, tmp_path):
    with pytest.raises(Unreachable, match=r"attempts: 3"):
        fetcher.fetch("https://localhost:9/x", tmp_path / "file.csv", num_bytes=1, sha256="0")


def test_proxies_come_from_the_environment(server, certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://localhost:9")
    monkeypatch.setenv("no_proxy", "")
    through = Fetcher(TransferSettings(certificates=certificate, attempts=1))
    with pytest.raises(Unreachable):
        fetch(through, server, tmp_path / "file.csv")
    assert server.requests == []
    monkeypatch.setenv("no_proxy", "localhost")
    fetch(Fetcher(TransferSettings(certificates=certificate, attempts=1)), server, tmp_path / "file.csv")


# --- all files
@pytest.fixture
def small_list(monkeypatch, tmp_path) -> dict[str, bytes]:
    """A list of six files in the form of the real one; returns contents by URL path."""
    contents: dict[str, bytes] = {}
    record = {}
    for key, paths in {
        "jmed_llm": ["all/CRADE.csv", "test/crade.csv"],
        "igakuqa": ["data/2018/112-A.jsonl", "data/2019/113-A.jsonl", "prompts/prompt.jsonl"],
        "jmmlu": ["anatomy.csv"],
        "japanese_clinical_sts": ["dataset_JA_Clinical_STS.xls"],
    }.items():
        files = []
        for path in paths:
            data = f"{key} {path} あ".encode() * 50
            contents[f"/{key}/0123abc/in the repository/{path}".replace(" ", "%20")] = data
            digest = hashlib.sha256(data).hexdigest()
            files.append({"path": path, "source": f"in the repository/{path}", "bytes": len(data), "sha256": digest})
        record[key] = {"name": key.upper(), "commit": "0123abc", "licence": "CC0", "files": files}
    path = tmp_path / "list.json"
    path.write_text(json.dumps(record))
    monkeypatch.setattr(benchmark_files, "_LIST", path)
    benchmark_files.datasets.cache_clear()
    benchmark_files._pinned.cache_clear()
    yield contents
    benchmark_files.datasets.cache_clear()
    benchmark_files._pinned.cache_clear()


@pytest.fixture
def settings(server, certificate, tmp_path, small_list):
    server.files.update(small_list)

    def build(**changes) -> DownloadSettings:
        bases = {name: f"{server.url}/{name}/{{commit}}/" for name in datasets()}
        chosen = {"dir": str(tmp_path / "benchmarks"), "repositories": bases, "certificates": str(certificate)}
        chosen |= {"timeout_seconds": 3.0, "pause_seconds": 0.01, "attempts": 2}
        return DownloadSettings(**{**chosen, **changes})

    return build


def test_all_files_come_and_a_second_time_nothing_is_asked(settings, server, tmp_path, capsys):
    folder = download_benchmarks(settings())
    assert check(folder).is_good
    assert len(server.requests) == 6
    download_benchmarks(settings())
    assert len(server.requests) == 6
    assert "nothing was fetched" in capsys.readouterr().out
    (folder / "jmmlu" / "anatomy.csv").unlink()
    download_benchmarks(settings())
    assert len(server.requests) == 7


def test_an_altered_file_is_left_alone_unless_it_may_be_replaced(settings, server):
    folder = download_benchmarks(settings())
    file = folder / "jmmlu" / "anatomy.csv"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + b"!")
    with pytest.raises(ValueError, match=r"anatomy\.csv.*replace=true"):
        download_benchmarks(settings())
    with pytest.raises(ValueError, match="not as published"):
        verify_benchmarks(folder)
    assert file.read_bytes() != good
    download_benchmarks(settings(replace=True))
    assert file.read_bytes() == good
    verify_benchmarks(folder)


def test_every_failure_is_told_and_the_rest_is_kept(settings, server):
    paths = sorted(path for path in server.files if "jmed_llm" not in path and "sts" not in path)
    del server.files[paths[0]]
    server.files[paths[1]] = b"!" * len(server.files[paths[1]])
    with pytest.raises(OSError, match="2 of 6 files could not be fetched") as error:
        download_benchmarks(settings())
    assert paths[0] in str(error.value)
    assert paths[1] in str(error.value)
    assert len(check(Path(settings().dir)).found) == 4


def test_without_a_connection_the_way_to_do_it_offline_is_told(settings, tmp_path):
    bases = dict.fromkeys(datasets(), "https://localhost:9/x")
    with pytest.raises(OSError, match=r"Without a connection: .*verify dir=FOLDER"):
        download_benchmarks(settings(repositories=bases))


def test_gaps_fail_and_absent_parts_do_not(settings, tmp_path, capsys):
    folder = download_benchmarks(settings())
    shutil.rmtree(folder / "igakuqa" / "data" / "2019")
    verify_benchmarks(folder)
    assert "igakuqa 2019: not there" in capsys.readouterr().out
    (folder / "jmed_llm" / "all" / "CRADE.csv").unlink()
    with pytest.raises(ValueError, match="files are missing"):
        verify_benchmarks(folder)
    with pytest.raises(FileNotFoundError, match="holds none of the files"):
        verify_benchmarks(tmp_path)


def test_clones_of_the_repositories_are_known_too(settings, tmp_path):
    folder = download_benchmarks(settings())
    for dataset in datasets().values():
        for file in dataset.files[: 6 if dataset.key != "japanese_clinical_sts" else 0]:
            place = tmp_path / "clones" / dataset.name / file.source
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / file.place, place)
    assert check(tmp_path / "clones").is_good


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": ("jmedllm",)}, "did you mean jmed_llm"),
        ({"datasets": ()}, "datasets is empty"),
        ({"connections": 0}, "connections=0"),
        ({"repositories": {"jmed_llm": "http://localhost"}}, "must begin with https"),
        ({"repositories": {"jmed_llm": "https://me:secret@localhost"}}, "plain base URL"),
        ({"repositories": {"other": "https://localhost"}}, "no such repository"),
        ({"repositories": {"jmed_llm": "https://localhost:port"}}, "is no URL"),
        ({"repositories": {}}, "needed and not set"),
        ({"attempts": 0}, "attempts=0"),
        ({"dir": " "}, "dir is empty"),
    ],
)
def test_settings_that_cannot_be_are_told(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


# --- the real list
def test_the_list_is_whole_and_names_no_file_twice():
    files = files_of(("jmed_llm", "igakuqa", "jmmlu"))
    assert len({file.place for file in files}) == len({file.sha256 for file in files}) == len(files) == 208
    assert all(len(file.sha256) == 64 and file.num_bytes > 0 for file in files)
    assert not any(".." in file.place or file.place.startswith("/") for file in files)
    assert [len(dataset.files) for dataset in datasets().values()] == [16, 181, 11, 1]
    years = {file.part for file in files if file.dataset == "igakuqa"}
    assert {f"igakuqa {year}" for year in range(2018, 2023)} < years
    assert all(len(dataset.commit) == 40 for dataset in datasets().values())


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared data are not beside the repository")
    return SHARED


def test_the_shared_copy_is_as_published(shared):
    found = check(shared)
    assert found.is_good
    assert len(found.found) == 136
    assert all("2021" in part or "2022" in part for part in found.absent)
    for task in load_tasks(["igakuqa_2018_A", "jmmlu"], directory=shared):
        assert unpublished(task.source["files"]) == [], task.name
    assert unpublished({"crade.csv": "0" * 64}) == ["crade.csv"]


def command_of(server: Server, certificate: Path, folder: Path, *names: str) -> list[str]:
    """The program on a mirror."""
    bases = ",".join(f'{name}:"{server.url}/{name}/{{commit}}"' for name in names)
    command = [sys.executable, "-m", "ncvc.download", "benchmarks", f"benchmarks.dir={folder}"]
    return [*command, f"datasets=[{','.join(names)}]", f"certificates={certificate}", f"repositories={{{bases}}}"]


@pytest.mark.slow
def test_the_program_fetches_the_real_files_from_a_mirror(shared, server, certificate, tmp_path):
    for file in files_of(("jmed_llm", "jmmlu")):
        server.files[f"/{file.dataset}/{datasets()[file.dataset].commit}/{file.source}"] = (
            shared / file.place
        ).read_bytes()
    command = command_of(server, certificate, tmp_path / "step=1 a", "jmed_llm", "jmmlu")
    environment = {**os.environ, "NCVC_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "27 files fetched" in done.stdout
    assert "CC BY-NC-SA" in done.stdout
    assert check(tmp_path / "step=1 a", ("jmed_llm", "jmmlu")).is_good
    refused = [sys.executable, "-m", "ncvc.download", "verify", f"dir={tmp_path / 'none'}"]
    done = subprocess.run(
        refused, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "is no folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def without_jcsts(shared, server, certificate, tmp_path) -> DownloadSettings:
    """Settings for a mirror of JMED-LLM that lacks its largest set."""
    for file in datasets()["jmed_llm"].files:
        if file.path != "all/JCSTS.csv":
            server.files[f"/jmed_llm/{file.source}"] = (shared / file.place).read_bytes()
    bases = {name: f"{server.url}/{name}" for name in datasets()}
    return DownloadSettings(
        dir=str(tmp_path / "benchmarks"),
        datasets=("jmed_llm",),
        repositories=bases,
        certificates=str(certificate),
        pause_seconds=0.01,
    )


def test_a_set_that_is_missing_with_its_source_is_told_and_the_rest_is_kept(without_jcsts):
    with pytest.raises(OSError, match=r"JCSTS\.csv is not in JMED-LLM's repository, and could not be rebuilt: .*404"):
        download_benchmarks(without_jcsts)
    assert len(check(Path(without_jcsts.dir), ("jmed_llm",)).found) == 15


def test_the_missing_set_is_rebuilt_byte_for_byte(without_jcsts, server, shared):
    pytest.importorskip("xlrd")
    workbook = os.environ.get("NCVC_JCSTS_WORKBOOK")  # no copy of it lies beside the repository
    if not workbook:
        pytest.skip("NCVC_JCSTS_WORKBOOK names no workbook of Japanese-Clinical-STS")
    data = rebuilt_jcsts(Path(workbook), test=shared / "jmed_llm" / "test" / "jcsts.csv")
    assert data == (shared / "jmed_llm" / "all" / "JCSTS.csv").read_bytes()
    server.files["/japanese_clinical_sts/dataset_JA_Clinical_STS.xls"] = Path(workbook).read_bytes()
    assert check(download_benchmarks(without_jcsts), ("jmed_llm",)).is_good


@pytest.mark.slow
def test_ctrl_c_keeps_what_came_and_the_same_command_goes_on(shared, server, certificate, tmp_path):
    for file in files_of(("jmmlu",)):
        server.files[f"/jmmlu/{datasets()['jmmlu'].commit}/{file.source}"] = (shared / file.place).read_bytes()
    held = threading.Event()

    def slowly(handler: Handler) -> bool:
        if held.is_set() or not handler.path.endswith("professional_medicine.csv"):
            return False
        data = server.files[handler.path]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for byte in data[:5000]:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.002)
        held.wait(60)
        return True

    server.fault = slowly
    command = command_of(server, certificate, tmp_path / "benchmarks", "jmmlu")
    environment = {**os.environ, "NCVC_HOME": str(tmp_path / "home")}
    running = subprocess.Popen([*command, "timeout_seconds=3"], cwd=REPOSITORY, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    partial = tmp_path / "benchmarks" / "jmmlu" / ".professional_medicine.csv.download"
    deadline = time.monotonic() + 60
    while not (partial.is_file() and partial.stat().st_size > 100) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "Repeat the command to go on" in err
    assert "Traceback" not in err
    kept = partial.stat().st_size
    held.set()
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"bytes={kept}-" in [wanted for _, wanted in server.requests]
    assert check(tmp_path / "benchmarks", ("jmmlu",)).is_good
