"""One import name: what the wheel holds, and that nothing is imported under a second name."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
TOPS = ("components", "pipelines")


def folders(top: str) -> list[Path]:
    """Every folder of the package with something in it to install."""
    found = [ROOT / top, *(ROOT / top).rglob("*")]
    return [path for path in found if path.is_dir() and any(item.is_file() for item in path.iterdir())]


def test_the_list_of_packages_is_that_of_the_folders() -> None:
    packages = {
        f"qlora_pipelines.{'.'.join(path.relative_to(ROOT).parts)}"
        for top in TOPS
        for path in folders(top)
        if path.name != "__pycache__"
    }
    assert SETTINGS["packages"] == sorted(packages)
    assert SETTINGS["package-dir"] == {f"qlora_pipelines.{top}": top for top in TOPS}


def test_no_module_is_imported_under_a_second_name() -> None:
    everything = f"""
import importlib, pkgutil, sys
for top in {TOPS}:
    package = importlib.import_module("qlora_pipelines." + top)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
files = {{}}
for name, module in list(sys.modules.items()):
    if getattr(module, "__file__", None) and name.split(".")[0] in ("qlora_pipelines", *{TOPS}):
        files.setdefault(module.__file__, []).append(name)
twice = [names for names in files.values() if len(names) > 1]
assert len(files) > 100 and not twice, twice
assert not set({TOPS}) & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", everything], cwd=ROOT, check=True)


def test_no_file_imports_by_the_name_of_a_folder() -> None:
    """In the repository's own folder `import components` would work, and give a second copy of each module."""
    imported = re.compile(rf"^\s*(from|import) ({'|'.join(TOPS)})\b", re.MULTILINE)
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.sh", "*.txt", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not [name for name in tracked if (ROOT / name).exists() and imported.search((ROOT / name).read_text())]


def test_tests_mirror_the_tree() -> None:
    """Each package with code has a folder of tests of the same path, and each such folder has a package."""
    for top in TOPS:
        for path in folders(top):
            if any(item.suffix == ".py" and item.stat().st_size for item in path.iterdir()):
                tests = ROOT / "tests" / path.relative_to(ROOT)
                assert list(tests.glob("test_*.py")), f"{tests.relative_to(ROOT)} has no test"
        for path in (ROOT / "tests" / top).rglob("test_*.py"):
            assert (ROOT / path.parent.relative_to(ROOT / "tests")).is_dir(), path
