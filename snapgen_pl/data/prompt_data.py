"""The LightningDataModule of prompts alone, for drawing from networks whose training images are not at hand."""

from pathlib import Path

from snapgen_pl.at_least import check_at_least
from snapgen_pl.data.conditions import Prompts
from snapgen_pl.data.request_data import RequestData
from snapgen_pl.data.requests import Requests
from snapgen_pl.digest import values_digest
from snapgen_pl.metrics.draws import in_order
from snapgen_pl.pictures import Layout, read_prompts


class PromptData(RequestData):
    """Requests for images of prompts: all of them once, in the order of the file, then all of them again.

    Args:
        prompts: a file or folder of them; what of depends on the layout.
        layout: plain takes a prompt a line; geneval takes GenEval's evaluation_metadata.jsonl, and dpg the folder of
            DPG-Bench's prompts.
        images: of each prompt.
        batch_size: images that a process draws at once where it predicts.

    Attributes:
        conditions: the prompts.
        fingerprint: SHA-256 over the prompts, in their order.

    Raises:
        ValueError: for values out of range, and where there are no prompts.
    """

    classes: tuple[str, ...] = ()  # texts are no classes

    def __init__(self, prompts: Path, layout: Layout = "plain", images: int = 4, batch_size: int = 16) -> None:
        super().__init__()
        check_at_least(1, images=images, batch_size=batch_size)
        texts = [prompt.text for prompt in read_prompts(prompts, layout)]
        self.images, self.batch_size = images, batch_size
        self.conditions = Prompts(texts)
        self.samples = len(texts) * images
        self.fingerprint = values_digest({"prompts": texts})

    def requests(self, count: int) -> Requests:
        """The first requests, ``count`` of them."""
        return in_order(self.conditions, count)
