"""What huggingface_hub raises becomes a sentence, and goes no further: its own words may hold a token or an address."""

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import TYPE_CHECKING

from hotfix.errors import HubError, PatchFormatError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

WEIGHTS = "pytorch_lora_weights.safetensors"  # the name that stock diffusers looks for
ASK = "ask who published it"


def browse(repo: str) -> str:
    """The hint for whoever asked for what is not there."""
    return f"hotfix list {repo.split('/')[0]}"


def offline() -> bool:
    """Whether the client was told not to ask."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


@contextmanager
def sentences(what: str) -> Iterator[None]:
    """Turn what the client raises into a sentence about a repository; the cause is cut off, for it may hold a token."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx

    again = "the same command again goes on where this one stopped"
    try:
        yield
    except errors.HfHubHTTPError as error:
        raise _refused(error, what) from None
    except errors.OfflineModeIsEnabled:
        raise HubError(f"{what}: the Hub was not asked, for HF_HUB_OFFLINE is set", hint="unset it") from None
    except errors.LocalEntryNotFoundError:
        hint = "unset HF_HUB_OFFLINE" if offline() else "check the connection; what was pulled once works without it"
        raise HubError(f"{what} is not in the cache, and the Hub is out of reach", hint=hint) from None
    except (httpx.HTTPError, httpx.InvalidURL, errors.XetDownloadError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else None  # an upload wraps what went wrong
        if isinstance(cause, errors.HfHubHTTPError):
            raise _refused(cause, what) from None
        raise HubError(
            f"{what}: the connection to the Hub broke ({type(cause or error).__name__})",
            hint=f"check the connection and HF_ENDPOINT; {again}",
        ) from None
    except errors.HFValidationError as error:
        raise HubError(f"{what} is no name of a repository: {error}", hint="such as acme/face-0042") from None
    except errors.SafetensorsParsingError:
        raise PatchFormatError(f"{what} does not begin as a safetensors file", hint=ASK) from None
    except OSError as error:
        words = error.strerror or "less came than was announced"
        raise HubError(f"{what}: it cannot be kept ({words})", hint=f"{again}; HF_HOME is where the cache is") from None
    except UnicodeEncodeError:
        raise HubError(f"{what}: this token cannot be sent", hint="check HF_TOKEN") from None
    except JSONDecodeError:
        raise HubError(f"{what}: the answer is not a Hub's", hint="check HF_ENDPOINT") from None
    except ValueError as error:  # such as a card that the Hub has looked at
        raise HubError(f"{what}: {_told(str(error))}", hint="where it speaks of the card, check --license") from None


def _refused(error: "HfHubHTTPError", what: str) -> HubError:
    """The sentence of an answer that says no."""
    from huggingface_hub import errors

    log_in = "hf auth login, or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"there is no {what}", hint=browse(what))
    if isinstance(error, errors.EntryNotFoundError):
        return HubError(f"{what} holds no {WEIGHTS}", wanted="a patch", hint=browse(what))
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(f"there is no {what}, or not for this token", hint=f"check the name; {log_in}")
    match error.response.status_code:
        case 401:
            return HubError(f"{what}: the Hub does not know this token, or there is none", hint=log_in)
        case 403:
            return HubError(f"{what}: the Hub does not allow that to this token", hint="a token that may write there")
        case 412:
            return HubError(
                f"somebody pushed to {what} in the same moment, and nothing was published",
                hint="look at what is there now, then the same command again",
            )
    words = f"{error.response.status_code} {_told(error.server_message or '')}".strip()
    return HubError(f"the Hub refused {what}: {words}", hint="try again later")


def _told(words: str) -> str:
    """The Hub's own words in one line, without the token that they may repeat."""
    from huggingface_hub import get_token

    return " ".join(words.split()).replace(get_token() or "\0", "…")
