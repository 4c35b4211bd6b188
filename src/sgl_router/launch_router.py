"""`python -m sgl_router.launch_router` is `sgl-router launch`, as with sglang-router."""

import sys

from sgl_router.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["launch", *sys.argv[1:]]))
