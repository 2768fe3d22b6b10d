"""A caption, from the file that holds it."""

import json


def parse_caption(content: bytes, key: str | None) -> str:
    """The caption that a file holds, its white space made single blanks.

    Args:
        content: the file's: UTF-8 text, or a JSON object.
        key: which entry of the object is the caption; None where the whole text is.

    Raises:
        ValueError: where there is none; begins with "holds", to be put behind the file's name.
    """
    try:
        text = content.decode()
        caption = text if key is None else json.loads(text)[key]
        str(caption).encode()  # JSON may escape what is no text
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        expected = "UTF-8 text" if key is None else f"JSON with an entry {key!r} (caption_key says which)"
        raise ValueError(f"holds no caption ({type(error).__name__}: {error}); expected {expected}") from error
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError(f"holds no caption but {caption!r}; write one, or remove the image")
    return " ".join(caption.split())
