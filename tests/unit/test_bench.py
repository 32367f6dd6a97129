"""The pure parts of the benchmark: percentiles, report, comparison. It is no package."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
client, compare, growth, report, structure = map(
    importlib.import_module, ("client", "compare", "growth", "report", "structure")
)

MACHINE = {"cores": 2, "cpu": "a CPU", "python": "3.11.7", "packages": {"celery": "5.7.0"}}


def run(**measures):
    return {"machine": MACHINE, "quick": False, "measures": measures}


def line(lines, start):
    return next(found for found in lines if found.startswith(start))


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([5], 99, 5),
        ([1, 2], 50, 1.5),
        ([3, 1, 2], 50, 2),
        ([3, 1, 2], 0, 1),
        ([3, 1, 2], 100, 3),
        (list(range(101)), 95, 95),
        ([0, 10], 99, 9.9),
    ],
)
def test_a_percentile_is_between_the_nearest_values(values, percent, expected):
    assert client.percentile(values, percent) == pytest.approx(expected)


def test_a_spread_has_three_percentiles():
    assert client.spread("ms", [1.0, 1.0]) == {"ms_p50": 1, "ms_p95": 1, "ms_p99": 1}


def test_a_request_has_its_length():
    made = client.request("POST", "/v2/ep/run", {"input": {}})
    head, body = made.split(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/ep/run HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head


def test_the_table_shows_whether_an_aim_is_reached():
    lines = report.table(run(no_op={"part_ms": 2.0}, drain={"jobs_per_s": 400.0}))
    assert line(lines, "OwnPod's part").split()[-4:] == ["<", "3", "ms", "yes"]
    assert line(lines, "no-ops, submitted").split()[-4:] == [">", "500", "/s", "NO"]


def test_the_table_has_percentiles_in_columns():
    lines = report.table(run(way={"ms_p50": 2.0, "ms_p95": 3.0, "ms_p99": 14.0}))
    assert line(lines, "worker's end").split("(ms)")[1].split() == [
        "2",
        "3",
        "14",
        "<",
        "10",
        "ms",
        "NO",
    ]


def test_a_failed_measure_does_not_hide_the_others():
    lines = report.table(run(no_op={"failed": "TimeoutError: late"}, way={"ms_p99": 1.0}))
    assert "no_op: FAILED" in lines
    assert "no_op: FAILED: TimeoutError: late" in lines
    assert line(lines, "worker's end").endswith("yes")


def test_the_table_has_the_cpu_of_a_job_by_processes():
    lines = report.table(run(drain={"cpu_api_ms": 1.0, "cpu_node_ms": 2.5}))
    assert "drain: CPU in ms for each job: api 1.00, node 2.50, all 3.50" in lines


def test_every_figure_is_a_row_once():
    names = [(row.measure, row.figure) for row in report.ROWS]
    assert len(names) == len(set(names))


def test_the_share_of_an_aim_is_more_when_it_is_better():
    found = run(
        no_op={"part_ms": 6.0},
        drain={"jobs_per_s": 1000.0},
        queued={"status_ms_slower_percent": -3.0},
    )
    assert [share for _, share in report.shares(found)] == [0.5, 2.0, 10.0]


def test_without_a_row_there_is_no_plot(tmp_path):
    assert not report.plot(run(), tmp_path / "plot.svg")


def calibrated(loop, http, **measures):
    return run(calibration={"loop_ms": loop, "http_ms": http}, **measures)


def test_a_comparison_takes_the_machines_speed_into_account():
    old = calibrated(10.0, 1.0, no_op={"part_ms": 4.0}, drain={"jobs_per_s": 400.0})
    new = calibrated(20.0, 2.0, no_op={"part_ms": 8.0}, drain={"jobs_per_s": 300.0})
    assert compare.speed(old, new) == pytest.approx(2)
    lines = compare.table(old, new)
    assert line(lines, "no_op:").split()[-4:] == ["4", "8", "2.00", "1.00"]
    assert line(lines, "drain:").split()[-5:] == ["400", "300", "0.75", "1.50", "better"]


def test_a_comparison_marks_what_got_worse_only_by_more_than_a_tenth():
    old = run(no_op={"part_ms": 4.0}, equal={"percent": 90.0}, payload={"total_x": 50.0})
    new = run(no_op={"part_ms": 4.3}, equal={"percent": 70.0}, payload={"total_x": 20.0})
    lines = compare.table(old, new)
    assert "not known" in lines[0]
    assert line(lines, "no_op:").endswith("1.07")
    assert line(lines, "equal:").endswith("WORSE")
    assert line(lines, "payload:").endswith("better")


def test_a_comparison_omits_rows_that_one_run_has_not():
    lines = compare.table(run(no_op={"failed": "x"}), run(no_op={"part_ms": 4.0}))
    assert not any(found.startswith("no_op") for found in lines)


def test_a_comparison_shows_that_a_run_was_quick():
    lines = compare.table(run(), run() | {"quick": True})
    assert "quick" in lines[1]


def test_a_comparison_marks_by_whether_more_or_less_is_better():
    old = calibrated(10.0, 1.0, waiting={"errors": 100, "answered": 1000}, queued={"jobs": 10})
    new = calibrated(20.0, 2.0, waiting={"errors": 50, "answered": 500}, queued={"jobs": 20})
    lines = compare.table(old, new)
    assert line(lines, "waiting:     errors").endswith("better")
    assert line(lines, "waiting:     answered").endswith("WORSE")
    assert line(lines, "queued:      jobs").endswith("2.00")
    assert line(lines, "calibration: calibration: a loop").endswith("2.00")


MEASURED = {
    "drain": {"cpu_node_ms": 1.5, "cpu_redis_ms": 0.4},
    "submissions": {"cpu_redis_ms": 0.1, "cpu_api_ms": 0.8},
    "clients": {"cpu_api_ms": 1.0},
    "nodes": {"node_cpu_percent": 0.1, "redis_cpu_percent": 2.0, "node_pss_mb": 20.0},
    "queued": {"redis_kb": 2.0},
}


def test_costs_add_up():
    costs = growth.costs(MEASURED)
    assert growth.use(costs, 100, 50) == pytest.approx({"node": 20, "redis": 5, "api": 10})
    # Jobs that wait already have been paid for.
    assert growth.use(costs, 100, 0, submitted=False) == pytest.approx(
        {"node": 15, "redis": 3, "api": 0}
    )


def test_the_model_is_shown_beside_its_measured_point_or_not_at_all():
    point = {"jobs_per_s": 200.0, "node_percent": 33.0, "redis_percent": 7.1}
    lines = growth.lines(MEASURED | {"growth": point})
    assert "2000 jobs/s, or 4000 workers at rest; 500,000 queued jobs in each GB" in lines[1]
    assert lines[-2:] == [
        "    node   33.0 % of a core, by the model 35.0 %",
        "    redis  7.1 % of a core, by the model 7.0 %",
    ]
    assert growth.lines({"drain": MEASURED["drain"]}) == []


def test_the_shape_of_a_package_is_counted(tmp_path):
    long = "def long():\n" + "    pass\n" * 60
    (tmp_path / "one.py").write_text(
        "# Licence: it does not count.\n"
        '"""Two\nlines."""\n'
        "try:\n    import x  # noqa: F401\nexcept Exception:\n    pass  # Why.\n"
        "def short():\n    import y\n" + long
    )
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "contrib").mkdir()
    (tmp_path / "contrib" / "two.py").write_text("x = 1\n")
    shape = structure.measure(tmp_path, {"contrib"})
    assert shape.lengths == [9 + 61]
    assert (shape.long_functions, shape.functions) == (1, 2)
    assert (shape.broad_excepts, shape.excepts) == (1, 1)
    assert (shape.comments, shape.docstring_lines, shape.imports_in_functions) == (1, 2, 1)
    assert len(structure.measure(tmp_path).lengths) == 2


def test_no_module_of_the_benchmark_has_the_name_of_a_module_of_the_tests():
    # `bench` is in front of `tests` on the path of this process from this file on.
    root = Path(__file__).parents[2]
    ours = {file.name for file in (root / "tests").rglob("*.py")}
    assert ours.intersection(file.name for file in (root / "bench").glob("*.py")) == set()
