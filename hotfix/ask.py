"""Ask: one HTTP request to a server. It follows no redirect and asks no proxy: a token goes to whom it is meant for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from hotfix.errors import HotfixError, ServerError

SECONDS = 600  # a server may load a patch of 1 GiB from a slow disk
MAKE_TOKEN = "python -c 'import secrets; print(secrets.token_urlsafe())'"


@dataclass(frozen=True)
class Answer:
    """What a server said. The names of headers are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body. Raises ServerError where it is none."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ServerError("the server answers with something that is not JSON", hint="check the address") from error


def ask(
    server: str, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """What a server answers, whatever the status.

    Raises:
        HotfixError: not an address, or a header that cannot be sent. It is not shown.
        ServerError: it cannot be reached.
    """
    connection, prefix = _connection(server)
    try:
        connection.request(method, prefix + path, body, dict(headers or {}))
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read())
    except (OSError, HTTPException) as error:
        hint = "is it running, and is this its address?"
        raise ServerError(f"{server} does not answer ({error})", hint=hint) from error
    except ValueError:  # of the client, before anything is sent; its words hold the header, and that may be a token
        wanted = "an address, and headers, as HTTP has them"
        raise HotfixError(f"{server} cannot be asked", wanted=wanted, hint="such as http://127.0.0.1:8000") from None
    finally:
        connection.close()


def _connection(server: str) -> tuple[HTTPConnection, str]:
    try:
        url = urlsplit(server)
        kind = {"http": HTTPConnection, "https": HTTPSConnection}[url.scheme]
        if not url.hostname or "@" in url.netloc or url.query:
            raise ValueError
        return kind(url.hostname, url.port, timeout=SECONDS), url.path.rstrip("/")
    except (KeyError, ValueError):
        address = server.rpartition("@")[2]  # without a password
        raise HotfixError(f"{address} is no server", hint="such as http://127.0.0.1:8000") from None


def asked(server: str, method: str, path: str, value: Any = None) -> Any:
    """JSON for JSON. Raises ServerError for every answer that is not 200."""
    body = None if value is None else json.dumps(value).encode()
    answer = ask(server, method, path, body, {"Content-Type": "application/json"})
    if answer.status != 200:
        raise refusal(server, answer)
    return answer.json()


def refusal(server: str, answer: Answer) -> ServerError:
    """What the server said against it: hotfix's sentences, or FastAPI's detail."""
    try:
        said = answer.json()
        words, hint = said.get("found") or said.get("detail"), said.get("hint")
    except (ServerError, AttributeError):
        words, hint = None, None
    return ServerError(f"{server} refuses ({answer.status}): {words or 'no reason given'}", hint=hint or "see its log")


def as_sent(token: str) -> str:
    """A token as the client sends it and the server compares it: without the newline that a mounted secret ends with.

    Raises:
        HotfixError: no header carries it alike from every client. It is not shown.
    """
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        raise HotfixError("the token has letters that cannot be sent", wanted="printable ASCII", hint=MAKE_TOKEN)
    return token


def loopback(name: str) -> bool:
    """Whether a host is this machine."""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
