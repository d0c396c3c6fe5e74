"""Serving: middleware for a server of one diffusers pipeline, in any ASGI framework.

    app = HotfixMiddleware(app, pipe, token=os.environ["HOTFIX_TOKEN"], patches=Path("patches"))

GET /hotfix/status, GET /hotfix/metrics, PUT /hotfix/stack, and on every response X-Hotfix-Stack: the stacks that its
pictures were made under, from the generations themselves. docs/serving.md says what a change does to running requests.
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hotfix import metrics
from hotfix.ask import MAKE_TOKEN, as_sent, loopback
from hotfix.errors import HotfixError, LedgerError, SaveError, printable
from hotfix.guard import noted, snapshot_id
from hotfix.live import NOTHING, Live, Refused
from hotfix.stack import applied

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Answer = tuple[int, dict[str, str], bytes]

HEADER = b"x-hotfix-stack"
MAX_LOCK = 1 << 20  # bytes
SHORTEST_TOKEN = 16  # characters
TYPES = ("application/toml", "text/plain")
log = logging.getLogger("hotfix.serving")


class HotfixMiddleware:
    """Puts the stack of a folder on a pipeline, changes it between pictures, and names it on every response.

    Websockets are passed on as they are.
    """

    def __init__(self, app: App, pipe: Any, *, token: str, patches: str | Path, allow_remote: bool = False) -> None:
        """Put on what `patches/hotfix.lock` lists, if there is one.

        Args:
            app: any ASGI application; it calls `pipe`, or copies of it, in threads that get a copy of the context.
            pipe: a diffusers pipeline.
            token: of at least 16 characters, printable ASCII; whoever has it may change the stack. A newline at its
                end, as a mounted secret has, is none of it.
            patches: the folder of the patches, as NAME-VERSION.safetensors. Its lock is kept up to date.
            allow_remote: answer /hotfix/… also to other machines, and behind a proxy. Then let TLS end before it.

        Raises:
            HotfixError: a token that is short or cannot be sent, no prometheus_client, or a lock that cannot be put
                on: do not serve without it.
        """
        if len(token := as_sent(token)) < SHORTEST_TOKEN:
            raise HotfixError(
                f"the token has {len(token)} characters",
                wanted=f"at least {SHORTEST_TOKEN}",
                hint=MAKE_TOKEN,
            )
        self.app, self.token, self.allow_remote = app, token.encode(), allow_remote
        self.metrics = metrics.metrics()
        self.live = Live(pipe, Path(patches))
        self.threads = ThreadPoolExecutor(2, "hotfix")  # of its own: pictures may take all of asyncio's
        self.routes = {
            ("GET", "/hotfix/status"): self._status,
            ("GET", "/hotfix/metrics"): self._metrics,
            ("PUT", "/hotfix/stack"): self._change,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is under /hotfix/, and pass everything else on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with noted() as ids:

            async def named(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    message = {**message, "headers": self._named(list(message.get("headers", ())), ids)}
                await send(message)

            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path.startswith("/hotfix/"):
                await self._answer(path, scope, receive, named)
            else:
                await self.app(scope, receive, named)

    def _named(self, headers: list[tuple[bytes, bytes]], ids: list[str]) -> list[tuple[bytes, bytes]]:
        """With the stacks of a response; those that an application which batches requests named itself stay."""
        given = [value.decode("latin-1") for name, value in headers if name.lower() == HEADER]
        stack = ", ".join(given or dict.fromkeys(id_ or NOTHING for id_ in ids)) or NOTHING
        self.metrics.responses.labels(stack).inc()
        return headers if given else [*headers, (HEADER, stack.encode("latin-1"))]

    async def _answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        change = (scope["method"], path) == ("PUT", "/hotfix/stack")
        try:
            _from_here(scope, self.allow_remote)
            route = self.routes.get((scope["method"], path))
            if route is None:
                status = 405 if path in {known for _, known in self.routes} else 404
                raise Refused(status, f"no {scope['method']} {path}", hint="GET /hotfix/status, PUT /hotfix/stack")
            status, headers, body = await route(scope, receive)
        except Exception as error:
            status, headers, body = self._problem(error)
            if change:
                self.metrics.changes.labels("refused").inc()
                words = _line(f"stack unchanged for {_client(scope)} ({status}): {error or type(error).__name__}")
                (log.warning if isinstance(error, HotfixError) else log.exception)(words)
        pairs = {
            "content-type": "application/json",
            "cache-control": "no-store",
            **headers,
            "content-length": len(body),
        }
        raw = [(name.lower().encode(), str(value).encode()) for name, value in pairs.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)

    async def _status(self, scope: Scope, receive: Receive) -> Answer:
        return await self._in_thread(self._state)

    def _state(self) -> Answer:
        etag, order = self.live.etag, [patch.id for patch in self.live.stack.patches]
        on = [asdict(one) for one in applied(self.live.pipe)]  # component by component
        on.sort(key=lambda one: order.index(one["id"]) if one["id"] in order else len(order))
        stack = snapshot_id(self.live.pipe) or NOTHING
        return 200, {"ETag": etag}, json.dumps({"stack": stack, "patches": on}).encode()

    async def _metrics(self, scope: Scope, receive: Receive) -> Answer:
        on = await self._in_thread(applied, self.live.pipe)
        return 200, {"content-type": metrics.TYPE}, metrics.text(self.metrics, on)

    async def _change(self, scope: Scope, receive: Receive) -> Answer:
        headers = _headers(scope)
        given = headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, b"Bearer " + self.token):
            hint = "send Authorization: Bearer TOKEN"
            raise Refused(401, "no token, or not the one that this server was started with", hint=hint)
        if headers.get("content-type", "").split(";")[0].strip().lower() not in TYPES:
            raise Refused(
                415, "a body of another type", wanted=" or ".join(TYPES), hint="send the text of a hotfix.lock"
            )
        if "if-match" not in headers:
            hint = "read /hotfix/status and send its ETag as If-Match"
            raise Refused(428, "the request does not say which stack it is to change", hint=hint)
        text = await _body(receive)
        return await self._in_thread(self._changed, text, headers["if-match"], _client(scope))

    def _changed(self, text: bytes, etag: str, client: str) -> Answer:
        started = time.perf_counter()
        new = self.live.change(text, etag)
        seconds = time.perf_counter() - started
        self.metrics.changes.labels("ok" if new else "same").inc()
        if new:
            self.metrics.seconds.observe(seconds)
        stack = ", ".join(f"{patch.name} {patch.version}" for patch in self.live.stack.patches) or NOTHING
        log.info(_line(f"{'stack changed' if new else 'same stack'} for {client} in {seconds:.2f} s: {stack}"))
        return self._state()

    def _problem(self, error: Exception) -> Answer:
        ours = not isinstance(error, HotfixError) or isinstance(error, SaveError | LedgerError)
        status = 500 if ours else getattr(error, "status", 422)
        if not isinstance(error, HotfixError):
            error = HotfixError(f"{type(error).__name__} on the server", hint="the previous stack is on; see its log")
        headers = {401: {"WWW-Authenticate": "Bearer"}, 413: {"Connection": "close"}}.get(status, {})
        words = {"found": error.found, "wanted": error.wanted, "hint": error.hint}
        return status, headers, json.dumps(words).replace(f"{self.live.folder}/", "").encode()


def _headers(scope: Scope) -> dict[str, str]:
    """Those that were sent once: of two tokens or two conditions neither is taken."""
    pairs = [(name.lower().decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    names = [name for name, _ in pairs]
    return {name: value for name, value in pairs if names.count(name) == 1}


def _from_here(scope: Scope, allow_remote: bool) -> None:
    """Refuse other machines, whatever came through a proxy, and pages in a browser, under whichever name."""
    if allow_remote:
        return
    headers, sent = _headers(scope), {name.lower() for name, _ in scope["headers"]}
    far = sent & {b"origin", b"forwarded", b"x-forwarded-for", b"x-real-ip"}
    if far or not loopback(_client(scope)) or not loopback(_name(headers.get("host", ""))):
        hint = "ask on the machine itself, or start the server with allow_remote=True behind TLS"
        raise Refused(403, "the request does not come from this machine", hint=hint)


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # such as half of the brackets of an IPv6 address
        return ""


def _client(scope: Scope) -> str:
    return (scope.get("client") or ("unknown",))[0]


async def _body(receive: Receive) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the request ended before its body did", hint="send it again")
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > MAX_LOCK:
            raise Refused(413, "more than 1 MB", wanted="a lock", hint="patches go into the server's folder")
    return b"".join(parts)


def _line(words: str) -> str:
    """One line, and not a long one, whatever a lock holds."""
    return printable(words)[:500]
