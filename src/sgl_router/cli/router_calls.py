"""What commands send to a router: to which one, and the bodies."""

import argparse
import os
import secrets
from collections.abc import Mapping
from typing import Any

import orjson

from sgl_router.cli.router_client import Body, RouterClient, parse_address, read_key


def client_for(options: argparse.Namespace) -> RouterClient:
    """The router that the flags of `plugin_arguments.ROUTER` name."""
    try:
        address = parse_address(options.router)
    except ValueError as error:
        options.command.error(f"--router is no URL of a router: {error}")
    if options.ca_cert is not None and not address.secure:
        options.command.error("--ca-cert goes with an https URL (option --router)")
    key = read_key(os.environ, options.api_key_file)
    return RouterClient(address, key, options.ca_cert, options.timeout)


def module_body(module: bytes, settings: Mapping[str, Any] | None) -> Body:
    """The module alone, or a form (RFC 7578) with its settings: they do not fit in every URL."""
    if settings is None:
        return Body(module, "application/wasm")
    boundary = secrets.token_hex(16)
    form = (
        b'--%b\r\nContent-Disposition: form-data; name="settings"\r\n'
        b"Content-Type: application/json\r\n\r\n%b\r\n"
        b'--%b\r\nContent-Disposition: form-data; name="module"; filename="module.wasm"\r\n'
        b"Content-Type: application/wasm\r\n\r\n%b\r\n--%b--\r\n"
    )
    mark = boundary.encode("ascii")
    content = form % (mark, orjson.dumps(settings), mark, module, mark)
    return Body(content, f"multipart/form-data; boundary={boundary}")


def policy_body(name: str, role: str | None) -> Body:
    """Which policy is to decide; `role`: about which workers, None: about all."""
    return json_body({"policy": name, "role": role})


def json_body(value: object) -> Body:
    return Body(orjson.dumps(value))
