"""What is asked for: methods, targets, versions and hosts, and those that are refused."""

import pytest

from sgl_router.errors import ProtocolError
from sgl_router.http1.request import RequestHead, encode_request_head
from tests.http1.feeding import one_request, refused_request, requests

METHODS = [b"GET", b"POST", b"OPTIONS", b"M-SEARCH", b"FOO", b"!#$%&'*+-.^_`|~09AZ"]


def asking(
    target: bytes, *, method: bytes = b"GET", version: bytes = b" HTTP/1.1", host: bytes = b"r"
) -> bytes:
    return b"%b %b%b\r\nHost: %b\r\n\r\n" % (method, target, version, host)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_any_token_in_upper_case(method: bytes) -> None:
    assert one_request(asking(b"/", method=method))[0].method == method


@pytest.mark.parametrize(
    "method", [b"get", b"Post", b"GET\xff", b"G(T", b"", b"G T", b"GET\x00", b" GET"]
)
def test_other_methods(method: bytes) -> None:
    assert refused_request(asking(b"/", method=method)) == 400


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", "/"),
        (b"/v1/models?a=b", "/v1/models"),
        (b"//double/v1", "//double/v1"),
        (b"/%7e/org%2fmodel%2E1?x?y", "/%7e/org%2fmodel%2E1"),
        (b"/v1/models/llama-3.1", "/v1/models/llama-3.1"),
        (b"/.well-known/..a/a../...", "/.well-known/..a/a../..."),
        (b"/%2e%2e%2e", "/%2e%2e%2e"),
        (b"/?/../.", "/"),
        (b"/a?/%2e%2e/\\", "/a"),
        (b"/!\"$&'()*+,-.:;<=>@[]^_`{|}~", "/!\"$&'()*+,-.:;<=>@[]^_`{|}~"),
    ],
)
def test_a_target_is_kept_as_it_came(target: bytes, path: str) -> None:
    head, _ = one_request(asking(target))
    assert (head.target, head.path) == (target, path)


DOTS = [
    b"/.",
    b"/..",
    b"/./",
    b"/../",
    b"/v1/./models",
    b"/v1/../admin",
    b"/v1/..?x",
    b"/%2e",
    b"/%2E%2e",
    b"/v1/.%2e/admin",
    b"/v1/%2E./admin",
    b"/v1/..%2fadmin",
    b"/v1%2F..%2Fadmin",
    b"/v1%5c..%5Cadmin",
    b"http://router/v1/../admin",
]


@pytest.mark.parametrize("target", DOTS)
def test_a_path_with_dot_segments(target: bytes) -> None:
    """An engine might answer another path than the one that the router's routes let through."""
    assert refused_request(asking(target)) == 400


@pytest.mark.parametrize(
    "target",
    [
        *[b"/a b", b"/\x00", b"/\x1f", b"/\x7f", b"/\xff", "/ü".encode(), b"/\t", b" /", b"/a "],
        *[b"/#a", b"/?#", b"/a\\b", b"/\\..\\admin", b"", b"*", b"v1", b"?x", b"router:80", b"%2f"],
        *[
            b"ftp://router/",
            b"http:/router/",
            b"http:router",
            b"http://",
            b"http:///v1",
            b"http://:80/",
        ],
        *[b"http://user@router/", b"http://router:x/", b"http://router\\v1", b"http://[::1/"],
        *[b"http://a b/", b"http://router/#a", b"http://router/a\\b", b"http://[:::]/", b"://r/"],
    ],
)
def test_targets_that_are_refused(target: bytes) -> None:
    assert refused_request(asking(target)) == 400


@pytest.mark.parametrize(
    ("url", "target", "host"),
    [
        (b"http://other:1/v1/models?a=b", b"/v1/models?a=b", b"other:1"),
        (b"HTTPS://Other", b"/", b"Other"),
        (b"http://other?a=b", b"/?a=b", b"other"),
        (b"http://[::1]:80/a", b"/a", b"[::1]:80"),
        (b"http://other//a", b"//a", b"other"),
        (b"http://other/http://third/", b"/http://third/", b"other"),
    ],
)
@pytest.mark.parametrize("version", [b" HTTP/1.1", b" HTTP/1.0"])
def test_a_whole_url_is_sent_on_as_a_path(
    url: bytes, target: bytes, host: bytes, version: bytes
) -> None:
    """RFC 9112, section 3.2.2: and its authority is the host, whatever Host says."""
    head, _ = one_request(asking(url, version=version))
    assert (head.target, head.path) == (target, target.partition(b"?")[0].decode())
    assert head.get(b"host") == host
    assert head.headers == [(b"Host", host)]
    encoded = encode_request_head(head, b"engine", b"/prefix")
    assert encoded == b"GET /prefix%b HTTP/1.1\r\nHost: engine\r\n\r\n" % target


