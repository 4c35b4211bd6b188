"""Writes docs/options.md from the schema of the options."""

from pathlib import Path

from sgl_router.config.fields import Section
from sgl_router.config.options import OPTIONS, Option, flag_of
from sgl_router.config.refused import REFUSED
from sgl_router.config.schema import SECTIONS

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
HEAD = """# Options of `sgl-router launch`

Written by `scripts/write_options.py` from the schema of the options; do not edit.

An option is a flag, a key of the YAML file that `--config FILE` names, or an environment variable:
`--worker-urls`, `worker_urls`, `SGL_ROUTER_WORKER_URLS`. Flags win over the environment, the
environment over the file. A list is several words after a flag, which may be repeated, words
separated by spaces in a variable, a YAML list in the file. A switch is `true` or `false` in a
variable and in the file. Paths are relative to the working directory. A key that stands in none of
the tables is an error, and so is a variable `SGL_ROUTER_…` or a value that does not fit: the router
does not start. `SGL_ROUTER_CONFIG` names the file where `--config` does not.

```yaml
policy: cache_aware
pd_disaggregation: true
prefill:
  - http://10.0.0.1:30000 8998
  - {url: http://10.0.0.2:30000, bootstrap_port: 8998}
workers:
  - url: https://10.0.0.3:30000
    worker_type: decode
    labels: {zone: a}
    api_key: the-engine-s-own
```

The same prefill engines are `--prefill http://10.0.0.1:30000 8998 --prefill …` as flags, and
`http://10.0.0.1:30000 8998 http://10.0.0.2:30000 8998` in the variable. `workers` has no flag; in
the variable it is a list in JSON. Where a number may be absent, `none` takes it back.

In every pod beside a Service that is called sgl-router, or sgl-router-admin, Kubernetes sets
variables of its own. They are passed over: `SGL_ROUTER_PORT` where it is a URL such as
`tcp://10.0.0.1:30000`, `SGL_ROUTER_SERVICE_HOST`, `SGL_ROUTER_SERVICE_PORT…`,
`SGL_ROUTER_PORT_30000_TCP…` and the like.
"""
REFUSED_HEAD = """
## Refused

Options of sglang-router 0.3.2, smg 1.13.0 and vllm-router 0.1.17 that this router does not have.
Each is refused as a flag, as a key and as a variable, with this sentence.

| option | why, and what to use |
|---|---|
"""


def page() -> str:
    """The page's text."""
    return HEAD + "".join(map(_section, SECTIONS)) + REFUSED_HEAD + _refused()


def _section(section: type[Section]) -> str:
    rows = (_row(OPTIONS[name]) for name in section.model_fields)
    return f"\n## {section.title}\n\n| option | default | |\n|---|---|---|\n" + "".join(rows)


def _row(option: Option) -> str:
    default = f"`{option.default_text}`" if option.default_text else ""
    return f"| `{option.usage}` | {default} | {_cell(option.description)} |\n"


def _refused() -> str:
    by_reason: dict[str, list[str]] = {}
    for name, why in REFUSED.items():
        by_reason.setdefault(why, []).append(f"`{flag_of(name)}`")
    return "".join(f"| {', '.join(flags)} | {_cell(why)} |\n" for why, flags in by_reason.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
