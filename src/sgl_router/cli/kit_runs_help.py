"""What `sgl-router plugin check|test|bench|run|dev --help` says beside the arguments."""

RUN_EXAMPLES: dict[str, tuple[str, str]] = {
    "check": (
        """\
Say what a compiled module is, and whether a router with these settings would take it: its size, its
ABI, what it imports and what grants that, its memory at the start and its manifest. Nothing of the
plugin runs. Where it would be refused, every reason is told at once, each with its remedy, and the
exit status is 1.""",
        """\
examples:
  sgl-router plugin check
  sgl-router plugin check my_policy.wasm --settings '{"allowed_syscalls": ["wasi:random"]}'
  sgl-router plugin check my_policy.wasm --json | jq '.problems[].code'""",
    ),
    "test": (
        """\
Test a compiled plugin, hosted as a router hosts it: whether it keeps the ABI (any number of
workers, only healthy ones, odd texts, the same answer to the same input, memory that does not grow
…), and its golden decisions, the files tests/*.json in its folder, each on two instances. Of what
fails, what was expected and what was found is shown, with what the plugin said of it. The exit
status is 1 where something fails.""",
        """\
examples:
  sgl-router plugin test
  sgl-router plugin test plugins/my_policy
  sgl-router plugin test my_policy.wasm --settings @my_policy.yaml
  pytest --policy-plugin build/my_policy.wasm          (the same, as tests of pytest)""",
    ),
    "bench": (
        """\
Time the decisions of a compiled plugin on this machine, among 1, 8, 64 and 512 workers: the median,
the 99th percentile, the most memory, and how much of its budget it takes. On the event loop the
budget is inline_budget_ms, on a thread of its own max_execution_time_ms.""",
        """\
examples:
  sgl-router plugin bench
  sgl-router plugin bench my_policy.wasm --decisions 20000 --seconds 10
  sgl-router plugin bench --json | jq '.rows[] | [.workers, .p99_us]'""",
    ),
    "run": (
        """\
Have a compiled plugin decide once, and show the input, the answer, its state, the time, its memory
and what it printed. Without --input, a request for three workers is made up, one of which is down;
with --json, its `given` is an input to begin from.""",
        """\
examples:
  sgl-router plugin run
  sgl-router plugin run --input tests/lowest_load.json
  sgl-router plugin run my_policy.wasm --input input.json --state '{"last": 2}'
  sgl-router plugin run --json | jq .given > input.json""",
    ),
    "dev": (
        """\
Watch a plugin's folder: build and test it at once, and whenever a source is saved. With --router,
each version that passes its tests is loaded on that router as NAME-dev and decides in shadow,
beside the policy in use and without effect; how often the two agree is told as requests come.
Nothing that decides is ever replaced: where NAME-dev itself is in use, or another plugin runs in
shadow, that is left as it is. Ctrl-C ends the shadow run and unloads NAME-dev.""",
        """\
examples:
  sgl-router plugin dev
  sgl-router plugin dev plugins/my_policy --router http://127.0.0.1:30000 --share 0.2""",
    ),
}
"""A command -> what it does, and how it is called."""
