"""What is read off an engine's metrics page, and what is not."""

import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sgl_router.core import engine_metrics
from sgl_router.core.engine_metrics import MAX_COUNT, MAX_SERIES, parse_engine_metrics
from sgl_router.core.worker import EngineMetrics

# Names of queued requests, running requests and cache usage, by engine.
ENGINES = {
    "vllm": (
        "vllm:num_requests_waiting",
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
    ),
    "vllm before 0.9": (
        "vllm:num_requests_waiting",
        "vllm:num_requests_running",
        "vllm:gpu_cache_usage_perc",
    ),
    "sglang": ("sglang:num_queue_reqs", "sglang:num_running_reqs", "sglang:token_usage"),
    "llama.cpp": (
        "llamacpp:requests_deferred",
        "llamacpp:requests_processing",
        "llamacpp:kv_cache_usage_ratio",
    ),
}
QUEUED, RUNNING, USAGE = ENGINES["vllm"]

SGLANG_LABELS = (
    'dp_rank="{dp}",engine_type="unified",model_name="org/model:v1",moe_ep_rank="0",'
    'pp_rank="{pp}",tp_rank="{tp}"'
)


def read(page: str) -> EngineMetrics | None:
    return parse_engine_metrics(page.encode(), 5)


def page_of(queued: str = "3", running: str = "12", usage: str = "0.25") -> str:
    return f"{QUEUED} {queued}\n{RUNNING} {running}\n{USAGE} {usage}\n"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("labels", ["", '{engine="0",model_name="org/model:v1"}'])
@pytest.mark.parametrize("order", [1, -1])
def test_each_engine(engine: str, labels: str, order: int) -> None:
    values = zip(ENGINES[engine], ("3.0", "12.0", "0.25"), strict=True)
    samples = [
        f"# HELP {name} {name} is 99.\n# TYPE {name} gauge\n{name}{labels} {value}\n"
        for name, value in values
    ]
    assert read("".join(samples[::order])) == EngineMetrics(3, 12, 0.25, 5)


@pytest.mark.parametrize("ends", ["\n", "\r\n", " 1700000000123\n", "\t\n"])
def test_ends_of_lines(ends: str) -> None:
    page = page_of().replace("\n", ends)
    assert read(page) == EngineMetrics(3, 12, 0.25, 5)
    assert read(page.rstrip("\r\n\t ")) == EngineMetrics(3, 12, 0.25, 5), "the last has no end"


def test_the_first_name_of_the_cache_usage_counts() -> None:
    page = page_of() + "vllm:gpu_cache_usage_perc 0.75\n"
    assert read(page) == EngineMetrics(3, 12, 0.25, 5)
    assert read(page.replace(f"{USAGE} 0.25", f"{USAGE} NaN")) == EngineMetrics(3, 12, 0.75, 5)


def test_llama_without_cache_usage() -> None:
    """As it has been since its cache is one for all requests."""
    page = "llamacpp:requests_processing 2\nllamacpp:requests_deferred 1\n"
    assert read(page) == EngineMetrics(1, 2, None, 5)


@pytest.mark.parametrize(
    "page",
    [
        "",
        "\n",
        "process_cpu_seconds_total 12.5\n",
        f"{QUEUED} 3\n",
        f"{RUNNING} 12\n",
        f"{USAGE} 0.5\n",
        f"# HELP {QUEUED} {QUEUED} 1\n# {RUNNING} 1\n",
        f"x{QUEUED} 3\nx{RUNNING} 12\n",
        f"{QUEUED}_by_reason 3\n{RUNNING}_of_lora 12\n",
        f"{QUEUED} 3\nsglang:num_running_reqs 12\n",
    ],
)
def test_without_both_counts_nothing_is_known(page: str) -> None:
    assert read(page) is None


def test_longer_names_are_other_names() -> None:
    longer = f'{QUEUED}_by_reason{{reason="capacity"}} 8\n{RUNNING}_x 8\n{USAGE}_x 0.9\n'
    assert read(longer + page_of() + longer) == EngineMetrics(3, 12, 0.25, 5)


UNUSABLE = [
    *("NaN", "nan", "+Inf", "-Inf", "inf", "-1", "-0.5", "1e400", "twelve", "0x10", "1,5"),
    *("{}", '{a="b"}', "{", '{a="', '{a="}', "\\", '""', f"{MAX_COUNT + 1}"),
]


@pytest.mark.parametrize("value", UNUSABLE)
@pytest.mark.parametrize("which", ["queued", "running"])
def test_an_unusable_count_leaves_nothing_known(value: str, which: str) -> None:
    assert read(page_of(**{which: value})) is None


@pytest.mark.parametrize("value", [*UNUSABLE, "1.01", "100"])
def test_an_unusable_cache_usage_leaves_the_counts(value: str) -> None:
    assert read(page_of(usage=value)) == EngineMetrics(3, 12, None, 5)


@pytest.mark.parametrize("value", ["0", "1", "0.0", "1.0", "1e-9", "5E-1"])
def test_the_ends_of_a_share(value: str) -> None:
    assert read(page_of(usage=value)) == EngineMetrics(3, 12, float(value), 5)


# ---- several label sets


def of_ranks(name: str, values: list[float]) -> str:
    return "".join(
        f'{name}{{engine="{rank}",model_name="m"}} {value}\n' for rank, value in enumerate(values)
    )


RANKS = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1)),
    min_size=1,
    max_size=16,
)


