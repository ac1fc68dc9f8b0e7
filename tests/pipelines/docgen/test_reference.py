"""Files that are made from the code are those of today's code."""

from qlora_pipelines.pipelines.docgen import reference


def test_generated_files_are_fresh() -> None:
    stale = [str(path) for path, text in reference.files() if path.read_text() != text]
    assert not stale, f"run make golden: {stale}"
