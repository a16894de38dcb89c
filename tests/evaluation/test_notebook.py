"""The notebook of the documentation runs as it is, and what is stored in it is small and shows no error."""

import json

import pytest
from conftest import REPOSITORY, environment

NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"


def outputs_of(notebook: dict) -> list[dict]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def test_the_notebook_runs(tmp_path, cache_root):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    env = environment(cache_root) | {"PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"}
    client.execute(env=env)  # raises where a cell does
    outputs = outputs_of(notebook)
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert not [output for output in outputs if "\r" in str(output.get("text"))]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_what_is_stored_is_small_whole_and_of_no_machine():
    notebook = json.loads(NOTEBOOK.read_text())
    assert NOTEBOOK.stat().st_size < 300_000
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for output in outputs_of(notebook)}
    assert kinds == {"stream", "execute_result", "display_data"}
    text = json.dumps([output.get("text") for output in outputs_of(notebook)])
    assert "/home/" not in text
    assert "/tmp/" not in text
