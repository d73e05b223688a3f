"""Tests of finetune.rows.csv_files: whatever program wrote a table, its cells are what somebody typed."""

import csv
import io
import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize.errors import UsageError
from finetune.rows.csv_files import parse_csv

cells = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=6)


@given(
    rows=st.lists(st.tuples(cells, cells, cells), max_size=5),
    separator=st.sampled_from([",", ";", "\t"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
def test_cells_are_those_that_were_written(
    rows: list[tuple[str, str, str]], separator: str, encoding: str, line_end: str
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=line_end)
    writer.writerows([("image_id", "label", "a,b;c"), *rows])
    table = parse_csv(text.getvalue().encode(encoding), "labels.csv")
    assert table.header == ("image_id", "label", "a,b;c")
    assert [row for _, row in table.rows] == rows


@pytest.mark.parametrize(
    ("written", "type", "values"),
    [
        (["01", "1", ""], pa.string(), ["01", "1", None]),
        (["1", "-20", "0"], pa.int64(), [1, -20, 0]),
        (["1", "2.5", "1e3"], pa.float64(), [1.0, 2.5, 1000.0]),
        (["+1", "2"], pa.string(), ["+1", "2"]),
        (["2024-01", "2024-02"], pa.string(), ["2024-01", "2024-02"]),
        (["null", "true", "NA", "nan"], pa.string(), ["null", "true", "NA", "nan"]),
        (["2026-11-28", "2026-11-29"], pa.string(), ["2026-11-28", "2026-11-29"]),
        (["", ""], pa.string(), [None, None]),
        (["123456789012345678901", "1"], pa.string(), ["123456789012345678901", "1"]),
        (["'=1+1", "b"], pa.string(), ["=1+1", "b"]),
    ],
)
def test_text_stays_text_and_numbers_are_what_is_written_as_one(
    written: list[str], type: pa.DataType, values: list[object]
) -> None:
    lines = "".join(f"{number},{cell}\n" for number, cell in enumerate(written))
    table = parse_csv(f"image_id,value\n{lines}".encode(), "labels.csv").as_arrow(text=["image_id"])
    assert table["value"].type == type
    assert table["value"].to_pylist() == values
    assert table["image_id"].type == pa.string()


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(UsageError, match=re.escape("x.csv has no column label. Its columns are 'image_id', 'Label'.")):
        parse_csv(b"image_id;Label\na;b\n", "x.csv").check_columns(["image_id", "label"])
    with pytest.raises(UsageError, match=r"x\.csv: line 3 has 1 cells; the header has 2"):
        parse_csv(b"a,b\n1,2\n3\n", "x.csv")
    with pytest.raises(UsageError, match="neither in UTF-8 nor"):
        parse_csv("Größe,b".encode("latin-1"), "x.csv")
    with pytest.raises(UsageError, match="has the column a more than once"):
        parse_csv(b"a,A\n1,2\n", "x.csv")
    with pytest.raises(UsageError, match="line 2 is not CSV"):
        parse_csv(b'a,b\n1,"2\n', "x.csv")
