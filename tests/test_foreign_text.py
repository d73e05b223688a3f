"""Names, labels and addresses that others chose: printed without harm, safe in a spreadsheet, and without their passwords."""

import csv
import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.project import ROOT
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from featurize import storage
from featurize.commands.options import print_result, reported_errors
from featurize.console import console, fail, make_console, say, show_logs, warn
from featurize.display import as_cell, plain_text
from featurize.errors import JobError, UsageError, first_line
from featurize.foreign_text import (
    CsvWriter,
    printable,
    printable_lines,
    read_cell,
    shown,
    without_secrets,
    without_secrets_in,
)
from featurize.progress import shown_progress, stage
from featurize.progress_views import LogView
from finetune.evaluation.evaluate import confusion_csv
from finetune.evaluation.relabel import read_labels
from finetune.rows.joined_tables import read_label_table
from finetune.scores.metrics import Evaluation

HOSTILE = "a\x1b[2J\x07\x9b31m\u202egpj.\u2066b\r\nerror: all is lost\udc80\x7f"
UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@given(st.text(st.characters()))
def test_no_text_keeps_a_control_character_and_the_rest_stays(text: str) -> None:
    assert not UNSEEN.search(printable(text))
    assert "\n" not in printable(text)
    assert printable(printable(text)) == printable(text)
    if text.isprintable():
        assert printable(text) == text


def test_control_characters_are_shown_by_their_codes() -> None:
    assert printable(HOSTILE) == ("a\\x1b[2J\\x07\\x9b31m\\u202egpj.\\u2066b\\r\\nerror: all is lost\\udc80\\x7f")
    assert printable("Ünïcode, 猫, emoji 🐈 stay") == "Ünïcode, 猫, emoji 🐈 stay"
    assert printable_lines("first\n  - second\nerror: third\n") == "first\n  - second\n  error: third\n"


@pytest.mark.parametrize("speak", [say, warn, fail, logging.getLogger("featurize.test").warning, stage])
def test_messages_errors_logs_and_stages_are_printable(
    speak: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    show_logs("featurize", logging.WARNING)
    with shown_progress(view=LogView()):
        speak(f"file:///{HOSTILE}.png at hdfs://ada:secret@host/x")
    out, err = capsys.readouterr()
    assert (out, UNSEEN.search(err)) == ("", None)
    assert "a\\x1b[2J\\x07\\x9b31m\\u202egpj" in err
    assert not [line for line in err.splitlines() if line.startswith("error: all")]
    assert "secret" not in err


def test_an_error_of_a_command_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (JobError(HOSTILE), OSError(5, HOSTILE, HOSTILE)):
        with pytest.raises(BaseException, match=""), reported_errors():
            raise error
        err = capsys.readouterr().err
        assert "\\x1b[2J" in err
        assert not UNSEEN.search(err)


def test_json_results_say_the_same_in_printable_characters(capsys: pytest.CaptureFixture[str]) -> None:
    text = HOSTILE.replace("\udc80", "é")
    print_result({"path": text}, as_json=True)
    out = capsys.readouterr().out
    assert not UNSEEN.search(out)
    assert json.loads(out) == {"path": text}
    assert "é" in out


def test_tables_are_printable_also_where_nobody_escaped_a_cell() -> None:
    careful, careless = Table("name", "n"), Table("name", "n")
    careful.add_row(as_cell(f"[red]{HOSTILE}[/]"), "1")
    careless.add_row(HOSTILE.replace("\n", ""), "1")
    for table, part in ((careful, "[red]a\\x1b[2J"), (careless, "a\\x1b[2J")):
        text = plain_text(table)
        assert not UNSEEN.search(text)
        assert part in text
    file = io.StringIO()
    made = make_console(file=file, width=200)
    made.print(careless)
    made.print(f"plain {HOSTILE}", markup=False)
    assert not UNSEEN.search(file.getvalue())


def test_a_console_still_shows_colours_and_lives(capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    made = make_console(file=file, force_terminal=True, color_system="standard", width=80, _environ={})
    made.print("[bold red]error:[/] gone")
    assert file.getvalue() == "\x1b[1;31merror:\x1b[0m gone\n"
    with made.status("working"):
        made.print("a line")
    assert "a line\n" in file.getvalue()
    assert console.stderr


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql+psycopg2://ada:se@cr/et@host:5432/db", "postgresql+psycopg2://ada:***@host:5432/db"),
        ("https://ada:p%40ss@host/x and http://eve:pw@h:1", "https://ada:***@host/x and http://eve:***@h:1"),
        ("hdfs://ada:secret@name:9000/a", "hdfs://ada:***@name:9000/a"),
        ("jdbc:mysql://:secret@h/d", "jdbc:mysql://:***@h/d"),
        ("//ada:secret@host/share", "//ada:***@host/share"),
        ("https://ghp_0123456789abcdefXYZ@host/r", "https://***@host/r"),
        ("https://h/a?token=abc&x=1#access_token=def", "https://h/a?token=***&x=1#access_token=***"),
        ("url: /api?X=1&Api-Key=abc (Caused by ...)", "url: /api?X=1&Api-Key=*** (Caused by ...)"),
        (
            "https://b.s3.amazonaws.com/k?X-Amz-Algorithm=A&X-Amz-Credential=AK%2Fs3&X-Amz-Signature=0a1b"
            "&X-Amz-Security-Token=FwoG%3D",
            "https://b.s3.amazonaws.com/k?X-Amz-Algorithm=A&X-Amz-Credential=***&X-Amz-Signature=***"
            "&X-Amz-Security-Token=***",
        ),
        (
            "https://b/k?AWSAccessKeyId=AK&Expires=1&Signature=x%3D",
            "https://b/k?AWSAccessKeyId=***&Expires=1&Signature=***",
        ),
        (
            "https://a.blob.core.windows.net/c/b?sv=2022&sig=ab%2Fc",
            "https://a.blob.core.windows.net/c/b?sv=2022&sig=***",
        ),
        ("http://n:9870/webhdfs/v1/x?op=OPEN&delegation=HAAE", "http://n:9870/webhdfs/v1/x?op=OPEN&delegation=***"),
        ("s3://AKIA:abc/def+g@bucket/key", "s3://AKIA:***@bucket/key"),
    ],
)
def test_passwords_tokens_and_signatures_are_masked(text: str, masked: str) -> None:
    assert without_secrets(text) == masked
    assert without_secrets(masked) == masked
    assert str(JobError(f"failed: {text}")) == f"failed: {masked}"
    assert first_line(ValueError(text)) == masked
    assert without_secrets_in({"a": [text, 1, {"b": text}]}) == {"a": [masked, 1, {"b": masked}]}
    assert shown(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "objects@champion",
        "models:/objects@champion",
        "hdfs://name:9000/me@home/a.png",
        "hdfs://ada@name:9000/a",
        "kafka://one:9092,two:9092/photos",
        "sqlite:///runs/mlflow.db",
        "file:///a/b?c=1&d=2#key",
        "training.seed=1",
        "https://host/a?page=2&author=ada",
        "a token = b, password: c",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert without_secrets(text) == text


def test_a_storage_url_with_a_password_is_refused_before_a_table_records_it() -> None:
    with pytest.raises(UsageError, match=r"no password.*hdfs://ada:\*\*\*@name:9000/a"):
        storage.absolute_url("hdfs://ada:secret@name:9000/a")
    assert storage.absolute_url("hdfs://ada@name:9000/a/") == "hdfs://ada@name:9000/a"


def as_csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    CsvWriter(text).write_rows(rows)
    return text.getvalue()


@pytest.mark.parametrize(
    "cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1", "''-x"]
)
def test_no_cell_is_a_formula_and_it_can_be_read_back(cell: str) -> None:
    ((found, number),) = csv.reader(io.StringIO(as_csv([[cell, 1]]), newline=""))
    assert found == f"'{cell}"
    assert read_cell(found) == cell
    assert number == "1"


