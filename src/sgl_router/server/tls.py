"""TLS contexts: for clients, and for engines with an https URL."""

import ssl

from sgl_router.config import RouterConfig
from sgl_router.errors import ConfigError


def for_clients(config: RouterConfig) -> ssl.SSLContext | None:
    """None where the router speaks plain HTTP. Raises ConfigError where a file is of no use."""
    if config.tls_cert_path is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.tls_cert_path, config.tls_key_path)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"cannot use {config.tls_cert_path!r} with {config.tls_key_path!r}: {error} (options "
            "--tls-cert-path and --tls-key-path)"
        ) from error
    return context


def for_engines(config: RouterConfig) -> ssl.SSLContext:
    """Checks certificates against the given authorities, or the system's. Raises ConfigError."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    if config.ca_cert_paths:  # in place of the system's
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    for path in config.ca_cert_paths:
        try:
            context.load_verify_locations(path)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cannot use {path!r}: {error} (option --ca-cert-paths)") from error
    if config.client_cert_path is not None:
        try:
            context.load_cert_chain(config.client_cert_path, config.client_key_path)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"cannot use {config.client_cert_path!r} with {config.client_key_path!r}: {error} "
                "(options --client-cert-path and --client-key-path)"
            ) from error
    return context
