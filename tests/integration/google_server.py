"""Google's XML API by moto's S3: `python -m tests.integration.google_server PORT`.

The two differ in the names of headers, and in how a write under a condition is asked for
(https://cloud.google.com/storage/docs/interoperability).
"""

import sys
from collections.abc import Callable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

Application = Callable[[dict[str, Any], Any], Any]


def translated(s3: Application) -> Application:
    """An application that speaks Google's XML API, of one that speaks S3."""

    def answer(environ: dict[str, Any], start: Any) -> Any:
        for name in [name for name in environ if name.startswith("HTTP_X_GOOG_")]:
            environ[name.replace("GOOG", "AMZ")] = environ.pop(name)
        if environ.pop("HTTP_X_AMZ_IF_GENERATION_MATCH", "") == "0":  # there is none yet
            environ["HTTP_IF_NONE_MATCH"] = "*"
        return s3(environ, start)

    return answer


if __name__ == "__main__":
    run_simple(
        "127.0.0.1", int(sys.argv[1]), translated(DomainDispatcherApplication(create_backend_app)), threaded=True
    )
