"""Runs a function over all items batch by batch and keeps the results; it does not know what the function does."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ossicle.console_progress import ProgressCallback
from ossicle.errors import AudioError, DataError, OssicleError, RequestError
from ossicle.evaluation.journal import Journal
from ossicle.evaluation.suite import Item

T = TypeVar("T")


class StageRunner:
    """Calls a batched function over all items, reports progress, and names the item that an error is about.

    The result for an item must be JSON serializable.
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

    def run(
        self, stage: str, call: Callable[[list[T]], Sequence[Any]], inputs: Mapping[str, T]
    ) -> dict[str, Any]:
        """Returns the result of `call` for each input, by the item's id; results in the journal are not computed again.

        Raises:
            DataError: an item that `call` refuses
        """
        results = dict(self.journal.get_results(stage, list(inputs)))
        remaining = [item for item in inputs if item not in results]
        self.progress(stage, len(results), len(inputs))
        for start in range(0, len(remaining), self.batch_size):
            ids = remaining[start : start + self.batch_size]
            batch = [inputs[item] for item in ids]
            try:
                outputs = call(batch)
            except (AudioError, RequestError) as error:
                raise self._find_refused(call, ids, batch, error) from error
            assert len(outputs) == len(batch), f"{stage}: {len(outputs)} results for {len(batch)} items"
            new = dict(zip(ids, outputs, strict=True))
            self.journal.add(stage, new)
            results |= new
            self.progress(stage, len(results), len(inputs))
        return {item: results[item] for item in inputs}

    def _find_refused(
        self,
        call: Callable[[list[T]], Sequence[Any]],
        ids: Sequence[str],
        batch: Sequence[T],
        error: OssicleError,
    ) -> DataError:
        """Returns a batch's error as the error of the first item that is also refused by itself."""
        by_id = {item.id: item for item in self.items}
        for name, single in zip(ids, batch, strict=True):
            try:
                call([single])
            except (AudioError, RequestError) as own:
                return build_item_error(by_id[name], own)
        return build_item_error(by_id[ids[0]], error)


def build_item_error(item: Item, error: OssicleError) -> DataError:
    """Returns an error about one item that names the item."""
    is_named = not isinstance(item.audio, str | Path) or str(item.audio) in str(error)
    path = "" if is_named else f" ({item.audio})"
    return DataError(f"item {item.id!r}{path}: {error}; or remove the item from the suite")
