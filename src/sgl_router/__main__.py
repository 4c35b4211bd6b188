"""`python -m sgl_router` is `sgl-router`."""

from sgl_router.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
