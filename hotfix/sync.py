"""Sync: what a running server has on against what a lock lists, and the one made like the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from hotfix import lock, relations, sglang, vllm_omni
from hotfix.ask import as_sent, ask, asked, loopback, refusal
from hotfix.errors import HotfixError, ServerError, StackError, joined

Kind = Literal["hotfix", "sglang", "vllm-omni"]
KINDS = "hotfix knows servers with its own middleware, SGLang-Diffusion and vLLM-Omni"
Listed = tuple[str, str, str]  # name, version, id; behind that, how it is on where that is not as it should be


@dataclass(frozen=True)
class Plan:
    """What a server has on, and what it is to have on, in order."""

    server: str
    kind: Kind
    on: tuple[Listed, ...]
    wanted: tuple[Listed, ...]

    @property
    def done(self) -> bool:
        """Whether there is nothing to do."""
        return _short(self.on) == _short(self.wanted)

    @property
    def changes(self) -> list[dict[str, str]]:
        """What becomes of every patch: on, off or stays. Those that go come first."""
        was, will = _short(self.on), _short(self.wanted)
        gone = [("off", *one) for one, short in zip(self.on, was, strict=True) if short not in will]
        there = [("stays" if short in was else "on", *one) for one, short in zip(self.wanted, will, strict=True)]
        return [dict(zip(("change", "name", "version", "id"), row, strict=True)) for row in gone + there]


def _short(listed: Sequence[Listed]) -> list[tuple[str, ...]]:
    """With as much of an id as every kind of server knows, and what stands behind it."""
    return [(name, version, id_[:19], id_.partition(" ")[2]) for name, version, id_ in listed]


@dataclass(frozen=True)
class Way:
    """How a server is reached, besides its address."""

    folder: Path | None = None  # of patch files, as an SGLang server sees it; for vLLM-Omni, where to write the adapter
    token: str = field(default="", repr=False)


def plan(server: str, lock_file: Path, way: Way) -> Plan:
    """Compare; change nothing.

    Raises:
        StackError: no lock, or a broken one.
        ServerError: no answer, or from a server of a kind that hotfix does not know.
    """
    wanted = tuple((row.name, row.version, row.id) for row in lock.rows(lock_file))
    found = kind_of(server)
    return Plan(server, found, _on(found, server, _folder(lock_file, way)), wanted)


def carry_out(made: Plan, lock_file: Path, way: Way) -> dict[str, Any]:
    """Do it, and compare again.

    Returns:
        What every request must carry from now on: empty, except for vLLM-Omni.

    Raises:
        HotfixError: the lock and its patches cannot be used, or the server refused; what was on before is on.
    """
    fields: dict[str, Any] = {}
    folder = _folder(lock_file, way)
    if made.kind == "hotfix":
        _put(made.server, lock_file, way.token)
    else:
        patches = lock.load(lock_file)
        if found := relations.problems([patch.manifest for patch in patches]):
            raise joined(found, StackError)
        if made.kind == "sglang":
            sglang.put(made.server, patches, way.folder)
        else:
            fields = vllm_omni.put(folder, patches)
    now = Plan(made.server, made.kind, _on(made.kind, made.server, folder), made.wanted)
    if not now.done:
        hint = "somebody else changes it too; sync again"
        raise ServerError(f"{made.server} has something else on already", wanted=str(lock_file), hint=hint)
    return fields


def kind_of(server: str) -> Kind:
    """What a server is, by which addresses it knows."""
    if ask(server, "GET", "/hotfix/status").status != 404:
        return "hotfix"
    if ask(server, "GET", "/v1/list_loras").status != 404:
        return "sglang"
    if ask(server, "GET", "/v1/omni/sleep").status == 405:  # it is there, and wants a POST
        return "vllm-omni"
    raise ServerError(f"{server} is of no known kind", hint=KINDS)


def _on(kind: Kind, server: str, folder: Path) -> tuple[Listed, ...]:
    match kind:
        case "hotfix":
            said = asked(server, "GET", "/hotfix/status")
            try:
                rows = [(one["name"], one["version"], one["id"], one["state"]) for one in said["patches"]]
            except (KeyError, TypeError) as error:
                raise ServerError(f"{server} is of no known kind", hint=KINDS) from error
            return tuple(
                (name, version, id_ if state == "on" else f"{id_} {state}") for name, version, id_, state in rows
            )
        case "sglang":
            return tuple(sglang.on(server))
        case "vllm-omni":
            return tuple(vllm_omni.on(folder))


def _folder(lock_file: Path, way: Way) -> Path:
    return way.folder or lock_file.parent / "vllm-omni"


def _put(server: str, lock_file: Path, token: str) -> None:
    """The server checks everything itself, and goes back by itself."""
    if not (token := as_sent(token)):
        hint = "set HOTFIX_TOKEN to the token that the server was started with"
        raise HotfixError("there is no token", wanted="one in the environment", hint=hint)
    url = urlsplit(server)
    if url.scheme != "https" and not loopback(url.hostname or ""):
        raise HotfixError("the token would be readable on its way", wanted="https://…", hint="use https, or a tunnel")
    try:
        text = lock_file.read_bytes()
    except OSError as error:
        raise StackError(f"cannot read {lock_file}: {error.strerror}", hint="hotfix add PATCH") from error
    state = ask(server, "GET", "/hotfix/status")
    if state.status != 200:
        raise refusal(server, state)
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/toml",
        "If-Match": state.headers.get("etag", ""),
    }
    answer = ask(server, "PUT", "/hotfix/stack", text, headers)
    if answer.status != 200:
        raise refusal(server, answer)
