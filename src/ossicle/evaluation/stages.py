"""Asks for all items, batch by batch, and keeps what is found; it knows nothing of what is asked."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ossicle.console_progress import ProgressCallback
from ossicle.errors import AudioError, DataError, OssicleError, RequestError
from ossicle.evaluation.journal import Journal
from ossicle.evaluation.suite import Item

Message = dict[str, Any]
_In = TypeVar("_In")


class StageRunner:
    """Calls a batched function over all items, with progress, and names the item that is refused.

    What a stage finds for an item has to be such that JSON can hold it.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        batch_size: int,
        progress: ProgressCallback | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.items, self.batch_size = tuple(items), batch_size
        self.progress = progress or (lambda stage, n_done, n: None)
        self.journal = journal or Journal(None, "")

    def __call__(
        self, stage: str, call: Callable[[list[_In]], Sequence[Any]], inputs: Mapping[str, _In]
    ) -> dict[str, Any]:
        """What `call` makes of each input, by the item's id; of a batch of them at a time.

        Raises:
            DataError: an item that is refused
        """
        found = dict(self.journal.results(stage, list(inputs)))
        left = [item for item in inputs if item not in found]
        self.progress(stage, len(found), len(inputs))
        for start in range(0, len(left), self.batch_size):
            ids = left[start : start + self.batch_size]
            batch = [inputs[item] for item in ids]
            try:
                made = call(batch)
            except (AudioError, RequestError) as error:
                raise self._first_refused(call, ids, batch, error) from error
            assert len(made) == len(batch), f"{stage}: {len(made)} results for {len(batch)} items"
            new = dict(zip(ids, made, strict=True))
            self.journal.add(stage, new)
            found |= new
            self.progress(stage, len(found), len(inputs))
        return {item: found[item] for item in inputs}

    def _first_refused(
        self,
        call: Callable[[list[_In]], Sequence[Any]],
        ids: Sequence[str],
        batch: Sequence[_In],
        error: OssicleError,
    ) -> DataError:
        """The error of a batch as that of the item in it that is refused alone too."""
        by_id = {item.id: item for item in self.items}
        for name, single in zip(ids, batch, strict=True):
            try:
                call([single])
            except (AudioError, RequestError) as own:
                return build_item_error(by_id[name], own)
        return build_item_error(by_id[ids[0]], error)


def build_item_error(item: Item, error: OssicleError) -> DataError:
    """An error about one item, named."""
    is_named = not isinstance(item.audio, str | Path) or str(item.audio) in str(error)
    where = "" if is_named else f" ({item.audio})"
    return DataError(f"item {item.id!r}{where}: {error}; or take the item out of the suite")
