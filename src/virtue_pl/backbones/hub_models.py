"""Names of the Hugging Face hub: whether they can be loaded is known within seconds, before anything is loaded."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from virtue_pl.types import VirtueError, suggest_path

PATIENCE = 5.0
"""Seconds in which the hub must answer."""


def check_available(name: str, option: str) -> None:
    """Return where a model can be loaded by its name; a folder always can be.

    Says on stderr what is about to be fetched. Where the hub does not answer, its cache serves, without further
    attempts to reach the hub. Raises VirtueError, which names `option`, for a model that is in neither.
    """
    if Path(name).exists() or Path(name).is_absolute() or name.startswith("."):
        return
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        raise VirtueError(
            f"{option}: {name} is no folder here, and no name of the hub (OWNER/NAME): name a folder that is there"
            f"{suggest_path(name)}"
        ) from None
    problem = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else hub_problem()
    if problem and not cached:
        raise VirtueError(
            f"{option}: {name} is no folder here, and cannot be fetched from {constants.ENDPOINT} ({problem}): name a"
            " local folder with the model, or fetch it where there is a network; with HF_HUB_OFFLINE=1 only the cache"
            f" ({constants.HF_HUB_CACHE}) is looked at{suggest_path(name)}"
        )
    if problem:
        constants.HF_HUB_OFFLINE = True  # what is in the cache, without a minute of attempts for each file
    elif not cached:
        rank_zero_info(f"fetching {name} from {constants.ENDPOINT}, for {option}")


@cache
def hub_problem() -> str:
    """Return why the hub does not answer, in a few words; "" where it does. It is asked once a process."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    session = get_session()
    library = import_module(type(session).__module__.partition(".")[0])
    failures = [getattr(library, name) for name in ("HTTPError", "RequestException") if hasattr(library, name)]
    try:
        session.head(constants.ENDPOINT, timeout=PATIENCE)
    except (OSError, *failures) as error:
        return " ".join(str(error).split())[:120] or type(error).__name__
    return ""
