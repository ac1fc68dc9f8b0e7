"""The process that trains, or that starts one per GPU: `python -m … FOLDER PARENT`; supervisor.py starts it."""

import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.runtime import explain, quiet_libraries
from qlora_pipelines.components.train_qlora import launch

JOB, RESULT = "job.pickle", "result.pickle"
"""In the folder: what to do, and what came of it, which is an InputError where it failed."""


def main(folder: Path, parent: int) -> int:
    """Does the job; returns the exit status."""
    launch.end_with(parent)
    quiet_libraries()
    sys.path[:], job = pickle.loads((folder / JOB).read_bytes())
    work, processes, arguments = pickle.loads(job)
    result: Any
    try:
        result = launch.run(work, processes, *arguments)
    except KeyboardInterrupt:
        return 130
    except InputError as error:
        result = error
    except Exception as error:
        if line := explain(error):
            result = InputError(line)
        else:
            traceback.print_exc()
            line = traceback.format_exception_only(error)[0].split("\n")[0]
            result = TransientError(f"the training process failed: {line}")
    written = folder / f"{RESULT}.part"
    written.write_bytes(pickle.dumps(result))
    os.replace(written, folder / RESULT)  # whole or not there: this process may be killed at any moment
    return int(isinstance(result, InputError))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
