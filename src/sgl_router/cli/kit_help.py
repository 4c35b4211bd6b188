"""What `sgl-router plugin new|build --help` says beside the arguments."""

KIT_EXAMPLES: dict[str, tuple[str, str]] = {
    "new": (
        """\
Make a folder with a plugin to begin with: a policy that works, its tests, and plugin.toml, which
says what the plugin is called, what it asks for and with what it is loaded. It is the same in every
language; the README.md in it says where the policy stands and how it is changed.

policies to begin from (--from):
  least_connections  the healthy worker with the fewest requests in flight
  weighted_random    a worker at random, each as often as its weight in the configuration says
  sticky_session     the requests of one session to one worker
  lmetric            the fewest prompt tokens to compute, times the batch size""",
        """\
examples:
  sgl-router plugin new my_policy --lang rust
  sgl-router plugin new my_policy --lang python --from sticky_session
  sgl-router plugin new my_policy --lang go --dir plugins/my_policy

then:
  cd my_policy
  sgl-router plugin build
  sgl-router plugin test
  sgl-router plugin load .""",
    ),
    "build": (
        """\
Build the plugin in a folder to build/NAME.wasm, with what its plugin.toml says of it, and check it
as a router would. Where it fails, the end of what the tool said is shown, and what was built before
stays. Tools are looked for beside this Python first, then on the PATH; for one that is missing, the
command that installs it is told.""",
        """\
examples:
  sgl-router plugin build
  sgl-router plugin build plugins/my_policy""",
    ),
}
"""A command -> what it does, and how it is called."""