def test_connect_is_refused() -> None:
    assert refused_request(asking(b"engine:443", method=b"CONNECT")) == 501
    assert refused_request(asking(b"/", method=b"CONNECT")) == 501


@pytest.mark.parametrize("version", [b"0.9", b"1.2", b"2.0", b"3.0", b"9.9"])
def test_other_versions(version: bytes) -> None:
    assert refused_request(asking(b"/", version=b" HTTP/" + version)) == 505


def test_a_request_line_without_a_version_is_http_0_9() -> None:
    assert refused_request(b"GET /v1/models\r\n\r\n") == 505


@pytest.mark.parametrize(
    "version",
    [
        b" HTP/1.1",
        b" http/1.1",
        b" HTTP/1.1 ",
        b"  HTTP/1.1",
        b"\tHTTP/1.1",
        b" HTTP/1",
        b" HTTP/11",
    ],
)
def test_what_is_no_version(version: bytes) -> None:
    assert refused_request(asking(b"/", version=version)) == 400


@pytest.mark.parametrize(
    "host",
    [
        *[
            b"router",
            b"Router.example:30000",
            b"127.0.0.1",
            b"127.0.0.1:",
            b"",
            b"a%2db",
            b"a_b~!$&",
        ],
        *[b"[::1]", b"[::1]:80", b"[2001:db8::1.2.3.4]:1", b"router \t", b"xn--nxasmq6b"],
    ],
)
@pytest.mark.parametrize("place", ["first", "later"])
def test_hosts(host: bytes, place: str) -> None:
    others = b"X: y\r\n"
    line = b"Host: %b\r\n" % host
    lines = line + others if place == "first" else others + line
    head, _ = one_request(b"GET / HTTP/1.1\r\n%b\r\n" % lines)
    assert head.get(b"host") == host.strip()


@pytest.mark.parametrize(
    "host",
    [
        *[
            b"a/b",
            b"a b",
            b"user@router",
            b"a?b",
            b"a#b",
            b"a\\b",
            b"a:b",
            b"a:1:2",
            b"a%zz",
            b"a%2",
        ],
        *[
            b"[::1",
            b"::1",
            b"[]",
            b"[zz]",
            b"[1:2]",
            b"[::1]x",
            b"a,b c",
            b"<a>",
            b"a:123456",
            b"\xe4",
        ],
        *[b"[::1%251]", b'"a"', b"http://a/"],
    ],
)
def test_what_is_no_host(host: bytes) -> None:
    assert refused_request(asking(b"/", host=host)) == 400


@pytest.mark.parametrize("version", [b" HTTP/1.1", b" HTTP/1.0"])
def test_two_hosts_are_refused(version: bytes) -> None:
    """RFC 9112, section 3.2."""
    for second in (b"r", b"other"):
        data = asking(b"/", version=version, host=b"r\r\nX: y\r\nhOST: " + second)
        assert refused_request(data) == 400


def test_a_host_is_required_from_http_1_1_on() -> None:
    assert refused_request(b"GET / HTTP/1.1\r\nX: y\r\n\r\n") == 400
    assert refused_request(b"GET http://r/ HTTP/1.1\r\nX: y\r\n\r\n") == 400
    assert one_request(b"GET / HTTP/1.0\r\nX: y\r\n\r\n")[0].get(b"host") is None


@pytest.mark.parametrize(
    "beginning", [b"GET /\x00", b"GET / HTTP/9.9\r\n", b"\x16\x03\x01", b"G\rx", b"\n", b"\rG"]
)
def test_what_is_wrong_is_refused_before_the_head_is_complete(beginning: bytes) -> None:
    (error,) = requests(beginning)
    assert isinstance(error, ProtocolError)


UPGRADES = [
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Connection: keep-alive, upgrade\r\nUpgrade: h2c\r\n",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    b"Upgrade: h2c\r\n",
]


@pytest.mark.parametrize("lines", UPGRADES)
def test_an_upgrade_is_ignored(lines: bytes) -> None:
    """RFC 9110, section 7.8: what follows is the request's body, not another protocol's bytes."""
    data = b"POST / HTTP/1.1\r\nHost: r\r\n%bX: y\r\nContent-Length: 2\r\n\r\nhi" % lines
    head, body = one_request(data)
    assert isinstance(head, RequestHead) and head.keep_alive
    assert body == b"hi"
    assert encode_request_head(head, b"engine", b"") == (
        b"POST / HTTP/1.1\r\nHost: engine\r\nX: y\r\nContent-Length: 2\r\n\r\n"
    )
