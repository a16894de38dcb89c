"""Whether timm's weights can be had, asked once: the hub's client tries a server that cannot be reached for 46 s."""

import timm
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

from dino_oct.errors import InputError

_FILES = ("model.safetensors", "pytorch_model.bin")  # timm's, in its order
# Of requests, httpx and its successors, which versions of the client are built on.
_NO_CONNECTION = {"ConnectError", "ConnectTimeout", "ConnectionError", "OfflineModeIsEnabled"}
_SECONDS = 10


def check_reachable(name: str) -> None:
    """Raise InputError where weights of a timm model are neither in the hub's cache nor can the hub be reached.

    Any other trouble is left to timm.
    """
    config = timm.get_pretrained_cfg(name)
    repository = config.hf_hub_id if config else None
    if not repository or config.file or any(isinstance(try_to_load_from_cache(repository, f), str) for f in _FILES):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, _FILES[0]), timeout=_SECONDS)
    except Exception as error:
        if type(error).__name__ in _NO_CONNECTION:
            reason = " ".join(str(error).split())[:100]
            raise InputError(
                f"timm:{name}: weights could not be had: no connection to {hf_hub_url(repository, '')} ({reason}); "
                f"give a downloaded file as timm:{name}@FILE, or random:{name}"
            ) from None