def test_numbers_and_other_texts_stay_as_they_are() -> None:
    row = [-1, -0.5, 1e-9, None, True, "-1", "+2.5e-3", "-.5", "a=b", "it's", "'quoted'", "", "'", "-nan"]
    ((*found,),) = csv.reader(io.StringIO(as_csv([row]), newline=""))
    assert found[:-1] == [*map(str, row[:3]), "", "True", *row[5:-1]]
    assert found[-1] == "'-nan"


@given(st.text())
def test_every_cell_is_read_back(text: str) -> None:
    ((found,),) = csv.reader(io.StringIO(as_csv([[text]]), newline="")) if text else [[""]]
    assert read_cell(found) == text
    assert not found.startswith(("=", "+", "-", "@", "\t", "\r")) or re.fullmatch(r"[+-]?[\d.eE+-]+", found)


def python_files() -> list[Path]:
    return [path for package in ("featurize", "finetune") for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize(
    ("what", "allowed"),
    [
        (r"\bcsv\.(writer|DictWriter)\(", {"featurize/foreign_text.py"}),
        (r"(?<!make_)\bConsole\(", {"featurize/console.py"}),
        (r"rich\.markup", {"featurize/console.py", "featurize/display.py"}),
        (r"\.to_csv\(|write_csv\(", {"featurize/sql/query.py"}),
    ],
)
def test_there_is_one_printer_and_one_writer_of_csv(what: str, allowed: set[str]) -> None:
    found = {str(path.relative_to(ROOT)) for path in python_files() if re.search(what, path.read_text())}
    assert found == allowed


def test_what_firn_wrote_as_csv_it_reads_as_it_was(tmp_path: Path) -> None:
    labels = ["=HYPERLINK(1)", "-2", "@a", "plain", "'=b"]
    rows = [["image_id", "label"], *([f"{number:064x}", label] for number, label in enumerate(labels))]
    (tmp_path / "labels.csv").write_text(as_csv(rows), newline="")
    assert list(read_labels(str(tmp_path / "labels.csv")).values()) == labels
    assert read_label_table(str(tmp_path / "labels.csv"))["label"].to_pylist() == labels
    matrix = np.zeros((5, 5), np.int64)
    scored = Evaluation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, rows=0, confusion_matrix=matrix, classes=tuple(labels))
    lines = confusion_csv(scored).splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["'=HYPERLINK(1)", "-2", "'@a", "plain", "''=b"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_twins_in_a_table_of_labels_are_noted(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    labels = ["caf\u00e9", "cafe\u0301", "Dog", "dog ", "train", None]
    table = pa.table({"image_id": [str(number) for number in range(6)], "label": pa.array(labels).dictionary_encode()})
    url = tmp_path / f"labels{suffix}"
    if suffix == ".csv":
        url.write_text("image_id,label\n" + "".join(f"{number},{label or ''}\n" for number, label in enumerate(labels)))
    else:
        pq.write_table(table, url)
    with caplog.at_level("WARNING", "finetune.rows"):
        assert read_label_table(str(url))["label"].to_pylist() == labels
    notes = [record.getMessage().removeprefix(f"`features.labels`: {url}: ") for record in caplog.records]
    assert notes == [
        "the classes 'Dog', 'dog ' differ only in case, blanks or the form of their characters.",
        r"the classes 'cafe\u0301', 'caf\xe9' differ only in case, blanks or the form of their characters.",
        "classes are named like splits: train.",
    ]
