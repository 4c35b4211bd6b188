"""What `sgl-router plugin … --help` says beside the arguments."""

OVERVIEW = """\
Make policies as plugins, and change those of a router while it serves.

  sgl-router plugin new my_policy --lang rust
  sgl-router plugin build my_policy
  sgl-router plugin test my_policy
  sgl-router plugin load my_policy
  sgl-router plugin shadow my_policy --share 0.1
  sgl-router plugin shadow
  sgl-router plugin promote
  sgl-router plugin rollback my_policy"""

NOTES = """\
The router is http://127.0.0.1:30000 unless --router names another. It takes changes from its own
machine; where it was started with --admin-api-key, from whoever has that key: set the variable
SGL_ROUTER_ADMIN_API_KEY, or give --api-key-file. Proxies of the environment are not used.

The exit status is 0 where it was done, 1 where it was refused, failed or the router could not be
reached, 2 where the command is not understood."""

EXAMPLES: dict[str, tuple[str, str]] = {
    "list": (
        """\
List the plugins: the version that decides, what it decides about, what it decided and failed to
decide, and whether it is in quarantine.""",
        """\
examples:
  sgl-router plugin list
  sgl-router plugin list --router https://router.example:30000 --ca-cert ca.pem
  sgl-router plugin list --json | jq '.plugins[].name'""",
    ),
    "show": (
        """\
Show a plugin: its state, and the settings and counts of the version that decides and of the one
that a rollback returns to.""",
        """\
examples:
  sgl-router plugin show my_policy""",
    ),
    "load": (
        """\
Load a plugin, or replace the one of that name. The module is sent to the router, checked and tried
out there; where it is refused, every reason is told and nothing has changed. Where the plugin is in
use, the module decides from the next request on, with the state of the one before.

With --use and --json, two answers are shown, each on lines of its own.""",
        """\
examples:
  sgl-router plugin load plugins/my_policy.wasm
  sgl-router plugin load . --use
  sgl-router plugin load target/release/p.wasm --name my_policy --use
  sgl-router plugin load my_policy.wasm --settings '{"config": {"weights": {"http://w:1": 4}}}'
  sgl-router plugin load my_policy.wasm --settings @my_policy.yaml""",
    ),
    "reload": (
        """\
Have the router read a plugin's file again, or the module that was sent to it, with other settings
where they are given.""",
        """\
examples:
  sgl-router plugin reload my_policy
  sgl-router plugin reload my_policy --settings '{"max_execution_time_ms": 20}'""",
    ),
    "rollback": (
        """\
Have the version of a plugin that decided before decide again.""",
        """\
examples:
  sgl-router plugin rollback my_policy""",
    ),
    "unload": (
        """\
Unload a plugin. One that is in use, as policy or in shadow, stays.""",
        """\
examples:
  sgl-router plugin use round_robin
  sgl-router plugin unload my_policy""",
    ),
    "use": (
        """\
Switch the policy in use, for requests from now on; without NAME, show which it is.""",
        """\
examples:
  sgl-router plugin use
  sgl-router plugin use my_policy
  sgl-router plugin use cache_aware --role prefill""",
    ),
    "shadow": (
        """\
Ask a plugin for a share of the decisions, beside the policy in use and without effect, and compare
the two. Without NAME, report of the run under way: how often they agreed, how long the plugin took,
and which load it would have put on which worker.""",
        """\
examples:
  sgl-router plugin shadow my_policy --share 0.1
  sgl-router plugin shadow
  sgl-router plugin shadow --stop""",
    ),
    "promote": (
        """\
End the shadow run, and put its plugin in use for the workers that it was asked about.""",
        """\
examples:
  sgl-router plugin promote""",
    ),
}
"""A command -> what it does, and how it is called."""
