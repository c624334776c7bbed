import http.server
import json
import threading
import time
from contextlib import suppress
from functools import partial

import pytest

from harness.tasks import rows
from harness.tasks.rows import HubData, check_columns, file_rows, hub_rows


def test_csv_keeps_quoted_commas_line_breaks_and_byte_order_mark(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_bytes('\ufeffproblem,answer\r\n"Who, and\r\nwhen?","Ada, 1843"\r\n'.encode())
    assert file_rows(str(file)) == [{"problem": "Who, and\r\nwhen?", "answer": "Ada, 1843"}]


def test_json_lines_skip_blank_lines_and_keep_line_separators_inside_strings(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "a\u2028b"}\n\n{"question": "c"}\n', encoding="utf-8")
    assert [row["question"] for row in file_rows(str(file))] == ["a\u2028b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", b"", r"must end in \.csv, \.jsonl, \.json, \.parquet, got .*rows\.txt"),
        ("rows.jsonl", b'{"a": 1}\n{"a": \n', r"rows\.jsonl line 2 is not JSON"),
        ("rows.jsonl", b"[1]\n", r"line 1 must be a JSON object, got list"),
        ("rows.json", b'{"a": 1}', r"must be a JSON list of objects"),
        ("rows.csv", b"a,b\n1\n", r"row 1 must have 2 cells, one per column"),
        ("rows.csv", b"a,b\n1,2,3\n", r"row 1 must have 2 cells, one per column"),
        ("rows.csv", b"a,b\n\xff,2\n", r"must be UTF-8"),
        ("rows.parquet", b"PAR1 and more", r"rows\.parquet is not Parquet"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        file_rows(str(file))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"task\.path=.*none\.csv does not exist"):
        file_rows(str(tmp_path / "none.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FileNotFoundError, match="is a folder"):
        file_rows(str(tmp_path / "folder.csv"))


def test_missing_columns_name_what_was_found_and_what_was_wanted():
    with pytest.raises(ValueError, match=r"f\.csv: row 2 has no column answer; found q; wanted q, answer"):
        check_columns([{"q": "", "answer": ""}, {"q": ""}], ("q", "answer"), "f.csv")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path))
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    thread.join()
    made.server_close()


def test_a_url_is_read_like_a_file(tmp_path, server):
    (tmp_path / "rows.json").write_text('[{"question": "Why?"}]')
    assert file_rows(f"{server}/rows.json?download=true") == [{"question": "Why?"}]


def test_a_url_that_fails_says_how(server):
    with pytest.raises(ConnectionError, match="the server answered 404; give a local file"):
        file_rows(f"{server}/none.csv")


class _Endless(_Quiet):
    """Sends a byte now and then, for ever."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):  # whoever asked has hung up
            while True:
                self.wfile.write(b"{")
                self.wfile.flush()
                time.sleep(0.01)


@pytest.fixture
def endless():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Endless)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}/rows.jsonl"
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [("_WHOLE_SECONDS", 0.2, "bytes in 0.2 s and has not ended"), ("_MOST_BYTES", 10, "is more than 10 bytes")],
)
def test_a_download_without_end_ends(endless, monkeypatch, limit, value, message):
    monkeypatch.setattr(rows, limit, value)
    with pytest.raises(ConnectionError, match=message):
        file_rows(endless)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_what_is_nested_too_deeply_names_its_place(tmp_path, name):
    path = tmp_path / name
    path.write_text('{"question": "Who?"}\n' * (name == "rows.jsonl") + '{"a":' * 100_000)
    with pytest.raises(ValueError, match=rf"{name}( line 2)? is nested too deeply"):
        file_rows(str(path))


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9/rows\.csv cannot be reached"):
        file_rows("http://127.0.0.1:9/rows.csv")


def test_hub_rows_come_through_the_datasets_library(tmp_path):
    row = {"question": "Who?", "answer": {"value": "Ada", "aliases": ["Ada L."]}}
    (tmp_path / "validation.jsonl").write_text(json.dumps(row) + "\n")
    assert hub_rows(HubData(str(tmp_path), None, "validation", None), ("question",)) == [row]


def test_an_unreachable_hub_says_what_to_do_without_it():
    with pytest.raises(
        ConnectionError, match=r"cannot load basicv8vc/SimpleQA.*task\.path=FILE.*columns problem"
    ) as error:
        hub_rows(HubData("basicv8vc/SimpleQA", None, "test", None), ("problem", "answer"))
    assert "\n" not in str(error.value)
