"""Writing and reading Prometheus' text; what a hostile guest may write is not handed on."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from kata.metrics.exposition import Family, label_text, read, write

KNOWN = {
    "kata_a": ("gauge", "A."),
    "kata_b_total": ("counter", "B."),
    "kata_h": ("histogram", "H."),
}


def test_what_is_written_is_read_again() -> None:
    family = Family("kata_a", "gauge", "A.")
    family.add(12, {"item": 'x "y" \\ z\nnext'})
    family.add(0.1 + 0.2)
    family.add(1e-9, {"item": "small"})
    family.add(1 << 62, {"item": "large"})
    found, dropped = read(write([family]), KNOWN, 10)
    assert dropped == 0
    assert found == {"kata_a": family}
    (theirs,) = text_string_to_metric_families(write([family]))
    assert [sample.value for sample in theirs.samples] == [12, 0.1 + 0.2, 1e-9, float(1 << 62)]
    assert theirs.samples[0].labels["item"] == 'x "y" \\ z\nnext'


def test_owner_labels_come_first_on_every_sample() -> None:
    family = Family("kata_a", "gauge", "A.", [("", "", "1"), ("", 'item="x"', "2")])
    text = write([family, Family("kata_b_total", "counter", "B.")], 'sandbox_id="s"')
    assert text.splitlines() == [
        "# HELP kata_a A.",
        "# TYPE kata_a gauge",
        'kata_a{sandbox_id="s"} 1',
        'kata_a{sandbox_id="s",item="x"} 2',
    ]


def test_a_histogram() -> None:
    text = 'kata_h_bucket{le="1"} 1\nkata_h_bucket{le="+Inf"} 2\nkata_h_sum 3.5\nkata_h_count 2\n'
    found, dropped = read(text, KNOWN, 10)
    assert dropped == 0
    assert [sample[0] for sample in found["kata_h"].samples] == ["_bucket", "_bucket", "_sum", "_count"]


@pytest.mark.parametrize(
    "line",
    [
        "other 1",
        "kata_a_sum 1",
        "kata_h 1",
        "kata_h_bucket 1",
        'kata_h_bucket{item="x"} 1',
        'kata_a{item="x"} 1 1700000000000',
        'kata_a{item="x",item="y"} 1',
        'kata_a{sandbox_id="another"} 1',
        'kata_a{item="x",cri_namespace="kube-system"} 1',
        'kata_a{__name__="up"} 1',
        'kata_a{item="x} 1',
        'kata_a{item="x"}} 1',
        'kata_a{item="x",} 1',
        'kata_a{item="\\t"} 1',
        'kata_a{item="\x1b[2J"} 1',
        'kata_a{item="\u202egpj"} 1',
        'kata_a{item="\u2028"} 1',
        'kata_a{item="\x9b31m"} 1',
        'kata_a{item="' + "x" * 65 + '"} 1',
        "kata_a{" + ",".join(f'l{n}="x"' for n in range(9)) + "} 1",
        "kata_a 0x10",
        "kata_a 1_000",
        "kata_a inf",
        "kata_a " + "9" * 400,
        "kata_a",
        "kata_a  1",
        " kata_a 1",
        "kata_a 1\r",
        "\x00",
    ],
)
def test_lines_that_are_dropped(line: str) -> None:
    found, dropped = read(f'kata_b_total 7\n{line}\nkata_a{{item="kept"}} 1\n', KNOWN, 10)
    assert dropped == 1
    assert {name: family.samples for name, family in found.items()} == {
        "kata_b_total": [("", "", "7")],
        "kata_a": [("", 'item="kept"', "1")],
    }


def test_kind_and_text_are_not_the_guests() -> None:
    found, dropped = read("# TYPE kata_a histogram\n# HELP kata_a <script>\n# TYPE other gauge\nkata_a 1\n", KNOWN, 10)
    assert (found["kata_a"].kind, found["kata_a"].text, dropped) == ("gauge", "A.", 0)


def test_a_series_counts_once() -> None:
    found, dropped = read("kata_a 1\nkata_a 2\n", KNOWN, 10)
    assert found["kata_a"].samples == [("", "", "1")]
    assert dropped == 1


def test_as_many_series_as_fit_into_an_answer_take_no_memory() -> None:
    text = "".join(f'kata_a{{item="{n}"}} 1\n' for n in range(180_000))
    tracemalloc.start()
    found, dropped = read(text, KNOWN, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found["kata_a"].samples) == 1000
    assert dropped == 179_000
    assert peak < 4 << 20


def test_a_line_of_four_mebibytes() -> None:
    long = 'kata_a{item="' + '\\"' * (2 << 20) + '"} 1'
    begin = time.monotonic()
    found, dropped = read(long + "\nkata_a 1\n" + "#" * (4 << 20), KNOWN, 10)
    assert (len(found["kata_a"].samples), dropped) == (1, 1)
    assert time.monotonic() - begin < 5


def test_no_text_makes_matching_slow() -> None:
    # What backtracks in an expression that allows it: many ways to split the same characters, and no end.
    lines = [
        "kata_a{" + 'a="\\\\' * 400,
        'kata_a{a="' + "\\n" * 1000,
        "kata_a{" + ",".join('a="b"' for _ in range(300)),
        "k" * 2000,
        "kata_a " + "1" * 2000,
    ]
    begin = time.monotonic()
    _, dropped = read("\n".join(lines * 200), KNOWN, 10)
    assert dropped == 1000
    assert time.monotonic() - begin < 5


@given(st.text(), st.dictionaries(st.sampled_from(["item", "cpu"]), st.text(max_size=400)))
def test_no_label_breaks_what_is_written(text: str, labels: dict[str, str]) -> None:
    family = Family("kata_a", "gauge", "A.")
    family.add(1, labels)
    written = write([family], label_text({"sandbox_id": text}))
    assert len(written.splitlines()) == 3
    (theirs,) = text_string_to_metric_families(written)
    assert len(theirs.samples) == 1


@given(st.lists(st.text(alphabet=st.sampled_from('kata_abh_total{}="\\n,e+-.1 \n#lsumx\x1b\u2028'), max_size=60)))
def test_what_is_read_can_be_handed_on(lines: list[str]) -> None:
    found, _ = read("\n".join([*lines, "kata_a 1"]), KNOWN, 100)
    again, dropped = read(write(found.values()), KNOWN, 100)
    assert (again, dropped) == (found, 0)
    list(text_string_to_metric_families(write(found.values(), 'sandbox_id="s"')))
