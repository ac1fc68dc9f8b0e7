import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store.prefetch import prefetch


def test_results_come_in_order_and_errors_where_they_belong() -> None:
    def work(item: int) -> int:
        if item == 7:
            raise InputError("seven")
        return item * item

    assert list(prefetch(work, range(5))) == [(n, n * n) for n in range(5)]
    seen = []
    with pytest.raises(InputError, match="seven"):
        for item, _ in prefetch(work, range(20)):
            seen.append(item)
    assert seen == list(range(7))
