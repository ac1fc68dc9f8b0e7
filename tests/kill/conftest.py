from tests.components.conftest import store, tiny_run

__all__ = ["store", "tiny_run"]
