"""Creates a new step with its test: `make component NAME=verb_noun`."""

import re
import sys
from pathlib import Path

TEMPLATES = Path(__file__).parent
FILES = {
    "component.py.txt": "components/{name}/component.py",
    "task.py.txt": "components/{name}/task.py",
    "test_task.py.txt": "tests/components/{name}/test_task.py",
}
IMPORTS = re.compile(r"(?:^ *from qlora_pipelines\S* import .*\n)+", re.MULTILINE)
"""A block of imports, whose order depends on the step's name."""


def make(name: str, root: Path) -> list[Path]:
    """Writes the step's files below `root` and returns them.

    Args:
        name: verb_noun, as its function will be called.
        root: the repository.

    Raises:
        SystemExit: the name is not verb_noun, or the step exists.
    """
    if not re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", name):
        sys.exit(f"error: {name or 'NAME'} is not verb_noun; for example: make component NAME=filter_rows")
    if (root / "components" / name).exists():
        sys.exit(f"error: components/{name} exists")
    made = [root / target.format(name=name) for target in FILES.values()]
    for template, path in zip(FILES, made, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (TEMPLATES / template).read_text().replace("NAME", name)
        path.write_text(IMPORTS.sub(lambda block: "".join(sorted(re.findall(r".*\n", block[0]))), text))
    for folder in ("components", "tests/components"):
        (root / folder / name / "__init__.py").touch()
    _list_package(root / "pyproject.toml", f"qlora_pipelines.components.{name}")
    return made


def _list_package(pyproject: Path, package: str) -> None:
    """Adds a package to the sorted list of those that the wheel holds."""
    before, start, rest = pyproject.read_text().partition('packages = [\n    "qlora_pipelines.')
    listed, end, after = (f'    "qlora_pipelines.{rest}').partition("\n]\n")
    lines = sorted([*listed.strip("\n").split("\n"), f'    "{package}",'])
    pyproject.write_text(before + start.partition("\n")[0] + "\n" + "\n".join(lines) + end + after)


if __name__ == "__main__":
    for path in make(sys.argv[1] if len(sys.argv) > 1 else "", Path.cwd()):
        print(path.relative_to(Path.cwd()))
    print("Next: make golden test; then wire it in pipelines/finetune.py")
