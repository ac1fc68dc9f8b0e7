"""A step's outputs kept under a key: finished work is copied out again, and not done twice.

Training and merging hand on an address, so they find their work in place. The outputs of preparation and evaluation are
files that the pipeline passes on, at paths that differ from run to run: they are kept in the store as an attempt, a
file or a folder for each output, and copied to the paths of the run that asks for them.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import attempts, copies, local_files, storage


def restore(key_uri: str, outputs: dict[str, str], returned: Collection[str]) -> dict[str, Any] | None:
    """Copies finished work under a key to a step's outputs, and returns its results; None: none is there and whole.

    Every file is compared with the manifest as it is copied. Damaged work is named in the log, leaves nothing at the
    outputs, and is passed over.

    Args:
        key_uri: where the key's attempts are.
        outputs: where each output goes, by name: the path of a file or of a folder.
        returned: names of the step's results.

    Raises:
        TransientError: the store does not answer, or the disk is full.
    """
    for name in sorted(storage.sizes(key_uri)):
        attempt, _, path = name.partition("/")
        if path != attempts.MANIFEST:
            continue
        copied: list[Path] = []
        try:
            work = attempts.read(storage.join(key_uri, attempt))
            if differing := set(work.info) ^ set(returned):
                raise InputError(f"{work.uri} has not the results of this step: {', '.join(sorted(differing))}")
            for entry, target in _targets(work, outputs):
                copies.copy(storage.join(work.uri, entry.path), entry, target)
                copied.append(target)
        except TransientError:
            raise
        except InputError as error:
            log(f"finished work is damaged and is done again: {error}", "warning")
            for target in copied:
                target.unlink()
        else:
            log(f"finished already: {work.uri}")
            attempts.clear(key_uri)
            return work.info
    return None


def keep(key_uri: str, outputs: dict[str, str], info: dict[str, Any]) -> None:
    """Keeps a step's outputs under a key. Where the store fails, the log says so: the work itself is done.

    Args:
        key_uri: where the key's attempts are.
        outputs: path of each output, a file or a folder, by name.
        info: what the step returned, JSON.
    """
    try:
        with attempts.attempt(key_uri) as attempt:
            for name, output in outputs.items():
                for path in _files(Path(output)):
                    inside = name if path == Path(output) else f"{name}/{path.relative_to(output).as_posix()}"
                    with path.open("rb") as source, attempt.open(inside) as kept:
                        while data := source.read(storage.PART):
                            kept.write(data)
            attempt.commit(info)
    except InputError as error:
        log(f"not kept, so the same run does it again: {error}", "warning")


def _targets(work: attempts.Finished, outputs: dict[str, str]) -> Iterator[tuple[storage.Entry, Path]]:
    if differing := {name.partition("/")[0] for name in work.files} ^ outputs.keys():
        raise InputError(f"{work.uri} has not the outputs of this step: {', '.join(sorted(differing))}")
    for entry in copies.entries(work):
        output, _, inside = entry.path.partition("/")
        target = Path(outputs[output])
        yield entry, local_files.join_local(target, inside) if inside else target


def _files(output: Path) -> list[Path]:
    return sorted(path for path in output.rglob("*") if path.is_file()) if output.is_dir() else [output]
