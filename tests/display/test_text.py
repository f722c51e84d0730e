"""Words and numbers that terminal, page and documentation have in common."""

from __future__ import annotations

import pytest

from job.display import text, theme


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (41.2, "41 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (7_870, "2 h 11 min"),
        (400_000, "111 h 6 min"),
    ],
)
def test_a_duration_has_the_two_units_that_matter(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


def test_what_was_not_measured_is_a_dash_and_zero_is_not() -> None:
    for shown in (text.percent, text.decimals, text.rounded):
        assert shown(None) == shown("damaged") == "-"
    assert (text.percent(0), text.decimals(0.0), text.rounded(0)) == ("0.0%", "0.0000", "0")


def test_a_list_reads_as_it_is_said() -> None:
    assert [text.listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_a_class_without_images_is_last_and_never_called_hard() -> None:
    given = (("a", 0, None), ("b", 4, 0.5), ("c\nc", 4, 0.25))
    result = {"classes": [{"name": name, "images": images, "accuracy": share} for name, images, share in given]}
    assert [row["name"] for row in text.hardest(result)] == ["c\nc", "b", "a"]
    assert text.hardest_named(result) == ["c c (25.0%)", "b (50.0%)"]


def test_a_page_escapes_what_it_is_given_and_lacks_nothing_silently() -> None:
    names = {"runs": [{"name": "<b>\"'&", "accuracy": 0.5, "split": "test"}], "images": 2, "drawn": {}, "links": {}}
    page = theme.render("comparison.html.jinja", **names, tables=[])
    assert "&lt;b&gt;&#34;&#39;&amp;" in page
    assert "<b>" not in page
    with pytest.raises(Exception, match="'tables' is undefined"):
        theme.render("comparison.html.jinja", **names)


def test_the_rank_that_others_wait_for_is_told_where_that_costs_and_the_one_that_takes_most_memory() -> None:
    status = {"peak_memory": [5e8, 8e8, 6e8], "waited": [40.0, 30.0, 5.0]}
    said = "memory: 800 MB at most on rank 1; the others waited 30 s for rank 2, 30.0% of the time of its steps"
    assert text.by_rank(status, 100) == said
    assert text.by_rank(status, 1000) == "memory: 800 MB at most on rank 1"
    alone = {"peak_memory": [5e8], "peak_device_memory": [2e9]}
    assert text.by_rank(alone, 100) == "memory: 500 MB at most; memory of its device: 2,000 MB at most"
    assert text.by_rank({}, 0) == ""
