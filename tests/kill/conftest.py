from tests.components.conftest import store, tiny_run
from tests.integration.conftest import s3_store

__all__ = ["s3_store", "store", "tiny_run"]