@given(RANKS)
def test_counts_of_ranks_are_added_and_their_usage_is_averaged(
    ranks: list[tuple[int, int, float]],
) -> None:
    page = "".join(
        of_ranks(name, [rank[i] for rank in ranks])
        for i, name in enumerate((QUEUED, RUNNING, USAGE))
    )
    metrics = read(page)
    assert metrics is not None
    assert metrics.queued == sum(rank[0] for rank in ranks)
    assert metrics.running == sum(rank[1] for rank in ranks)
    assert metrics.kv_usage is not None
    assert metrics.kv_usage == pytest.approx(sum(rank[2] for rank in ranks) / len(ranks))
    assert 0 <= metrics.kv_usage <= 1


def test_one_unusable_rank_makes_the_sum_unknown() -> None:
    page = page_of() + of_ranks(QUEUED, [1, float("nan"), 2])
    assert read(page) is None


def test_processes_that_share_a_batch_count_once() -> None:
    """SGLang's tensor- and pipeline-parallel processes may each tell of the same requests."""
    names = ENGINES["sglang"]
    page = "".join(
        f"{name}{{{SGLANG_LABELS.format(dp=dp, pp=pp, tp=4 * dp + tp)}}} {value * (dp + 1)}\n"
        for name, value in zip(names, (3, 12, 0.25), strict=True)
        for dp in (0, 1)
        for pp in (0, 1)
        for tp in range(4)
    )
    assert read(page) == EngineMetrics(3 + 6, 12 + 24, (0.25 + 0.5) / 2, 5)


def test_the_busiest_of_processes_that_share_a_batch_counts() -> None:
    """They tell of the same requests, but not of the same moment."""
    queued, running, _ = ENGINES["sglang"]
    page = "".join(
        f'{name}{{tp_rank="{rank}"}} {value}\n'
        for name in (queued, running)
        for rank, value in enumerate((4, 7, 5))
    )
    assert read(page) == EngineMetrics(7, 7, None, 5)


def test_counts_of_one_priority_are_in_the_count_of_all() -> None:
    """SGLang with --enable-priority-scheduling."""
    queued, running, usage = ENGINES["sglang"]
    page = "".join(
        f'{name}{{model_name="m",priority="{priority}",tp_rank="0"}} {value}\n'
        for name in (queued, running)
        for priority, value in (("", 5), ("0", 2), ("7", 3), ("None", 0))
    )
    assert read(f'{page}{usage}{{priority=""}} 0.5\n') == EngineMetrics(5, 5, 0.5, 5)


def test_more_series_than_any_engine_has_are_not_looked_at() -> None:
    few, many = [1.0] * (MAX_SERIES - 1), [1.0] * MAX_SERIES
    rest = f"{RUNNING} 12\n{USAGE} 0.25\n"
    assert read(of_ranks(QUEUED, few) + rest) == EngineMetrics(len(few), 12, 0.25, 5)
    assert read(of_ranks(QUEUED, many) + rest) is None


def test_a_line_that_is_too_long_makes_its_reading_unknown() -> None:
    def page(filler: int) -> str:
        return f'{QUEUED}{{model_name="{"m" * filler}"}} 12345\n{QUEUED} 1\n{RUNNING} 12\n'

    longest = engine_metrics.MAX_LINE_BYTES
    results = [read(page(longest - less)) for less in range(40)]
    assert set(results) == {None, EngineMetrics(12346, 12, None, 5)}, "and never a part of it"
    assert results == sorted(results, key=lambda metrics: metrics is not None)


# ---- laws


class Pages(Collector):
    """Any labels, written by the library that the engines write theirs with."""

    def __init__(self, series: dict[str, dict[str, int]]) -> None:
        self.series = series

    def collect(self) -> list[GaugeMetricFamily]:
        families = []
        for name, values in self.series.items():
            family = GaugeMetricFamily(name, "A gauge.", labels=["model_name"])
            for model, value in values.items():
                family.add_metric([model], value)
            families.append(family)
        return families


LABELLED = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.integers(0, 1000),
    min_size=1,
    max_size=4,
)


@given(queued=LABELLED, running=LABELLED)
@example({'quotes " and \\ and }': 1, "new\nline": 2}, {"": 1})
def test_any_label_value_is_read_as_it_was_written(
    queued: dict[str, int], running: dict[str, int]
) -> None:
    registry = CollectorRegistry()
    registry.register(Pages({QUEUED: queued, RUNNING: running}))
    metrics = parse_engine_metrics(generate_latest(registry), 5)
    assert metrics == EngineMetrics(sum(queued.values()), sum(running.values()), None, 5)


PIECES = st.sampled_from(
    [name for names in ENGINES.values() for name in names]
    + [" ", "\n", "\t", "{", "}", '"', "\\", ",", "=", "#", "_", 'a="b"', "priority=", "pid="]
    + ["1", "12.5", "NaN", "-3", "1e999", "\0", "\r", "é"]
)


@given(st.lists(PIECES, max_size=60).map("".join).map(str.encode) | st.binary(max_size=300))
@example(f"{RUNNING}{{".encode() + b"\\" * 100)
def test_no_page_raises(page: bytes) -> None:
    metrics = parse_engine_metrics(page, 5)
    if metrics is not None:
        assert 0 <= metrics.queued <= MAX_COUNT
        assert 0 <= metrics.running <= MAX_COUNT
        assert metrics.kv_usage is None or 0 <= metrics.kv_usage <= 1


def lines_run(page: bytes) -> int:
    """How many lines of Python the parser runs for a page."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line" and frame.f_code.co_filename == engine_metrics.__file__
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        parse_engine_metrics(page, 5)
    finally:
        sys.settrace(before)
    return count


def test_the_rest_of_the_page_costs_no_python() -> None:
    """Whatever else a page holds is passed over by a search, not line by line."""
    other = b'vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.3",model_name="m"} 4.0\n'
    small = lines_run(page_of().encode())
    assert small > 0
    assert lines_run(other * 2500 + page_of().encode() + other * 2500) == small
    assert lines_run(other * 5000) < small
