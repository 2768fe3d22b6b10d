"""Where the files of a pretrained network lie: in a folder, or on the Hugging Face hub."""

import re
from collections.abc import Iterable
from pathlib import Path

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def pretrained_folder(path: str, names: Iterable[str], revision: str | None = None) -> Path:
    """The folder that holds a pretrained network's files, downloaded where ``path`` names it on the hub.

    Args:
        path: a folder, or a name on the Hugging Face hub.
        names: the files wanted, relative to the folder; of those the hub lacks there is none in the folder either.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: if there is no such folder, or the hub does not give the files.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    # "weights/clip" where there is a folder "weights" is a slip of the pen, not a name on the hub.
    if not HUB_NAME.fullmatch(path) or folder.parent.is_dir():
        raise ValueError(f"there is no folder {path}; give the folder of a downloaded network, or its name on the "
                         "Hugging Face hub, such as openai/clip-vit-large-patch14")  # fmt: skip
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=list(names)))
    except Exception as error:  # an unknown name, a licence not accepted, no network: each library has its own errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} is no folder here, and the Hugging Face hub does not give it ({reason}); check the name, "
            f"run `hf auth login` if it asks for a licence, or run `hf download {path} --local-dir FOLDER` where there "
            "is a network and give that folder"
        ) from error
